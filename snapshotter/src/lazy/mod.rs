//! Lazy layers: mounted before their content has arrived.
//!
//! A layer's index is mounted as EROFS ([`erofs`]); the files in it point into one flat file, the layer's raw tar, that
//! a FUSE file system serves ([`fuse`]). So the kernel answers everything about names and attributes by itself, and the
//! node is asked for ranges of raw bytes only ([`layer`]), which it keeps in a sparse file ([`raw`]) and completes in
//! the background ([`fill`]) and then checks ([`verify`]); who reads on in order finds the next ones there ([`ahead`]).
//! Where the kernel cannot do that, the FUSE file system shows the layer's tree itself, out of the index ([`index`]). A
//! complete layer is mounted without FUSE from then on ([`mounting`]).
//!
//! What is needed to mount a layer again stays on disk ([`files`]): a restart needs nobody. While the daemon is away
//! the [`keeper`] holds the file system, so that reads wait for the next daemon, which takes it over ([`opening`]).

mod ahead;
mod erofs;
mod files;
mod fill;
mod fuse;
mod index;
pub mod keeper;
mod known;
mod layer;
mod mounting;
mod opening;
mod probe;
mod raw;
#[cfg(test)]
pub(crate) mod shown;
mod start;
mod verify;

use std::{
    collections::HashSet,
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use darter_peer::{Digest, TaskError};
use parking_lot::Mutex;
use tokio::{
    runtime::Handle,
    sync::Semaphore,
    task::JoinError,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

#[cfg(test)]
pub(crate) use self::probe::open_layer;
use self::{
    files::LayerDir,
    fill::Filled,
    fuse::{FuseMount, LayersFs},
    known::Known,
    layer::{LayerId, LazyLayer},
    opening::Opened,
    start::Starts,
    verify::Wrong,
};
pub(crate) use self::{known::Hold, layer::LayerRef, opening::detach_stale, start::Seen};
use crate::{
    config::{Config, MountKind},
    engine::{Engine, OpenLayer},
    layer::IMPLIED_XATTR,
    metrics::Metrics,
    snapshots::{self, Usage},
};

/// Layers that are filled at a time.
const FILLED_AT_ONCE: usize = 2;
/// How often what was read is made durable.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// Mounting reads the index from the local disk only.
const MOUNT_DEADLINE: Duration = Duration::from_secs(20);
/// How long reads that wait for leaves may hold up the shutdown.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// Directories below the root: mounts through FUSE, and mounts of local files.
const MOUNTS: &str = "mnt";
const LOCAL: &str = "local";

/// All lazy layers of the node.
pub(crate) struct Layers {
    root: PathBuf,
    layers_dir: PathBuf,
    /// Layers whose bytes come through FUSE, each mounted at its id.
    mounts_dir: PathBuf,
    /// Complete layers, each mounted at its id without FUSE.
    local_dir: PathBuf,
    /// Layers are mounted as EROFS, not shown by the FUSE file system.
    erofs: AtomicBool,
    fill: bool,
    start_profiles: bool,
    starts: Starts,
    engine: Arc<dyn Engine>,
    known: Arc<Known>,
    fuse: Mutex<Option<FuseMount>>,
    /// One layer is added or removed at a time.
    changing: tokio::sync::Mutex<()>,
    filled_at_once: Semaphore,
    tasks: TaskTracker,
    stopping: CancellationToken,
    metrics: Metrics,
}

/// Why a layer cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LazyError {
    #[error("{what}: {source}")]
    Io { what: &'static str, source: io::Error },
    #[error("{0} did not end within {MOUNT_DEADLINE:?}")]
    Deadline(&'static str),
    #[error(transparent)]
    Task(#[from] TaskError),
    #[error("{0}")]
    Refused(String),
    #[error("the snapshotter is shutting down")]
    Stopping,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerStatus {
    pub(crate) reference: LayerRef,
    pub(crate) raw_len: u64,
    pub(crate) raw_held: u64,
    pub(crate) mounted: bool,
}

impl Layers {
    /// Mounts the FUSE file system, or takes over the one of an earlier run from the keeper, with the layers that are on
    /// disk. Tries whether all works here if no earlier run did.
    pub(crate) async fn start(
        config: &Config,
        engine: Arc<dyn Engine>,
        metrics: Metrics,
        start_keeper: keeper::Start,
    ) -> Result<Arc<Self>, LazyError> {
        let known = Arc::new(Known::default());
        let tasks = TaskTracker::new();
        let fs = LayersFs {
            known: known.clone(),
            open: Mutex::default(),
            runtime: Handle::current(),
            tasks: tasks.clone(),
            read_timeout: config.read_timeout,
            metrics: metrics.clone(),
        };
        let (root, known_too, engine_too) = (config.root.clone(), known.clone(), engine.clone());
        let opened = blocking("mounting the FUSE file system", move || {
            opening::load_all(&root, &known_too, &engine_too)?;
            opening::open_fuse(&root, fs, start_keeper)
        });
        let Opened { fuse, keeper, is_taken_over } = opened.await?;
        let layers = Arc::new(Self {
            root: config.root.clone(),
            layers_dir: config.root.join("layers"),
            mounts_dir: config.root.join(MOUNTS),
            local_dir: config.root.join(LOCAL),
            erofs: AtomicBool::new(config.mount != MountKind::Fuse),
            fill: config.fill,
            start_profiles: config.start_profiles,
            starts: Starts::below(&config.root),
            engine,
            known,
            fuse: Mutex::new(Some(fuse)),
            changing: tokio::sync::Mutex::default(),
            filled_at_once: Semaphore::new(FILLED_AT_ONCE),
            tasks,
            stopping: CancellationToken::new(),
            metrics,
        });
        if is_taken_over {
            layers.adopt_mounts().await;
        }
        if let Err(reason) = layers.choose_mount(config.mount).await {
            // Containers may already stand on what was taken over.
            if !is_taken_over {
                layers.stop(false).await;
                return Err(LazyError::Refused(reason));
            }
            warn!(%reason, "layers may not be mountable any more");
        }
        layers.spawn(Self::save_regularly);
        layers.spawn(Self::pin_all);
        layers.spawn(|layers| layers.watch_keeper(keeper, start_keeper));
        if config.start_profiles {
            layers.spawn(start::tell_saved);
        }
        Ok(layers)
    }

    /// Goes on filling the layers that containers may be using. Of EROFS mounts it is known which there are.
    pub(crate) fn resume(self: &Arc<Self>, in_use: &HashSet<Digest>) {
        if !self.erofs.load(Ordering::Relaxed) {
            let layers = in_use.iter().filter_map(|diff_id| self.known.get(diff_id));
            layers.for_each(|layer| self.now_mounted(&layer, self.fill));
        }
    }

    /// Whether a layer can be mounted without asking anybody; it is not collected while the hold lives.
    pub(crate) fn hold(&self, diff_id: &Digest) -> Option<Hold> {
        self.known.hold(diff_id)
    }

    /// Where a layer that is here was brought from.
    pub(crate) fn origin_of(&self, diff_id: &Digest) -> Option<LayerRef> {
        self.known.get(diff_id).map(|layer| layer.reference.clone())
    }

    /// Keeps what is needed to mount a layer.
    pub(crate) async fn add(
        self: &Arc<Self>,
        reference: &LayerRef,
        open: OpenLayer,
    ) -> Result<Hold, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.add_now(&reference, open).await }).await
    }

    async fn add_now(&self, reference: &LayerRef, open: OpenLayer) -> Result<Hold, LazyError> {
        if open.descriptor.diff_id != reference.diff_id || open.table.raw_len() != open.descriptor.raw_len {
            return Err(LazyError::Refused(
                "the published layer is not the one that the image's config names".into(),
            ));
        }
        if open.descriptor.index_len > layer::MAX_INDEX_LEN {
            return Err(LazyError::Refused("its index is too long".into()));
        }
        let _changing = self.changing.lock().await;
        if let Some(hold) = self.known.hold(&reference.diff_id) {
            return Ok(hold);
        }
        if self.known.is_wrong(LayerId::of(&open.descriptor)) {
            return Err(LazyError::Refused("it was found to be wrong on this node".into()));
        }
        let leaves = open.leaves.clone();
        let (dir, engine, reference) = (self.layers_dir.clone(), self.engine.clone(), reference.clone());
        let layer = blocking("keeping the layer's index", move || {
            LazyLayer::load(LayerDir::create(&dir, &reference, &open)?, engine)
        });
        let layer = Arc::new(layer.await?);
        layer.set_leaves(leaves).await;
        let diff_id = layer.reference.diff_id.clone();
        if !self.known.insert(layer) {
            return Err(LazyError::Refused("another layer has the same short name".into()));
        }
        self.known.hold(&diff_id).ok_or(LazyError::Stopping)
    }

    /// Whether the layer has entries in directories that it has no entry for. Above other layers these have the
    /// attributes that they have below, which the layer's index cannot know.
    pub(crate) async fn implies_directories(&self, diff_id: &Digest) -> Result<bool, LazyError> {
        let index = LayerDir::of(&self.layers_dir, diff_id).index();
        // The kernel's format keeps the name without its prefix `trusted.`.
        let mark = IMPLIED_XATTR.trim_start_matches("trusted.").as_bytes();
        let found = blocking("reading the layer's index", move || {
            Ok(std::fs::read(index)?.windows(mark.len()).any(|bytes| bytes == mark))
        });
        found.await
    }

    /// An image with this chainID was pulled, and its layers, the lowest first, can be mounted: fetches what its start
    /// will read, if that is known, and learns from what it does read.
    pub(crate) fn expect_start<'a>(
        self: &Arc<Self>,
        image: &Digest,
        diff_ids: impl IntoIterator<Item = &'a Digest>,
    ) {
        let of: Option<Vec<_>> = diff_ids.into_iter().map(|diff_id| self.known.get(diff_id)).collect();
        if let (true, Some(of)) = (self.start_profiles, of) {
            let image = image.clone();
            self.spawn(|layers| start::follow(layers, image, of));
        }
    }

    /// How well the latest start of the image with this chainID was foreseen.
    pub(crate) fn start_seen(&self, image: &Digest) -> Option<Seen> {
        self.starts.seen(image)
    }

    /// Removes layers that no snapshot needs, unless they are held by now.
    pub(crate) async fn collect(self: &Arc<Self>, unused: impl IntoIterator<Item = &Digest>) {
        for layer in unused.into_iter().filter_map(|diff_id| self.known.get(diff_id)) {
            let (layers, diff_id) = (self.clone(), layer.reference.diff_id.clone());
            match self.whole(async move { layers.remove(&layer).await }).await {
                Ok(()) => debug!(layer = %diff_id, "removed"),
                Err(error) => warn!(layer = %diff_id, %error, "the unused layer stays"),
            }
        }
    }

    /// The layers that are not held at this moment.
    pub(crate) fn unheld(&self) -> HashSet<Digest> {
        let unheld = self.known.all().into_iter().filter(|layer| Arc::strong_count(&layer.hold) == 1);
        unheld.map(|layer| layer.reference.diff_id.clone()).collect()
    }

    /// What a layer takes on disk, and so what removing it frees; with what is still to come, since containerd asks only
    /// once. What the peer's store has of it is not counted: that has a quota of its own, and goes by itself.
    pub(crate) async fn usage(&self, diff_id: &Digest) -> Result<Usage, LazyError> {
        let layer = self.known.get(diff_id).filter(|_| self.fill);
        let dir = LayerDir::of(&self.layers_dir, diff_id);
        let counted = blocking("counting the layer's disk space", move || {
            let missing =
                layer.map_or(0, |layer| layer.descriptor.raw_len.saturating_sub(layer.raw.held_bytes()));
            let Usage { size, inodes } = snapshots::usage_of_dir(dir.path())?;
            Ok(Usage { size: size + missing, inodes })
        });
        counted.await
    }

    /// How far each layer is.
    pub(crate) fn status(&self) -> Vec<LayerStatus> {
        let status = |layer: Arc<LazyLayer>| LayerStatus {
            reference: layer.reference.clone(),
            raw_len: layer.descriptor.raw_len,
            raw_held: layer.raw.held_bytes(),
            mounted: layer.mounted.load(Ordering::Relaxed),
        };
        self.known.all().into_iter().map(status).collect()
    }

    /// Saves everything. What is `in_use` stays mounted, and reads wait for the next daemon; otherwise all is unmounted.
    pub(crate) async fn stop(&self, in_use: bool) {
        self.stopping.cancel();
        self.tasks.close();
        if timeout(STOP_DEADLINE, self.tasks.wait()).await.is_err() {
            info!("reads of layers are still waiting for bytes; the next daemon answers them");
        }
        for layer in self.known.all() {
            if !in_use {
                self.unmount_or_warn(&layer).await;
            }
            save(&layer).await;
        }
        let fuse = self.fuse.lock().take();
        if in_use {
            return;
        }
        let unmounted =
            blocking("unmounting the FUSE file system", || fuse.map_or(Ok(()), FuseMount::unmount));
        if let Err(error) = unmounted.await {
            info!(%error, "something still uses lazy layers; they stay mounted for the next daemon");
        }
    }

    /// Runs something to its end, also if nobody waits for it any more: a request that is cancelled in the middle must
    /// not leave its locks to others while its system calls are still running.
    async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, LazyError>> + Send + 'static,
    ) -> Result<T, LazyError> {
        self.tasks.spawn(work).await.map_err(|_| LazyError::Stopping)?
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(self: &Arc<Self>, task: impl FnOnce(Arc<Self>) -> F) {
        let stopping = self.stopping.clone();
        let task = task(self.clone());
        self.tasks.spawn(async move {
            stopping.run_until_cancelled(task).await;
        });
    }

    /// A snapshot needs a layer whose files are gone or damaged: fetches what is missing.
    async fn recover(&self, reference: &LayerRef) -> Result<Arc<LazyLayer>, LazyError> {
        warn!(layer = %reference.diff_id, "the layer's files are missing or wrong, getting them again");
        // One that is just being discarded is not found any more afterwards.
        drop(self.changing.lock().await);
        let open = match self.engine.local_layer(reference).await {
            Some(open) => open,
            None => timeout(MOUNT_DEADLINE, self.engine.layer(reference))
                .await
                .map_err(|_| LazyError::Deadline("getting the layer again"))??,
        };
        self.add_now(reference, open).await?;
        self.known.get(&reference.diff_id).ok_or(LazyError::Stopping)
    }

    async fn fill_one(self: Arc<Self>, layer: Arc<LazyLayer>) {
        let Ok(_permit) = self.filled_at_once.acquire().await else { return };
        match layer.unwanted.run_until_cancelled(fill::fill(&layer)).await {
            None | Some(Ok(Filled::Right)) => {}
            Some(Ok(Filled::Wrong(why))) => self.discard(&layer, why).await,
            Some(Err(error)) => warn!(layer = %layer.reference.diff_id, %error, "the layer stays incomplete"),
        }
    }

    /// Takes a layer out of service that turned out to be wrong. Containers that run on it keep what they have read, and get
    /// errors for the rest: the layer that takes its place has another id.
    async fn discard(&self, layer: &Arc<LazyLayer>, why: Wrong) {
        error!(layer = %layer.reference.diff_id, %why, "the layer is wrong and is discarded");
        let was_known = self.known.discard(layer);
        // Nobody puts another one in its place before it is out of the way.
        let _changing = self.changing.lock().await;
        if let Err(error) = self.engine.blame(&layer.descriptor).await {
            warn!(layer = %layer.reference.diff_id, %error, "the layer's maker is not blamed");
        }
        if was_known {
            self.take_away(layer).await;
        }
    }

    /// Takes a layer out of service that cannot be completed any more because another one is published in its place. It
    /// is not known which of the two is wrong.
    async fn make_way(&self, layer: &Arc<LazyLayer>) {
        let _changing = self.changing.lock().await;
        if self.known.remove(layer) {
            warn!(layer = %layer.reference.diff_id, "the layer makes way for another one with its diffID");
            layer.discard();
            self.take_away(layer).await;
        }
    }

    /// Has the kernel forget a layer that is not known any more, and deletes it.
    async fn take_away(&self, layer: &Arc<LazyLayer>) {
        let notifier = self.fuse.lock().as_ref().map(FuseMount::notifier);
        let wrong = layer.clone();
        let discarded = blocking("discarding the layer", move || {
            let invalidated = notifier.map_or(Ok(()), |notifier| fuse::invalidate(&notifier, &wrong));
            wrong.dir.remove()?;
            invalidated
        });
        if let Err(error) = discarded.await {
            warn!(layer = %layer.reference.diff_id, %error, "the layer is only partly discarded");
        }
        self.unmount_or_warn(layer).await;
    }

    async fn remove(&self, layer: &Arc<LazyLayer>) -> Result<(), LazyError> {
        let _changing = self.changing.lock().await;
        self.unmount(layer).await?;
        if !self.known.remove_unheld(layer) {
            return Ok(());
        }
        layer.unwanted.cancel();
        let dir = layer.dir.clone();
        blocking("removing the layer's files", move || dir.remove()).await?;
        self.engine.remove(&layer.reference).await;
        Ok(())
    }

    async fn save_regularly(self: Arc<Self>) {
        loop {
            sleep(SAVE_INTERVAL).await;
            for layer in self.known.all() {
                save(&layer).await;
            }
        }
    }

    /// What the peer holds of these layers may not be evicted, though nothing was read from them yet.
    async fn pin_all(self: Arc<Self>) {
        for layer in self.known.all() {
            layer.pin_leaves().await;
        }
    }
}

async fn save(layer: &Arc<LazyLayer>) {
    let saving = layer.clone();
    if let Err(error) = blocking("saving the layer", move || saving.raw.save()).await {
        warn!(layer = %layer.reference.diff_id, %error, "what was read may have to be fetched again after a restart");
    }
}

/// Runs something that blocks, within [`MOUNT_DEADLINE`].
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, LazyError> {
    let flatten = |result: Result<io::Result<T>, JoinError>| match result {
        Ok(result) => result.map_err(|source| LazyError::Io { what, source }),
        Err(_) => Err(LazyError::Stopping),
    };
    let result = timeout(MOUNT_DEADLINE, tokio::task::spawn_blocking(work)).await;
    result.map_or(Err(LazyError::Deadline(what)), flatten)
}
