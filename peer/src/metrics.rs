//! What a peer counts.

use std::sync::atomic::AtomicU64;

use darter_service::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

use crate::content::{BySource, From};

/// Counters of the engine; cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct PeerMetrics {
    received: Family<Labels, Counter<u64, AtomicU64>>,
    wrong_leaves: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    source: &'static str,
}

impl PeerMetrics {
    /// Registers the counters.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let help = "Bytes of contents by where they came from";
        registry.register("darter_peer_received_bytes", help, metrics.received.clone());
        let help = "Leaves from parents that did not have their digest";
        registry.register("darter_peer_wrong_leaves", help, metrics.wrong_leaves.clone());
        metrics
    }

    pub(crate) fn received(&self, from: From, bytes: u64) {
        self.counter(from).inc_by(bytes);
    }

    pub(crate) fn wrong_leaf(&self) {
        self.wrong_leaves.inc();
    }

    /// Everything received since the start.
    pub fn by_source(&self) -> BySource {
        BySource {
            local: self.counter(From::Local).get(),
            peer: self.counter(From::Peer).get(),
            seed: self.counter(From::Seed).get(),
            origin: self.counter(From::Origin).get(),
        }
    }

    fn counter(&self, from: From) -> Counter<u64, AtomicU64> {
        let source = match from {
            From::Local => "local",
            From::Peer => "peer",
            From::Seed => "seed",
            From::Origin => "origin",
        };
        self.received.get_or_create_owned(&Labels { source })
    }
}
