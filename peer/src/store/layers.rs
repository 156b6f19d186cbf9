//! The layers that the store knows: descriptors, kept as long as any part of the layer is here.

use std::{collections::HashMap, sync::Arc};

use super::{inner::Inner, record::Record};
use crate::{Digest, LayerDescriptor, TaskId};

impl Inner {
    pub(super) fn put_layer(&self, descriptor: &LayerDescriptor) {
        let before = self.layers.lock().insert(descriptor.blob.clone(), descriptor.clone());
        if before.as_ref() == Some(descriptor) {
            return;
        }
        self.queue.layer(&descriptor.blob, Some(descriptor.clone()));
        if let Some(before) = before {
            self.remove_parts(&before, true);
        }
    }

    /// Forgets a layer and takes its parts out; the bytes that they held.
    pub(super) fn remove_layer(&self, blob: &Digest) -> u64 {
        let Some(removed) = self.layers.lock().remove(blob) else { return 0 };
        self.queue.layer(blob, None);
        self.remove_parts(&removed, false)
    }

    /// Takes out the parts of a layer that is no longer known, except those that another layer has too.
    fn remove_parts(&self, of: &LayerDescriptor, unpinned_only: bool) -> u64 {
        let kept: Vec<TaskId> = self.layers.lock().values().flat_map(parts).collect();
        let lost: Vec<Arc<Record>> = {
            let tasks = self.tasks.lock();
            let lost = parts(of).into_iter().filter(|part| !kept.contains(part));
            lost.filter_map(|part| tasks.get(&part).cloned()).collect()
        };
        let removed = lost.iter().filter_map(|record| {
            if !unpinned_only || !record.is_pinned() {
                self.bequeath(record);
            }
            let freed = self.take_out(record, unpinned_only)?;
            self.announce(&record.id);
            Some(freed)
        });
        removed.sum()
    }

    /// A layer all of whose parts are here and verified.
    pub(super) fn layer(&self, blob: &Digest) -> Option<LayerDescriptor> {
        let descriptor = self.layers.lock().get(blob).cloned()?;
        self.are_verified(&parts(&descriptor)).then_some(descriptor)
    }

    /// A layer whose index and table are here and verified.
    pub(super) fn known_layer(&self, blob: &Digest) -> Option<LayerDescriptor> {
        let descriptor = self.layers.lock().get(blob).cloned()?;
        let [index, table, _] = parts(&descriptor);
        self.are_verified(&[index, table]).then_some(descriptor)
    }

    pub(super) fn layers(&self) -> Vec<LayerDescriptor> {
        let mut layers: Vec<_> = self.layers.lock().values().cloned().collect();
        layers.retain(|descriptor| self.are_verified(&parts(descriptor)));
        layers
    }

    fn are_verified(&self, ids: &[TaskId]) -> bool {
        let tasks = self.tasks.lock();
        ids.iter().all(|id| tasks.get(id).is_some_and(|record| record.is_verified()))
    }

    /// Forgets the layers that lost the last of their parts.
    pub(super) fn forget_layers(&self, tasks: &HashMap<TaskId, Arc<Record>>, lost: &TaskId) {
        self.layers.lock().retain(|blob, descriptor| {
            let parts = parts(descriptor);
            let keep = !parts.contains(lost) || parts.iter().any(|part| tasks.contains_key(part));
            if !keep {
                self.queue.layer(blob, None);
            }
            keep
        });
    }
}

/// The tasks that make a layer usable: index, table, leaves.
pub(super) fn parts(descriptor: &LayerDescriptor) -> [TaskId; 3] {
    [
        TaskId::of_digest(&descriptor.index),
        TaskId::of_digest(&descriptor.table),
        TaskId::of_leaves(&descriptor.table),
    ]
}
