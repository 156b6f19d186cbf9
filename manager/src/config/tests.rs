use super::*;

fn parse(text: &str) -> Result<Config, String> {
    config::parse(text, "manager.toml").map_err(|error| error.to_string())
}

#[test]
fn the_sample_shows_exactly_the_defaults() {
    let sample = include_str!("../../../packaging/config/manager.toml");
    assert_eq!(parse(sample).unwrap(), Config::default());
    assert_eq!(parse("").unwrap(), Config::default());
}

/// A key that is missing from the sample would be unknown to its readers.
#[test]
fn the_sample_has_every_key() {
    let sample = include_str!("../../../packaging/config/manager.toml");
    let written = serde_json::to_value(parse(sample).unwrap()).unwrap();
    fn keys(value: &serde_json::Value, found: &mut Vec<String>) {
        for (key, value) in value.as_object().into_iter().flatten() {
            found.push(key.clone());
            keys(value, found);
        }
    }
    let mut found = Vec::new();
    keys(&written, &mut found);
    for key in found {
        assert!(sample.contains(&key), "{key} is not in the sample");
    }
}

#[test]
fn clusters_are_read_with_units() {
    let read = parse(
        "[clusters.default]\nupload_bytes_per_second = \"100MiB\"\n[clusters.\"eu-1\"]\nparents_per_child = 8\n",
    )
    .unwrap();
    let names: Vec<_> = read.clusters.keys().map(ClusterName::as_str).collect();
    assert_eq!(names, ["default", "eu-1"]);
    assert_eq!(read.clusters[&ClusterName::default()].upload_bytes_per_second, 100 << 20);
    assert_eq!(read.clusters[&"eu-1".parse().unwrap()].parents_per_child, 8);
}

#[test]
fn what_does_not_fit_is_refused_with_its_line() {
    for (text, says) in [
        ("[grpc]\nlisten = \"here\"", "manager.toml:2: "),
        (
            "[keepalive]\ninterval = \"10ms\"",
            "manager.toml:2: the keepalive interval must lie between 100ms and 60s",
        ),
        (
            "[keepalive]\ninterval = \"2m\"",
            "manager.toml:2: the keepalive interval must lie between 100ms and 60s",
        ),
        ("[clusters.\"a b\"]", "manager.toml:1: cluster contains ' '"),
        (
            "[clusters.a]\nparents_per_child = 1001",
            "manager.toml:2: 1001 is too many; at most 1000 are allowed",
        ),
        ("[clusters.a]\norigin_bytes_per_second = \"10EiB\"", "manager.toml:2: the rate is too large"),
        (
            "[clusters.a]\nspeed = 1",
            "manager.toml:2: unknown field `speed`, expected one of `parents_per_child`",
        ),
        ("[database]\nfile = \"x\"", "manager.toml:2: unknown field `file`, expected `path`"),
    ] {
        let error = parse(text).unwrap_err();
        assert!(error.starts_with(says), "{text}: {error}");
    }
}
