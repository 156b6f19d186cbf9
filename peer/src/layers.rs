//! Layers: asking for one, making one, and telling the others.

use std::{io, sync::Arc};

use bytes::Bytes;
use darter_proto::scheduler::{
    Finished, Layer as LayerHeard, LayerMade, LayerWanted, LayerWrong, MakeLayer, layer, layer_made,
    peer_message::Message as Said,
};
use futures_util::TryStreamExt;
use tokio::{sync::watch, time::timeout};
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::{
    Class, Content, Digest, Geometry, LayerDescriptor, LayerFormat, LayerMaker, LeafSink, LeafTable,
    MadeLayer, MakeError, Peer, TaskError, TaskId, Want,
    content::blocking,
    origin::Source,
    schedulers::Live,
    store::{Entry, Stage, Store},
    wire,
};

/// A longer index or leaf table is refused.
const MAX_META_LEN: u64 = 256 * 1024 * 1024;

/// A layer to be had.
#[derive(Debug, Clone)]
pub struct LayerWant {
    /// Digest of the blob.
    pub blob: Digest,
    /// Where the blob is.
    pub source: Source,
    /// From the image's config: what the raw tar's SHA-256 must be.
    pub diff_id: Option<Digest>,
}

/// A layer whose index and leaf table are here; its leaves come as they are read.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What was published of it.
    pub descriptor: LayerDescriptor,
    /// How the raw tar is cut.
    pub table: Arc<LeafTable>,
    /// The EROFS metadata image.
    pub index: Bytes,
    /// The leaves.
    pub leaves: Content,
}

/// What has been heard of a wanted layer.
pub(crate) type Awaited = Option<Result<LayerDescriptor, TaskError>>;

/// How making a layer ended.
pub(crate) type Made = Result<LayerDescriptor, TaskError>;

impl Peer {
    /// A layer: from the store, from the peers once a seed has made it, or made here if no seed does.
    ///
    /// # Errors
    /// The blob cannot be had, does not become a layer, or has another diffID than `want` says.
    pub async fn layer(&self, want: LayerWant) -> Result<Layer, TaskError> {
        if let Some(descriptor) = self.store().layer(&want.blob) {
            return self.open_layer(check_diff_id(descriptor, &want)?).await;
        }
        if let Some(descriptor) = self.ask_for_layer(&want).await?.filter(|found| !self.is_wrong(found)) {
            match self.open_layer(check_diff_id(descriptor, &want)?).await {
                Ok(layer) => return Ok(layer),
                Err(error) => {
                    tracing::info!(blob = %want.blob, %error, "a published layer cannot be had, making it here")
                }
            }
        }
        let descriptor = self.make_layer(&want).await?;
        if self.is_wrong(&descriptor) {
            let reason = "made of its blob, it is not what its image says";
            return Err(TaskError::LayerRefused(reason.to_owned()));
        }
        self.open_layer(check_diff_id(descriptor, &want)?).await
    }

