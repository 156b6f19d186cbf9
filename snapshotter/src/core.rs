//! The snapshotter's operations: ordinary snapshots, lazy layers, and which of the two a request gets.

use std::{
    collections::{HashSet, VecDeque},
    io,
    path::PathBuf,
    sync::Arc,
};

use darter_proto::snapshots::Mount;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use crate::{
    config::Config,
    engine::Engine,
    image::LayerRequest,
    images::{Images, ReadyLayer},
    implied,
    lazy::{self, LayerStatus, Layers, keeper},
    metrics::{Metrics, PrepareOutcome},
    report::{self, ImageStatus},
    snapshots::{
        Filters, Kind, LAZY_LABEL, LabelUpdate, Labels, Lazy, Owner, Parent, Record, SnapshotError,
        Snapshots, TARGET_LABEL, Usage, idmap,
    },
};

type Result<T> = std::result::Result<T, SnapshotError>;

/// Longest reason in [`LAZY_LABEL`], in characters.
const MAX_REASON: usize = 500;

/// Everything that the snapshotter is, apart from its socket.
pub(crate) struct Core {
    snapshots: Arc<Snapshots>,
    /// The lazy layers, or why there are none on this machine.
    layers: std::result::Result<Arc<Layers>, String>,
    /// `None` if layers that are pulled from now on are not to be lazy.
    images: Option<Arc<Images>>,
    /// Held while the directories that a layer implies are described.
    describing: Arc<Mutex<()>>,
    trash_is_full: Arc<Notify>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    metrics: Metrics,
}

impl Core {
    /// Opens what is under the configured root.
    pub(crate) async fn start(
        config: &Config,
        engine: Arc<dyn Engine>,
        metrics: Metrics,
        start_keeper: keeper::Start,
    ) -> Result<Self> {
        let root = config.root.clone();
        let snapshots = Arc::new(blocking(move || Snapshots::open(&root)).await?);
        let needed = config.lazy || !snapshots.layers()?.is_empty();
        let layers = if needed {
            let layers = Layers::start(config, engine.clone(), metrics.clone(), start_keeper).await;
            layers.map_err(|err| err.to_string())
        } else {
            let root = config.root.clone();
            let detached = blocking(move || {
                let unusable = SnapshotError::io("cannot detach the mounts of an earlier run");
                lazy::detach_stale(&root).map_err(unusable)
            });
            detached.await?;
            Err("lazy layers are switched off".to_owned())
        };
        if let Ok(layers) = &layers {
            let snapshots = snapshots.clone();
            layers.resume(&blocking(move || snapshots.layers_in_use()).await?);
        }
        if let (true, Err(reason)) = (needed, &layers) {
            warn!(%reason, "layers are not mounted lazily on this machine; containerd unpacks them");
        }
        let images = layers.as_ref().ok().filter(|_| config.lazy);
        let images =
            images.map(|layers| Arc::new(Images::new(engine, layers.clone(), config.prepare_timeout)));
        let core = Self {
            snapshots,
            layers,
            images,
            describing: Arc::default(),
            trash_is_full: Arc::default(),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
            metrics,
        };
        core.tasks.spawn(empty_trash(
            core.snapshots.clone(),
            core.trash_is_full.clone(),
            core.stopping.clone(),
        ));
        core.trash_is_full.notify_one();
        Ok(core)
    }

