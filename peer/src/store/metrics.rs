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
    /// Bytes of leaves that gave way to others.
    pub(super) evicted: Counter<u64, AtomicU64>,
    /// Bytes of leaves that were found as another layer's: neither fetched nor stored again.
    pub(super) shared: Counter<u64, AtomicU64>,
    /// Leaves that the disk did not return as they were written.
    pub(super) damaged: Counter,
}

impl StoreMetrics {
    /// Bytes of leaves that were found as another layer's.
    pub fn shared(&self) -> u64 {
        self.shared.get()
    }

    /// Bytes of leaves that were evicted.
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Leaves that were passed on without being kept.
    pub fn unkept(&self) -> u64 {
        self.unkept.get()
    }

    /// Leaves that the disk did not return as they were written.
    pub fn damaged(&self) -> u64 {
        self.damaged.get()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Bytes that contents take on disk";
        registry.register("darter_store_used_bytes", help, self.used.clone());
        let help = "Bytes of leaves that are only in memory, because there is no room on the disk";
        registry.register("darter_store_passing_bytes", help, self.passing.clone());
        let help = "Leaves that were passed on from memory because there was no room on the disk";
        registry.register("darter_store_unkept_leaves", help, self.unkept.clone());
        let help = "Bytes of leaves that were evicted";
        registry.register("darter_store_evicted_bytes", help, self.evicted.clone());
        let help = "Bytes of leaves that were here as another layer's: neither fetched nor stored again";
        registry.register("darter_store_shared_bytes", help, self.shared.clone());
        let help = "Leaves that the disk did not return as they were written";
        registry.register("darter_store_damaged_leaves", help, self.damaged.clone());
    }
}
