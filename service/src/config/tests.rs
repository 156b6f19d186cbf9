use super::*;
use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Sample {
    #[serde(with = "duration")]
    timeout: Duration,
    store: Store,
}

#[derive(Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Store {
    dir: PathBuf,
    #[serde(with = "size")]
    quota: u64,
}

impl Default for Sample {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(5), store: Store::default() }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self { dir: "/var".into(), quota: 50 << 30 }
    }
}

fn sample(text: &str) -> Result<Sample, String> {
    parse(text, "sample.toml").map_err(|error| error.to_string())
}

#[test]
fn an_empty_text_gives_the_defaults() {
    assert_eq!(sample(""), Ok(Sample::default()));
}

#[test]
fn units_are_read() {
    let read = sample("timeout = \"1m 30s\"\n[store]\nquota = \"1.5MiB\"").unwrap();
    assert_eq!(read.timeout, Duration::from_secs(90));
    assert_eq!(read.store.quota, 3 << 19);
    assert_eq!(sample("[store]\nquota = 4096").unwrap().store.quota, 4096);
    assert_eq!(sample("[store]\nquota = \"0\"").unwrap().store.quota, 0);
    assert_eq!(sample("[store]\nquota = \"2 GB\"").unwrap().store.quota, 2_000_000_000);
}

#[test]
fn what_is_written_is_read_again() {
    for quota in [0, 1, 1023, 1024, 50 << 30, (1 << 40) + 1, i64::MAX as u64] {
        let sample =
            Sample { timeout: Duration::from_millis(1500), store: Store { quota, ..Store::default() } };
        let text = toml::to_string(&sample).unwrap();
        assert_eq!(parse::<Sample>(&text, "written").unwrap(), sample, "{text}");
    }
}

#[test]
fn an_unknown_key_is_refused_with_its_line_and_what_is_allowed() {
    let error = sample("timeout = \"1s\"\n\n[store]\nquotum = 1\n").unwrap_err();
    assert_eq!(error, "sample.toml:4: unknown field `quotum`, expected `dir` or `quota`");
    let error = sample("[shop]\n").unwrap_err();
    assert_eq!(error, "sample.toml:1: unknown field `shop`, expected `timeout` or `store`");
}

#[test]
fn bad_values_are_refused_with_their_line_and_an_example() {
    for (text, line, says) in [
        ("timeout = 5", 1, "a duration with a unit"),
        ("timeout = \"5 parsecs\"", 1, "a duration with a unit"),
        ("timeout = \"-5s\"", 1, "a duration with a unit"),
        ("\n[store]\nquota = \"many\"", 3, "a size in quotes"),
        ("\n[store]\nquota = \"-1\"", 3, "a size in quotes"),
        ("\n[store]\nquota = -1", 3, "a size in quotes"),
        ("\n[store]\nquota = 1.5", 3, "a size in quotes"),
        ("\n[store\n", 2, "expected"),
    ] {
        let error = sample(text).unwrap_err();
        assert!(
            error.starts_with(&format!("sample.toml:{line}: ")) && error.contains(says),
            "{text}: {error}"
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let error = load::<Sample>(Path::new("/no/such/file.toml")).unwrap_err().to_string();
    assert!(error.contains("/no/such/file.toml") && error.contains("No such file"), "{error}");
}
