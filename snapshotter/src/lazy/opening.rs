//! What a start finds: layers on disk, the FUSE file system of an earlier run, its keeper and its mounts.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::Path,
    sync::Arc,
    time::Duration,
};

use darter_service::backoff::Backoff;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    LOCAL, Layers, MOUNTS, blocking, erofs,
    files::LayerDir,
    fuse::{self, FuseMount, LayersFs},
    keeper::{self, Keeper},
    known::Known,
    layer::LazyLayer,
};
use crate::engine::Engine;

/// How long to wait before a keeper that ended is replaced, at first and at most.
const KEEPER_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// What is so while there is no keeper.
const WITHOUT_KEEPER: &str = "there is no keeper: if this process is killed, containers on lazy layers break";

/// The FUSE file system as a start finds or makes it.
pub(super) struct Opened {
    pub(super) fuse: FuseMount,
    pub(super) keeper: Option<Keeper>,
    /// It is that of an earlier run.
    pub(super) is_taken_over: bool,
}

impl Layers {
    /// Goes on with the mounts of an earlier run, and unmounts those that belong to no layer any more.
    pub(super) async fn adopt_mounts(self: &Arc<Self>) {
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

    /// Replaces the keeper whenever it ends, as long as there is something to keep.
    pub(super) async fn watch_keeper(self: Arc<Self>, mut keeper: Option<Keeper>, start: keeper::Start) {
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
}

/// Prepares the directories and loads every layer that is usable; others are gotten again when they are needed.
pub(super) fn load_all(root: &Path, known: &Known, engine: &Arc<dyn Engine>) -> io::Result<()> {
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
pub(super) fn open_fuse(root: &Path, fs: LayersFs, start_keeper: keeper::Start) -> io::Result<Opened> {
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
