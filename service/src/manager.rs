//! The manager as a scheduler or a peer sees it.
//!
//! A [`Link`] keeps this instance alive at the manager and asks for what is new; the [`Manager`] handle shows the last
//! known answers. Everything here is optional: with the manager away these answers stay in force, and before the
//! first answer the lists are empty and the dynamic configuration leaves everything to the own one.

mod link;
#[cfg(test)]
mod tests;

pub use link::Link;

use darter_proto::manager::{DynamicConfig, Instance, Kind};
use serde::{Deserialize, Deserializer, Serialize, de};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;
use tonic::transport::Endpoint;

/// How long the TCP connection to the manager may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How often the connection is asked whether it still lives, and how long the answer may take. Without it a host that
/// vanished would hold the connection until TCP gives up, which takes a quarter of an hour.
const PING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// The `[manager]` section of a scheduler's or peer's configuration file; without it there is no manager.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The manager's gRPC address as `host:port`.
    #[serde(deserialize_with = "address")]
    pub address: String,
    /// The cluster this instance belongs to.
    #[serde(default = "default_cluster")]
    pub cluster: String,
}

/// Why the manager's client could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// The configured address cannot be used.
    #[error("the manager's address \"{0}\" is not a host:port")]
    Address(String),
}

/// The last known answers of the manager; all clones show the same.
#[derive(Debug, Clone)]
pub struct Manager {
    instance: watch::Sender<Instance>,
    schedulers: watch::Receiver<Arc<[Instance]>>,
    seeds: watch::Receiver<Arc<[Instance]>>,
    config: watch::Receiver<DynamicConfig>,
    reachable: watch::Receiver<bool>,
}

impl Config {
    /// A manager at `address` (`host:port`), in the default cluster.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), cluster: default_cluster() }
    }
}

impl Manager {
    /// The schedulers that are alive in the cluster. An empty answer never replaces a known list: a manager without
    /// schedulers is of no use to anybody, and one that was just set up anew has not heard of them yet.
    pub fn schedulers(&self) -> watch::Receiver<Arc<[Instance]>> {
        self.schedulers.clone()
    }

    /// The seed peers that are alive in the cluster.
    pub fn seeds(&self) -> watch::Receiver<Arc<[Instance]>> {
        self.seeds.clone()
    }

    /// The cluster's dynamic configuration; 0 in a field leaves the value to the receiver's own configuration.
    pub fn config(&self) -> watch::Receiver<DynamicConfig> {
        self.config.clone()
    }

    /// From now on this instance is of another kind.
    pub fn set_kind(&self, kind: Kind) {
        self.instance.send_if_modified(|instance| {
            let before = std::mem::replace(&mut instance.kind, kind.into());
            before != instance.kind
        });
    }

    /// Whether the manager answered last time.
    pub fn is_reachable(&self) -> bool {
        *self.reachable.borrow()
    }
}

/// Prepares the connection for `instance`; nothing is sent before [`Link::run`].
///
/// The instance is put into the configured cluster. Needs a tokio runtime.
pub fn connect(config: &Config, instance: Instance) -> Result<(Manager, Link), ManagerError> {
    let instance = Instance { cluster: config.cluster.clone(), ..instance };
    Ok(link::new(endpoint(&config.address)?.connect_lazy(), instance))
}

fn endpoint(address: &str) -> Result<Endpoint, ManagerError> {
    let wrong = || ManagerError::Address(address.into());
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| wrong())?;
    let port =
        endpoint.uri().authority().filter(|authority| *authority == address).and_then(|it| it.port_u16());
    if address.contains('@') || port.is_none_or(|port| port == 0) {
        return Err(wrong());
    }
    Ok(endpoint
        .connect_timeout(CONNECT_DEADLINE)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true))
}

fn default_cluster() -> String {
    "default".into()
}

/// Checks the address while the file is read, so that the error has its line.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let address = String::deserialize(deserializer)?;
    endpoint(&address).map_err(de::Error::custom)?;
    Ok(address)
}
