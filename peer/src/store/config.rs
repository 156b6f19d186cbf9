//! The store's section of the configuration.

use std::path::PathBuf;

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
    /// Most bytes of leaves that are kept in memory while there is no room for them. Default `64MiB`.
    #[serde(with = "darter_service::config::size")]
    pub memory: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/darter/store"),
            quota: 50 << 30,
            min_free: 1 << 30,
            memory: 64 << 20,
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
