//! Registries by name: where each is, how it is reached, and who this node is to it.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{
    OriginError,
    credentials::{Credentials, CredentialsConfig, Keyring},
    egress,
    tls::{self, TlsConfig, TlsError},
};
use crate::{Digest, TaskId};

const DOCKER_HUB: &str = "docker.io";

/// What `[registries."NAME"]` may say about a registry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Where the registry is, as `https://registry-1.docker.io`; without it at `https://NAME`.
    pub upstream: Option<String>,
    /// Mirrors that are asked before it, in this order: `https://HOST[:PORT][/PREFIX]`, the prefix being put before
    /// repositories' names. They never get the caller's authorization; what a mirror does not give, the registry does.
    pub mirrors: Vec<String>,
    /// Registries of one pool vouch for each other's contents: what came from one is served for another that lets the
    /// caller read it. Without it the registry is alone in a pool of its own.
    pub pool: Option<String>,
    /// User name for requests that bring no authorization of their own. Whoever may use this node's proxy then reads
    /// what this user may read.
    pub username: Option<String>,
    /// File that holds the user's password; a newline at its end does not count.
    pub password_file: Option<PathBuf>,
    /// The only host that is trusted to take the password for a token, besides the registry and hosts in its domain.
    pub token_host: Option<String>,
    /// Certificate authorities (PEM) that are trusted for this registry besides the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate (PEM, with its chain) that this node shows to the registry.
    pub client_certificate_file: Option<PathBuf>,
    /// The key (PEM) of that certificate.
    pub client_key_file: Option<PathBuf>,
    /// Accept any certificate of this registry. Whoever sits on the way to it can then read and forge everything.
    pub insecure: bool,
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
    /// A mirror is no URL of a registry.
    #[error("registries.{name:?}.mirrors: expected http(s)://HOST[:PORT][/PREFIX]: {reason}")]
    Mirror {
        /// The registry.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// Only one of two that belong together is there.
    #[error("registries.{name:?}: {keys} belong together")]
    Half {
        /// The registry.
        name: String,
        /// The two.
        keys: &'static str,
    },
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
    /// TLS cannot be set up.
    #[error("registries.{name:?}: {source}")]
    Tls {
        /// The registry.
        name: String,
        /// What is wrong.
        source: TlsError,
    },
}

/// The configured registries. Every other name is a registry too, at `https://NAME`. Clones see what is loaded later.
#[derive(Clone)]
pub struct Registries {
    table: Arc<ArcSwap<Table>>,
}

struct Table {
    by_name: BTreeMap<String, Arc<Registry>>,
    keyring: Arc<Keyring>,
    /// How origins are reached that are not configured.
    others: Road,
}

/// A configured registry.
pub(super) struct Registry {
    pub(super) name: String,
    upstream: Url,
    mirrors: Vec<Url>,
    pool: String,
    credentials: Option<Credentials>,
    insecure: bool,
    /// How the registry itself is reached.
    pub(super) home: Road,
    /// How its mirrors are reached, and where it redirects to.
    pub(super) abroad: Road,
}

/// How an origin is reached; equal ids mean that connections can be shared.
#[derive(Clone)]
pub(super) struct Road {
    pub(super) id: u64,
    pub(super) tls: Arc<ClientConfig>,
    /// Whether it may lead into private networks.
    pub(super) private: bool,
}

impl Registries {
    /// Checks the configuration and reads the passwords and certificates.
    ///
    /// # Errors
    /// The first registry that cannot be used, and why.
    pub fn new(config: &BTreeMap<String, RegistryConfig>) -> Result<Self, RegistryError> {
        Self::with_credentials(config, &CredentialsConfig::default())
    }

    /// The same with credentials from elsewhere.
    ///
    /// # Errors
    /// The first registry that cannot be used, and why.
    pub fn with_credentials(
        config: &BTreeMap<String, RegistryConfig>,
        credentials: &CredentialsConfig,
    ) -> Result<Self, RegistryError> {
        Ok(Self { table: Arc::new(ArcSwap::from_pointee(Table::read(config, credentials)?)) })
    }

