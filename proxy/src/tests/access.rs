//! Private contents: who may read at the origin may read here, and nobody else.

use super::*;
use crate::Offline;

const PRIVATE: &str = "private/a";

/// The answer is the origin's refusal, with its challenge.
#[track_caller]
fn assert_refused(registry: &Registry, answer: &Answer) {
    assert_eq!(answer.status, 401);
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", registry.name);
    assert_eq!(answer.header("www-authenticate"), Some(challenge.as_str()));
}

#[tokio::test]
async fn the_challenge_is_relayed_and_its_token_accepted() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(MIB);
    let layer = registry.blob(PRIVATE, &content, None);
    let image = registry.manifest(PRIVATE, b"{\"layers\": []}", "text/x");
    for path in [
        manifest(&registry, PRIVATE, "latest"),
        manifest(&registry, PRIVATE, &image),
        blob(&registry, PRIVATE, &layer),
    ] {
        for method in [Method::HEAD, Method::GET] {
            let refused = world.ask(method.clone(), &path, &[]).await;
            assert_refused(&registry, &refused);
            assert_eq!(world.ask(method, &path, &[("authorization", TOKEN)]).await.status, 200, "{path}");
        }
    }
    world.stop().await;
}

#[tokio::test]
async fn cached_private_contents_are_not_for_everybody() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let layer = registry.blob(PRIVATE, &bytes(MIB), None);
    let image = registry.manifest(PRIVATE, b"{\"layers\": []}", "text/x");
    let paths = [manifest(&registry, PRIVATE, &image), blob(&registry, PRIVATE, &layer)];
    for path in &paths {
        world.ask(Method::GET, path, &[("authorization", TOKEN)]).await.content();
    }
    for path in &paths {
        for method in [Method::HEAD, Method::GET] {
            for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("range", "bytes=0-9")]] {
                assert_refused(&registry, &world.ask(method.clone(), path, headers).await);
            }
            assert_eq!(world.ask(method, path, &[("authorization", TOKEN)]).await.status, 200);
        }
    }
    // The same content through a repository that does not have it.
    let elsewhere = world.ask(Method::GET, &blob(&registry, "public", &layer), &[]).await;
    assert_eq!(elsewhere.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn what_came_from_one_registry_is_not_unlocked_by_another() {
    let (world, registry, evil) = (World::start().await, Registry::start().await, Registry::start().await);
    let content = bytes(MIB);
    let layer = registry.blob(PRIVATE, &content, None);
    let path = blob(&registry, PRIVATE, &layer);
    world.ask(Method::GET, &path, &[("authorization", TOKEN)]).await.content();

    // It says that it has the content, lists it in a manifest, and has a wrong one of the same length.
    evil.blob_as("a", &layer, &vec![0; content.len()]);
    let image =
        evil.manifest("a", format!("{{\"layers\": [{{\"digest\": \"{layer}\"}}]}}").as_bytes(), "text/x");
    world.get(&manifest(&evil, "a", &image)).await.content();
    assert_eq!(world.ask(Method::HEAD, &blob(&evil, "a", &layer), &[]).await.status, 200);
    for headers in [&[][..], &[("range", "bytes=0-9")], &[("range", "bytes=-9")]] {
        let answer = world.ask(Method::GET, &blob(&evil, "a", &layer), headers).await;
        assert!(answer.broken || answer.status >= 400, "{}", answer.status);
        let own = answer.status >= 400 || answer.body.iter().all(|byte| *byte == 0);
        assert!(own, "a byte of the private content");
    }
    assert!(world.ask(Method::GET, &path, &[("authorization", TOKEN)]).await.content() == content);
    world.stop().await;
}

#[tokio::test]
async fn what_a_manifest_lists_is_not_in_the_repository_for_that() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let layer = registry.blob(PRIVATE, &bytes(MIB), None);
    world.ask(Method::GET, &blob(&registry, PRIVATE, &layer), &[("authorization", TOKEN)]).await.content();
    // As a layer with a foreign URL may be pushed to one's own repository.
    let json = format!("{{\"layers\": [{{\"digest\": \"{layer}\", \"urls\": [\"https://x.example\"]}}]}}");
    let image = registry.manifest("public", json.as_bytes(), "text/x");
    world.get(&manifest(&registry, "public", &image)).await.content();
    assert_eq!(world.get(&blob(&registry, "public", &layer)).await.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn another_name_of_the_same_registry_costs_one_question() {
    let registry = Registry::start().await;
    let listed = format!("[\"mirror.example\"]\nupstream = \"http://{}\"", registry.name);
    let listed = format!("{listed}\n[\"other.example\"]\nupstream = \"http://{}\"", registry.name);
    let world = World::with_registries(Config::default(), &listed).await;
    let content = bytes(MIB);
    let layer = registry.blob("a", &content, None);
    assert!(world.get(&format!("/v2/a/blobs/{layer}?ns=mirror.example")).await.content() == content);
    let again = world.get(&format!("/v2/a/blobs/{layer}?ns=other.example")).await;
    assert_eq!(again.header("x-darter-source"), Some("local"));
    assert!(again.content() == content);
    assert_eq!(registry.count(Method::GET, &layer.to_string()), 1);
    assert_eq!(registry.count(Method::HEAD, &layer.to_string()), 2);
    world.stop().await;
}

#[tokio::test]
async fn a_pull_asks_once_for_each_content() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let layer = registry.blob(PRIVATE, &bytes(MIB), None);
    let json = format!("{{\"layers\": [{{\"digest\": \"{layer}\"}}]}}");
    let image = registry.manifest(PRIVATE, json.as_bytes(), "text/x");
    let token = [("authorization", TOKEN)];
    world.ask(Method::HEAD, &manifest(&registry, PRIVATE, "latest"), &token).await.content();
    world.ask(Method::GET, &manifest(&registry, PRIVATE, &image), &token).await.content();
    world.ask(Method::GET, &blob(&registry, PRIVATE, &layer), &token).await.content();
    let asked: Vec<_> = registry.seen().into_iter().map(|seen| seen.method).collect();
    // That the origin sends a content says that the caller may read it.
    assert_eq!(asked, [Method::HEAD, Method::GET, Method::GET]);
    // What was said a moment ago is not asked again.
    world.ask(Method::GET, &blob(&registry, PRIVATE, &layer), &token).await.content();
    assert_eq!(registry.seen().len(), 3);
    world.stop().await;
}

#[tokio::test]
async fn what_the_origin_sends_to_one_is_not_for_another() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let (release, released) = tokio::sync::watch::channel(false);
    let content = bytes(2 * MIB);
    let layer = registry.blob(PRIVATE, &content, Some(Fault::Holds { after: MIB, released }));
    for (repository, headers) in [("public", &[][..]), (PRIVATE, &[("authorization", TOKEN)])] {
        registry.manifest(repository, b"{\"layers\": []}", "text/x");
        world.ask(Method::GET, &manifest(&registry, repository, "latest"), headers).await.content();
    }

    let mine = blob(&registry, PRIVATE, &layer);
    let request = Request::get(&mine).header("authorization", TOKEN).body(Empty::new()).unwrap();
    let running = world.send(request).await;
    // Both are welcome in a repository, but not with this content.
    assert_refused(&registry, &world.get(&mine).await);
    assert_eq!(world.get(&blob(&registry, "public", &layer)).await.status, 404);
    release.send_replace(true);
    assert!(Answer::read(running).await.content() == content);
    world.stop().await;
}

#[tokio::test]
async fn without_the_origin_only_what_was_public_is_served() {
    let (registry, world) = (Registry::start().await, World::start().await);
    let open = World::with(Config { offline: Offline::Open, ..Config::default() }).await;
    let content = bytes(MIB);
    let public = blob(&registry, "public", &registry.blob("public", &content, None));
    let secret = blob(&registry, PRIVATE, &registry.blob(PRIVATE, &bytes(1000), None));
    for world in [&world, &open] {
        world.get(&public).await.content();
        world.ask(Method::GET, &secret, &[("authorization", TOKEN)]).await.content();
    }
    registry.stop().await;
    let stranger = [("authorization", "Bearer other")];
    assert!(world.ask(Method::GET, &public, &stranger).await.content() == content);
    assert_eq!(world.ask(Method::GET, &secret, &stranger).await.status, 502);
    assert_eq!(open.ask(Method::GET, &secret, &stranger).await.content(), bytes(1000));
    world.stop().await;
    open.stop().await;
}
