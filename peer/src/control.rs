//! The peer's control socket: `darter status` and `darter get`.

use std::{fs, future::ready, os::unix::fs::PermissionsExt, path::Path, pin::Pin, time::Duration};

use bytes::Bytes;
use darter_proto::{
    MAX_MESSAGE_LEN,
    peer::{
        Bytes as ByteCounts, ContentInfo, DamagedLeaf, EvictReply, EvictRequest, GetReply, GetRequest,
        LimitsReply, LimitsRequest, RegistryReply, RegistryRequest, RemoveReply, RemoveRequest, StatusReply,
        StatusRequest, StoreStatusReply, StoreStatusRequest, Task, VerifyStoreReply, VerifyStoreRequest,
        get_reply,
        peer_server::{Peer as PeerService, PeerServer},
    },
};
use futures_util::{Stream, StreamExt, stream};
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, transport::Server};
use url::Url;

use crate::{
    Bucket, Class, Content, Digest, LimitsConfig, Peer, TaskError, TaskId, Want,
    content::blocking,
    origin::Source,
    peer::StartError,
    store::{Entry, StoreError},
    wire,
};

/// How long running requests may hold up the shutdown.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Binds the control socket, for root only; a stale one is replaced, a live one is an error.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, StartError> {
    let failed = |source| StartError::Socket { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).map_err(failed)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(failed(std::io::Error::other("another peer is running on this socket")));
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// Serves the control socket until shutdown, and removes it.
pub(crate) async fn serve(listener: UnixListener, peer: Peer) {
    let (shutdown, path) = (peer.inner.shutdown.clone(), peer.inner.config.control_socket.clone());
    let service = PeerServer::new(Control { peer }).max_decoding_message_size(MAX_MESSAGE_LEN);
    let incoming = UnixListenerStream::new(listener).map(|stream: std::io::Result<UnixStream>| stream);
    let served = Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, async {
        shutdown.cancelled().await;
    });
    let drained = async {
        shutdown.cancelled().await;
        sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            tracing::error!(%error, "the control socket failed");
        },
        () = drained => tracing::warn!("requests on the control socket were still running at the shutdown"),
    }
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, "the control socket stays behind");
    }
}

struct Control {
    peer: Peer,
}

