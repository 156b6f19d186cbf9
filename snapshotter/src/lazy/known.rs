//! The lazy layers of this node, for those who mount them and for the FUSE threads.

use std::{collections::HashMap, sync::Arc};

use darter_peer::Digest;
use parking_lot::RwLock;

use super::layer::{LayerId, LazyLayer};

/// All lazy layers, at most one under each id.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_id: RwLock<HashMap<LayerId, Arc<LazyLayer>>>,
}

/// Keeps a layer from being collected.
#[derive(Debug, Clone)]
pub(crate) struct Hold {
    _hold: Arc<()>,
    raw_len: u64,
}

impl Hold {
    /// Length of the layer's raw tar in bytes.
    pub(crate) fn raw_len(&self) -> u64 {
        self.raw_len
    }
}

impl Known {
    pub(super) fn get(&self, diff_id: &Digest) -> Option<Arc<LazyLayer>> {
        self.by_id(LayerId::of(diff_id)).filter(|layer| layer.reference.diff_id == *diff_id)
    }

    pub(super) fn by_id(&self, id: LayerId) -> Option<Arc<LazyLayer>> {
        self.by_id.read().get(&id).cloned()
    }

    pub(super) fn all(&self) -> Vec<Arc<LazyLayer>> {
        self.by_id.read().values().cloned().collect()
    }

    /// Adds a layer; false if another one has its id.
    pub(super) fn insert(&self, layer: Arc<LazyLayer>) -> bool {
        let mut by_id = self.by_id.write();
        let free =
            by_id.get(&layer.id).is_none_or(|there| there.reference.diff_id == layer.reference.diff_id);
        if free {
            by_id.insert(layer.id, layer);
        }
        free
    }

    /// Keeps a layer, if it is known and may be served.
    pub(super) fn hold(&self, diff_id: &Digest) -> Option<Hold> {
        let by_id = self.by_id.read();
        let layer = by_id.get(&LayerId::of(diff_id)).filter(|layer| layer.reference.diff_id == *diff_id)?;
        layer.check().ok()?;
        Some(Hold { _hold: layer.hold.clone(), raw_len: layer.descriptor.raw_len })
    }

    /// Takes a layer out, unless it is held.
    pub(super) fn remove_unheld(&self, layer: &LazyLayer) -> bool {
        let mut by_id = self.by_id.write();
        Arc::strong_count(&layer.hold) == 1 && by_id.remove(&layer.id).is_some()
    }
}
