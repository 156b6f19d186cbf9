//! Registries by name: where each is, and who this node is to it.

use std::{collections::BTreeMap, fmt, fs, io, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use url::{Host, Url};

use super::{OriginError, egress};

const DOCKER_HUB: &str = "docker.io";

/// What `[registries."NAME"]` may say about a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Where the registry is, as `https://registry-1.docker.io`; without it at `https://NAME`.
    pub upstream: Option<String>,
    /// User name for requests that bring no authorization of their own. Whoever may use this node's proxy then reads
    /// what this user may read.
    pub username: Option<String>,
    /// File that holds the user's password; a newline at its end does not count.
    pub password_file: Option<PathBuf>,
    /// The only host that is trusted to take the password for a token, besides the registry and hosts in its domain.
    pub token_host: Option<String>,
}

/// A registry's configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The upstream is no URL of a registry.
    #[error("registries.{name:?}.upstream: expected http(s)://HOST[:PORT] without a path: {reason}")]
    Upstream {
        /// The registry.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Only one of the two is there.
    #[error("registries.{0:?}: username and password_file belong together")]
    HalfCredentials(String),
    /// The password cannot be read.
    #[error("registries.{name:?}.password_file: cannot read {}: {source}", path.display())]
    Password {
        /// The registry.
        name: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The configured registries. Every other name is a registry too, at `https://NAME`.
#[derive(Debug, Clone, Default)]
pub struct Registries {
    by_name: Arc<BTreeMap<String, Registry>>,
}

#[derive(Debug)]
struct Registry {
    upstream: Url,
    credentials: Option<Credentials>,
}

/// A user name and its password.
pub(super) struct Credentials {
    pub(super) user: String,
    password: String,
    token_host: Option<String>,
}

impl Registries {
    /// Checks the configuration and reads the passwords.
    ///
    /// # Errors
    /// The first registry that cannot be used, and why.
    pub fn new(config: &BTreeMap<String, RegistryConfig>) -> Result<Self, RegistryError> {
        let read = |(name, config): (&String, &RegistryConfig)| {
            Ok((
                canonical(name),
                Registry { upstream: upstream(name, config)?, credentials: Credentials::read(name, config)? },
            ))
        };
        let by_name = config.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { by_name: Arc::new(by_name) })
    }

    /// Where the registry `name` (`HOST[:PORT]`) is asked: the configured upstream, or `https://NAME`, or
    /// `http://NAME` on this machine. `docker.io` is at `registry-1.docker.io`.
    ///
    /// # Errors
    /// [`OriginError::InvalidUrl`] if `name` is no name of a registry.
    pub fn base(&self, name: &str) -> Result<Url, OriginError> {
        let name = canonical(name);
        match self.by_name.get(&name) {
            Some(registry) => Ok(registry.upstream.clone()),
            None => default_base(&name),
        }
    }

    /// Whether the registry is configured, or Docker Hub.
    pub fn knows(&self, name: &str) -> bool {
        let name = canonical(name);
        name == DOCKER_HUB || self.by_name.contains_key(&name)
    }

    /// The credentials for requests to a URL.
    pub(super) fn credentials(&self, url: &Url) -> Option<&Credentials> {
        let registry = self.by_name.values().find(|registry| registry.upstream.origin() == url.origin())?;
        registry.credentials.as_ref()
    }

    /// Whether requests without an authorization of their own go to this registry under a configured user name.
    pub fn has_credentials(&self, name: &str) -> bool {
        self.by_name.get(&canonical(name)).is_some_and(|registry| registry.credentials.is_some())
    }
}

/// Names do not depend on case, and Docker Hub has several.
fn canonical(name: &str) -> String {
    match name.to_ascii_lowercase() {
        alias if alias == "index.docker.io" || alias == "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        name => name,
    }
}

fn default_base(name: &str) -> Result<Url, OriginError> {
    let host = if name == DOCKER_HUB { "registry-1.docker.io" } else { name };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:[]".contains(c);
    if host.is_empty() || host.len() > 255 || !host.chars().all(plain) {
        return Err(OriginError::InvalidUrl("a registry is named HOST or HOST:PORT".to_owned()));
    }
    let parse = |scheme: &str| {
        Url::parse(&format!("{scheme}://{host}/")).map_err(|error| OriginError::InvalidUrl(error.to_string()))
    };
    let https = parse("https")?;
    let base = if egress::is_loopback(&https) { parse("http")? } else { https };
    egress::check(&base).map(|()| base)
}

fn upstream(name: &str, config: &RegistryConfig) -> Result<Url, RegistryError> {
    let invalid = |reason: String| RegistryError::Upstream { name: name.to_owned(), reason };
    let Some(upstream) = &config.upstream else {
        return default_base(&canonical(name)).map_err(|error| invalid(error.to_string()));
    };
    let url = Url::parse(upstream).map_err(|error| invalid(error.to_string()))?;
    egress::check(&url).map_err(|error| invalid(error.to_string()))?;
    if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("there is something after the host".to_owned()));
    }
    Ok(url)
}

