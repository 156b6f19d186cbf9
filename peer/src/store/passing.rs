//! Leaves for which there is no room on the disk: kept in memory until they were read and passed on.
//!
//! So a full disk costs a peer its cache, not its pulls. What is kept so is bounded for the whole store; the oldest leaf
//! gives way to the next, and whoever still wants it asks for it again.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{StoreError, inner::Inner, record::Record};
use crate::LeafDigest;

/// The leaves of all tasks that are only in memory.
#[derive(Debug)]
pub(super) struct Passing {
    /// Most bytes of them.
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: u64,
    /// The oldest first; some may be gone already.
    leaves: VecDeque<(Weak<Record>, u32)>,
    /// There was no room lately.
    full: bool,
}

impl Passing {
    pub(super) fn new(limit: u64) -> Self {
        Self { limit, state: Mutex::default() }
    }

    /// Bytes in memory.
    pub(super) fn bytes(&self) -> u64 {
        self.state.lock().bytes
    }
}

impl Record {
    /// Takes a leaf that is only in memory; false if the record was removed.
    fn pass(&self, leaf: u32, digest: LeafDigest, bytes: Bytes) -> bool {
        let mut state = self.state.lock();
        if !state.removed {
            state.unkept = true;
            state.passing.insert(leaf, (digest, bytes));
        }
        !state.removed
    }

    /// Forgets a leaf that is only in memory; what it took, in bytes.
    fn forget_passing(&self, leaf: u32) -> u64 {
        self.state.lock().passing.remove(&leaf).map_or(0, |(_, bytes)| bytes.len() as u64)
    }

    /// Forgets all leaves that are only in memory; what they took, in bytes.
    fn take_passing(&self) -> u64 {
        let mut state = self.state.lock();
        state.unkept = false;
        std::mem::take(&mut state.passing).values().map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// A leaf that is only in memory.
    pub(super) fn passing(&self, leaf: u32) -> Option<Bytes> {
        self.read(|state| state.passing.get(&leaf).map(|(_, bytes)| bytes.clone()))
    }
}

impl Inner {
    /// Keeps a leaf in memory that could not be written because of `error`. Returns that if it is too long for it, or
    /// the record is out of the store.
    pub(super) fn pass(
        &self,
        record: &Arc<Record>,
        leaf: u32,
        digest: LeafDigest,
        bytes: Bytes,
        error: StoreError,
    ) -> Result<(), StoreError> {
        let len = bytes.len() as u64;
        let mut state = self.passing.state.lock();
        if !std::mem::replace(&mut state.full, true) {
            tracing::warn!(%error, task = %record.id, "store: leaves are passed on from memory and not kept");
        }
        if len > self.passing.limit {
            return Err(error);
        }
        while state.bytes + len > self.passing.limit {
            let Some((oldest, leaf)) = state.leaves.pop_front() else { break };
            if let Some(oldest) = oldest.upgrade() {
                state.bytes -= oldest.forget_passing(leaf);
                oldest.bump();
            }
        }
        if !record.pass(leaf, digest, bytes) {
            return Err(error);
        }
        state.bytes += len;
        state.leaves.push_back((Arc::downgrade(record), leaf));
        drop(state);
        self.metrics.unkept.inc();
        record.bump();
        Ok(())
    }

    /// Nobody reads the record any more: what it had in memory is not needed.
    pub(super) fn release_passing(&self, record: &Arc<Record>) {
        let mut state = self.passing.state.lock();
        let freed = record.take_passing();
        if freed > 0 {
            state.bytes -= freed;
            state.leaves.retain(|(of, _)| !std::ptr::eq(of.as_ptr(), Arc::as_ptr(record)));
            drop(state);
            record.bump();
        }
    }

    /// A leaf was written: there is room again.
    pub(super) fn note_room(&self) {
        if std::mem::take(&mut self.passing.state.lock().full) {
            tracing::info!("store: there is room again, leaves are kept");
        }
    }
}
