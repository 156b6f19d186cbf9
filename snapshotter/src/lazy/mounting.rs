//! Where a layer is mounted: as EROFS with its bytes through FUSE, as EROFS from the local file once it is complete, or
//! not at all where the FUSE file system shows its tree.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
};

use tracing::{debug, info, warn};

use super::{LayerRef, Layers, LazyError, blocking, erofs, layer::LazyLayer, probe};
use crate::config::MountKind;

impl Layers {
    /// Tries which of the mounts that are allowed works on this machine.
    pub(super) async fn choose_mount(self: &Arc<Self>, allowed: MountKind) -> Result<(), String> {
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

    /// Mounts a layer, if it is not mounted already, has it filled, and says where it is.
    pub(crate) async fn mount(self: &Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.mount_now(&reference, layers.fill).await }).await
    }

    /// Mounts a layer and fetches nothing of it but what is read.
    pub(super) async fn mount_only(self: &Arc<Self>, reference: &LayerRef) -> Result<PathBuf, LazyError> {
        let (layers, reference) = (self.clone(), reference.clone());
        self.whole(async move { layers.mount_now(&reference, false).await }).await
    }

    async fn mount_now(self: &Arc<Self>, reference: &LayerRef, fill: bool) -> Result<PathBuf, LazyError> {
        let layer = match self.known.get(&reference.diff_id) {
            Some(layer) if !layer.is_replaced() => layer,
            replaced => {
                if let Some(replaced) = replaced {
                    self.make_way(&replaced).await;
                }
                self.recover(reference).await?
            }
        };
        let _mounting = layer.mounting.lock().await;
        let (device, tree) = {
            let fuse = self.fuse.lock();
            let fuse = fuse.as_ref().ok_or(LazyError::Stopping)?;
            (fuse.file(layer.id), fuse.tree(layer.id))
        };
        let (target, is_new) = if !self.erofs.load(Ordering::Relaxed) {
            let mounting = layer.clone();
            blocking("reading the layer's index", move || mounting.index().map(drop)).await?;
            (tree, !layer.mounted.load(Ordering::Relaxed))
        } else if layer.raw.is_verified() {
            // The other mount stays: somebody may have been told of it, and use it only now.
            let [_, target] = self.targets(&layer);
            let is_new = mount_erofs(&layer, layer.dir.raw(), target.clone()).await?;
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

    pub(super) fn now_mounted(self: &Arc<Self>, layer: &Arc<LazyLayer>, fill: bool) {
        if !layer.mounted.swap(true, Ordering::Relaxed) {
            self.metrics.mounted.inc();
        }
        if fill {
            let layer = layer.clone();
            self.spawn(|layers| layers.fill_one(layer));
        }
    }

    pub(super) async fn unmount(&self, layer: &Arc<LazyLayer>) -> Result<(), LazyError> {
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

    pub(super) async fn unmount_or_warn(&self, layer: &Arc<LazyLayer>) {
        if let Err(error) = self.unmount(layer).await {
            warn!(layer = %layer.reference.diff_id, %error, "the layer stays mounted");
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
