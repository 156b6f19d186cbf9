//! Lengths, ranges, broken bodies and deadlines.

use super::*;
use proptest::prelude::*;

async fn get(origin: &BadOrigin) -> Result<Vec<u8>, OriginError> {
    read(client().get(&source(format!("{}/blob", origin.base)), None).await?).await
}

#[tokio::test]
async fn says_what_the_origin_says() {
    let origin = BadOrigin::start(|_, _| {
        Reply::content(&content(1000), "\"a\"")
            .header("accept-ranges", "bytes")
            .header("content-type", "text/x")
    })
    .await;
    let head = client().head(&source(&origin.base)).await.unwrap();
    assert_eq!((head.status, head.len, head.ranges), (200, Some(1000), true));
    assert_eq!((head.validator.as_deref(), head.content_type.as_deref()), (Some("\"a\""), Some("text/x")));
    assert_eq!(origin.seen()[0].method, "HEAD");
    assert_eq!(get(&origin).await.unwrap(), content(1000));
}

#[tokio::test]
async fn a_broken_body_is_continued_by_range() {
    let whole = content(100_000);
    let origin = BadOrigin::start(move |request, before| {
        let start = request.range_start();
        let reply =
            if start == 0 { Reply::content(&whole, "\"a\"") } else { Reply::rest(&whole, start, "\"a\"") };
        if before < 2 { reply.broken_after(30_000) } else { reply }
    })
    .await;
    assert_eq!(get(&origin).await.unwrap(), content(100_000));
    let seen = origin.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(
        (seen[1].header("range"), seen[1].header("if-range")),
        (Some("bytes=30000-99999"), Some("\"a\""))
    );
    assert_eq!(seen[2].header("range"), Some("bytes=60000-99999"));
}

#[tokio::test]
async fn an_origin_without_ranges_starts_again_and_is_skipped_forward() {
    let whole = content(100_000);
    let origin = BadOrigin::start(move |_, before| {
        let reply = Reply::content(&whole, "\"a\"");
        if before == 0 { reply.broken_after(30_000) } else { reply }
    })
    .await;
    assert_eq!(get(&origin).await.unwrap(), content(100_000));

    let body = client().get(&source(&origin.base), Some(500..700)).await.unwrap();
    assert!(!body.head.ranges);
    assert_eq!(read(body).await.unwrap(), &content(100_000)[500..700]);
}

#[tokio::test]
async fn a_content_that_changed_is_not_continued() {
    for ranges in [false, true] {
        let origin = BadOrigin::start(move |request, before| match (before, ranges) {
            (0, _) => Reply::content(&content(1000), "\"a\"").broken_after(300),
            (_, false) => Reply::content(&content(1000), "\"b\""),
            (_, true) => Reply::rest(&content(1000), request.range_start(), "\"b\""),
        })
        .await;
        assert!(matches!(get(&origin).await, Err(OriginError::Changed { .. })), "ranges: {ranges}");
    }
}

