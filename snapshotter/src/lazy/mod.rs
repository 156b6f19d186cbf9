//! Lazy layers: mounted before their content has arrived.
//!
//! A layer's index is mounted as EROFS ([`erofs`]); the files in it point into one flat file, the layer's raw tar, that
//! a FUSE file system serves ([`fuse`]). So the kernel answers everything about names and attributes by itself, and the
//! node is asked for ranges of raw bytes only ([`layer`]), which it keeps in a sparse file ([`raw`]) and completes in
//! the background ([`fill`]); who reads on in order finds the next ones there ([`ahead`]). Where the kernel cannot do that,
//! the FUSE file system shows the layer's tree itself, out of the index ([`index`]). What is needed to mount a layer again stays on disk ([`files`]): a restart needs nobody.
//! A complete layer is mounted without FUSE from then on.
//! While the daemon is away the [`keeper`] holds the file system, so that reads wait for the next daemon.

mod ahead;
mod erofs;
mod files;
mod fill;
mod fuse;
mod index;
pub mod keeper;
mod known;
mod layer;
mod probe;
mod raw;
#[cfg(test)]
pub(crate) mod shown;
mod start;

use std::{
    collections::{HashMap, HashSet},
    ffi::OsStr,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use darter_peer::{Digest, LayerDescriptor, TaskError};
use darter_service::backoff::Backoff;
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
    keeper::Keeper,
    known::Known,
    layer::LazyLayer,
    start::Starts,
};
pub(crate) use self::{known::Hold, layer::LayerRef, start::Seen};
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
/// How long to wait before a keeper that ended is replaced, at first and at most.
const KEEPER_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Directories below the root: mounts through FUSE, and mounts of local files.
const MOUNTS: &str = "mnt";
const LOCAL: &str = "local";

/// What is so while there is no keeper.
const WITHOUT_KEEPER: &str = "there is no keeper: if this process is killed, containers on lazy layers break";

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

/// The FUSE file system as a start finds or makes it.
struct Opened {
    fuse: FuseMount,
    keeper: Option<Keeper>,
    /// It is that of an earlier run.
    is_taken_over: bool,
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
            load_all(&root, &known_too, &engine_too)?;
            open_fuse(&root, fs, start_keeper)
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

    /// Tries which of the mounts that are allowed works on this machine.
    async fn choose_mount(self: &Arc<Self>, allowed: MountKind) -> Result<(), String> {
        let works = probe::probe(self).await;
        let (kind, other) =
            if allowed == MountKind::Fuse { ("FUSE", false) } else { ("EROFS over FUSE", true) };
        let works = works.map_err(|reason| format!("{kind} does not work here: {reason}"));
        let works = match works {
            Err(reason) if other && allowed == MountKind::Auto => {
                info!(%reason, "layers are shown by the FUSE file system itself");
                self.erofs.store(false, Ordering::Relaxed);
                probe::probe(self).await.map_err(|other| format!("{reason}; nor does FUSE alone: {other}"))
            }
            works => works,
        };
        if !self.erofs.load(Ordering::Relaxed)
            && let Some(fuse) = self.fuse.lock().as_ref()
            && let Err(error) = fuse.raise_read_ahead()
        {
            warn!(%error, "read-ahead stays at the kernel's 128 KiB");
        }
        works
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
        if open.descriptor.index_len > layer::MAX_INDEX_LEN {
            return Err(LazyError::Refused("its index is too long".into()));
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

    /// Mounts a layer, if it is not mounted already, has it filled, and says where it is.
    pub(crate) async fn mount(self: &Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.mount_now(&reference, layers.fill).await }).await
    }

