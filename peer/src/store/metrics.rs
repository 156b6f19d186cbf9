//! What the store counts.

use std::sync::atomic::AtomicU64;

use darter_service::Registry;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

/// Counters of the store; clones share them.
#[derive(Debug, Clone, Default)]
pub struct StoreMetrics {
    /// Bytes that contents take; see [`super::Store::measure`].
    pub(super) used: Gauge<u64, AtomicU64>,
    /// Bytes of leaves that are only in memory.
    pub(super) passing: Gauge<u64, AtomicU64>,
    /// Leaves that were passed on from memory because there was no room on the disk.
    pub(super) unkept: Counter,
    /// Leaves that the disk did not return as they were written.
    pub(super) damaged: Counter,
}

impl StoreMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Bytes that contents take on disk";
        registry.register("darter_store_used_bytes", help, self.used.clone());
        let help = "Bytes of leaves that are only in memory, because there is no room on the disk";
        registry.register("darter_store_passing_bytes", help, self.passing.clone());
        let help = "Leaves that were passed on from memory because there was no room on the disk";
        registry.register("darter_store_unkept_leaves", help, self.unkept.clone());
        let help = "Leaves that the disk did not return as they were written";
        registry.register("darter_store_damaged_leaves", help, self.damaged.clone());
    }
}