#[tokio::test]
async fn without_a_validator_a_begun_body_is_not_continued() {
    let origin = BadOrigin::start(|_, _| Reply::content(&content(1000), "W/\"a\"").broken_after(300)).await;
    let error = get(&origin).await.unwrap_err();
    assert!(matches!(error, OriginError::Truncated { received: 300, .. }), "{error:?}");
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn a_body_that_breaks_for_ever_is_given_up() {
    let origin = BadOrigin::start(|request, _| match request.range_start() {
        0 => Reply::content(&content(1000), "\"a\"").broken_after(300),
        start => Reply::rest(&content(1000), start, "\"a\"").broken_after(0),
    })
    .await;
    let error = get(&origin).await.unwrap_err();
    assert!(matches!(error, OriginError::Truncated { received: 300, .. }), "{error:?}");
    assert_eq!(origin.seen().len() as u32, 1 + config().retries);
}

#[tokio::test]
async fn ranges_that_were_not_asked_for_are_refused() {
    let origin = BadOrigin::start(|_, _| Reply::rest(&content(1000), 1, "\"a\"")).await;
    let error = client().get(&source(&origin.base), Some(2..1000)).await.unwrap_err();
    assert!(matches!(error, OriginError::InvalidAnswer { .. }), "{error:?}");
    let origin = BadOrigin::start(|_, _| Reply::new(416).header("content-range", "bytes */9")).await;
    let error = client().get(&source(&origin.base), Some(20..30)).await.unwrap_err();
    assert!(matches!(error, OriginError::Status { status: 416, .. }), "{error:?}");
}

#[tokio::test]
async fn a_body_longer_than_its_range_is_an_error() {
    let origin = BadOrigin::start(|_, _| {
        Reply::new(206).header("content-range", "bytes 2-9/1000").header("etag", "\"a\"").bytes(&content(20))
    })
    .await;
    let body = client().get(&source(&origin.base), Some(2..10)).await.unwrap();
    assert!(matches!(read(body).await, Err(OriginError::InvalidAnswer { .. })));
}

#[tokio::test]
async fn a_body_of_unknown_length_ends_where_the_origin_ends_it() {
    let origin = BadOrigin::start(|_, _| Reply::new(200).bytes(&content(500)).bytes(b"end")).await;
    assert_eq!(get(&origin).await.unwrap(), [content(500), b"end".to_vec()].concat());
    let origin = BadOrigin::start(|_, _| Reply::new(200).bytes(&content(500)).step(Step::Break)).await;
    assert!(matches!(get(&origin).await, Err(OriginError::Truncated { .. })));
}

#[tokio::test]
async fn silence_ends_at_the_deadline() {
    let silent = BadOrigin::start(|_, _| Reply::never()).await;
    assert!(matches!(get(&silent).await, Err(OriginError::Timeout { .. })));

    let stuck =
        BadOrigin::start(|_, _| Reply::new(200).header("content-length", 9).bytes(b"a").step(Step::Hang))
            .await;
    assert!(matches!(get(&stuck).await, Err(OriginError::Truncated { received: 1, .. })));
}

#[tokio::test]
async fn a_trickle_is_no_progress() {
    let origin = BadOrigin::start(|_, _| {
        let reply = Reply::new(200).header("content-length", 1000);
        (0..1000).fold(reply, |reply, _| reply.bytes(b"x").step(Step::Wait(Duration::from_millis(20))))
    })
    .await;
    let error = get(&origin).await.unwrap_err();
    assert!(matches!(error, OriginError::Truncated { received: 1..900, .. }), "{error:?}");
}

#[tokio::test]
async fn failing_origins_are_asked_again_but_not_for_ever() {
    let origin = BadOrigin::start(|_, before| match before {
        0 => Reply::new(502),
        1 => Reply::new(503).header("retry-after", 0),
        _ => Reply::content(b"at last", "\"a\""),
    })
    .await;
    assert_eq!(get(&origin).await.unwrap(), b"at last");

    let failing = BadOrigin::start(|_, _| Reply::new(500).bytes(b"why")).await;
    let error = get(&failing).await.unwrap_err();
    assert!(matches!(&error, OriginError::Status { status: 500, body, .. } if body == "why"), "{error:?}");
    assert_eq!(failing.seen().len() as u32, 1 + config().retries);

    let busy = BadOrigin::start(|_, _| Reply::new(429).header("retry-after", 3600)).await;
    assert!(matches!(get(&busy).await, Err(OriginError::Status { status: 429, .. })));
    assert_eq!(busy.seen().len(), 1);

    let missing = BadOrigin::start(|_, _| Reply::new(404)).await;
    assert!(matches!(get(&missing).await, Err(OriginError::Status { status: 404, .. })));
    assert_eq!(missing.seen().len(), 1);
}

#[tokio::test]
async fn who_cannot_be_reached_and_whose_tls_is_bad_is_told_apart() {
    let gone = {
        let origin = BadOrigin::start(|_, _| Reply::new(200)).await;
        origin.base.clone()
    };
    tokio::task::yield_now().await;
    let error = client().head(&source(gone)).await.unwrap_err();
    assert!(matches!(error, OriginError::Unreachable { .. }), "{error:?}");

    let plain = BadOrigin::start(|_, _| Reply::new(200)).await;
    let error = client().head(&source(plain.base.replace("http:", "https:"))).await.unwrap_err();
    assert!(matches!(error, OriginError::Tls { .. }), "{error:?}");
}

#[tokio::test]
async fn connections_to_one_origin_are_limited() {
    let origin = BadOrigin::start(|_, _| Reply::content(&content(1000), "\"a\"")).await;
    let config = OriginConfig { connections: 1, first_byte_timeout: Duration::from_millis(300), ..config() };
    let client = Origin::new(&config, Registries::new(&BTreeMap::new()).unwrap(), Limits::default());
    let running = client.get(&source(&origin.base), None).await.unwrap();
    let error = client.get(&source(&origin.base), None).await.unwrap_err();
    assert!(matches!(error, OriginError::Timeout { .. }), "{error:?}");
    drop(running);
    read(client.get(&source(&origin.base), None).await.unwrap()).await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// However often and wherever the bodies break, what is read is the content, or an error.
    #[test]
    fn broken_bodies_never_give_wrong_bytes(
        len in 1usize..5000,
        breaks in prop::collection::vec(0usize..3000, 0..4),
        ranges: bool,
        cut in any::<Option<(u16, u16)>>(),
    ) {
        let whole = content(len);
        let range = cut.map(|(a, b)| (usize::from(a) % len, usize::from(b))).map(|(start, more)| start..start + more + 1);
        let expected = range.clone().map_or_else(|| whole.clone(), |range| whole[range.start..range.end.min(len)].to_vec());
        let script = move |request: &server::Seen, before: usize| {
            let asked = request.header("range").filter(|_| ranges);
            let reply = match asked.map(|range| range.trim_start_matches("bytes=").split_once('-').unwrap()) {
                None => Reply::content(&whole, "\"a\""),
                Some((start, end)) => {
                    let end = end.parse::<usize>().map_or(len, |last| len.min(last + 1));
                    let start: usize = start.parse().unwrap();
                    Reply::new(206)
                        .header("content-range", format!("bytes {start}-{}/{len}", end - 1))
                        .header("content-length", end - start)
                        .header("etag", "\"a\"")
                        .bytes(&whole[start..end])
                }
            };
            match breaks.get(before) {
                Some(len) => reply.broken_after(*len),
                None => reply,
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(async {
            let origin = BadOrigin::start(script).await;
            let range = range.map(|range| range.start as u64..range.end as u64);
            read(client().get(&source(&origin.base), range).await?).await
        });
        prop_assert_eq!(outcome, Ok(expected));
    }
}
