//! What the transfer counts.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::tickets::Denial;

/// Counters and gauges of the transfer between peers. Clones share them.
#[derive(Debug, Clone)]
pub struct TransferMetrics {
    /// Bytes of leaves sent to children.
    pub(super) sent: Counter,
    /// Bytes of leaves received from parents.
    pub(super) received: Counter,
    /// Connections of children.
    pub(super) children: Gauge,
    /// Connections to parents.
    pub(super) parents: Gauge,
    /// Leaves that children wait for.
    pub(super) queued: Gauge,
    /// Leaves refused to children because too much was queued.
    pub(super) refused: Counter,
    /// Tasks not given to children for want of a good ticket.
    denied: Family<Why, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct To {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct With {
    with: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    why: &'static str,
}

impl TransferMetrics {
    /// A child did not get a task for want of a good ticket.
    pub(super) fn denied(&self, denial: Denial) {
        let why = match denial {
            Denial::Missing => "missing",
            Denial::Malformed => "malformed",
            Denial::UnknownKey => "unknown_key",
            Denial::Wrong => "wrong",
            Denial::Expired => "expired",
        };
        self.denied.get_or_create(&Why { why }).inc();
    }

    /// Bytes of leaves sent to children since the start.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.get()
    }

    /// Registers the metrics, all named `darter_transfer_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let (bytes, connections) = (Family::<To, Counter>::default(), Family::<With, Gauge>::default());
        let metrics = Self {
            sent: bytes.get_or_create_owned(&To { direction: "sent" }),
            received: bytes.get_or_create_owned(&To { direction: "received" }),
            children: connections.get_or_create_owned(&With { with: "child" }),
            parents: connections.get_or_create_owned(&With { with: "parent" }),
            queued: Gauge::default(),
            refused: Counter::default(),
            denied: Family::default(),
        };
        registry.register(
            "darter_transfer_bytes",
            "Bytes of leaves sent to children and received from parents",
            bytes,
        );
        registry.register(
            "darter_transfer_connections",
            "Open connections between this peer and others",
            connections,
        );
        registry.register(
            "darter_transfer_queued_leaves",
            "Leaves that children wait for",
            metrics.queued.clone(),
        );
        registry.register(
            "darter_transfer_refused_leaves",
            "Leaves refused to children because too much was queued",
            metrics.refused.clone(),
        );
        registry.register(
            "darter_transfer_denied_tickets",
            "Tasks that children asked for without a good ticket, by what was wrong with it",
            metrics.denied.clone(),
        );
        metrics
    }
}
