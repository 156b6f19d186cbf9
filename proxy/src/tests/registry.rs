//! A small registry that does what a test tells it to.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use darter_peer::Digest;
use futures_util::{StreamExt as _, future, stream};
use http::{HeaderMap, Method, Request, Response, response::Builder};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::sleep,
};

use crate::range::{Selection, select};

/// The token that opens private repositories.
pub(super) const TOKEN: &str = "Bearer good";

const BIT: usize = 64 * 1024;

/// What a registry does wrong with a content.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// Sends other bytes of the same length.
    WrongBytes,
    /// Breaks the connection after so many bytes of each of the first bodies.
    Breaks { after: usize, times: usize },
    /// Sends so many bytes and holds the rest back until told.
    Holds { after: usize, released: watch::Receiver<bool> },
    /// Never answers a GET.
    Silent,
}

/// A request as the registry saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

struct Stored {
    bytes: Bytes,
    media_type: &'static str,
    fault: Option<Fault>,
    gets: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Contents and tags by their path below `/v2/`.
    stored: Mutex<HashMap<String, Arc<Stored>>>,
    seen: Mutex<Vec<Seen>>,
    abandoned: AtomicUsize,
}

/// A running registry; it stops when dropped. Repositories whose name begins with `private` want [`TOKEN`].
pub(super) struct Registry {
    pub(super) name: String,
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Registry {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let name = listener.local_addr().unwrap().to_string();
        let state = Arc::new(State::default());
        let task = tokio::spawn(accept(listener, state.clone()));
        Self { name, state, task }
    }

    pub(super) fn blob(&self, repository: &str, bytes: &[u8], fault: Option<Fault>) -> Digest {
        let digest = Digest::sha256(bytes);
        self.put(format!("{repository}/blobs/{digest}"), bytes, "application/octet-stream", fault);
        digest
    }

    /// Bytes under a digest that is not theirs.
    pub(super) fn blob_as(&self, repository: &str, digest: &Digest, bytes: &[u8]) {
        self.put(format!("{repository}/blobs/{digest}"), bytes, "application/octet-stream", None);
    }

    /// A file at `/v2/PATH`.
    pub(super) fn file(&self, path: &str, bytes: &[u8]) {
        self.put(path.to_owned(), bytes, "application/x-file", None);
    }

    /// A manifest under its digest and the tag `latest`.
    pub(super) fn manifest(&self, repository: &str, bytes: &[u8], media_type: &'static str) -> Digest {
        let digest = Digest::sha256(bytes);
        self.put(format!("{repository}/manifests/{digest}"), bytes, media_type, None);
        self.put(format!("{repository}/manifests/latest"), bytes, media_type, None);
        digest
    }

    fn put(&self, path: String, bytes: &[u8], media_type: &'static str, fault: Option<Fault>) {
        let bytes = Bytes::copy_from_slice(bytes);
        let stored = Stored { bytes, media_type, fault, gets: AtomicUsize::new(0) };
        self.state.stored.lock().insert(path, Arc::new(stored));
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().clone()
    }

    /// How often a method was used on paths that end so.
    pub(super) fn count(&self, method: Method, end: &str) -> usize {
        self.seen().iter().filter(|seen| seen.method == method && seen.path.ends_with(end)).count()
    }