#[tonic::async_trait]
impl PeerService for Control {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        Ok(Response::new(self.peer.status()))
    }

    type GetStream = Pin<Box<dyn Stream<Item = Result<GetReply, Status>> + Send>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let request = request.into_inner();
        let content = self.peer.open(want(&self.peer, &request).await?).await.map_err(to_status)?;
        let length = content.geometry().await.map_err(to_status)?.len();
        let end = request.end.map_or(length, |end| end.min(length));
        if request.offset > end {
            return Err(Status::out_of_range(format!(
                "of the content's {length} bytes none is at {} and before {end}",
                request.offset
            )));
        }
        let info = ContentInfo { length, task: content.id().to_string() };
        let data = content.read(request.offset..end).chain(whole(content));
        let first = stream::once(async { Ok(GetReply { message: Some(get_reply::Message::Info(info)) }) });
        let rest = data.map(|bytes| match bytes {
            Ok(bytes) => Ok(GetReply { message: Some(get_reply::Message::Data(bytes)) }),
            Err(error) => Err(to_status(error)),
        });
        Ok(Response::new(Box::pin(first.chain(rest))))
    }

    async fn registry(&self, request: Request<RegistryRequest>) -> Result<Response<RegistryReply>, Status> {
        let base = self.peer.registries().base(&request.into_inner().name);
        let base = base.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(RegistryReply { base: base.as_str().trim_end_matches('/').to_owned() }))
    }

    async fn store_status(
        &self,
        _: Request<StoreStatusRequest>,
    ) -> Result<Response<StoreStatusReply>, Status> {
        Ok(Response::new(self.peer.store_status()))
    }

    async fn verify_store(
        &self,
        request: Request<VerifyStoreRequest>,
    ) -> Result<Response<VerifyStoreReply>, Status> {
        let found = self.peer.verify_store(&Bucket::new(request.into_inner().rate)).await;
        let damaged = found.damaged.into_iter();
        let damaged = damaged.map(|(task, leaf)| DamagedLeaf { task: task.to_string(), leaf });
        let (leaves, bytes) = (found.leaves, found.bytes);
        Ok(Response::new(VerifyStoreReply { leaves, bytes, damaged: damaged.collect() }))
    }

    async fn evict(&self, request: Request<EvictRequest>) -> Result<Response<EvictReply>, Status> {
        let (store, bytes) = (self.peer.store().clone(), request.into_inner().bytes);
        let evicted = blocking(move || Ok::<_, TaskError>(store.evict(bytes))).await;
        Ok(Response::new(EvictReply { bytes: evicted.map_err(to_status)? }))
    }

    async fn remove(&self, request: Request<RemoveRequest>) -> Result<Response<RemoveReply>, Status> {
        let id = TaskId::parse(&request.into_inner().id);
        let id = id.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let store = self.peer.store().clone();
        let removed = blocking(move || {
            let blob = id.digest().filter(|blob| TaskId::of_digest(blob) == id);
            let Some(blob) = blob else { return store.remove(&id) };
            // Whichever registries it came from.
            let entries = store.entries().into_iter();
            let same = entries.filter(|entry| entry.id().digest().as_ref() == Some(&blob));
            same.map(|entry| store.remove(entry.id()))
                .try_fold(store.remove_layer(&blob)?, |sum, bytes| Ok::<_, StoreError>(sum + bytes?))
        });
        Ok(Response::new(RemoveReply { bytes: removed.await.map_err(to_status)? }))
    }

    async fn limits(&self, request: Request<LimitsRequest>) -> Result<Response<LimitsReply>, Status> {
        let request = request.into_inner();
        let now = self.peer.change_limits(|own| {
            own.download = request.download.unwrap_or(own.download);
            own.upload = request.upload.unwrap_or(own.upload);
            own.origin = request.origin.unwrap_or(own.origin);
            own.prefetch = request.prefetch.unwrap_or(own.prefetch);
        });
        let LimitsConfig { download, upload, origin, prefetch } = now;
        Ok(Response::new(LimitsReply { download, upload, origin, prefetch }))
    }
}

/// Nothing, or why the content is not what its digest says: a part of it is known to be right only with the whole.
fn whole(content: Content) -> impl Stream<Item = Result<Bytes, TaskError>> + Send {
    let checked = stream::once(async move {
        match content.id().digest() {
            Some(_) => content.finished().await,
            None => Ok(()),
        }
    });
    checked.filter_map(|checked| ready(checked.err().map(Err)))
}

/// What a `darter get` asks for: by digest if it is known, otherwise by the version that the origin describes.
async fn want(peer: &Peer, request: &GetRequest) -> Result<Want, Status> {
    let headers = request.headers.iter().map(|header| wire::header_from(&header.name, &header.value));
    let headers =
        headers.collect::<Result<_, _>>().map_err(|error| Status::invalid_argument(error.to_string()))?;
    let source = Source { url: request.url.clone(), headers };
    let url = Url::parse(&request.url)
        .map_err(|error| Status::invalid_argument(format!("{}: {error}", request.url)))?;
    let rules = peer.inner.file_rules.get();
    let ruled = rules.map_or(Ok(Vec::new()), |rules| rules(&url)).map_err(Status::permission_denied)?;
    let ignored = if request.ignored_query.is_empty() { &ruled } else { &request.ignored_query };
    let id = if request.digest.is_empty() {
        let head = peer.origin().head(&source).await.map_err(|error| to_status(error.into()))?;
        TaskId::of_file(&url, ignored, ["", ""], &head)
    } else {
        let digest: Digest = request
            .digest
            .parse()
            .map_err(|error: crate::digest::InvalidDigest| Status::invalid_argument(error.to_string()))?;
        TaskId::of_digest(&digest)
    };
    Ok(Want { id, source: Some(source), class: Class::Stream })
}