    /// Makes an active snapshot or a view and says how to mount it. If it is to hold a layer that is mounted lazily, a
    /// committed snapshot is made in its place, and the answer is [`SnapshotError::AlreadyExists`].
    pub(crate) async fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        mut labels: Labels,
    ) -> Result<Vec<Mount>> {
        if kind == Kind::Active && labels.contains_key(TARGET_LABEL) && self.images.is_some() {
            match self.create_lazy(parent, &labels).await? {
                Ok(()) => {
                    self.metrics.prepare(PrepareOutcome::Lazy);
                    return Err(SnapshotError::AlreadyExists(
                        labels.remove(TARGET_LABEL).unwrap_or_default(),
                    ));
                }
                Err(reason) => {
                    self.metrics.prepare(PrepareOutcome::Plain);
                    debug!(key, %reason, "not lazy");
                    let reason: String = reason.chars().take(MAX_REASON).collect();
                    labels.insert(LAZY_LABEL.to_owned(), format!("no: {reason}"));
                }
            }
        }
        if idmap::root(&labels).is_some() {
            // All that a client of an earlier one is told is `invalid argument`, and nothing here tells which one it is.
            info!(
                key,
                "the snapshot is to be id-mapped: containerd 2.0 does that, an earlier one cannot mount it"
            );
        }
        let snapshots = self.snapshots.clone();
        let lower = self.lower(parent).await?;
        let (key, parent) = (key.to_owned(), parent.to_owned());
        blocking(move || {
            let owner = match idmap::root(&labels) {
                Some(root) => Ok(Some(root)),
                None => lower.first().map(|dir| Owner::of(dir)).transpose(),
            };
            let owner = owner.map_err(SnapshotError::io("cannot read the parent's top directory"))?;
            let record = snapshots.create(kind, &key, &parent, labels, owner)?;
            Ok(snapshots.layout(&record, lower).mounts())
        })
        .await
    }

    /// How to mount a snapshot.
    pub(crate) async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let record = self.stat(key).await?;
        if record.kind == Kind::Committed {
            return Err(SnapshotError::NoMounts(key.to_owned()));
        }
        let lower = self.lower(&record.parent).await?;
        Ok(self.snapshots.layout(&record, lower).mounts())
    }

    /// Turns an active snapshot into a committed one.
    pub(crate) async fn commit(&self, name: String, key: String, labels: Labels) -> Result<()> {
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.commit(&name, &key, labels)).await
    }

    /// Removes a snapshot.
    pub(crate) async fn remove(&self, name: String) -> Result<()> {
        let snapshots = self.snapshots.clone();
        let removed = blocking(move || snapshots.remove(&name)).await?;
        if let (Some(images), Some(lazy)) = (&self.images, removed.lazy) {
            images.forget(&lazy.layer.diff_id);
        }
        self.trash_is_full.notify_one();
        Ok(())
    }

    /// One snapshot.
    pub(crate) async fn stat(&self, name: &str) -> Result<Record> {
        let (snapshots, name) = (self.snapshots.clone(), name.to_owned());
        blocking(move || snapshots.stat(&name)).await
    }

    /// Changes labels.
    pub(crate) async fn update(&self, name: String, labels: Labels, which: LabelUpdate) -> Result<Record> {
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.update(&name, labels, &which)).await
    }

    /// All snapshots that pass.
    pub(crate) async fn list(&self, filters: Filters) -> Result<Vec<(String, Record)>> {
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.list(&filters)).await
    }

    /// A snapshot's disk space.
    pub(crate) async fn usage(&self, name: String) -> Result<Usage> {
        let record = self.stat(&name).await?;
        if let (Some(lazy), Ok(layers)) = (&record.lazy, &self.layers) {
            let unknown = |error| SnapshotError::Unmountable {
                layer: lazy.layer.diff_id.to_string(),
                reason: format!("{error}"),
            };
            return layers.usage(&lazy.layer.diff_id).await.map_err(unknown);
        }
        let snapshots = self.snapshots.clone();
        blocking(move || snapshots.usage(&name)).await
    }

    /// Removes what no snapshot needs: directories, and layers with their mounts.
    pub(crate) async fn cleanup(&self) -> Result<()> {
        if let Some(images) = &self.images {
            images.forget_idle();
        }
        // Taken before the snapshots are read: a layer that becomes one's in between was held.
        let unheld = self.layers.as_ref().map(|layers| layers.unheld()).unwrap_or_default();
        let snapshots = self.snapshots.clone();
        let used = blocking(move || {
            snapshots.discard_orphans()?;
            snapshots.layers()
        });
        let used = used.await?;
        self.trash_is_full.notify_one();
        if let Ok(layers) = &self.layers {
            layers.collect(unheld.difference(&used)).await;
        }
        Ok(())
    }

    /// The lazy layers and how far each is.
    pub(crate) fn layers(&self) -> Vec<LayerStatus> {
        self.layers.as_ref().map(|layers| layers.status()).unwrap_or_default()
    }

    /// The images that were pulled with this snapshotter. Blocks.
    pub(crate) fn images(&self) -> Result<Vec<ImageStatus>> {
        let mut images = report::images(&self.snapshots.list(&Filters::default())?, &self.layers());
        if let Ok(layers) = &self.layers {
            for image in &mut images {
                image.start = image.chains.iter().rev().find_map(|chain| layers.start_seen(chain));
            }
        }
        Ok(images)
    }

    /// Saves everything, and unmounts the layers if no container can be using one.
    pub(crate) async fn stop(&self) {
        if let Some(images) = &self.images {
            images.stop().await;
        }
        if let Ok(layers) = &self.layers {
            let snapshots = self.snapshots.clone();
            let in_use = blocking(move || Ok(!snapshots.layers_in_use()?.is_empty()));
            layers.stop(in_use.await.unwrap_or(true)).await;
        }
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Makes a lazy snapshot, or says why it cannot be one.
    async fn create_lazy(&self, parent: &str, labels: &Labels) -> Result<std::result::Result<(), Arc<str>>> {
        let (Some(images), Some(request)) = (&self.images, LayerRequest::parse(labels)) else {
            return Ok(Err("lazy layers are switched off".into()));
        };
        let target = labels.get(TARGET_LABEL).cloned().unwrap_or_default();
        let (snapshots, on) = (self.snapshots.clone(), parent.to_owned());
        let find = {
            let target = target.clone();
            move || Ok((snapshots.has_lazy(&target, &on)?, snapshots.target_of(&on)?))
        };
        let (there, below) = blocking(find).await?;
        if there {
            return Ok(Ok(()));
        }
        let layer = match request {
            Ok(request) => images.decide(&request).await,
            Err(reason) => Err(reason.into()),
        };
        let layer = match layer {
            Ok(layer) if stands_on(&layer, parent, below.as_deref()) => layer,
            Ok(_) => return Ok(Err("the parent snapshot is not the layer below".into())),
            Err(reason) => return Ok(Err(reason)),
        };
        let (snapshots, parent, mut labels) = (self.snapshots.clone(), parent.to_owned(), labels.clone());
        labels.insert(LAZY_LABEL.to_owned(), "yes".to_owned());
        blocking(move || {
            let ReadyLayer { reference, raw_len, implies, .. } = &layer;
            // What it will take once it is complete: containerd asks only once.
            let usage = Usage { size: *raw_len, inodes: 1 };
            let lazy = Lazy { target, layer: reference.clone(), implies: *implies };
            snapshots.create_lazy(&parent, labels, lazy, usage)
        })
        .await
        .map(Ok)
    }

    /// The directories that a snapshot with this parent stands on, nearest first; lazy layers are mounted.
    async fn lower(&self, parent: &str) -> Result<Vec<PathBuf>> {
        let (snapshots, parent) = (self.snapshots.clone(), parent.to_owned());
        let parents = blocking(move || snapshots.parents(&parent)).await?;
        let dirs = try_join_all(parents.into_iter().map(|parent| self.dir(parent))).await?;
        if dirs.iter().all(|(_, implied)| implied.is_none()) {
            return Ok(once(dirs.into_iter().map(|(dir, _)| dir)));
        }
        let describing = self.describing.clone();
        blocking(move || {
            let _one_at_a_time = describing.lock();
            stack(dirs).map_err(SnapshotError::io("cannot describe the directories that a layer lacks"))
        })
        .await
        .map(once)
    }

    /// Where a parent's content is, and where the attributes are or will be of the directories that it implies.
    async fn dir(&self, parent: Parent) -> Result<(PathBuf, Option<PathBuf>)> {
        let (reference, implied) = match parent {
            Parent::Dir(dir) => return Ok((dir, None)),
            Parent::Layer { layer, implied } => (layer, implied),
        };
        let mounted = match &self.layers {
            Ok(layers) => layers.mount(&reference).await.map_err(|err| err.to_string()),
            Err(reason) => Err(reason.clone()),
        };
        mounted
            .map(|dir| (dir, implied))
            .map_err(|reason| SnapshotError::Unmountable { layer: reference.diff_id.to_string(), reason })
    }
}

