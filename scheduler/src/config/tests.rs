use darter_service::config;

use super::*;

#[test]
fn nothing_need_be_configured() {
    assert_eq!(config::parse::<Config>("", "c").unwrap(), Config::default());
    let text =
        "lease_progress_timeout = \"10s\"\n[limits]\nupload = \"50MiB\"\n[manager]\naddress = \"m:7420\"";
    let config: Config = config::parse(text, "c").unwrap();
    assert_eq!((config.lease_progress_timeout, config.limits.upload), (Duration::from_secs(10), 50 << 20));
    assert_eq!(config.manager, Some(manager::Config::new("m:7420")));
}

#[test]
fn nonsense_is_refused_where_it_stands() {
    for (text, expected) in [
        ("\nparents = 3", "c:2: unknown field `parents`"),
        ("parents_per_child = 0", "c:1: 0 is not possible"),
        ("children_per_parent = 1001", "c:1: 1001 is not possible"),
        ("lease_progress_timeout = \"5ms\"", "c:1: less than \"1s\""),
        ("listen = \"7410\"", "c:1: "),
    ] {
        let error = config::parse::<Config>(text, "c").unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn the_managers_values_take_precedence_where_it_sets_some() {
    let limits = Limits { upload: 5, origin: 6, ..Limits::default() };
    let config = Config { limits, parents_per_child: 4, ..Config::default() };
    let dynamic = DynamicConfig {
        parents_per_child: 8,
        upload_bytes_per_second: 7,
        children_per_parent: u32::MAX,
        ..DynamicConfig::default()
    };
    let settings = config.settings("s", &dynamic);
    assert_eq!((settings.parents_per_child, settings.children_per_parent), (8, MAX_PEERS));
    assert_eq!((settings.rates.upload_bytes_per_second, settings.rates.origin_bytes_per_second), (7, 6));
    assert_eq!(config.settings("s", &DynamicConfig::default()).parents_per_child, 4);
}