    /// Takes another configuration for everything that is asked from now on. Running requests go on as they began.
    ///
    /// # Errors
    /// The first registry that cannot be used, and why; then the old configuration stays.
    pub fn reload(
        &self,
        config: &BTreeMap<String, RegistryConfig>,
        credentials: &CredentialsConfig,
    ) -> Result<(), RegistryError> {
        self.table.store(Arc::new(Table::read(config, credentials)?));
        Ok(())
    }

    /// Where the registry `name` (`HOST[:PORT]`) is asked: the configured upstream, or `https://NAME`, or
    /// `http://NAME` on this machine. `docker.io` is at `registry-1.docker.io`.
    ///
    /// # Errors
    /// [`OriginError::InvalidUrl`] if `name` is no name of a registry.
    pub fn base(&self, name: &str) -> Result<Url, OriginError> {
        let name = canonical(name);
        match self.table.load().by_name.get(&name) {
            Some(registry) => Ok(registry.upstream.clone()),
            None => default_base(&name),
        }
    }

    /// Whether the registry is configured, or Docker Hub.
    pub fn knows(&self, name: &str) -> bool {
        let name = canonical(name);
        name == DOCKER_HUB || self.table.load().by_name.contains_key(&name)
    }

    /// The task of a content that a registry's `url` names by its digest. Contents of registries in different pools are
    /// different tasks: a registry's word that it has a content is worth nothing for what came from elsewhere.
    pub fn task(&self, url: &str, digest: &Digest) -> TaskId {
        match Url::parse(url) {
            Ok(url) => match self.of_url(&url) {
                Some(registry) => TaskId::in_pool(&registry.pool, digest),
                None => TaskId::in_pool(&name_of(&url), digest),
            },
            Err(_) => TaskId::in_pool(url, digest),
        }
    }

    /// Whether requests without an authorization of their own may go to this registry under a name that this node
    /// has for it.
    pub fn has_credentials(&self, name: &str) -> bool {
        let (name, table) = (canonical(name), self.table.load());
        let own = table.by_name.get(&name).is_some_and(|registry| registry.credentials.is_some());
        own || table.keyring.may_have(&name)
    }

    /// The names of registries whose certificates are not checked.
    pub fn insecure(&self) -> Vec<String> {
        let table = self.table.load();
        table.by_name.values().filter(|registry| registry.insecure).map(|r| r.name.clone()).collect()
    }

    /// The configured registry at a URL's scheme, host and port.
    pub(super) fn of_url(&self, url: &Url) -> Option<Arc<Registry>> {
        let table = self.table.load();
        table.by_name.values().find(|registry| registry.upstream.origin() == url.origin()).cloned()
    }

    /// How a URL is reached that a request names, or that the registry `from` redirects to.
    pub(super) fn road(&self, url: &Url, from: Option<&Registry>) -> Road {
        match (self.of_url(url), from) {
            (Some(registry), _) => registry.home.clone(),
            (None, Some(from)) => from.abroad.clone(),
            (None, None) => self.table.load().others.clone(),
        }
    }

    /// The credentials for a request to a URL.
    pub(super) async fn credentials(&self, url: &Url) -> Option<Credentials> {
        let registry = self.of_url(url);
        if let Some(own) = registry.as_ref().and_then(|registry| registry.credentials.clone()) {
            return Some(own);
        }
        let keyring = self.table.load().keyring.clone();
        let name = registry.map_or_else(|| name_of(url), |registry| registry.name.clone());
        keyring.find(&name, repository_of(url)).await
    }
}

impl fmt::Debug for Registries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let table = self.table.load();
        f.debug_set().entries(table.by_name.keys()).finish()
    }
}

impl Table {
    fn read(
        config: &BTreeMap<String, RegistryConfig>,
        credentials: &CredentialsConfig,
    ) -> Result<Self, RegistryError> {
        let roots = tls::system_roots();
        let none = |source| RegistryError::Tls { name: "*".to_owned(), source };
        let tls = tls::client(&TlsConfig::default(), roots.clone(), false).map_err(none)?;
        let by_name = config.iter().map(|(name, config)| {
            let registry = Registry::read(name, config, &roots, &tls)?;
            Ok((canonical(name), Arc::new(registry)))
        });
        let by_name = by_name.collect::<Result<_, RegistryError>>()?;
        Ok(Self { by_name, keyring: Arc::new(Keyring::new(credentials)), others: Road::new(tls, false) })
    }
}

