//! Challenges and tokens.

use super::*;
use crate::origin::RegistryConfig;
use futures_util::future;
use std::io::Write as _;

const SECRET: &str = "canary";

/// A registry that wants the token which its own `/token` gives. The n-th token of a registry is `t<n>`; only tokens
/// for which `accepts` holds open the blob.
async fn registry(expires_in: u64, accepts: fn(&str) -> bool) -> BadOrigin {
    let issued = parking_lot::Mutex::new(0);
    BadOrigin::start(move |request, _| {
        if request.path.starts_with("/token") {
            let mut issued = issued.lock();
            *issued += 1;
            let body = format!(r#"{{"token": "t{issued}", "expires_in": {expires_in}}}"#);
            return Reply::new(200).bytes(body.as_bytes());
        }
        match request.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if accepts(token) => Reply::content(b"blob", "\"a\""),
            _ => {
                let host = request.header("host").unwrap();
                let scope = "repository:a:pull repository:b:pull";
                let challenge =
                    format!(r#"Bearer realm="http://{host}/token?x=1",service="s",scope="{scope}""#);
                Reply::new(401)
                    .header("www-authenticate", "Basic realm=\"b\"")
                    .header("www-authenticate", challenge)
            }
        }
    })
    .await
}

fn blob(origin: &BadOrigin) -> Source {
    source(format!("{}/v2/a/blobs/x", origin.base))
}

fn tokens_asked(origin: &BadOrigin) -> usize {
    origin.seen().iter().filter(|seen| seen.path.starts_with("/token")).count()
}

#[tokio::test]
async fn a_token_is_got_once_and_used_again() {
    let origin = registry(300, |_| true).await;
    let client = client();
    let reads = (0..8).map(|_| async { read(client.get(&blob(&origin), None).await?).await });
    for outcome in future::join_all(reads).await {
        assert_eq!(outcome.unwrap(), b"blob");
    }
    client.head(&blob(&origin)).await.unwrap();
    assert_eq!(tokens_asked(&origin), 1);
    let token = origin.seen().into_iter().find(|seen| seen.path.starts_with("/token")).unwrap();
    assert_eq!(token.path, "/token?x=1&service=s&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull");
    assert_eq!(token.header("authorization"), None);
}

#[tokio::test]
async fn an_expired_or_refused_token_is_got_anew() {
    let short = registry(0, |_| true).await;
    let client = client();
    for _ in 0..2 {
        client.head(&blob(&short)).await.unwrap();
    }
    assert_eq!(tokens_asked(&short), 2);

    // The first token works once; later the registry wants another one.
    let picky = registry(300, |token| token == "t2").await;
    assert!(matches!(client.head(&blob(&picky)).await, Err(OriginError::Status { status: 401, .. })));
    client.head(&blob(&picky)).await.unwrap();
    assert_eq!(tokens_asked(&picky), 2);
}

#[tokio::test]
async fn the_callers_authorization_is_used_as_it_is() {
    let origin = registry(300, |token| token == SECRET).await;
    let good = with_header(blob(&origin), "authorization", "Bearer canary");
    assert_eq!(read(client().get(&good, None).await.unwrap()).await.unwrap(), b"blob");

    let bad = with_header(blob(&origin), "authorization", "Bearer wrong");
    let error = client().get(&bad, None).await.unwrap_err();
    let OriginError::Status { status: 401, challenge: Some(challenge), .. } = error else {
        panic!("{error:?}");
    };
    assert!(challenge.starts_with("Bearer realm="), "{challenge}");
    assert_eq!(tokens_asked(&origin), 0);
}

#[tokio::test]
async fn configured_credentials_get_the_token() {
    let origin = registry(300, |_| true).await;
    let client = with_credentials(&origin);
    client.head(&blob(&origin)).await.unwrap();
    let token = origin.seen().into_iter().find(|seen| seen.path.starts_with("/token")).unwrap();
    assert_eq!(token.header("authorization"), Some("Basic dTpjYW5hcnk="));
}

#[tokio::test]
async fn configured_credentials_meet_a_basic_challenge() {
    let origin = BadOrigin::start(|request, _| match request.header("authorization") {
        Some("Basic dTpjYW5hcnk=") => Reply::content(b"blob", "\"a\""),
        _ => Reply::new(401).header("www-authenticate", "Basic realm=\"r\""),
    })
    .await;
    with_credentials(&origin).head(&blob(&origin)).await.unwrap();
    assert!(matches!(client().head(&blob(&origin)).await, Err(OriginError::Status { status: 401, .. })));
}

#[tokio::test]
async fn realms_that_give_no_token_leave_the_challenge() {
    let garbage = BadOrigin::start(|request, _| {
        let host = request.header("host").unwrap().to_owned();
        match request.path.split('?').next().unwrap() {
            "/rubbish" => Reply::new(200).bytes(b"\xff{"),
            "/empty" => Reply::new(200).bytes(b"{\"token\":\"\"}"),
            "/denied" => Reply::new(403),
            "/none" => Reply::new(401).header("www-authenticate", "Bearer service=x"),
            "/inward" => {
                Reply::new(401).header("www-authenticate", "Bearer realm=\"http://169.254.169.254/\"")
            }
            path => {
                let realm = format!("http://{host}/{}", path.trim_start_matches("/with/"));
                Reply::new(401).header("www-authenticate", format!("Bearer realm=\"{realm}\""))
            }
        }
    })
    .await;
    for path in ["/none", "/inward", "/with/rubbish", "/with/empty", "/with/denied"] {
        let error = client().head(&source(format!("{}{path}", garbage.base))).await.unwrap_err();
        assert!(
            matches!(error, OriginError::Status { status: 401, challenge: Some(_), .. }),
            "{path}: {error:?}"
        );
    }
}

/// A client that is user `u` with password `canary` to the origin.
fn with_credentials(origin: &BadOrigin) -> Origin {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{SECRET}").unwrap();
    let registry = RegistryConfig {
        upstream: Some(origin.base.clone()),
        username: Some("u".to_owned()),
        password_file: Some(file.path().to_owned()),
        ..RegistryConfig::default()
    };
    let registries = Registries::new(&BTreeMap::from([("r.example".to_owned(), registry)])).unwrap();
    Origin::new(&config(), registries, Limits::default())
}
