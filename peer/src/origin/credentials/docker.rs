//! Docker's `config.json`: user names and passwords by registry, and the programs that know others.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Deserialize;
use tokio::process::Command;

use super::{Credentials, CredentialsError, run};

/// How docker calls Docker Hub here.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// What a helper says, with a failure, where it knows nothing (docker-credential-helpers, `credentials/error.go`).
const TOKEN_USER: &str = "<token>";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, Auth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth")
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// The credentials for a repository: from the helper of its registry, from the store, or from the file itself.
pub(super) async fn find(
    path: &Path,
    registry: &str,
    repository: &str,
) -> Result<Option<Credentials>, CredentialsError> {
    let config = read(path)?;
    let server = if registry == "docker.io" { HUB_KEY } else { registry };
    let helper =
        config.cred_helpers.iter().find(|(key, _)| host_of(key) == registry).map(|(_, helper)| helper);
    if let Some(helper) = helper {
        return ask(helper, server).await.map(Some);
    }
    if let Some(found) = config.of(registry, repository).and_then(Auth::credentials) {
        return Ok(Some(found));
    }
    match &config.creds_store {
        // A store fails where it knows nothing.
        Some(store) => Ok(ask(store, server).await.ok()),
        None => Ok(None),
    }
}

/// Whether the file may lead to credentials for a registry.
pub(super) fn may_have(path: &Path, registry: &str) -> bool {
    read(path).is_ok_and(|config| {
        let keys = config.auths.keys().chain(config.cred_helpers.keys());
        config.creds_store.is_some() || keys.into_iter().any(|key| host_of(key) == registry)
    })
}

fn read(path: &Path) -> Result<Config, CredentialsError> {
    let failed = |reason: String| CredentialsError::Read { path: path.to_owned(), reason };
    let text = fs::read(path).map_err(|error| failed(error.to_string()))?;
    // serde_json's message could quote what it read.
    serde_json::from_slice(&text).map_err(|error| failed(format!("line {} is not as expected", error.line())))
}

/// Asks `docker-credential-NAME get` (docker-credential-helpers, "Development").
async fn ask(helper: &str, server: &str) -> Result<Credentials, CredentialsError> {
    let program = PathBuf::from(format!("docker-credential-{helper}"));
    let failed =
        |reason: &str| CredentialsError::Program { program: program.clone(), reason: reason.to_owned() };
    if !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
        return Err(failed("is no name of a helper"));
    }
    let mut command = Command::new(&program);
    command.arg("get");
    let answer = run(command, server.as_bytes().to_vec()).await?;
    let answer: Answer = serde_json::from_slice(&answer).map_err(|_| failed("did not answer as expected"))?;
    if answer.username == TOKEN_USER {
        return Err(failed("gave an identity token, which is not understood"));
    }
    Ok(Credentials { user: answer.username, password: answer.secret, token_host: None })
}

impl Config {
    /// The entry whose key is the longest that leads to the repository: podman's keys may go on with a path.
    fn of(&self, registry: &str, repository: &str) -> Option<&Auth> {
        let image = format!("{registry}/{repository}/");
        let fits = |key: &str| {
            host_of(key) == registry
                && (path_of(key).is_empty() || image.starts_with(&format!("{}/", plain(key))))
        };
        let fitting = self.auths.iter().filter(|(key, _)| fits(key));
        fitting.max_by_key(|(key, _)| path_of(key).len()).map(|(_, auth)| auth)
    }
}

/// A key without scheme and end.
fn plain(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.trim_end_matches('/')
}

/// The registry that a key is about.
fn host_of(key: &str) -> &str {
    match plain(key).split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// The path in a key, without what docker appends for the protocol's version.
fn path_of(key: &str) -> &str {
    match plain(key).split_once('/').map_or("", |(_, path)| path) {
        "v1" | "v2" => "",
        path => path,
    }
}

impl Auth {
    fn credentials(&self) -> Option<Credentials> {
        let (user, password) = match (&self.auth, &self.username, &self.password) {
            (Some(auth), ..) if !auth.is_empty() => {
                let pair = String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok()?;
                let (user, password) = pair.split_once(':')?;
                (user.to_owned(), password.trim_end_matches('\0').to_owned())
            }
            (_, Some(user), Some(password)) => (user.clone(), password.clone()),
            _ => return None,
        };
        Some(Credentials { user, password, token_host: None })
    }
}