impl Registry {
    fn read(
        name: &str,
        config: &RegistryConfig,
        roots: &RootCertStore,
        plain: &Arc<ClientConfig>,
    ) -> Result<Self, RegistryError> {
        let half = |keys| RegistryError::Half { name: name.to_owned(), keys };
        let client = match (&config.client_certificate_file, &config.client_key_file) {
            (None, None) => None,
            (Some(certificate), Some(key)) => Some((certificate.clone(), key.clone())),
            _ => return Err(half("client_certificate_file and client_key_file")),
        };
        let tls = TlsConfig { ca_file: config.ca_file.clone(), client, insecure: config.insecure };
        let road = |own| {
            if tls == TlsConfig::default() {
                return Ok(Road::new(plain.clone(), true));
            }
            let failed = |source| RegistryError::Tls { name: name.to_owned(), source };
            Ok(Road::new(tls::client(&tls, roots.clone(), own).map_err(failed)?, true))
        };
        let mirrors = config.mirrors.iter().map(|url| mirror(name, url)).collect::<Result<_, _>>()?;
        let canonical = canonical(name);
        Ok(Self {
            upstream: upstream(name, config)?,
            mirrors,
            pool: config.pool.clone().unwrap_or_else(|| canonical.clone()),
            credentials: read_credentials(name, config)?,
            insecure: config.insecure,
            home: road(true)?,
            abroad: road(false)?,
            name: canonical,
        })
    }

    /// The same request's URLs at the mirrors; none for what is no path of a registry.
    pub(super) fn mirrored<'a>(&'a self, url: &'a Url) -> impl Iterator<Item = Url> + 'a {
        let rest = url.path().strip_prefix("/v2/").filter(|rest| !rest.is_empty());
        self.mirrors.iter().filter_map(move |mirror| {
            let mut there = mirror.clone();
            there.set_path(&format!("/v2{}/{}", mirror.path().trim_end_matches('/'), rest?));
            there.set_query(url.query());
            Some(there)
        })
    }
}

impl Road {
    fn new(tls: Arc<ClientConfig>, private: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), tls, private }
    }
}

/// Names do not depend on case, and Docker Hub has several.
fn canonical(name: &str) -> String {
    match name.to_ascii_lowercase() {
        alias if alias == "index.docker.io" || alias == "registry-1.docker.io" => DOCKER_HUB.to_owned(),
        name => name,
    }
}

/// The name of the registry at a URL, if it is not configured.
fn name_of(url: &Url) -> String {
    canonical(&super::wire::host(url))
}

/// The repository in a URL of a registry; the whole path in any other.
fn repository_of(url: &Url) -> &str {
    let path = url.path().strip_prefix("/v2/").unwrap_or(url.path()).trim_matches('/');
    let ends = ["/manifests/", "/blobs/", "/tags/", "/referrers/"];
    let end = ends.iter().filter_map(|word| path.rfind(word)).max();
    end.and_then(|end| path.get(..end)).unwrap_or(path)
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

fn mirror(name: &str, url: &str) -> Result<Url, RegistryError> {
    let invalid = |reason: String| RegistryError::Mirror { name: name.to_owned(), reason };
    let url = Url::parse(url).map_err(|error| invalid(error.to_string()))?;
    egress::check(&url).map_err(|error| invalid(error.to_string()))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(invalid("there is something after the path".to_owned()));
    }
    Ok(url)
}