    /// All of a layer is here, each leaf with its digest, and it does not have its diffID, or its index is not what it
    /// makes: whoever made it is at fault.
    /// It goes out of the store, is not taken from anybody again, and the scheduler is told.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn blame_layer(&self, wrong: &LayerDescriptor) -> Result<(), TaskError> {
        self.inner.wrong_layers.lock().put(published(wrong), ());
        let layer = Some(wire::layer_to_proto(wrong));
        self.sessions().tell_all(&Said::LayerWrong(LayerWrong { layer })).await;
        let is_here = self.store().known_layer(&wrong.blob).as_ref() == Some(wrong);
        if is_here { self.remove_layer(&wrong.blob).await.map(drop) } else { Ok(()) }
    }

    fn is_wrong(&self, descriptor: &LayerDescriptor) -> bool {
        self.inner.wrong_layers.lock().contains(&published(descriptor))
    }

    /// A layer whose index and table are in the store: the leaves that are held can be read without any network. Leaves
    /// that are not come from peers that have them; if nobody does, [`Self::layer`] has them made.
    pub async fn local_layer(&self, blob: &Digest) -> Option<Layer> {
        let descriptor = self.store().known_layer(blob)?;
        self.open_layer(descriptor).await.ok()
    }

    /// Takes a layer and its bytes out of the store; whoever waits for its leaves gets an error. Returns the bytes.
    ///
    /// # Errors
    /// The store is closed.
    pub async fn remove_layer(&self, blob: &Digest) -> Result<u64, TaskError> {
        let (store, blob) = (self.store().clone(), blob.clone());
        blocking(move || store.remove_layer(&blob)).await
    }

    /// Opens a layer of which only the descriptor and the leaf table are known.
    ///
    /// # Errors
    /// The store has no room for its leaves.
    pub async fn leaves(&self, table: &Arc<LeafTable>) -> Result<Content, TaskError> {
        let id = TaskId::of_leaves(&table.root());
        let (store, geometry) = (self.store().clone(), Geometry::Table(table.clone()));
        let create = id.clone();
        let entry = blocking(move || store.admit(&create, geometry)).await?;
        self.open_as(Want { id, source: None, class: Class::Background }, Some(entry), false).await
    }

    async fn open_layer(&self, descriptor: LayerDescriptor) -> Result<Layer, TaskError> {
        let (index, table) = tokio::try_join!(
            self.meta(&descriptor.index, descriptor.index_len),
            self.meta(&descriptor.table, descriptor.table_len),
        )?;
        let table = LeafTable::decode(&table).map_err(|error| TaskError::LayerRefused(error.to_string()))?;
        if table.raw_len() != descriptor.raw_len {
            return Err(TaskError::LayerRefused(
                "its leaf table has another raw length than it says".to_owned(),
            ));
        }
        let table = Arc::new(table);
        let leaves = self.leaves(&table).await?;
        self.store().put_layer(&descriptor);
        Ok(Layer { descriptor, table, index, leaves })
    }

    /// An index or a leaf table, whole and checked.
    async fn meta(&self, digest: &Digest, len: u64) -> Result<Bytes, TaskError> {
        if len > MAX_META_LEN {
            return Err(TaskError::LayerRefused(format!("its index or leaf table is {len} bytes long")));
        }
        let want = Want { id: TaskId::of_digest(digest), source: None, class: Class::Demand };
        let content = self.open(want).await?;
        content.finished().await?;
        let geometry = content.geometry().await?;
        let parts: Vec<Bytes> = content.read(0..geometry.len()).try_collect().await?;
        Ok(parts.concat().into())
    }

    /// Asks the scheduler and waits until a seed has made the layer; if the scheduler is lost, the next one is asked.
    /// `None`: nobody will.
    ///
    /// # Errors
    /// The blob does not become a layer, whoever tries.
    async fn ask_for_layer(&self, want: &LayerWant) -> Result<Option<LayerDescriptor>, TaskError> {
        let key = want.blob.to_string();
        let mut awaited = {
            let mut all = self.inner.awaited.lock();
            all.retain(|_, sender| sender.receiver_count() > 0);
            all.entry(key.clone()).or_insert_with(|| watch::Sender::new(None)).subscribe()
        };
        let task = wire::task_to_proto(&TaskId::of_digest(&want.blob), Some(&want.source));
        let diff_id = want.diff_id.as_ref().map(Digest::to_string).unwrap_or_default();
        let wanted = Said::LayerWanted(LayerWanted { blob: Some(task), diff_id });
        let answer = async {
            while let Some(live) = self.sessions().of(&key) {
                if !live.send(wanted.clone()).await {
                    break;
                }
                tokio::select! {
                    answer = awaited.wait_for(Option::is_some) => return answer.ok().and_then(|answer| answer.clone()),
                    () = self.sessions().until_lost(&live) => {}
                }
            }
            None
        };
        match timeout(self.inner.config.layer_timeout, answer).await {
            Ok(Some(Ok(descriptor))) => Ok(Some(descriptor)),
            Ok(Some(Err(error @ TaskError::LayerRefused(_)))) => Err(error),
            Ok(Some(Err(error))) => {
                tracing::debug!(blob = %want.blob, %error, "no seed makes the layer");
                Ok(None)
            }
            Ok(None) | Err(_) => Ok(None),
        }
    }

    /// The scheduler's answer to a LayerWanted.
    pub(crate) fn layer_heard(&self, heard: LayerHeard) {
        let answer = match &heard.result {
            Some(layer::Result::Layer(descriptor)) => wire::layer_from_proto(descriptor)
                .map_err(|error| TaskError::Unreachable(error.to_string()))
                .and_then(|descriptor| {
                    let other = descriptor.blob.to_string() != heard.blob;
                    if other {
                        Err(TaskError::Unreachable("another layer's descriptor".to_owned()))
                    } else {
                        Ok(descriptor)
                    }
                }),
            Some(layer::Result::Failure(failure)) => match TaskId::parse(&heard.blob) {
                Ok(blob) => Err(TaskError::from_failure(&blob, failure)),
                Err(_) => Err(TaskError::Unreachable(failure.reason.clone())),
            },
            None => Err(TaskError::Unreachable("an empty answer".to_owned())),
        };
        if let Some(sender) = self.inner.awaited.lock().get(&heard.blob) {
            sender.send_replace(Some(answer));
        }
    }

    /// A seed's work: makes a layer and reports it: all schedulers hear of the layer, who asked also of a failure.
    pub(crate) async fn make_for_others(&self, from: Live, make: MakeLayer) {
        let (want, blob) = match make_want(&make) {
            Ok(want) => want,
            Err(error) => return tracing::warn!(%error, "asked to make a malformed layer"),
        };
        let made = match self.store().layer(&want.blob) {
            Some(descriptor) => Ok(descriptor),
            None => self.make_layer(&want).await,
        };
        match made.and_then(|descriptor| check_diff_id(descriptor, &want)) {
            Ok(descriptor) => {
                self.tell_layer(&descriptor).await;
                let result = Some(layer_made::Result::Layer(wire::layer_to_proto(&descriptor)));
                self.sessions().tell_all(&Said::LayerMade(LayerMade { blob, result })).await;
            }
            Err(error) => {
                let result = Some(layer_made::Result::Failure(error.to_failure()));
                from.send(Said::LayerMade(LayerMade { blob, result })).await;
            }
        }
    }

    /// Tells the schedulers that this peer holds a whole layer.
    async fn tell_layer(&self, descriptor: &LayerDescriptor) {
        let digests = [&descriptor.index, &descriptor.table].map(TaskId::of_digest);
        for id in digests.iter().chain([&TaskId::of_leaves(&descriptor.table)]) {
            let Some(entry) = self.store().get(id).filter(|entry| entry.is_verified()) else { continue };
            if id.digest().is_some()
                && let Some(scheduler) = self.sessions().of(id.as_str())
            {
                self.tell_digests(&scheduler, &entry).await;
            }
            let (length, leaves) = (entry.geometry().len(), entry.geometry().leaves());
            self.sessions()
                .tell_all(&Said::Finished(Finished { task: id.to_string(), length, leaves }))
                .await;
        }
    }

    /// Makes a layer here, once however many ask.
    async fn make_layer(&self, want: &LayerWant) -> Made {
        let id = TaskId::of_digest(&want.blob);
        let mut made = {
            let mut making = self.inner.making.lock();
            if let Some(receiver) = making.get(&id) {
                receiver.clone()
            } else {
                let (sender, receiver) = watch::channel(None);
                making.insert(id.clone(), receiver.clone());
                let (peer, want) = (self.clone(), want.clone());
                self.inner.tracker.spawn(async move {
                    let made = peer.make_once(&want).await;
                    peer.inner.making.lock().remove(&id);
                    sender.send_replace(Some(made));
                });
                receiver
            }
        };
        match made.wait_for(Option::is_some).await.map(|made| made.clone()) {
            Ok(Some(made)) => made,
            _ => Err(TaskError::Cancelled),
        }
    }

    async fn make_once(&self, want: &LayerWant) -> Made {
        let maker = self
            .inner
            .maker
            .clone()
            .ok_or_else(|| TaskError::LayerRefused("this peer makes no layers".to_owned()))?;
        let _permit = self.inner.makes.acquire().await.map_err(|_| TaskError::Cancelled)?;
        let id = self.registries().task(&want.source.url, &want.blob);
        let content = self.open(Want { id, source: Some(want.source.clone()), class: Class::Stream }).await?;
        let len = content.geometry().await?.len();
        let reader = StreamReader::new(Box::pin(content.read(0..len).map_err(io::Error::from)));
        let reader = SyncIoBridge::new(reader);
        let (store, blob) = (self.store().clone(), want.blob.clone());
        let making = blocking(move || make_into(&store, maker.as_ref(), reader, blob));
        let descriptor = tokio::select! {
            descriptor = making => descriptor,
            () = self.inner.shutdown.cancelled() => Err(TaskError::Cancelled),
        }?;
        // The reader got the last leaf only after the whole was checked, but a maker may have stopped before it.
        content.finished().await?;
        let descriptor = check_diff_id(descriptor, want)?;
        self.store().put_layer(&descriptor);
        Ok(descriptor)
    }
}

