//! Who this node is to a registry: a configured user, docker's configuration and its credential helpers, and the
//! exec credential providers of the kubelet.

mod docker;
mod provider;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, fmt, path::PathBuf, process::Stdio, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};
use url::{Host, Url};

use self::provider::Provider;

/// Longest time that a credential helper or provider may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest answer of one, in bytes.
const MAX_ANSWER: usize = 1024 * 1024;

/// What `[credentials]` may say: where this node's credentials for registries are, besides `[registries."NAME"]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CredentialsConfig {
    /// Docker's `config.json`, with `auths`, `credHelpers` and `credsStore`; read anew each time it is needed.
    pub docker_config: Option<PathBuf>,
    /// Exec credential providers, asked in this order.
    pub providers: Vec<ProviderConfig>,
}

/// An exec credential provider, as `credentialprovider.kubelet.k8s.io` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProviderConfig {
    /// The images it is asked for, as in the kubelet's `matchImages`: `*.dkr.ecr.*.amazonaws.com`.
    pub images: Vec<String>,
    /// The program.
    pub command: PathBuf,
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Variables in its environment besides this process's.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The version of the protocol.
    #[serde(default = "default_api_version")]
    pub api_version: String,
    /// How long its answer is kept if it does not say, in seconds.
    #[serde(default = "default_keep", with = "darter_service::config::duration")]
    pub keep: Duration,
}

fn default_api_version() -> String {
    "credentialprovider.kubelet.k8s.io/v1".to_owned()
}

fn default_keep() -> Duration {
    Duration::from_secs(300)
}

/// A user name and its password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
    /// The only foreign host that may take the password for a token.
    pub(super) token_host: Option<String>,
}

/// All places where credentials may be.
#[derive(Debug, Default)]
pub(super) struct Keyring {
    docker_config: Option<PathBuf>,
    providers: Vec<Provider>,
}

/// Why a helper or provider gave nothing. No message holds what it wrote.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error("cannot read {}: {reason}", path.display())]
    Read { path: PathBuf, reason: String },
    #[error("{} {reason}", program.display())]
    Program { program: PathBuf, reason: String },
}

impl Keyring {
    pub(super) fn new(config: &CredentialsConfig) -> Self {
        let providers = config.providers.iter().cloned().map(Provider::new).collect();
        Self { docker_config: config.docker_config.clone(), providers }
    }

    /// The credentials for a repository of a registry; failures are logged and mean that there are none.
    pub(super) async fn find(&self, registry: &str, repository: &str) -> Option<Credentials> {
        if let Some(path) = &self.docker_config {
            match docker::find(path, registry, repository).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => tracing::warn!(registry, %error, "no credentials from docker's configuration"),
            }
        }
        for provider in self.providers.iter().filter(|provider| provider.is_for(registry, repository)) {
            match provider.find(registry, repository).await {
                Ok(Some(found)) => return Some(found),
                Ok(None) => {}
                Err(error) => tracing::warn!(registry, %error, "no credentials from a provider"),
            }
        }
        None
    }

    /// Whether there may be credentials for some repository of a registry.
    pub(super) fn may_have(&self, registry: &str) -> bool {
        let in_docker = self.docker_config.as_ref().is_some_and(|path| docker::may_have(path, registry));
        in_docker || self.providers.iter().any(|provider| provider.is_for_registry(registry))
    }
}

/// Runs a program with `input`, and gives what it wrote.
async fn run(mut command: Command, input: Vec<u8>) -> Result<Vec<u8>, CredentialsError> {
    let program = PathBuf::from(command.as_std().get_program());
    let failed = |reason: String| CredentialsError::Program { program: program.clone(), reason };
    let work = async {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| failed(format!("does not start: {error}")))?;
        if let Some(mut stdin) = child.stdin.take() {
            // A program that does not read its input may still answer.
            stdin.write_all(&input).await.ok();
        }
        let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(format!("ended with {}", output.status)));
        }
        if output.stdout.len() > MAX_ANSWER {
            return Err(failed("answered too much".to_owned()));
        }
        Ok(output.stdout)
    };
    timeout(PATIENCE, work).await.unwrap_or_else(|_| Err(failed("gave no answer in time".to_owned())))
}

impl Credentials {
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
