//! Lazy layers: mounted before their content has arrived.
//!
//! A layer's index is mounted as EROFS ([`erofs`]); the files in it point into one flat file, the layer's raw tar, that
//! a FUSE file system serves ([`fuse`]). So the kernel answers everything about names and attributes by itself, and the
//! node is asked for ranges of raw bytes only ([`layer`]), which it keeps in a sparse file ([`raw`]) and completes in
//! the background ([`fill`]). What is needed to mount a layer again stays on disk ([`files`]): a restart needs nobody.

mod erofs;
mod files;
mod fill;
mod fuse;
mod known;
mod layer;
mod probe;
mod raw;

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use darter_peer::{Digest, TaskError};
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Semaphore, task::JoinError, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, info, warn};

#[cfg(test)]
pub(crate) use self::probe::open_layer;
use self::{
    files::LayerDir,
    fill::Filled,
    fuse::{FuseMount, LayersFs},
    known::Known,
    layer::LazyLayer,
};
pub(crate) use self::{known::Hold, layer::LayerRef};
use crate::{
    config::Config,
    engine::{Engine, OpenLayer},
    layer::IMPLIED_XATTR,
    metrics::Metrics,
};

/// Layers that are filled at a time.
const FILLED_AT_ONCE: usize = 2;
/// How often what was read is made durable.
const SAVE_INTERVAL: Duration = Duration::from_secs(5);
/// Mounting reads the index from the local disk only.
const MOUNT_DEADLINE: Duration = Duration::from_secs(20);
/// How long reads that wait for leaves may hold up the shutdown.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// All lazy layers of the node.
pub(crate) struct Layers {
    layers_dir: PathBuf,
    mounts_dir: PathBuf,
    fill: bool,
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
    /// Mounts the FUSE file system, finds the layers that an earlier run left on disk, and tries whether all works here.
    pub(crate) async fn start(
        config: &Config,
        engine: Arc<dyn Engine>,
        metrics: Metrics,
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
        let root = config.root.clone();
        let (known_too, engine_too) = (known.clone(), engine.clone());
        let fuse = blocking("mounting the FUSE file system", move || {
            load_all(&root, &known_too, &engine_too)?;
            FuseMount::mount(&root.join("fuse"), fs)
        });
        let layers = Arc::new(Self {
            layers_dir: config.root.join("layers"),
            mounts_dir: config.root.join("mnt"),
            fill: config.fill,
            engine,
            known,
            fuse: Mutex::new(Some(fuse.await?)),
            changing: tokio::sync::Mutex::default(),
            filled_at_once: Semaphore::new(FILLED_AT_ONCE),
            tasks,
            stopping: CancellationToken::new(),
            metrics,
        });
        if let Err(reason) = probe::probe(&layers).await {
            layers.stop().await;
            return Err(LazyError::Refused(format!("EROFS over FUSE does not work here: {reason}")));
        }
        layers.spawn(Self::save_regularly);
        layers.spawn(Self::pin_all);
        Ok(layers)
    }

    /// Whether a layer can be mounted without asking anybody; it is not collected while the hold lives.
    pub(crate) fn hold(&self, diff_id: &Digest) -> Option<Hold> {
        self.known.hold(diff_id)
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
        let _changing = self.changing.lock().await;
        if let Some(hold) = self.known.hold(&reference.diff_id) {
            return Ok(hold);
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

    /// Mounts a layer, if it is not mounted already, and says where.
    pub(crate) async fn mount(self: &Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.mount_now(&reference).await }).await
    }

