//! Mirrors, pauses, and where requests may lead.

use super::*;
use crate::origin::RegistryConfig;

fn with_mirrors(upstream: &BadOrigin, mirrors: &[&BadOrigin]) -> Origin {
    let mirrors = mirrors.iter().map(|mirror| format!("{}/hub", mirror.base)).collect();
    let registry =
        RegistryConfig { upstream: Some(upstream.base.clone()), mirrors, ..RegistryConfig::default() };
    let registries = Registries::new(&BTreeMap::from([("r.example".to_owned(), registry)])).unwrap();
    Origin::new(&OriginConfig { allow: vec![], ..config() }, registries, Limits::default())
}

fn blob(upstream: &BadOrigin) -> Source {
    with_header(source(format!("{}/v2/a/blobs/x", upstream.base)), "authorization", "Bearer canary")
}

#[tokio::test]
async fn mirrors_are_asked_first_and_never_see_the_caller() {
    let upstream = BadOrigin::start(|_, _| Reply::content(b"upstream", "\"u\"")).await;
    let empty = BadOrigin::start(|_, _| Reply::new(404)).await;
    let full = BadOrigin::start(|_, _| Reply::content(b"mirror", "\"m\"")).await;
    let client = with_mirrors(&upstream, &[&empty, &full]);
    assert_eq!(read(client.get(&blob(&upstream), None).await.unwrap()).await.unwrap(), b"mirror");
    assert!(upstream.seen().is_empty());
    for mirror in [&empty, &full] {
        let seen = mirror.seen().remove(0);
        assert_eq!((seen.path.as_str(), seen.header("authorization")), ("/v2/hub/a/blobs/x", None));
    }
    let client = with_mirrors(&upstream, &[&empty]);
    assert_eq!(read(client.get(&blob(&upstream), None).await.unwrap()).await.unwrap(), b"upstream");
    assert_eq!(upstream.seen().remove(0).header("authorization"), Some("Bearer canary"));
}

#[tokio::test]
async fn a_mirror_that_failed_is_left_alone() {
    let upstream = BadOrigin::start(|_, _| Reply::content(b"upstream", "\"u\"")).await;
    let silent = BadOrigin::start(|_, _| Reply::never()).await;
    let client = with_mirrors(&upstream, &[&silent]);
    for _ in 0..3 {
        assert_eq!(read(client.get(&blob(&upstream), None).await.unwrap()).await.unwrap(), b"upstream");
    }
    assert_eq!(silent.seen().len(), 1);
}

#[tokio::test]
async fn a_pause_that_one_task_was_told_holds_for_all() {
    let busy =
        BadOrigin::start(|_, _| Reply::new(429).header("retry-after", 60).header("content-length", 0)).await;
    let client = client();
    for path in ["a", "b", "c"] {
        let error = client.head(&source(format!("{}/{path}", busy.base))).await.unwrap_err();
        assert!(matches!(error, OriginError::Status { status: 429, .. }), "{error:?}");
    }
    assert_eq!(busy.seen().len(), 1);
}

#[tokio::test]
async fn an_expired_link_is_fetched_anew() {
    let store = BadOrigin::start(|request, _| match request.path.as_str() {
        "/blob?n=0" => Reply::new(403).header("content-length", 0),
        _ => Reply::content(b"blob", "\"b\""),
    })
    .await;
    let base = store.base.clone();
    let home = BadOrigin::start(move |_, before| {
        Reply::new(307).header("location", format!("{base}/blob?n={before}")).header("content-length", 0)
    })
    .await;
    let body = client().get(&source(format!("{}/v2/a/blobs/x", home.base)), None).await.unwrap();
    assert_eq!(read(body).await.unwrap(), b"blob");
    assert_eq!((home.seen().len(), store.seen().len()), (2, 2));
}

#[tokio::test]
async fn private_networks_are_asked_only_where_they_are_named() {
    let origin = BadOrigin::start(|_, _| Reply::content(b"x", "\"x\"")).await;
    let port = origin.base.rsplit_once(':').unwrap().1.to_owned();
    let public = Origin::new(
        &OriginConfig { allow: vec![], ..config() },
        Registries::new(&BTreeMap::new()).unwrap(),
        Limits::default(),
    );
    for url in [origin.base.clone(), format!("http://localhost:{port}")] {
        let error = public.head(&source(url)).await.unwrap_err();
        assert!(error.to_string().contains("peer.origin.allow"), "{error}");
    }
    assert!(origin.seen().is_empty());
    with_mirrors(&origin, &[]).head(&source(origin.base.as_str())).await.unwrap();
}

#[tokio::test]
async fn a_permission_does_not_follow_where_it_leads() {
    let home = BadOrigin::start(|request, _| match request.path.as_str() {
        "/elsewhere" => {
            Reply::new(307).header("location", "https://store.invalid/x").header("content-length", 0)
        }
        "/here" => Reply::content(b"", "\"h\""),
        _ => Reply::new(404).header("content-length", 0),
    })
    .await;
    let allows = async |path: &str| client().allows(&source(format!("{}{path}", home.base))).await;
    allows("/elsewhere").await.unwrap();
    allows("/here").await.unwrap();
    assert!(matches!(allows("/none").await, Err(OriginError::Status { status: 404, .. })));
}
