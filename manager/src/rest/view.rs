//! What the REST view shows, and what may be asked.

use crate::{
    db,
    instance::{Instance as Words, Kind},
    name::ClusterName,
    time::Time,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// The most items of one answer.
const MAX_LIMIT: u32 = 1000;

/// A cluster.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Cluster {
    /// Its name.
    name: String,
    /// Its dynamic configuration.
    config: Config,
    /// Its active schedulers.
    active_schedulers: i64,
    /// Its active seed peers.
    active_seeds: i64,
    /// Its other active peers.
    active_peers: i64,
}

/// The dynamic configuration of a cluster; 0 leaves a value to the configuration of its schedulers and peers.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Config {
    /// Grows with each change.
    version: u64,
    /// The most parents that a child has at one time.
    parents_per_child: u32,
    /// The most children that a parent has at one time.
    children_per_parent: u32,
    /// What one peer may fetch from its parents.
    download_bytes_per_second: u64,
    /// What one peer may send to its children.
    upload_bytes_per_second: u64,
    /// What one peer may fetch from origins.
    origin_bytes_per_second: u64,
    /// What one peer may fetch from its parents in the background.
    prefetch_bytes_per_second: u64,
}

/// A scheduler, a seed peer or a peer.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Instance {
    /// Its cluster.
    cluster: String,
    /// `scheduler`, `seed` or `peer`.
    kind: &'static str,
    /// The same after a restart.
    id: String,
    /// What it calls itself.
    name: String,
    /// Where it is reached, as `ip:port`.
    address: String,
    /// Its version of Darter.
    version: String,
    /// Where it stands; empty if it does not say.
    region: String,
    /// Where in the region it stands.
    zone: String,
    /// Where in the zone it stands.
    rack: String,
    /// Whether it is alive.
    state: State,
    /// Its last keepalive.
    #[schema(format = DateTime)]
    last_seen: String,
}

/// Whether an instance is alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// It is handed out to others.
    Active,
    /// It has missed three keepalives, or has said good-bye.
    Inactive,
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Page<T> {
    /// The items, ordered by cluster, kind and id.
    pub(crate) items: Vec<T>,
    /// How many there are on all pages.
    pub(crate) total: i64,
}

/// Which instances are asked for.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Query {
    /// Only those of this cluster.
    #[param(value_type = Option<String>)]
    cluster: Option<ClusterName>,
    /// Only those in this state.
    #[param(inline)]
    state: Option<State>,
    /// Leaves out so many from the start of the list.
    #[serde(default)]
    offset: u32,
    /// At most so many, up to 1000.
    #[serde(default = "default_limit")]
    #[param(default = 100, minimum = 1, maximum = 1000)]
    limit: u32,
}

impl Cluster {
    pub(crate) fn new(cluster: db::Cluster, counts: &[db::Count]) -> Self {
        let active = |kind: Kind| {
            let count = counts.iter().find(|count| count.cluster == cluster.name && count.kind == kind);
            count.map_or(0, |count| count.active)
        };
        let config = cluster.config;
        Self {
            active_schedulers: active(Kind::Scheduler),
            active_seeds: active(Kind::Seed),
            active_peers: active(Kind::Peer),
            config: Config {
                version: config.version,
                parents_per_child: config.parents_per_child,
                children_per_parent: config.children_per_parent,
                download_bytes_per_second: config.download_bytes_per_second,
                upload_bytes_per_second: config.upload_bytes_per_second,
                origin_bytes_per_second: config.origin_bytes_per_second,
                prefetch_bytes_per_second: config.prefetch_bytes_per_second,
            },
            name: cluster.name.to_string(),
        }
    }
}

impl Instance {
    pub(crate) fn new(registered: db::Registered, now: Time) -> Self {
        let Words { cluster, kind, id, name, address, version, region, zone, rack } = registered.instance;
        Self {
            cluster: cluster.to_string(),
            kind: kind.as_str(),
            id,
            name,
            address,
            version,
            region,
            zone,
            rack,
            state: if registered.alive_until > now { State::Active } else { State::Inactive },
            last_seen: registered.last_seen.to_string(),
        }
    }
}

impl Query {
    pub(crate) fn filter(&self) -> db::Filter {
        db::Filter { cluster: self.cluster.clone(), active: self.state.map(|state| state == State::Active) }
    }

    pub(crate) fn page(&self) -> db::Page {
        db::Page { offset: self.offset, limit: self.limit.clamp(1, MAX_LIMIT) }
    }
}

fn default_limit() -> u32 {
    100
}
