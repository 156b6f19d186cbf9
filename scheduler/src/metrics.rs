//! What the scheduler counts.

use darter_service::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

use crate::state::{Counters, Counts};

/// The scheduler's metrics; all clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    hosts: Gauge,
    tasks: Gauge,
    layers: Gauge,
    profiles: Gauge,
    digest_bytes: Gauge,
    leases: Counter,
    ejections: Counter,
    bytes: Family<SourceLabels, Counter>,
    /// Messages from peers.
    pub(crate) messages: Counter,
    /// Sessions that the scheduler ended.
    pub(crate) closed: Counter,
    shown: Counters,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("darter_scheduler");
        registry.register("hosts", "Peers with a session", metrics.hosts.clone());
        registry.register("tasks", "Tasks that a peer holds or wants", metrics.tasks.clone());
        registry.register("layers", "Layers with a known descriptor", metrics.layers.clone());
        registry.register("profiles", "Images with a known start profile", metrics.profiles.clone());
        registry.register("digest_bytes", "Memory for leaf digests", metrics.digest_bytes.clone());
        registry.register("leases", "Leases to fetch from an origin", metrics.leases.clone());
        registry.register("ejections", "Times a peer was ejected", metrics.ejections.clone());
        registry.register(
            "bytes",
            "Bytes that peers reported, by where they came from",
            metrics.bytes.clone(),
        );
        registry.register("messages", "Messages from peers", metrics.messages.clone());
        registry.register("sessions_closed", "Sessions that the scheduler ended", metrics.closed.clone());
        metrics
    }

    /// Shows what the state machine has counted.
    pub(crate) fn show(&mut self, counts: Counts, counters: Counters) {
        let Counts { hosts, tasks, layers, profiles, digest_bytes } = counts;
        let gauges = [
            (&self.hosts, hosts),
            (&self.tasks, tasks),
            (&self.layers, layers),
            (&self.profiles, profiles),
            (&self.digest_bytes, digest_bytes),
        ];
        for (gauge, value) in gauges {
            gauge.set(value.try_into().unwrap_or(i64::MAX));
        }
        let before = std::mem::replace(&mut self.shown, counters);
        self.leases.inc_by(counters.leases - before.leases);
        self.ejections.inc_by(counters.ejections - before.ejections);
        let bytes = |source| self.bytes.get_or_create_owned(&SourceLabels { source });
        bytes("origin").inc_by(counters.bytes_from_origin - before.bytes_from_origin);
        bytes("peers").inc_by(counters.bytes_from_peers - before.bytes_from_peers);
    }
}
