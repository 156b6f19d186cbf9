//! Credentials from files and programs.

use super::*;
use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

const SECRET: &str = "canary";

fn keyring(toml: &str) -> Keyring {
    Keyring::new(&darter_service::config::parse(toml, "test").unwrap())
}

fn program(dir: &Path, name: &str, script: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh\n{script}")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn pair(found: Option<Credentials>) -> Option<(String, String)> {
    found.map(|found| (found.user, found.password))
}

fn of(user: &str) -> Option<(String, String)> {
    Some((user.to_owned(), SECRET.to_owned()))
}

#[tokio::test]
async fn docker_s_configuration_is_read_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    // "a:canary" and "hub:canary" in base64.
    fs::write(
        &path,
        r#"{"auths": {"r.example": {"auth": "YTpjYW5hcnk="}, "r.example/team": {"username": "team", "password": "canary"},
            "https://index.docker.io/v1/": {"auth": "aHViOmNhbmFyeQ=="}}, "HttpHeaders": {}}"#,
    )
    .unwrap();
    let keyring = keyring(&format!("docker_config = {path:?}"));
    assert_eq!(pair(keyring.find("r.example", "x").await), of("a"));
    assert_eq!(pair(keyring.find("r.example", "team/x").await), of("team"));
    assert_eq!(pair(keyring.find("r.example", "teamx").await), of("a"));
    assert_eq!(pair(keyring.find("docker.io", "library/x").await), of("hub"));
    assert_eq!(pair(keyring.find("other.example", "x").await), None);
    assert!(keyring.may_have("docker.io") && !keyring.may_have("other.example"));

    fs::write(&path, r#"{"auths": {"other.example": {"username": "b", "password": "canary"}}}"#).unwrap();
    assert_eq!(pair(keyring.find("other.example", "x").await), of("b"));
    fs::write(&path, "{\"auths\": \"canary").unwrap();
    assert_eq!(pair(keyring.find("other.example", "x").await), None);
    assert!(!docker::find(&path, "r", "x").await.unwrap_err().to_string().contains(SECRET));
}

#[tokio::test]
async fn a_provider_is_asked_once_for_what_its_answer_covers() {
    let dir = tempfile::tempdir().unwrap();
    let asked = dir.path().join("asked");
    let answer = r#"{"kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "1h",
        "auth": {"*.example": {"username": "a", "password": "canary"}, "r.example/team": {"username": "team", "password": "canary"}}}"#;
    let script = format!("cat >> {asked:?}; echo >> {asked:?}\ncat <<'X'\n{answer}\nX\n");
    let command = program(dir.path(), "provider", &script);
    let keyring = keyring(&format!("[[providers]]\nimages = [\"*.example\"]\ncommand = {command:?}"));
    assert_eq!(pair(keyring.find("r.example", "x").await), of("a"));
    assert_eq!(pair(keyring.find("r.example", "team/x").await), of("team"));
    assert_eq!(pair(keyring.find("other.io", "x").await), None);
    let asked = fs::read_to_string(asked).unwrap();
    let lines: Vec<_> = asked.lines().collect();
    let expected = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"r.example/x"}"#;
    assert_eq!(lines, [expected]);
    assert!(!format!("{keyring:?}").contains(SECRET));
}

#[tokio::test]
async fn a_program_that_fails_gives_nothing_and_tells_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for script in ["echo canary; exit 1", "echo canary", "exec sleep 0"] {
        let command = program(dir.path(), "provider", script);
        let keyring = keyring(&format!("[[providers]]\nimages = [\"r.example\"]\ncommand = {command:?}"));
        assert_eq!(pair(keyring.find("r.example", "x").await), None, "{script}");
        let error = run(Command::new(&command), vec![]).await.err().map(|error| error.to_string());
        assert!(!error.unwrap_or_default().contains(SECRET));
    }
}
