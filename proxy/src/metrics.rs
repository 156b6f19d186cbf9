//! Counters of the proxy.

use darter_service::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// Requests and bytes. Clones share the counters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) bytes: Family<SourceLabels, Counter>,
    pub(crate) broken: Counter,
    pub(crate) decisions: Family<DecisionLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct DecisionLabels {
    pub(crate) p2p: &'static str,
    pub(crate) why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) route: &'static str,
    pub(crate) status: u16,
    pub(crate) source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SourceLabels {
    pub(crate) source: &'static str,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("darter_proxy");
        registry.register(
            "requests",
            "Requests of runtimes by route, status, and source of the first byte",
            metrics.requests.clone(),
        );
        registry.register("bytes", "Bytes sent to runtimes by where they came from", metrics.bytes.clone());
        registry.register(
            "broken",
            "Answers that broke off because the content failed",
            metrics.broken.clone(),
        );
        registry.register(
            "decisions",
            "Requests by whether peers took part, and why or why not",
            metrics.decisions.clone(),
        );
        metrics
    }
}