/// What tells a layer from any other of the same blob.
fn published(layer: &LayerDescriptor) -> [Digest; 3] {
    [&layer.diff_id, &layer.index, &layer.table].map(Digest::clone)
}

fn make_want(make: &MakeLayer) -> Result<(LayerWant, String), wire::Malformed> {
    let task = make.blob.clone().unwrap_or_default();
    let (id, source) = wire::task_from_proto(&task)?;
    let malformed = |what: &str| wire::Malformed::of(what);
    let blob = id.digest().ok_or_else(|| malformed("the blob has no digest"))?;
    let source = source.ok_or_else(|| malformed("the blob has no origin"))?;
    let diff_id = match make.diff_id.as_str() {
        "" => None,
        text => Some(text.parse().map_err(wire::Malformed::of)?),
    };
    Ok((LayerWant { blob, source, diff_id }, task.id))
}

fn check_diff_id(descriptor: LayerDescriptor, want: &LayerWant) -> Result<LayerDescriptor, TaskError> {
    match &want.diff_id {
        Some(expected) if *expected != descriptor.diff_id => {
            Err(TaskError::WrongDiffId { expected: expected.clone(), found: descriptor.diff_id })
        }
        _ => Ok(descriptor),
    }
}

/// Runs the maker and stores what comes out of it.
fn make_into(
    store: &Store,
    maker: &dyn LayerMaker,
    mut blob: impl io::Read,
    digest: Digest,
) -> Result<LayerDescriptor, TaskError> {
    let mut sink = StageSink(store.stage()?);
    let made = maker.make(&mut blob, &mut sink).map_err(|error| match error {
        MakeError::Refused(reason) => TaskError::LayerRefused(reason),
        MakeError::Io(error) => from_io(error),
    })?;
    io::copy(&mut blob, &mut io::sink()).map_err(from_io)?;
    let MadeLayer { diff_id, raw_len, index, table } = made;
    let encoded = table.encode();
    let descriptor = LayerDescriptor {
        format: LayerFormat,
        blob: digest,
        diff_id,
        raw_len,
        index: Digest::blake3(&index),
        index_len: index.len() as u64,
        table: Digest::blake3(&encoded),
        table_len: encoded.len() as u64,
    };
    let put = |digest: &Digest, bytes: &[u8]| -> Result<Arc<Entry>, TaskError> {
        Ok(store.put(&TaskId::of_digest(digest), bytes)?)
    };
    let _index = put(&descriptor.index, &index)?.pin();
    let _table = put(&descriptor.table, &encoded)?.pin();
    let StageSink(stage) = sink;
    stage.commit(&TaskId::of_leaves(&descriptor.table), Arc::new(table))?;
    Ok(descriptor)
}

struct StageSink(Stage);

impl LeafSink for StageSink {
    fn leaf(&mut self, stored: &[u8]) -> io::Result<()> {
        self.0.append(stored).map_err(io::Error::other)
    }
}

/// A reader's error is a task's error that went through [`std::io`].
fn from_io(error: io::Error) -> TaskError {
    match error.downcast::<TaskError>() {
        Ok(error) => error,
        Err(error) => TaskError::Local(error.to_string()),
    }
}
