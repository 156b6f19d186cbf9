//! The store's section of the configuration.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// Where contents are kept, and how much room they may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The store's own directory; made with mode 0700 if it is missing. Default `/var/lib/darter/store`.
    pub dir: PathBuf,
    /// Most bytes that contents may take; the least recently used are evicted to stay below. Default `50GiB`.
    #[serde(with = "darter_service::config::size")]
    pub quota: u64,
    /// Bytes that stay free on the file system whatever the quota says. Default `1GiB`.
    #[serde(with = "darter_service::config::size")]
    pub min_free: u64,
    /// Once one of these limits is reached, so much more is evicted, but no more than a tenth of the quota: the limits are
    /// the high marks, and this is how far the low marks are below. Default `1GiB`.
    #[serde(with = "darter_service::config::size")]
    pub evict_ahead: u64,
    /// Most bytes of leaves that are kept in memory while there is no room for them. Default `64MiB`.
    #[serde(with = "darter_service::config::size")]
    pub memory: u64,
    /// How often everything is read and compared with its digests. Default `7days`.
    #[serde(with = "darter_service::config::duration")]
    pub scrub_interval: Duration,
    /// Most bytes per second that are read for it; 0 switches it off. Default `10MiB`.
    #[serde(with = "darter_service::config::size")]
    pub scrub_rate: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/darter/store"),
            quota: 50 << 30,
            min_free: 1 << 30,
            evict_ahead: 1 << 30,
            memory: 64 << 20,
            scrub_interval: Duration::from_secs(7 * 24 * 3600),
            scrub_rate: 10 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use darter_service::config::parse;

    use super::*;

    #[test]
    fn sizes_have_units_and_the_rest_has_defaults() {
        let config: StoreConfig = parse("quota = \"2GiB\"", "test").unwrap();
        assert_eq!(config, StoreConfig { quota: 2 << 30, ..StoreConfig::default() });
        assert!(parse::<StoreConfig>("qouta = \"2GiB\"", "test").is_err());
    }
}
