//! What the manager counts.

use crate::{
    db::{Cluster, Count},
    instance::Kind,
};
use darter_service::Registry;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};

/// The manager's metrics; all clones count together.
#[derive(Debug, Clone, Default)]
pub(crate) struct Metrics {
    instances: Family<InstanceLabels, Gauge>,
    requests: Family<RequestLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InstanceLabels {
    cluster: String,
    kind: &'static str,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    api: &'static str,
    method: String,
    result: String,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("darter_manager");
        registry.register("instances", "Instances by cluster, kind and state", metrics.instances.clone());
        registry.register("requests", "Requests by API, method and result", metrics.requests.clone());
        metrics
    }

    /// Shows how many instances each cluster has.
    pub(crate) fn show_instances(&self, clusters: &[Cluster], counts: &[Count]) {
        for cluster in clusters {
            for kind in Kind::ALL {
                let count = counts.iter().find(|count| count.cluster == cluster.name && count.kind == kind);
                let states =
                    [("active", count.map(|it| it.active)), ("inactive", count.map(|it| it.inactive))];
                for (state, number) in states {
                    let cluster = cluster.name.to_string();
                    let labels = InstanceLabels { cluster, kind: kind.as_str(), state };
                    self.instances.get_or_create(&labels).set(number.unwrap_or(0));
                }
            }
        }
    }

    /// Counts one request that was answered with `result`: a gRPC code or an HTTP status. `method` is an RPC or a route, never
    /// a word of the asker's own.
    pub(crate) fn count(&self, api: &'static str, method: String, result: String) {
        self.requests.get_or_create(&RequestLabels { api, method, result }).inc();
    }
}
