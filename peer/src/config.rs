//! The engine's part of a peer's configuration.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use serde::Deserialize;

use crate::{
    Site,
    limits::LimitsConfig,
    origin::{CredentialsConfig, OriginConfig, RegistryConfig},
    store::StoreConfig,
    transfer::TransferConfig,
};

/// How a peer works. Everything has a default: a peer alone needs no configuration.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// A seed peer fetches from origins and makes layers on the scheduler's word.
    pub seed: bool,
    /// This host's name for people; default: the host name.
    pub name: String,
    /// The unix socket for `darter get` and `darter status`.
    pub control_socket: PathBuf,
    /// A waiting reader gets an error if nothing of its content arrives for so long.
    #[serde(with = "darter_service::config::duration")]
    pub stall_timeout: Duration,
    /// A node waits so long for a seed to make a layer before it makes it by itself.
    #[serde(with = "darter_service::config::duration")]
    pub layer_timeout: Duration,
    /// Layers made at the same time.
    pub makes: usize,
    /// Where this host stands.
    pub place: Place,
    /// Where the schedulers are; the manager adds those that it knows.
    pub scheduler: SchedulerConfig,
    /// The manager, if there is one.
    pub manager: Option<darter_service::manager::Config>,
    /// The store on disk.
    pub store: StoreConfig,
    /// Serving other peers and fetching from them.
    pub transfer: TransferConfig,
    /// Fetching from origins.
    pub origin: OriginConfig,
    /// Where registries are reached, by their name in image references.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Where credentials for registries are besides there.
    pub credentials: CredentialsConfig,
    /// Limits of the whole host; the cluster's, where it sets some, take their place.
    pub limits: LimitsConfig,
}

/// Where a host stands; near parents are preferred. Empty parts are unknown.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Place {
    /// A region holds zones.
    pub region: String,
    /// A zone holds racks.
    pub zone: String,
    /// A rack holds hosts.
    pub rack: String,
}

impl Place {
    /// The same, as it is told to other hosts.
    pub fn site(&self) -> Site {
        Site::new(&self.region, &self.zone, &self.rack)
    }
}

/// Where the schedulers are.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// `http://host:port`; each has its share of the contents, so all hosts should name all. Empty: no P2P, unless a
    /// manager knows schedulers.
    pub addresses: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: false,
            name: String::new(),
            control_socket: "/run/darter/peer.sock".into(),
            stall_timeout: Duration::from_secs(60),
            layer_timeout: Duration::from_secs(300),
            makes: 2,
            place: Place::default(),
            scheduler: SchedulerConfig::default(),
            manager: None,
            store: StoreConfig::default(),
            transfer: TransferConfig::default(),
            origin: OriginConfig::default(),
            registries: BTreeMap::new(),
            credentials: CredentialsConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

/// The address that other peers are told: the advertised one, or the one that is listened on.
pub(crate) fn advertised(configured: Option<SocketAddr>, listening: SocketAddr) -> SocketAddr {
    match configured {
        Some(address) => address,
        None if listening.ip().is_unspecified() => SocketAddr::new(own_ip(), listening.port()),
        None => listening,
    }
}

/// The address this host uses towards others; loopback if it has no route.
fn own_ip() -> std::net::IpAddr {
    // Connecting a UDP socket sends nothing; it only makes the kernel choose a source address.
    let route = std::net::UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    route.map_or(std::net::Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}
