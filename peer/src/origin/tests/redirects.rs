//! Redirects, and what travels along them.

use super::*;
use http::Request;

fn redirect(to: impl ToString) -> Reply {
    Reply::new(307).header("location", to.to_string()).header("content-length", 0)
}

#[tokio::test]
async fn credentials_stay_with_their_origin() {
    let foreign = BadOrigin::start(|_, _| Reply::rest(&content(100), 10, "\"f\"")).await;
    let away = format!("{}/blob?X-Signature=s", foreign.base);
    let home = BadOrigin::start(move |request, _| match request.path.as_str() {
        "/a" => redirect("/b"),
        _ => redirect(&away),
    })
    .await;
    let source = with_header(source(format!("{}/a", home.base)), "authorization", "Bearer canary");
    let source = with_header(with_header(source, "cookie", "canary"), "x-api-key", "canary");
    let source = with_header(source, "accept", "text/a");
    let body = client().get(&source, Some(10..100)).await.unwrap();
    assert_eq!(read(body).await.unwrap(), &content(100)[10..]);

    for seen in home.seen() {
        assert_eq!(seen.header("authorization"), Some("Bearer canary"), "{}", seen.path);
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
    assert_eq!(home.seen().len(), 2);
    let seen = foreign.seen().remove(0);
    assert!(!format!("{seen:?}").contains("canary"), "{seen:?}");
    assert_eq!((seen.header("range"), seen.header("accept")), (Some("bytes=10-99"), Some("text/a")));
}

#[tokio::test]
async fn credentials_do_not_come_back_from_abroad() {
    let home = BadOrigin::start(|request, _| match request.path.as_str() {
        "/stolen" => Reply::content(b"x", "\"a\""),
        path => redirect(path.trim_start_matches("/to/")),
    })
    .await;
    let back = format!("{}/stolen", home.base);
    let foreign = BadOrigin::start(move |_, _| redirect(&back)).await;
    let url = format!("{}/to/{}", home.base, foreign.base);
    let source = with_header(source(url), "authorization", "Bearer canary");
    read(client().get(&source, None).await.unwrap()).await.unwrap();
    assert_eq!(home.seen().last().unwrap().header("authorization"), None);
}

#[tokio::test]
async fn loops_and_forbidden_targets_are_errors() {
    let origin = BadOrigin::start(|request, _| match request.path.as_str() {
        "/loop" => redirect("/loop"),
        "/metadata" => redirect("http://169.254.169.254/latest/meta-data/"),
        "/file" => redirect("file:///etc/passwd"),
        _ => Reply::new(302).header("content-length", 0),
    })
    .await;
    for path in ["/loop", "/metadata", "/file", "/nowhere"] {
        let error = client().head(&source(format!("{}{path}", origin.base))).await.unwrap_err();
        assert!(matches!(error, OriginError::Redirect { .. }), "{path}: {error}");
    }
    assert!(origin.seen().len() < 16);
}

#[tokio::test]
async fn a_request_is_passed_on_with_all_its_headers() {
    let origin =
        BadOrigin::start(|_, _| Reply::new(404).header("x-why", "gone").bytes(b"no such thing")).await;
    let request = Request::get(format!("{}/v2/a/tags/list?n=1", origin.base))
        .header("accept", "text/a")
        .header("accept", "text/b")
        .body(())
        .unwrap();
    let response = client().send(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.headers()["x-why"].to_str().unwrap()), (404, "gone"));
    assert_eq!(response.into_body().next().await.unwrap().unwrap(), "no such thing");
    let seen = origin.seen().remove(0);
    assert_eq!(seen.path, "/v2/a/tags/list?n=1");
    assert_eq!(seen.headers.get_all("accept").iter().count(), 2);
}