    /// Mounts a layer and fetches nothing of it but what is read.
    async fn mount_only(self: &Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.mount_now(&reference, false).await }).await
    }

    async fn mount_now(self: &Arc<Self>, reference: &LayerRef, fill: bool) -> Result<PathBuf, LazyError> {
        let layer = match self.known.get(&reference.diff_id) {
            Some(layer) => layer,
            None => self.recover(reference).await?,
        };
        layer.check().map_err(|err| LazyError::Refused(err.to_string()))?;
        let _mounting = layer.mounting.lock().await;
        let (device, tree) = {
            let fuse = self.fuse.lock();
            let fuse = fuse.as_ref().ok_or(LazyError::Stopping)?;
            (fuse.file(&layer.reference.diff_id), fuse.tree(layer.id))
        };
        let (target, is_new) = if !self.erofs.load(Ordering::Relaxed) {
            let mounting = layer.clone();
            blocking("reading the layer's index", move || mounting.index().map(drop)).await?;
            (tree, !layer.mounted.load(Ordering::Relaxed))
        } else if layer.raw.is_verified() {
            let [through_fuse, target] = self.targets(&layer);
            let is_new = mount_erofs(&layer, layer.dir.raw(), target.clone()).await?;
            // Containers that stand on the other mount keep it; nobody else will.
            blocking("unmounting the layer", move || erofs::unmount(&through_fuse)).await?;
            (target, is_new)
        } else {
            let [target, _] = self.targets(&layer);
            let is_new = mount_erofs(&layer, device, target.clone()).await?;
            (target, is_new)
        };
        if is_new {
            debug!(layer = %layer.reference.diff_id, at = %target.display(), "mounted");
            self.now_mounted(&layer, fill);
        }
        Ok(target)
    }

    /// Where a layer is mounted: with its bytes through FUSE, and from the local file.
    fn targets(&self, layer: &LazyLayer) -> [PathBuf; 2] {
        [&self.mounts_dir, &self.local_dir].map(|dir| dir.join(layer.id.to_string()))
    }

    fn now_mounted(self: &Arc<Self>, layer: &Arc<LazyLayer>, fill: bool) {
        if !layer.mounted.swap(true, Ordering::Relaxed) {
            self.metrics.mounted.inc();
        }
        if fill {
            let layer = layer.clone();
            self.spawn(|layers| layers.fill_one(layer));
        }
    }

    /// Goes on with the mounts of an earlier run, and unmounts those that belong to no layer any more.
    async fn adopt_mounts(self: &Arc<Self>) {
        let dirs = [self.mounts_dir.clone(), self.local_dir.clone()];
        let mounts = blocking("reading the mounts", move || {
            let mut points = Vec::new();
            for dir in dirs {
                points.extend(
                    fs::read_dir(dir)?.map(|point| Ok(point?.path())).collect::<io::Result<Vec<_>>>()?,
                );
            }
            Ok(points)
        });
        let mounts = mounts.await.unwrap_or_else(|error| {
            warn!(%error, "the mounts of the earlier run are not known");
            Vec::new()
        });
        let all = self.known.all();
        let by_name: HashMap<String, &Arc<LazyLayer>> =
            all.iter().map(|layer| (layer.id.to_string(), layer)).collect();
        for point in mounts {
            let name = point.file_name().and_then(OsStr::to_str).unwrap_or_default();
            match by_name.get(name).filter(|_| erofs::is_mounted(&point)) {
                Some(layer) => self.now_mounted(layer, self.fill),
                None => {
                    let unmounted = blocking("unmounting a layer", move || erofs::unmount(&point)).await;
                    unmounted.unwrap_or_else(|error| warn!(%error, "an unused layer stays mounted"));
                }
            }
        }
        info!(layers = all.len(), "took over the mounts of the earlier run");
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

    /// What a layer takes on disk: once it is complete, since containerd asks only once, or now if it is not to be.
    pub(crate) async fn usage(&self, diff_id: &Digest) -> Result<Usage, LazyError> {
        let layer = self.known.get(diff_id);
        match layer.as_ref().map(|layer| &layer.descriptor) {
            Some(layer) if self.fill => {
                let LayerDescriptor { raw_len, index_len, table_len, .. } = layer;
                Ok(Usage { size: raw_len + index_len + table_len, inodes: 1 })
            }
            _ => {
                let dir = LayerDir::of(&self.layers_dir, diff_id);
                blocking("counting the layer's disk space", move || snapshots::usage_of_dir(dir.path())).await
            }
        }
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
        match layer.unwanted.run_until_cancelled(fill::fill(&layer)).await {
            None | Some(Ok(Filled::Right)) => {}
            Some(Ok(Filled::Wrong)) => self.discard(&layer).await,
            Some(Err(error)) => warn!(layer = %layer.reference.diff_id, %error, "the layer stays incomplete"),
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
            let invalidated = notifier.map_or(Ok(()), |notifier| fuse::invalidate(&notifier, &wrong));
            wrong.dir.forget()?;
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

    async fn unmount(&self, layer: &Arc<LazyLayer>) -> Result<(), LazyError> {
        let _mounting = layer.mounting.lock().await;
        let targets = self.targets(layer);
        blocking("unmounting the layer", move || {
            targets.iter().try_for_each(|target| erofs::unmount(target))
        })
        .await?;
        layer.drop_index();
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

    /// Replaces the keeper whenever it ends, as long as there is something to keep.
    async fn watch_keeper(self: Arc<Self>, mut keeper: Option<Keeper>, start: keeper::Start) {
        let mut backoff = Backoff::new(KEEPER_RETRY.0, KEEPER_RETRY.1);
        loop {
            if let Some(keeper) = keeper.take() {
                let ended = keeper.ended().await;
                warn!(?ended, "the keeper has ended; another one takes its place");
            }
            sleep(backoff.wait()).await;
            let device = self.fuse.lock().as_ref().map(|fuse| fuse.device().try_clone());
            let Some(Ok(device)) = device else { continue };
            let root = self.root.clone();
            let opened = blocking("starting a keeper", move || {
                let (keeper, _) = Keeper::open(&root, start)?;
                keeper.keep(&device).map(|()| keeper)
            });
            match opened.await {
                Ok(new) => keeper = Some(new),
                Err(error) => warn!(%error, "{WITHOUT_KEEPER}"),
            }
        }
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

/// Mounts a layer's index with its raw tar at `device`; false if it is mounted there already.
async fn mount_erofs(layer: &Arc<LazyLayer>, device: PathBuf, target: PathBuf) -> Result<bool, LazyError> {
    let layer = layer.clone();
    let mounted = blocking("mounting the layer", move || {
        if erofs::is_mounted(&target) {
            return Ok(false);
        }
        layer.dir.read_index(&layer.descriptor)?;
        erofs::mount(&layer.dir.index(), &device, &target).map(|()| true)
    });
    mounted.await
}

/// Prepares the directories and loads every layer that is usable; others are gotten again when they are needed.
fn load_all(root: &Path, known: &Known, engine: &Arc<dyn Engine>) -> io::Result<()> {
    let layers = root.join("layers");
    // Not that of the FUSE file system: looking at it would wait for an answer.
    for dir in [&layers, &root.join(MOUNTS), &root.join(LOCAL)] {
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

/// Takes over what the keeper holds, or mounts the file system anew and hands it to the keeper.
fn open_fuse(root: &Path, fs: LayersFs, start_keeper: keeper::Start) -> io::Result<Opened> {
    let path = root.join("fuse");
    let (keeper, held) = match Keeper::open(root, start_keeper) {
        Ok((keeper, held)) => (Some(keeper), held),
        Err(error) => {
            warn!(%error, "{WITHOUT_KEEPER}");
            (None, None)
        }
    };
    if let Some(device) = held.filter(fuse::is_connected)
        && erofs::is_mount_point(&path)?
    {
        return Ok(Opened { fuse: FuseMount::take_over(&path, device, fs)?, keeper, is_taken_over: true });
    }
    detach_stale(root)?;
    let fuse = FuseMount::mount(&path, fs)?;
    let keeper = keeper.filter(|keeper| {
        let kept = keeper.keep(fuse.device());
        kept.inspect_err(|error| warn!(%error, "{WITHOUT_KEEPER}")).is_ok()
    });
    Ok(Opened { fuse, keeper, is_taken_over: false })
}

/// Detaches what an earlier run left mounted below `root` and nobody kept. Blocks.
pub(crate) fn detach_stale(root: &Path) -> io::Result<()> {
    let detached = erofs::detach_stale(root)?;
    if detached > 0 {
        info!(mounts = detached, "detached the mounts of an earlier run");
    }
    for dir in [MOUNTS, LOCAL] {
        match fs::read_dir(root.join(dir)) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            points => points?.try_for_each(|point| fs::remove_dir(point?.path()))?,
        }
    }
    Ok(())
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
