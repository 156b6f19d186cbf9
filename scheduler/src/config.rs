//! The scheduler's configuration file.

#[cfg(test)]
mod tests;

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use darter_proto::{manager::DynamicConfig, scheduler as proto};
use darter_service::{
    admin,
    config::{duration, size},
    manager,
    telemetry::LogConfig,
};
use serde::{Deserialize, Deserializer, Serialize, de};

use crate::state::Settings;

/// The most parents or children that make sense; the manager has the same limit.
const MAX_PEERS: u32 = 1000;

/// The configuration of a scheduler. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// gRPC, for peers, as `ip:port`; port 7410 by default.
    pub listen: SocketAddr,
    /// Where peers reach this scheduler, as `ip:port`: what the manager tells them. By default the address from which
    /// the manager is reached, with the port of `listen`.
    pub advertise: Option<SocketAddr>,
    /// This scheduler's name for people; default: the host name.
    pub name: String,
    /// Aimed-at number of parents of a child in one task, 1 to 1000; the manager's, where it sets one, takes its place.
    #[serde(deserialize_with = "peers")]
    pub parents_per_child: u32,
    /// Whether a child's parents are replaced by others as it gets on; without it only those that are gone. To compare.
    pub rotate: bool,
    /// Children that a peer serves at once before others are preferred, 1 to 1000; a seed peer serves four times as
    /// many. The manager's, where it sets one, takes its place.
    #[serde(deserialize_with = "peers")]
    pub children_per_parent: u32,
    /// A peer that fetches from an origin and shows no progress for so long loses its lease to another.
    #[serde(serialize_with = "duration::serialize", deserialize_with = "timeout")]
    pub lease_progress_timeout: Duration,
    /// For so long after its start the scheduler sends nobody to an origin: the peers of its predecessor, who may be
    /// fetching already, are still coming back. They do within two seconds.
    #[serde(with = "duration")]
    pub settle_time: Duration,
    /// The most peers at once; further ones are turned away.
    pub max_sessions: usize,
    /// Limits of each peer.
    pub limits: Limits,
    /// The manager, if there is one.
    pub manager: Option<manager::Config>,
    /// Metrics and health; port 7411 of the loopback interface by default.
    pub admin: admin::Config,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// The `[limits]` section, in bytes per second; 0 leaves a limit to each peer's own configuration. The manager's, where
/// it sets some, take their place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// What one peer may fetch from its parents.
    #[serde(with = "size")]
    pub download: u64,
    /// What one peer may send to its children.
    #[serde(with = "size")]
    pub upload: u64,
    /// What one peer may fetch from origins.
    #[serde(with = "size")]
    pub origin: u64,
    /// What one peer may fetch in the background.
    #[serde(with = "size")]
    pub prefetch: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 7410)),
            advertise: None,
            name: String::new(),
            parents_per_child: 16,
            rotate: true,
            children_per_parent: 128,
            lease_progress_timeout: Duration::from_secs(5),
            settle_time: Duration::from_secs(2),
            max_sessions: 100_000,
            limits: Limits::default(),
            manager: None,
            admin: admin::Config { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7411)) },
            log: LogConfig::default(),
        }
    }
}

impl Config {
    /// The name for people.
    pub(crate) fn name(&self) -> String {
        if self.name.is_empty() {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        } else {
            self.name.clone()
        }
    }

    /// What holds together with the manager's `dynamic` configuration, in which 0 says nothing.
    pub(crate) fn settings(&self, scheduler_id: &str, dynamic: &DynamicConfig) -> Settings {
        let or = |theirs: u64, own: u64| if theirs == 0 { own } else { theirs };
        let count = |theirs: u32, own: u32| if theirs == 0 { own } else { theirs.min(MAX_PEERS) };
        let parents = count(dynamic.parents_per_child, self.parents_per_child);
        Settings {
            scheduler_id: scheduler_id.to_owned(),
            parents_per_child: parents as usize,
            rotate: self.rotate,
            children_per_parent: count(dynamic.children_per_parent, self.children_per_parent),
            lease_progress_timeout: self.lease_progress_timeout,
            settle_time: self.settle_time,
            rates: proto::Config {
                download_bytes_per_second: or(dynamic.download_bytes_per_second, self.limits.download),
                upload_bytes_per_second: or(dynamic.upload_bytes_per_second, self.limits.upload),
                origin_bytes_per_second: or(dynamic.origin_bytes_per_second, self.limits.origin),
                prefetch_bytes_per_second: or(dynamic.prefetch_bytes_per_second, self.limits.prefetch),
            },
        }
    }
}

fn peers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let peers = u32::deserialize(deserializer)?;
    if (1..=MAX_PEERS).contains(&peers) {
        return Ok(peers);
    }
    Err(de::Error::custom(format_args!("{peers} is not possible; write a number from 1 to {MAX_PEERS}")))
}

fn timeout<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let timeout = duration::deserialize(deserializer)?;
    if timeout >= Duration::from_secs(1) {
        return Ok(timeout);
    }
    Err(de::Error::custom("less than \"1s\" would take leases from healthy peers"))
}