    /// Waits until somebody hangs up in the middle of a body.
    pub(super) async fn abandoned(&self) {
        while self.state.abandoned.load(Ordering::Relaxed) == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Stops the registry as a crash does.
    pub(super) async fn stop(mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err());
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = state.clone();
        let service =
            service_fn(move |request| future::ready(Ok::<_, Infallible>(answer(state.clone(), request))));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<Body> {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().to_string();
    state.seen.lock().push(Seen {
        method: parts.method.clone(),
        path: path.clone(),
        headers: parts.headers.clone(),
    });
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap());
    let plain =
        |builder: Builder, text: &'static str| builder.body(body(stream::iter([Ok(text.into())]))).unwrap();

    let Some(rest) = path.strip_prefix("/v2/") else {
        return plain(Response::builder().status(401), "no token for you");
    };
    if rest.starts_with("private") && header("authorization") != Some(TOKEN) {
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", header("host").unwrap());
        return plain(Response::builder().status(401).header("www-authenticate", realm), "{\"errors\":[]}");
    }
    if rest.ends_with("/tags/list?n=1") {
        return plain(Response::builder().header("link", "</v2/x>; rel=\"next\""), "{\"tags\":[\"latest\"]}");
    }
    let name = rest.split("?sig=").next().unwrap();
    let Some(stored) = state.stored.lock().get(name).cloned() else {
        return plain(
            Response::builder().status(404).header("x-why", "not here"),
            "{\"errors\":[\"from the origin\"]}",
        );
    };
    content(&state, &stored, &parts.method, header("range"))
}

fn content(state: &Arc<State>, stored: &Stored, method: &Method, range: Option<&str>) -> Response<Body> {
    let len = stored.bytes.len();
    let digest = Digest::sha256(&stored.bytes);
    let builder = Response::builder()
        .header("content-type", stored.media_type)
        .header("etag", format!("\"{digest}\""))
        .header("docker-content-digest", digest.to_string());
    let (builder, start, end) = match select(range, len as u64) {
        Selection::Part(range) => {
            let header = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            (builder.status(206).header("content-range", header), range.start as usize, range.end as usize)
        }
        _ => (builder, 0, len),
    };
    let builder = builder.header("content-length", end - start);
    if method == Method::HEAD {
        return builder.body(body(stream::empty())).unwrap();
    }
    let before = stored.gets.fetch_add(1, Ordering::Relaxed);
    let mut bytes = stored.bytes.slice(start..end);
    let tail = match &stored.fault {
        None => None,
        Some(Fault::WrongBytes) => {
            bytes = bytes.iter().map(|byte| !byte).collect();
            None
        }
        Some(Fault::Breaks { times, .. }) if before >= *times => None,
        Some(Fault::Breaks { after, .. }) => {
            bytes.truncate(*after);
            Some(Tail::Break)
        }
        Some(Fault::Holds { after, released }) => {
            let held = bytes.split_off(bytes.len().min(*after));
            Some(Tail::Hold(held, released.clone()))
        }
        Some(Fault::Silent) => {
            bytes.clear();
            Some(Tail::Silence)
        }
    };
    let state = state.clone();
    let watch = Abandoned { state, left: end - start };
    let bits = bits(bytes).chain(stream::iter(tail).then(Tail::run).flatten());
    let bits = stream::unfold((Box::pin(bits), watch), |(mut bits, mut watch)| async {
        let bit = bits.next().await?;
        watch.left = watch.left.saturating_sub(bit.as_ref().map_or(usize::MAX, Bytes::len));
        Some((bit, (bits, watch)))
    });
    builder.body(body(bits)).unwrap()
}

/// Notices that a body was dropped before its end.
struct Abandoned {
    state: Arc<State>,
    left: usize,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if self.left > 0 {
            self.state.abandoned.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What comes at the end of a body.
enum Tail {
    Break,
    Hold(Bytes, watch::Receiver<bool>),
    Silence,
}

impl Tail {
    async fn run(self) -> stream::BoxStream<'static, io::Result<Bytes>> {
        match self {
            // Lets hyper flush what came before.
            Self::Break => {
                sleep(Duration::from_millis(20)).await;
                stream::iter([Err(io::Error::other("broken on purpose"))]).boxed()
            }
            Self::Hold(held, mut released) => {
                released.wait_for(|released| *released).await.unwrap();
                bits(held).boxed()
            }
            Self::Silence => stream::pending().boxed(),
        }
    }
}

fn bits(bytes: Bytes) -> impl stream::Stream<Item = io::Result<Bytes>> + Send + use<> {
    let starts: Vec<usize> = (0..bytes.len()).step_by(BIT).collect();
    stream::iter(starts.into_iter().map(move |start| Ok(bytes.slice(start..bytes.len().min(start + BIT)))))
}

fn body(bits: impl stream::Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(bits.map(|bit| bit.map(Frame::data))).boxed_unsync()
}