    async fn mount_now(self: Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let layer = match self.known.get(&reference.diff_id) {
            Some(layer) => layer,
            None => self.recover(reference).await?,
        };
        layer.check().map_err(|err| LazyError::Refused(err.to_string()))?;
        let _mounting = layer.mounting.lock().await;
        let target = self.mounts_dir.join(layer.id.to_string());
        let device = self.fuse.lock().as_ref().map(|fuse| fuse.file(&layer.reference.diff_id));
        let device = device.ok_or(LazyError::Stopping)?;
        let (mounting, at) = (layer.clone(), target.clone());
        let mounted = blocking("mounting the layer", move || {
            if erofs::is_mounted(&at) {
                return Ok(false);
            }
            mounting.dir.check_index(&mounting.descriptor)?;
            erofs::mount(&mounting.dir.index(), &device, &at).map(|()| true)
        });
        if mounted.await? {
            info!(layer = %layer.reference.diff_id, at = %target.display(), "mounted");
            if !layer.mounted.swap(true, Ordering::Relaxed) {
                self.metrics.mounted.inc();
            }
            if self.fill {
                let filled = layer.clone();
                self.spawn(|layers| layers.fill_one(filled));
            }
        }
        Ok(target)
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

    /// Saves everything and unmounts what no container uses.
    pub(crate) async fn stop(&self) {
        self.stopping.cancel();
        self.tasks.close();
        if timeout(STOP_DEADLINE, self.tasks.wait()).await.is_err() {
            warn!("reads of layers are still waiting for bytes; they fail now");
        }
        for layer in self.known.all() {
            self.unmount_or_warn(&layer).await;
            save(&layer).await;
        }
        let fuse = self.fuse.lock().take();
        let unmounted =
            blocking("unmounting the FUSE file system", || fuse.map_or(Ok(()), FuseMount::unmount));
        if let Err(error) = unmounted.await {
            warn!(%error, "containers still use lazy layers; their reads fail until they are started again");
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
        warn!(layer = %reference.diff_id, "the layer's files are missing, getting them again");
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
        match fill::fill(&layer).await {
            Ok(Filled::Right) => {}
            Ok(Filled::Wrong) => self.discard(&layer).await,
            Err(error) => warn!(layer = %layer.reference.diff_id, %error, "the layer stays incomplete"),
        }
    }

    /// Takes a layer out of service whose content turned out to be wrong.
    async fn discard(&self, layer: &Arc<LazyLayer>) {
        error!(layer = %layer.reference.diff_id, "the content does not have its diffID; the layer is discarded");
        layer.discard();
        let notifier = self.fuse.lock().as_ref().map(FuseMount::notifier);
        let (wrong, engine) = (layer.clone(), self.engine.clone());
        let discarded = blocking("discarding the layer", move || {
            engine.discard(&wrong.descriptor);
            wrong.dir.forget()?;
            notifier.map_or(Ok(()), |notifier| fuse::invalidate(&notifier, wrong.id))
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
        let dir = layer.dir.clone();
        blocking("removing the layer's files", move || dir.remove()).await
    }

    async fn unmount(&self, layer: &Arc<LazyLayer>) -> Result<(), LazyError> {
        let _mounting = layer.mounting.lock().await;
        let target = self.mounts_dir.join(layer.id.to_string());
        blocking("unmounting the layer", move || erofs::unmount(&target)).await?;
        if layer.mounted.swap(false, Ordering::Relaxed) {
            self.metrics.mounted.dec();
        }
        Ok(())
    }

    async fn unmount_or_warn(&self, layer: &Arc<LazyLayer>) {
        if let Err(error) = self.unmount(layer).await {
            warn!(layer = %layer.reference.diff_id, %error, "the layer stays mounted");
        }
    }

    async fn save_regularly(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SAVE_INTERVAL).await;
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

/// Prepares the directories and loads every layer that is usable; others are gotten again when they are needed.
fn load_all(root: &Path, known: &Known, engine: &Arc<dyn Engine>) -> io::Result<()> {
    let layers = root.join("layers");
    for dir in [&layers, &root.join("mnt"), &root.join("fuse")] {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    for dir in LayerDir::all(&layers)? {
        let path = dir.path().display().to_string();
        match LazyLayer::load(dir.clone(), engine.clone()) {
            Ok(layer) => {
                known.insert(Arc::new(layer));
            }
            Err(error) => {
                warn!(%path, %error, "a layer on disk cannot be used and is removed");
                dir.remove()?;
            }
        }
    }
    Ok(())
}

/// Detaches what a killed run left mounted below `root`. Blocks.
pub(crate) fn detach_stale(root: &Path) -> io::Result<()> {
    let detached = erofs::detach_stale(root)?;
    if detached > 0 {
        info!(mounts = detached, "detached the mounts of an earlier run");
    }
    match fs::read_dir(root.join("mnt")) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        points => points?.try_for_each(|point| fs::remove_dir(point?.path())),
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