fn to_status(error: TaskError) -> Status {
    let message = error.to_string();
    match error {
        TaskError::Origin { status: 401 | 403, .. } => Status::permission_denied(message),
        TaskError::Origin { status: 404 | 410, .. } | TaskError::NotFound(_) => Status::not_found(message),
        TaskError::Origin { .. } | TaskError::Unreachable(_) => Status::unavailable(message),
        TaskError::WrongDigest { .. } | TaskError::WrongDiffId { .. } => Status::data_loss(message),
        TaskError::LayerRefused(_) => Status::failed_precondition(message),
        TaskError::Deadline { .. } => Status::deadline_exceeded(message),
        TaskError::Full(_) => Status::resource_exhausted(message),
        TaskError::Local(_) => Status::internal(message),
        TaskError::Cancelled => Status::cancelled(message),
    }
}

/// What the node's rules say of a URL that somebody wants as a file: which of its query parameters do not tell one file
/// from another, or why it is not to be had here.
pub type FileRules = Box<dyn Fn(&Url) -> Result<Vec<String>, String> + Send + Sync>;

/// Completes a status with what one part of the peer knows.
pub type StatusPart = Box<dyn Fn(&mut StatusReply) + Send + Sync>;

impl Peer {
    /// Adds what another part, as proxy or snapshotter, knows to every later status.
    pub fn add_status(&self, part: StatusPart) {
        self.inner.status_parts.lock().push(part);
    }

    /// Has the node's rules apply to `darter get`. The first ones stay.
    pub fn set_file_rules(&self, rules: FileRules) {
        self.inner.file_rules.set(rules).ok();
    }

    /// How full the store is.
    fn store_status(&self) -> StoreStatusReply {
        let (store, metrics) = (self.store(), self.store().metrics());
        let entries = store.entries();
        let count = |which: fn(&Entry) -> bool| entries.iter().filter(|entry| which(entry)).count() as u64;
        StoreStatusReply {
            used: store.used(),
            quota: store.quota(),
            free: store.free(),
            min_free: self.inner.config.store.min_free,
            passing: store.passing(),
            tasks: entries.len() as u64,
            partial: count(|entry| !entry.is_verified()),
            pinned: count(Entry::is_pinned),
            layers: store.layers().len() as u64,
            shared: metrics.shared(),
            evicted: metrics.evicted(),
            unkept: metrics.unkept(),
            damaged: metrics.damaged(),
        }
    }

    /// What the peer is doing.
    pub fn status(&self) -> StatusReply {
        let store = self.store();
        let bytes = self.metrics().by_source();
        let tasks = store.entries().into_iter().map(|entry| {
            let download = self.download_status(entry.id()).unwrap_or_default();
            Task {
                id: entry.id().to_string(),
                length: entry.geometry().len(),
                held_bytes: entry.held_bytes(),
                verified: entry.is_verified(),
                parents: download.parents,
                from_origin: download.from_origin,
            }
        });
        let mut status = StatusReply {
            host_id: store.host_id().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            seed: self.is_seed(),
            uptime_seconds: self.inner.started.elapsed().as_secs(),
            schedulers: self.schedulers(),
            transfer_address: self.inner.transfer_address.clone(),
            bytes: Some(ByteCounts {
                local: bytes.local,
                peer: bytes.peer,
                seed: bytes.seed,
                origin: bytes.origin,
                uploaded: self.inner.transfer_metrics.sent_bytes(),
            }),
            store_bytes: store.used(),
            store_quota: store.quota(),
            insecure_registries: self.registries().insecure(),
            tasks: tasks.collect(),
            ..StatusReply::default()
        };
        for part in self.inner.status_parts.lock().iter() {
            part(&mut status);
        }
        status
    }
}