impl Credentials {
    fn read(name: &str, config: &RegistryConfig) -> Result<Option<Self>, RegistryError> {
        match (&config.username, &config.password_file) {
            (None, None) => Ok(None),
            (Some(user), Some(path)) => {
                let unreadable =
                    |source| RegistryError::Password { name: name.to_owned(), path: path.clone(), source };
                let text = fs::read_to_string(path).map_err(unreadable)?;
                let password = text.trim_end_matches(['\n', '\r']).to_owned();
                Ok(Some(Self { user: user.clone(), password, token_host: config.token_host.clone() }))
            }
            _ => Err(RegistryError::HalfCredentials(name.to_owned())),
        }
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Whether the password may go to a token realm that the registry named: to the registry's own host, to a host in
    /// the same domain (`auth.docker.io` for `registry-1.docker.io`), or to the configured token host.
    pub(super) fn may_go_to(&self, registry: &Url, realm: &Url) -> bool {
        let (Some(Host::Domain(registry)), Some(Host::Domain(realm))) = (registry.host(), realm.host())
        else {
            return registry.host() == realm.host();
        };
        let parent = registry.split_once('.').map(|(_, parent)| parent).filter(|parent| parent.contains('.'));
        let in_domain =
            |parent: &str| realm == parent || realm.strip_suffix(parent).is_some_and(|r| r.ends_with('.'));
        registry == realm || self.token_host.as_deref() == Some(realm) || parent.is_some_and(in_domain)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    fn registries(toml: &str) -> Result<Registries, RegistryError> {
        Registries::new(&darter_service::config::parse(toml, "test").unwrap())
    }

    #[test]
    fn names_lead_to_their_upstreams() {
        let registries =
            registries("[\"mirror.example:5000\"]\nupstream = \"http://10.0.0.1:5000\"").unwrap();
        let base = |name| registries.base(name).unwrap().to_string();
        assert_eq!(base("docker.io"), "https://registry-1.docker.io/");
        assert_eq!(base("index.docker.io"), "https://registry-1.docker.io/");
        assert_eq!(base("Quay.io"), "https://quay.io/");
        assert_eq!(base("localhost:5000"), "http://localhost:5000/");
        assert_eq!(base("127.0.0.1:5000"), "http://127.0.0.1:5000/");
        assert_eq!(base("[::1]:5000"), "http://[::1]:5000/");
        assert_eq!(base("Mirror.example:5000"), "http://10.0.0.1:5000/");
        assert!(
            registries.knows("mirror.example:5000")
                && registries.knows("docker.io")
                && !registries.knows("quay.io")
        );
        for bad in ["", "a b", "a/b", "u@h", "h?x", "169.254.169.254", "h:99999", "..%2f"] {
            assert!(registries.base(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_configuration_that_cannot_work_is_refused() {
        let refused = |toml: &str| registries(toml).unwrap_err().to_string();
        assert!(refused("[\"r\"]\nupstream = \"https://h/path\"").contains("registries.\"r\".upstream"));
        assert!(refused("[\"r\"]\nupstream = \"ftp://h\"").contains("only http and https"));
        assert!(refused("[\"r\"]\nusername = \"u\"").contains("belong together"));
        assert!(
            refused("[\"r\"]\nusername = \"u\"\npassword_file = \"/nonexistent\"").contains("cannot read")
        );
    }

    #[test]
    fn the_password_is_read_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "canary\n").unwrap();
        let toml = format!("[\"r.example\"]\nusername = \"u\"\npassword_file = {path:?}");
        let registries = registries(&toml).unwrap();
        assert_eq!(registries.credentials(&url("https://r.example/v2/")).unwrap().password(), "canary");
        assert!(registries.credentials(&url("http://r.example/v2/")).is_none());
        assert!(registries.has_credentials("R.example") && !registries.has_credentials("docker.io"));
        assert!(!format!("{registries:?}").contains("canary"));
    }

    #[test]
    fn the_password_goes_to_realms_of_the_registry_only() {
        let token_host = Some("login.example".to_owned());
        let credentials = Credentials { user: String::new(), password: String::new(), token_host };
        let may = |registry, realm| credentials.may_go_to(&url(registry), &url(realm));
        assert!(may("https://registry-1.docker.io", "https://auth.docker.io/token"));
        assert!(may("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"));
        assert!(may("https://ghcr.io", "https://ghcr.io/token"));
        assert!(may("https://ghcr.io", "https://login.example/token"));
        assert!(may("http://127.0.0.1:5000", "http://127.0.0.1:5001/token"));
        assert!(!may("https://ghcr.io", "https://evil.io/token"));
        assert!(!may("https://registry-1.docker.io", "https://evildocker.io/token"));
        assert!(!may("http://127.0.0.1:5000", "http://10.0.0.1/token"));
    }
}