/// All lower directories, nearest first: on each parent what it implies, if it needs that.
fn stack(dirs: Vec<(PathBuf, Option<PathBuf>)>) -> io::Result<Vec<PathBuf>> {
    let mut stacked = VecDeque::new();
    for (dir, implied) in dirs.into_iter().rev() {
        let needed = match implied {
            None => None,
            Some(implied) => {
                if !implied.exists() {
                    implied::describe(&dir, stacked.make_contiguous(), &implied)?;
                }
                implied::is_needed(&implied)?.then_some(implied)
            }
        };
        stacked.push_front(dir);
        if let Some(implied) = needed {
            stacked.push_front(implied);
        }
    }
    Ok(stacked.into())
}

/// Each directory where it is nearest: overlayfs refuses one that it has already, as a layer that an image has twice would
/// be. Nothing changes without the further one, because all that it has is hidden by the nearer one.
fn once(dirs: impl IntoIterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut seen = HashSet::new();
    dirs.into_iter().filter(|dir| seen.insert(dir.clone())).collect()
}

/// Whether a layer belongs on this parent, as far as the parent says which chain it is.
fn stands_on(layer: &ReadyLayer, parent: &str, parent_target: Option<&str>) -> bool {
    match &layer.below {
        None => parent.is_empty(),
        Some(below) => !parent.is_empty() && parent_target.is_none_or(|target| target == below.to_string()),
    }
}

/// Deletes removed snapshots whenever there are some.
async fn empty_trash(snapshots: Arc<Snapshots>, is_full: Arc<Notify>, stopping: CancellationToken) {
    while stopping.run_until_cancelled(is_full.notified()).await.is_some() {
        let snapshots = snapshots.clone();
        if let Err(error) = blocking(move || snapshots.empty_trash()).await {
            warn!(%error, "removed snapshots stay on disk for now");
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(|_| SnapshotError::Stopping)?
}
