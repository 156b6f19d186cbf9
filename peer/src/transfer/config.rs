//! How a host serves its children and reaches its parents.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use darter_service::config::duration;

/// Settings of the transfer between peers; each has a default that fits most hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TransferConfig {
    /// Where children are served: `"0.0.0.0:7401"` by default.
    pub listen: SocketAddr,
    /// Where other hosts reach this one, as `"ip:port"`, if that is not the address that it listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advertise: Option<SocketAddr>,
    /// Leaves that are sent at once, over all children: 8 by default.
    pub upload_slots: usize,
    /// What is passed on of a piece that is still arriving: `"leaves"` by default.
    pub relay: Relay,
    /// Whether a source shows each leaf to one of its children first, and children rely on that: true by default. All
    /// peers of a cluster should agree.
    pub coordinate: bool,
    /// Connections of children at once; further ones are turned away: 1024 by default.
    pub connections: usize,
    /// How long connecting to a parent may take, handshake included: `"500ms"` by default.
    #[serde(with = "duration")]
    pub dial_timeout: Duration,
    /// How long a transfer may stand still before the other side is given up: `"10s"` by default.
    #[serde(with = "duration")]
    pub progress_timeout: Duration,
    /// How long a connection is kept that no task uses: `"1m"` by default.
    #[serde(with = "duration")]
    pub idle_timeout: Duration,
}

/// What is passed on of a piece that is still arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relay {
    /// Each leaf at once.
    Leaves,
    /// Nothing; the piece is passed on when it is complete. To compare.
    Pieces,
}

impl Default for TransferConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([0, 0, 0, 0], 7401)),
            advertise: None,
            upload_slots: 8,
            relay: Relay::Leaves,
            coordinate: true,
            connections: 1024,
            dial_timeout: Duration::from_millis(500),
            progress_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_strictly_and_written_back() {
        let text = "advertise = \"10.0.0.7:7401\"\nprogress_timeout = \"3s\"";
        let config: TransferConfig = darter_service::config::parse(text, "transfer").unwrap();
        assert_eq!(config.advertise, Some(SocketAddr::from(([10, 0, 0, 7], 7401))));
        assert_eq!(config.progress_timeout, Duration::from_secs(3));
        assert_eq!(config.upload_slots, TransferConfig::default().upload_slots);
        assert!(darter_service::config::parse::<TransferConfig>("slots = 1", "transfer").is_err());
    }
}
