//! Origins and clients that fail: never a wrong byte, never a clean short body.

use super::*;
use tokio::time::timeout;

#[tokio::test]
async fn wrong_bytes_break_the_connection() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(2 * MIB);
    let digest = registry.blob("a", &content, Some(Fault::WrongBytes));
    for _ in 0..2 {
        let answer = world.get(&blob(&registry, "a", &digest)).await;
        assert!(answer.broken || answer.status == 502, "{}", answer.status);
        assert!(answer.body.len() < content.len());
    }
    // What fits into one leaf is known to be wrong before the first byte.
    let small = registry.blob("a", &bytes(1000), Some(Fault::WrongBytes));
    let answer = world.get(&blob(&registry, "a", &small)).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "UNKNOWN"));
    world.stop().await;
}

#[tokio::test]
async fn a_broken_origin_is_continued() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(3 * MIB);
    let digest = registry.blob("a", &content, Some(Fault::Breaks { after: MIB, times: 2 }));
    assert!(world.get(&blob(&registry, "a", &digest)).await.content() == content);
    world.stop().await;
}

#[tokio::test]
async fn an_origin_that_cannot_finish_breaks_the_connection() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest =
        registry.blob("a", &bytes(3 * MIB), Some(Fault::Breaks { after: 100_000, times: usize::MAX }));
    let answer = world.get(&blob(&registry, "a", &digest)).await;
    assert!(answer.broken || answer.status == 502, "{}", answer.status);
    world.stop().await;
}

#[tokio::test]
async fn a_missing_blob_is_missing_at_once() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let missing = Digest::sha256(b"missing");
    let answer = world.get(&blob(&registry, "a", &missing)).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "BLOB_UNKNOWN"));
    let answer = world.get(&manifest(&registry, "a", &missing)).await;
    assert_eq!((answer.status, answer.code().as_str()), (404, "MANIFEST_UNKNOWN"));
    assert_eq!(world.ask(Method::HEAD, &blob(&registry, "a", &missing), &[]).await.status, 404);
    world.stop().await;
}

#[tokio::test]
async fn a_silent_origin_is_a_gateway_timeout() {
    let registry = Registry::start().await;
    let world =
        World::with(Config { first_byte_timeout: Duration::from_millis(500), ..Config::default() }).await;
    let digest = registry.blob("a", &bytes(MIB), Some(Fault::Silent));
    let answer = world.get(&blob(&registry, "a", &digest)).await;
    assert_eq!((answer.status, answer.code().as_str()), (504, "UNKNOWN"));
    world.expect_metric("darter_proxy_decisions_total{p2p=\"no\",why=\"timeout\"} 1");
    world.stop().await;
}

#[tokio::test]
async fn an_origin_that_is_silent_about_a_content_is_not_asked_once_more_whether_it_may_be_read() {
    let registry = Registry::start().await;
    let world = World::with(Config { check_timeout: Duration::from_millis(300), ..Config::default() }).await;
    // The caller is known to be welcome from here on.
    world.get(&blob(&registry, "a", &registry.blob("a", &bytes(1000), None))).await.content();
    let digest = registry.blob("a", &bytes(MIB), Some(Fault::Silent));
    assert_eq!(world.get(&blob(&registry, "a", &digest)).await.status, 504);
    assert_eq!(registry.count(Method::HEAD, &digest.to_string()), 0);
    world.stop().await;
}

#[tokio::test]
async fn a_client_that_hangs_up_stops_the_work() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let (release, released) = tokio::sync::watch::channel(false);
    let content = bytes(3 * MIB);
    let digest = registry.blob("a", &content, Some(Fault::Holds { after: MIB, released }));
    let path = blob(&registry, "a", &digest);
    let mut response = world.send(Request::get(&path).body(Empty::new()).unwrap()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    timeout(Duration::from_secs(30), registry.abandoned()).await.expect("the origin is let go");

    release.send_replace(true);
    assert!(world.get(&path).await.content() == content);
    world.stop().await;
}
