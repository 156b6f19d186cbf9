//! What only the origin can answer.

use super::*;

const MANIFEST: &[u8] = br#"{"schemaVersion": 2, "manifests": []}"#;
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

#[tokio::test]
async fn a_ping_is_answered_here() {
    let world = World::start().await;
    for path in ["/v2/", "/v2"] {
        let pong = world.get(path).await;
        assert_eq!(
            (pong.status, pong.header("docker-distribution-api-version")),
            (200, Some("registry/2.0"))
        );
        assert_eq!(pong.header("content-type"), Some("application/json; charset=utf-8"));
        assert_eq!(pong.content(), b"{}");
    }
    world.stop().await;
}

#[tokio::test]
async fn tags_are_asked_at_the_origin_every_time() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest = registry.manifest("a", MANIFEST, INDEX_TYPE);
    let path = manifest(&registry, "a", "latest");
    // As docker sends them: several Accept lines.
    let headers =
        [("accept", "text/a"), ("accept", INDEX_TYPE), ("authorization", "Bearer x"), ("cookie", "c")];
    for method in [Method::HEAD, Method::GET, Method::GET] {
        let answer = world.ask(method.clone(), &path, &headers).await;
        assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
        assert_eq!(answer.header("content-type"), Some(INDEX_TYPE));
        assert_eq!(answer.header("content-length"), Some(MANIFEST.len().to_string().as_str()));
        assert_eq!(answer.header("x-darter-source"), Some("origin"));
        assert_eq!(answer.content(), if method == Method::GET { MANIFEST } else { b"" });
    }
    let seen = registry.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen[0].path.ends_with("/v2/a/manifests/latest"), "{}", seen[0].path);
    assert_eq!(seen[0].headers.get_all("accept").iter().collect::<Vec<_>>(), ["text/a", INDEX_TYPE]);
    assert_eq!(seen[0].headers["authorization"], "Bearer x");
    assert!(!seen[0].headers.contains_key("cookie"));
    world.stop().await;
}

#[tokio::test]
async fn lists_and_errors_come_as_the_origin_sends_them() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let list = world.get(&format!("/v2/a/tags/list?n=1&ns={}", registry.name)).await;
    // A link leads back here, to the same registry.
    let name = registry.name.replace(':', "%3A");
    assert_eq!(list.header("link"), Some(format!("</v2/x?ns={name}>; rel=\"next\"").as_str()));
    assert_eq!(list.content(), b"{\"tags\":[\"latest\"]}");
    let missing = world.get(&manifest(&registry, "a", "none")).await;
    assert_eq!((missing.status, missing.header("x-why")), (404, Some("not here")));
    assert_eq!(missing.body, b"{\"errors\":[\"from the origin\"]}");
    world.stop().await;
}

#[tokio::test]
async fn a_request_that_names_no_registry_goes_to_the_default() {
    let registry = Registry::start().await;
    registry.manifest("library/a", MANIFEST, INDEX_TYPE);
    let world = World::with(Config { default_registry: registry.name.clone(), ..Config::default() }).await;
    assert_eq!(world.get("/v2/library/a/manifests/latest").await.content(), MANIFEST);
    world.stop().await;
}

#[tokio::test]
async fn what_is_not_served_says_so() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let push = world.ask(Method::POST, &format!("/v2/a/blobs/uploads/?ns={}", registry.name), &[]).await;
    assert_eq!((push.status, push.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(push.code(), "UNSUPPORTED");
    assert_eq!(world.get("/").await.status, 404);
    assert_eq!(world.get("/v2/UPPER/manifests/x").await.code(), "NAME_INVALID");
    assert_eq!(world.get("/v2/a/blobs/x").await.code(), "DIGEST_INVALID");
    assert_eq!(world.get("/v2/a/tags/list?ns=169.254.169.254").await.code(), "NAME_INVALID");
    assert!(registry.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_tag_may_outlive_its_origin_where_that_is_configured() {
    let registry = Registry::start().await;
    let digest = registry.manifest("a", MANIFEST, INDEX_TYPE);
    let config = Config { stale_tags: Duration::from_secs(60), ..Config::default() };
    let (stale, strict) = (World::with(config).await, World::start().await);
    let (tag, path) = (manifest(&registry, "a", "latest"), manifest(&registry, "a", &digest));
    for world in [&stale, &strict] {
        world.ask(Method::HEAD, &tag, &[]).await.content();
        world.get(&path).await.content();
    }
    registry.stop().await;
    let answer = stale.get(&tag).await;
    assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
    assert_eq!(answer.content(), MANIFEST);
    assert_eq!(strict.get(&tag).await.status, 502);
    stale.stop().await;
    strict.stop().await;
}

#[tokio::test]
async fn an_origin_that_is_gone_is_a_bad_gateway() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let path = manifest(&registry, "a", "latest");
    registry.stop().await;
    assert_eq!(world.get(&path).await.status, 502);
    world.stop().await;
}
