//! The kubelet's exec credential providers (Kubernetes documentation, "Configure a kubelet image credential provider").

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::{process::Command, sync::Mutex, time::Instant};

use super::{Credentials, CredentialsError, ProviderConfig, run};

/// Longest time for which an answer is kept.
const MAX_KEEP: Duration = Duration::from_secs(24 * 3600);
/// Answers that are kept.
const ANSWERS: usize = 256;

/// A provider with its answers.
pub(super) struct Provider {
    config: ProviderConfig,
    /// Holds the lock while the program runs, so that those who want the same answer wait for it.
    answers: Mutex<Vec<Kept>>,
}

struct Kept {
    /// What it is an answer for: an image, a registry, or everything.
    key: String,
    auth: BTreeMap<String, Auth>,
    until: Instant,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    cache_key_type: String,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
struct Auth {
    username: String,
    password: String,
}

impl Provider {
    pub(super) fn new(config: ProviderConfig) -> Self {
        Self { config, answers: Mutex::default() }
    }

    pub(super) fn is_for(&self, registry: &str, repository: &str) -> bool {
        self.config.images.iter().any(|pattern| matches(pattern, registry, repository))
    }

    pub(super) fn is_for_registry(&self, registry: &str) -> bool {
        let host = |pattern: &str| pattern.split('/').next().unwrap_or_default().to_owned();
        self.config.images.iter().any(|pattern| matches(&host(pattern), registry, ""))
    }

    /// What the provider says about an image, from memory while that is still good.
    pub(super) async fn find(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credentials>, CredentialsError> {
        let image = format!("{registry}/{repository}");
        let mut answers = self.answers.lock().await;
        answers.retain(|kept| kept.until > Instant::now());
        let known = |kept: &&Kept| kept.key.is_empty() || kept.key == registry || kept.key == image;
        if let Some(kept) = answers.iter().find(known) {
            return Ok(choose(&kept.auth, registry, repository));
        }
        let Response { cache_key_type, cache_duration, auth } = self.ask(&image).await?;
        let auth = auth.unwrap_or_default();
        let found = choose(&auth, registry, repository);
        let keep = match cache_duration {
            Some(text) => duration(&text).unwrap_or(self.config.keep),
            None => self.config.keep,
        };
        let key = match cache_key_type.as_str() {
            "Global" => String::new(),
            "Registry" => registry.to_owned(),
            _ => image,
        };
        if answers.len() >= ANSWERS {
            answers.remove(0);
        }
        answers.push(Kept { key, auth, until: Instant::now() + keep.min(MAX_KEEP) });
        Ok(found)
    }

    async fn ask(&self, image: &str) -> Result<Response, CredentialsError> {
        let ProviderConfig { command: program, args, env, api_version, .. } = &self.config;
        let failed =
            |reason: &str| CredentialsError::Program { program: program.clone(), reason: reason.to_owned() };
        let request = Request { api_version, kind: "CredentialProviderRequest", image };
        let request = serde_json::to_vec(&request).map_err(|_| failed("cannot be asked"))?;
        let mut command = Command::new(program);
        command.args(args).envs(env);
        let answer = run(command, request).await?;
        serde_json::from_slice(&answer).map_err(|_| failed("did not answer as expected"))
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider").field("command", &self.config.command).finish_non_exhaustive()
    }
}

/// Of the patterns that fit, the longest is the most exact one.
fn choose(auth: &BTreeMap<String, Auth>, registry: &str, repository: &str) -> Option<Credentials> {
    let fitting = auth.iter().filter(|(pattern, _)| matches(pattern, registry, repository));
    let (_, auth) = fitting.max_by_key(|(pattern, _)| pattern.len())?;
    Some(Credentials { user: auth.username.clone(), password: auth.password.clone(), token_host: None })
}

/// The kubelet's matching of images: as many parts in the host, `*` for any letters of one part, the same port, and a
/// path that the image's path begins with.
pub(super) fn matches(pattern: &str, registry: &str, repository: &str) -> bool {
    let pattern = pattern.split_once("://").map_or(pattern, |(_, rest)| rest);
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (host, port) = host.split_once(':').unwrap_or((host, ""));
    let (own_host, own_port) = registry.rsplit_once(':').unwrap_or((registry, ""));
    let parts = |host: &str| host.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (wanted, own) = (parts(host), parts(own_host));
    port == own_port
        && wanted.len() == own.len()
        && wanted.iter().zip(&own).all(|(wanted, own)| fits(wanted, own))
        && repository.starts_with(path)
}

/// Whether `*`s in a pattern can be filled so that it is the text.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            (0..=rest.len()).any(|at| rest.get(at..).is_some_and(|rest| fits(after, rest)))
        }),
    }
}

/// A duration as Go writes it: `1h30m`, `90s`, `0`.
fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        rest = after;
    }
    Some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_matched_as_the_kubelet_does() {
        for (pattern, registry, repository) in [
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-west-1.amazonaws.com", "a/b"),
            ("registry.io:8080/path", "registry.io:8080", "path/image"),
            ("https://k*s.io", "k8s.io", "x"),
            ("docker.io", "docker.io", "library/a"),
        ] {
            assert!(matches(pattern, registry, repository), "{pattern}");
        }
        for (pattern, registry, repository) in [
            ("*.io", "a.b.io", "x"),
            ("registry.io", "registry.io:8080", "x"),
            ("registry.io/path", "registry.io", "other"),
            ("k*s.io", "k8sx.io", "x"),
        ] {
            assert!(!matches(pattern, registry, repository), "{pattern}");
        }
    }

    #[test]
    fn durations_of_go() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        for bad in ["1", "h", "1x", "1h2", "1e99h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
