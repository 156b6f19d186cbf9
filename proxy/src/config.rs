//! The proxy's part of a peer's configuration.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use darter_service::config::duration;
use serde::{Deserialize, Serialize};

use crate::rules::RuleConfig;

/// How the proxy serves container runtimes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where runtimes reach it. Whoever reaches it may ask registries through it, hence loopback.
    pub listen: SocketAddr,
    /// The registry of requests that name none, as docker's `registry-mirrors` send them.
    pub default_registry: String,
    /// Longest time from a request to the first byte of its answer; then the runtime gets an error and goes on to its
    /// next host.
    #[serde(with = "duration")]
    pub first_byte_timeout: Duration,
    /// Longest time in which the origin must say whether a caller may read a content.
    #[serde(with = "duration")]
    pub check_timeout: Duration,
    /// How long the origin's word is remembered: that a caller may read a repository, and that a content is in it.
    #[serde(with = "duration")]
    pub auth_cache: Duration,
    /// What is served while the origin cannot be asked whether the caller may read it.
    pub offline: Offline,
    /// How long after the origin was last asked a content counts as public while it cannot be asked.
    #[serde(with = "duration")]
    pub offline_for: Duration,
    /// How old an answer for a tag may be that is given while the origin gives none; 0 for never.
    #[serde(with = "duration")]
    pub stale_tags: Duration,
    /// What goes through peers, what only to its origin, what nowhere. The first rule that fits decides. Without one
    /// the contents of registries come through peers, and what the forward proxy is asked for does not.
    pub rules: Vec<RuleConfig>,
    /// Serving requests for whole URLs (`HTTP_PROXY`), and `CONNECT`.
    pub forward: ForwardConfig,
    /// The proxy's own certificate (PEM, with its chain): with it `listen` takes TLS too.
    pub certificate_file: Option<PathBuf>,
    /// The certificate's key (PEM).
    pub key_file: Option<PathBuf>,
    /// A runtime that takes no byte of its answer for so long is given up.
    #[serde(with = "duration")]
    pub write_timeout: Duration,
    /// Connections of runtimes served at once; more wait.
    pub connections: usize,
    /// How long running answers may take after shutdown.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
}

/// The forward proxy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ForwardConfig {
    /// Whether there is one.
    pub enable: bool,
    /// Ports that `CONNECT` may lead to.
    pub ports: Vec<u16>,
    /// Registries (`HOST[:PORT]`) whose tunnels are opened, so that their contents come through peers. Clients have to
    /// trust `ca.pem` of `ca_dir`, which is good for these hosts only.
    pub intercept: Vec<String>,
    /// Where this node's certificate authority is kept; it is made when a registry is listed.
    pub ca_dir: PathBuf,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        let ca_dir = "/var/lib/darter/proxy-ca".into();
        Self { enable: false, ports: vec![80, 443], intercept: Vec::new(), ca_dir }
    }
}

/// What is served while the origin cannot be asked whether the caller may read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offline {
    /// Contents that were readable without credentials when the origin was last asked.
    PublicOnly,
    /// Everything that is here or at other peers, to everybody who can reach the proxy.
    Open,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7400)),
            default_registry: "docker.io".to_owned(),
            first_byte_timeout: Duration::from_secs(30),
            check_timeout: Duration::from_secs(5),
            auth_cache: Duration::from_secs(60),
            offline: Offline::PublicOnly,
            offline_for: Duration::from_secs(24 * 3600),
            stale_tags: Duration::ZERO,
            rules: Vec::new(),
            forward: ForwardConfig::default(),
            certificate_file: None,
            key_file: None,
            write_timeout: Duration::from_secs(300),
            connections: 1024,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_documentation_shows() {
        let toml = "listen = \"127.0.0.1:1\"\noffline = \"open\"\nauth_cache = \"5s\"";
        let config: Config = darter_service::config::parse(toml, "test").unwrap();
        assert_eq!((config.offline, config.auth_cache), (Offline::Open, Duration::from_secs(5)));
        assert_eq!(config.default_registry, "docker.io");
        assert!(darter_service::config::parse::<Config>("offline = \"maybe\"", "test").is_err());
    }
}
