use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

static TOKEN: HeaderValue = HeaderValue::from_static("Bearer a");
static OTHER: HeaderValue = HeaderValue::from_static("Bearer b");

fn access(offline: Offline) -> Access {
    Access::new(offline, Duration::from_secs(60), Duration::from_secs(3600))
}

fn caller(authorization: Option<&HeaderValue>) -> Caller<'_> {
    Caller { registry: "r", repository: "a", authorization, anonymous: authorization.is_none() }
}

fn status(status: u16) -> OriginError {
    OriginError::Status { host: "h".into(), status, challenge: None, body: Default::default() }
}

fn unreachable() -> OriginError {
    OriginError::Unreachable { host: "h".into(), reason: String::new() }
}

async fn yes() -> Result<(), OriginError> {
    Ok(())
}

async fn never_asked() -> Result<(), OriginError> {
    panic!("the origin was asked")
}

#[tokio::test]
async fn a_permission_holds_for_this_caller_repository_and_known_contents() {
    let access = access(Offline::PublicOnly);
    let (x, y) = (Digest::sha256(b"x"), Digest::sha256(b"y"));
    access.check(caller(Some(&TOKEN)), &x, yes()).await.unwrap();
    access.check(caller(Some(&TOKEN)), &x, never_asked()).await.unwrap();

    let refused = async || Err(status(404));
    assert!(access.check(caller(Some(&TOKEN)), &y, refused()).await.is_err(), "another content");
    assert!(access.check(caller(Some(&OTHER)), &x, refused()).await.is_err(), "another caller");
    assert!(access.check(caller(None), &x, refused()).await.is_err(), "nobody");
    let elsewhere = Caller { repository: "b", ..caller(Some(&TOKEN)) };
    assert!(access.check(elsewhere, &x, refused()).await.is_err(), "another repository");

    access.learn(caller(Some(&TOKEN)), [y.clone()]);
    access.check(caller(Some(&TOKEN)), &y, never_asked()).await.unwrap();
    assert!(
        access.check(caller(Some(&OTHER)), &y, refused()).await.is_err(),
        "known content, unknown caller"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permission_ends() {
    let access = access(Offline::PublicOnly);
    let x = Digest::sha256(b"x");
    access.check(caller(Some(&TOKEN)), &x, yes()).await.unwrap();
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(access.check(caller(Some(&TOKEN)), &x, async { Err(status(401)) }).await.is_err());
    // A new permission for the repository does not bring back what is known about its contents.
    access.learn(caller(Some(&TOKEN)), [Digest::sha256(b"y")]);
    assert!(access.check(caller(Some(&TOKEN)), &x, async { Err(status(404)) }).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn what_was_public_is_not_for_ever() {
    let access = access(Offline::PublicOnly);
    let x = Digest::sha256(b"x");
    access.check(caller(None), &x, yes()).await.unwrap();
    tokio::time::advance(Duration::from_secs(3000)).await;
    access.check(caller(Some(&OTHER)), &x, async { Err(unreachable()) }).await.unwrap();
    tokio::time::advance(Duration::from_secs(601)).await;
    assert!(access.check(caller(Some(&OTHER)), &x, async { Err(unreachable()) }).await.is_err());
}

#[tokio::test]
async fn without_the_origin_only_public_contents_are_served() {
    let x = Digest::sha256(b"x");
    let access = access(Offline::PublicOnly);
    access.check(caller(Some(&TOKEN)), &x, yes()).await.unwrap();
    assert!(access.check(caller(Some(&OTHER)), &x, async { Err(unreachable()) }).await.is_err());
    access.check(caller(None), &x, yes()).await.unwrap();
    access.check(caller(Some(&OTHER)), &x, async { Err(unreachable()) }).await.unwrap();
    access.check(caller(Some(&OTHER)), &x, async { Err(status(503)) }).await.unwrap();
    assert!(access.check(caller(Some(&OTHER)), &x, async { Err(status(403)) }).await.is_err());
}

#[tokio::test]
async fn without_the_origin_everything_is_served_where_that_is_configured() {
    let access = access(Offline::Open);
    let x = Digest::sha256(b"x");
    access.check(caller(None), &x, async { Err(unreachable()) }).await.unwrap();
    assert!(access.check(caller(None), &x, async { Err(status(401)) }).await.is_err());
}

#[tokio::test]
async fn those_who_ask_together_ask_once() {
    let access = access(Offline::PublicOnly);
    let x = Digest::sha256(b"x");
    let asked = AtomicUsize::new(0);
    let checks = (0..10).map(|_| {
        access.check(caller(Some(&TOKEN)), &x, async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            yes().await
        })
    });
    for outcome in futures_util::future::join_all(checks).await {
        outcome.unwrap();
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}