fn read_credentials(name: &str, config: &RegistryConfig) -> Result<Option<Credentials>, RegistryError> {
    match (&config.username, &config.password_file) {
        (None, None) => Ok(None),
        (Some(user), Some(path)) => {
            let unreadable =
                |source| RegistryError::Password { name: name.to_owned(), path: path.clone(), source };
            let text = fs::read_to_string(path).map_err(unreadable)?;
            let password = text.trim_end_matches(['\n', '\r']).to_owned();
            Ok(Some(Credentials { user: user.clone(), password, token_host: config.token_host.clone() }))
        }
        _ => Err(RegistryError::Half { name: name.to_owned(), keys: "username and password_file" }),
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

    #[tokio::test]
    async fn the_password_is_read_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        fs::write(&path, "canary\n").unwrap();
        let toml = format!("[\"r.example\"]\nusername = \"u\"\npassword_file = {path:?}");
        let registries = registries(&toml).unwrap();
        let found = registries.credentials(&url("https://r.example/v2/")).await.unwrap();
        assert_eq!(found.password, "canary");
        assert!(!format!("{found:?}").contains("canary"));
        assert!(registries.credentials(&url("http://r.example/v2/")).await.is_none());
        assert!(registries.has_credentials("R.example") && !registries.has_credentials("docker.io"));
        assert!(!format!("{registries:?}").contains("canary"));
    }

    #[test]
    fn a_content_belongs_to_the_pool_that_it_came_from() {
        let toml = "[\"a.example\"]\nupstream = \"http://10.0.0.1\"\n[\"b.example\"]\nupstream = \"http://10.0.0.1\"\n\
                    [\"c.example\"]\npool = \"a.example\"\n[\"d.example\"]";
        let registries = registries(toml).unwrap();
        let digest = Digest::sha256(b"x");
        let task = |name: &str| registries.task(registries.base(name).unwrap().as_str(), &digest);
        assert_eq!(task("a.example"), task("b.example"), "two names of one registry");
        assert_eq!(task("a.example"), task("c.example"), "one pool");
        for other in ["d.example", "evil.example", "docker.io"] {
            assert_ne!(task("a.example"), task(other), "{other}");
        }
        assert_eq!(task("docker.io"), task("index.docker.io"));
        assert_eq!(task("a.example").digest(), Some(digest.clone()));
    }

    #[test]
    fn mirrors_may_put_a_prefix_before_repositories() {
        let toml = "[\"docker.io\"]\nmirrors = [\"https://m.example\", \"https://h.example:8443/hub/\"]";
        let registry = registries(toml).unwrap().of_url(&url("https://registry-1.docker.io/")).unwrap();
        let mirrored = |path: &str| -> Vec<String> {
            registry.mirrored(&url(&format!("https://registry-1.docker.io{path}"))).map(Into::into).collect()
        };
        assert_eq!(
            mirrored("/v2/library/a/manifests/1?x=y"),
            [
                "https://m.example/v2/library/a/manifests/1?x=y",
                "https://h.example:8443/v2/hub/library/a/manifests/1?x=y"
            ]
        );
        assert!(mirrored("/v2/").is_empty() && mirrored("/other").is_empty());
        assert!(registries("[\"r\"]\nmirrors = [\"ftp://m\"]").is_err());
    }

    #[test]
    fn tls_files_must_be_what_they_are_said_to_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        fs::write(&path, "no certificate").unwrap();
        let refused = |toml: &str| registries(toml).unwrap_err().to_string();
        assert!(refused(&format!("[\"r\"]\nca_file = {path:?}")).contains("ca.pem"));
        assert!(refused("[\"r\"]\nclient_key_file = \"/x\"").contains("belong together"));
        let registries = registries("[\"r\"]\ninsecure = true\n[\"s\"]").unwrap();
        assert_eq!(registries.insecure(), ["r"]);
    }

    #[test]
    fn a_reload_that_fails_changes_nothing() {
        let registries = registries("[\"r\"]\nupstream = \"http://10.0.0.1\"").unwrap();
        let bad = BTreeMap::from([(
            "r".to_owned(),
            RegistryConfig { username: Some("u".into()), ..Default::default() },
        )]);
        assert!(registries.reload(&bad, &CredentialsConfig::default()).is_err());
        assert_eq!(registries.base("r").unwrap().as_str(), "http://10.0.0.1/");
        registries.reload(&BTreeMap::new(), &CredentialsConfig::default()).unwrap();
        assert_eq!(registries.base("r").unwrap().as_str(), "https://r/");
    }

    #[test]
    fn repositories_are_found_in_urls() {
        for (path, repository) in [
            ("/v2/a/b/manifests/1", "a/b"),
            ("/v2/manifests/blobs/blobs/sha256:x", "manifests/blobs"),
            ("/v2/a/tags/list", "a"),
            ("/v2/", ""),
            ("/some/file", "some/file"),
        ] {
            assert_eq!(repository_of(&url(&format!("https://h{path}"))), repository);
        }
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
