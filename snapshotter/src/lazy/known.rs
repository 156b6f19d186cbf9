//! The lazy layers of this node, for those who mount them and for the FUSE threads.

use std::{collections::HashMap, num::NonZeroUsize, sync::Arc};

use darter_peer::Digest;
use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::layer::{LayerId, LazyLayer};

/// Most layers that are remembered as wrong.
const MAX_WRONG: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// All lazy layers, at most one under each id and with each diffID.
#[derive(Debug)]
pub(super) struct Known {
    by_id: RwLock<HashMap<LayerId, Arc<LazyLayer>>>,
    /// Layers that were discarded.
    wrong: Mutex<LruCache<LayerId, ()>>,
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

impl Default for Known {
    fn default() -> Self {
        Self { by_id: RwLock::default(), wrong: Mutex::new(LruCache::new(MAX_WRONG)) }
    }
}

impl Known {
    pub(super) fn get(&self, diff_id: &Digest) -> Option<Arc<LazyLayer>> {
        self.by_id.read().values().find(|layer| layer.reference.diff_id == *diff_id).cloned()
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
        let free = by_id.get(&layer.id).is_none_or(|there| there.descriptor == layer.descriptor);
        if free {
            by_id.insert(layer.id, layer);
        }
        free
    }

    /// Keeps a layer, if it is known.
    pub(super) fn hold(&self, diff_id: &Digest) -> Option<Hold> {
        let by_id = self.by_id.read();
        let layer = by_id.values().find(|layer| layer.reference.diff_id == *diff_id)?;
        Some(Hold { _hold: layer.hold.clone(), raw_len: layer.descriptor.raw_len })
    }

    /// Takes a layer out, unless it is held.
    pub(super) fn remove_unheld(&self, layer: &LazyLayer) -> bool {
        let mut by_id = self.by_id.write();
        Arc::strong_count(&layer.hold) == 1 && by_id.remove(&layer.id).is_some()
    }

    /// Takes a wrong layer out, whoever holds it: from here on nobody gets it, nor anything of it. False if it was not
    /// there any more.
    pub(super) fn discard(&self, layer: &Arc<LazyLayer>) -> bool {
        self.wrong.lock().put(layer.id, ());
        layer.discard();
        self.remove(layer)
    }

    /// Takes a layer out, whoever holds it; false if it was not there any more.
    pub(super) fn remove(&self, layer: &Arc<LazyLayer>) -> bool {
        let mut by_id = self.by_id.write();
        let is_there = by_id.get(&layer.id).is_some_and(|there| Arc::ptr_eq(there, layer));
        is_there && by_id.remove(&layer.id).is_some()
    }

    /// Whether this layer was discarded.
    pub(super) fn is_wrong(&self, id: LayerId) -> bool {
        self.wrong.lock().contains(&id)
    }
}
