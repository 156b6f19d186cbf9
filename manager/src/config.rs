//! The manager's configuration file.

#[cfg(test)]
mod tests;

use crate::name::ClusterName;
use darter_service::{admin, config, telemetry::LogConfig};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

/// The keepalive intervals that make sense: shorter is load without use, longer is slow to see a death.
const INTERVALS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));
/// The most parents or children a cluster may set.
const MAX_PEERS: u32 = 1000;

/// The configuration of the manager. Every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// gRPC, for schedulers and peers; port 7420 by default.
    pub grpc: Listen,
    /// The read-only REST view, for people and tools; port 7421 by default.
    pub rest: Listen,
    /// Metrics and health; port 7422 of the loopback interface by default.
    pub admin: admin::Config,
    /// Where the state is kept.
    pub database: Database,
    /// When an instance counts as alive.
    pub keepalive: KeepAlive,
    /// The clusters and their limits. A cluster that is left out keeps what the database has; `default` always exists.
    pub clusters: BTreeMap<ClusterName, Cluster>,
    /// What is logged, and how.
    pub log: LogConfig,
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Listen {
    /// As `ip:port`; port 0 takes any free one.
    pub listen: SocketAddr,
}

/// The `[database]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// The SQLite file; it and its directory are made if they are missing.
    pub path: PathBuf,
}

/// The `[keepalive]` section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepAlive {
    /// How often instances say that they are alive, 100 ms to 60 s; one that misses three is inactive.
    #[serde(serialize_with = "config::duration::serialize", deserialize_with = "interval")]
    pub interval: Duration,
    /// How long an inactive instance is still shown before it is forgotten.
    #[serde(with = "config::duration")]
    pub forget_after: Duration,
}

/// The dynamic configuration of one cluster. 0 leaves a value to the configuration of its schedulers and peers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cluster {
    /// The most parents that a child has at one time; at most 1000.
    #[serde(deserialize_with = "peers")]
    pub parents_per_child: u32,
    /// The most children that a parent has at one time; at most 1000.
    #[serde(deserialize_with = "peers")]
    pub children_per_parent: u32,
    /// What one peer may fetch from its parents.
    #[serde(serialize_with = "config::size::serialize", deserialize_with = "rate")]
    pub download_bytes_per_second: u64,
    /// What one peer may send to its children.
    #[serde(serialize_with = "config::size::serialize", deserialize_with = "rate")]
    pub upload_bytes_per_second: u64,
    /// What one peer may fetch from origins.
    #[serde(serialize_with = "config::size::serialize", deserialize_with = "rate")]
    pub origin_bytes_per_second: u64,
    /// What one peer may fetch from its parents in the background.
    #[serde(serialize_with = "config::size::serialize", deserialize_with = "rate")]
    pub prefetch_bytes_per_second: u64,
}

impl Default for Config {
    fn default() -> Self {
        let at = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        Self {
            grpc: Listen { listen: at(7420) },
            rest: Listen { listen: at(7421) },
            admin: admin::Config { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7422)) },
            database: Database::default(),
            keepalive: KeepAlive::default(),
            clusters: BTreeMap::from([(ClusterName::default(), Cluster::default())]),
            log: LogConfig::default(),
        }
    }
}

impl Default for Database {
    fn default() -> Self {
        Self { path: "/var/lib/darter/manager/manager.db".into() }
    }
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), forget_after: Duration::from_secs(24 * 60 * 60) }
    }
}

impl KeepAlive {
    /// How long after a keepalive an instance counts as alive: three intervals.
    pub(crate) fn lifetime(&self) -> Duration {
        self.interval * 3
    }
}

fn interval<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let interval = config::duration::deserialize(deserializer)?;
    if (INTERVALS.0..=INTERVALS.1).contains(&interval) {
        return Ok(interval);
    }
    Err(de::Error::custom("the keepalive interval must lie between 100ms and 60s"))
}

fn peers<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let peers = u32::deserialize(deserializer)?;
    if peers <= MAX_PEERS {
        return Ok(peers);
    }
    Err(de::Error::custom(format_args!("{peers} is too many; at most {MAX_PEERS} are allowed")))
}

/// SQLite's integers are signed.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let rate = config::size::deserialize(deserializer)?;
    if i64::try_from(rate).is_ok() {
        return Ok(rate);
    }
    Err(de::Error::custom("the rate is too large; 0 sets no limit"))
}
