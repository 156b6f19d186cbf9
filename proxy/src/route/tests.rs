use super::*;
use proptest::prelude::*;

const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn of(path: &str, query: Option<&str>) -> Result<Route, Malformed> {
    parse(path, query, "docker.io", |name| name == "quay.io" || name == "localhost:5000")
}

fn named(registry: &str, repository: &str, kind: Kind) -> Result<Route, Malformed> {
    let digest = format!("sha256:{HEX}").parse().unwrap();
    Ok(Route::Content(Named { registry: registry.into(), repository: repository.into(), kind, digest }))
}

fn forward(registry: &str, tag_of: Option<&str>, path: &str) -> Result<Route, Malformed> {
    Ok(Route::Forward(Forward {
        registry: registry.into(),
        tag_of: tag_of.map(Into::into),
        path: path.into(),
        naming: if registry == "docker.io" || registry == "d" { Naming::Default } else { Naming::Query },
    }))
}

#[test]
fn links_lead_back_here() {
    let link = "</v2/a/tags/list?last=x&n=2>; rel=\"next\"";
    let of = |naming| localized(link, "r.io:5000", naming).unwrap();
    assert_eq!(of(Naming::Query), "</v2/a/tags/list?last=x&n=2&ns=r.io%3A5000>; rel=\"next\"");
    assert_eq!(of(Naming::Path), "</v2/r.io:5000/a/tags/list?last=x&n=2>; rel=\"next\"");
    assert_eq!(of(Naming::Default), link);
    let absolute = localized("<https://r.io/v2/a/tags/list?n=2>; rel=next", "r.io", Naming::Default);
    assert_eq!(absolute.unwrap(), "</v2/a/tags/list?n=2>; rel=next");
    assert_eq!(localized("</other>", "r", Naming::Query), None);
    assert_eq!(localized("nothing", "r", Naming::Query), None);
}

#[test]
fn the_three_ways_to_name_a_registry() {
    let blob = |prefix: &str| format!("/v2/{prefix}library/a/blobs/sha256:{HEX}");
    assert_eq!(of(&blob(""), None), named("docker.io", "library/a", Kind::Blob));
    assert_eq!(of(&blob(""), Some("ns=ghcr.io")), named("ghcr.io", "library/a", Kind::Blob));
    assert_eq!(of(&blob(""), Some("x=1&ns=h%3A5000")), named("h:5000", "library/a", Kind::Blob));
    assert_eq!(of(&blob("quay.io/"), None), named("quay.io", "library/a", Kind::Blob));
    assert_eq!(of(&blob("localhost:5000/"), None), named("localhost:5000", "library/a", Kind::Blob));
    // A name that looks like a host, but is none that is known, is a name.
    assert_eq!(of(&blob("evil.io/"), None), named("docker.io", "evil.io/library/a", Kind::Blob));
    assert_eq!(of(&blob("quay.io/"), Some("ns=ghcr.io")), named("ghcr.io", "quay.io/library/a", Kind::Blob));
}

#[test]
fn what_only_the_origin_knows_is_forwarded() {
    assert_eq!(
        of("/v2/a/b/manifests/1.0", Some("ns=r.io")),
        forward("r.io", Some("a/b"), "/v2/a/b/manifests/1.0")
    );
    assert_eq!(
        of("/v2/a/tags/list", Some("n=5&ns=r.io&last=x")),
        forward("r.io", None, "/v2/a/tags/list?n=5&last=x")
    );
    let referrers = format!("/v2/a/referrers/sha256:{HEX}");
    assert_eq!(of(&referrers, None), forward("docker.io", None, &referrers));
    assert_eq!(of("/v2", None), Ok(Route::Ping));
    assert_eq!(of("/v2/", Some("ns=r.io")), Ok(Route::Ping));
    // A repository may be called like a word of the protocol.
    assert_eq!(
        of("/v2/manifests/blobs/manifests/x", None),
        forward("docker.io", Some("manifests/blobs"), "/v2/manifests/blobs/manifests/x")
    );
}

#[test]
fn what_no_registry_has_is_refused() {
    assert_eq!(of("/", None), Err(Malformed::NotV2));
    assert_eq!(of("/v1/x", None), Err(Malformed::NotV2));
    assert_eq!(of("/v2x/a/manifests/1", None), Err(Malformed::NotV2));
    assert_eq!(of("/v2/A/manifests/1", None), Err(Malformed::Name));
    assert_eq!(of("/v2/a//b/manifests/1", None), Err(Malformed::Name));
    assert_eq!(of("/v2/a/manifests/.x", None), Err(Malformed::Reference));
    assert_eq!(of("/v2/a/blobs/latest", None), Err(Malformed::Reference));
    assert_eq!(of(&format!("/v2/a/blobs/blake3:{HEX}"), None), Err(Malformed::Reference));
    for path in
        ["/v2/../admin", "/v2/a/./tags/list", "/v2/a/%2e%2e/x", "/v2/a\\b/tags/list", "/v2/ä/tags/list"]
    {
        assert_eq!(of(path, None), Err(Malformed::Path), "{path}");
    }
}

#[test]
fn names_and_tags_follow_the_grammar() {
    for good in ["a", "a/b/c", "a.b", "a_b", "a__b", "a---b", "0-9", "library/a1.b2_c3"] {
        assert!(is_name(good), "{good}");
    }
    for bad in ["", "/", "a/", "/a", "a..b", "a___b", "a._b", "-a", "a-", "A", "a b", "ä", &"a".repeat(256)]
    {
        assert!(!is_name(bad), "{bad}");
    }
    for good in ["latest", "_x", "V1.0-rc_2", &"a".repeat(128)] {
        assert!(is_tag(good), "{good}");
    }
    for bad in ["", ".x", "-x", "a:b", "a/b", &"a".repeat(129)] {
        assert!(!is_tag(bad), "{bad}");
    }
}

proptest! {
    #[test]
    fn names_of_the_grammar_are_names(
        name in "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}(/[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,4}){0,3}){0,3}",
        tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
    ) {
        prop_assert!(is_name(&name) && is_tag(&tag));
        let path = format!("/v2/{name}/manifests/{tag}");
        prop_assert_eq!(parse(&path, None, "d", |_| false), forward("d", Some(&name), &path));
        let path = format!("/v2/{name}/blobs/sha256:{HEX}");
        let Ok(Route::Content(named)) = parse(&path, None, "d", |_| false) else { panic!("{path}") };
        prop_assert_eq!(named.path(), path);
    }

    #[test]
    fn rubbish_never_panics_and_never_leaves_v2(path in "(/v2)?[/.%:a-z0-9\\PC]{0,60}", query in prop::option::of("\\PC{0,40}")) {
        match of(&path, query.as_deref()) {
            Ok(Route::Forward(forward)) => {
                let url = url::Url::parse("https://h").unwrap().join(&forward.path).unwrap();
                prop_assert!(url.path().starts_with("/v2/"), "{}", forward.path);
                prop_assert_eq!(url.host_str(), Some("h"));
            }
            Ok(Route::Content(named)) => prop_assert!(is_name(&named.repository)),
            Ok(Route::Ping) | Err(_) => {}
        }
    }
}
