//! Origins that do everything wrong: the right bytes or a prompt error, and nothing wrong is kept.

use std::{
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use darter_peer::LEAF_LEN;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::{
    bad_origin::{Act, Asked, BadOrigin, head, whole},
    *,
};

/// Whatever an origin does, an answer has ended by then.
const PROMPT: Duration = Duration::from_secs(15);
const LEN: usize = 3 * LEAF_LEN as usize + 1000;
const LEAF: usize = LEAF_LEN as usize;

/// What a client may get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Right,
    Status(u16),
    /// A status that is an error, or a broken connection.
    Failure,
}
use Expect::{Failure, Right, Status};

/// What an origin does with a GET of a blob; a HEAD is answered well.
type Misdeed = Box<dyn Fn(&Asked, &[u8]) -> Vec<Act> + Send + Sync>;

struct Case {
    name: String,
    misdeed: Misdeed,
    /// The origin does the same to a HEAD.
    heads_too: bool,
    expect: Expect,
}

fn case(
    name: impl Into<String>,
    expect: Expect,
    misdeed: impl Fn(&Asked, &[u8]) -> Vec<Act> + Send + Sync + 'static,
) -> Case {
    Case { name: name.into(), misdeed: Box::new(misdeed), heads_too: false, expect }
}

/// A world that is impatient with origins.
async fn impatient() -> World {
    let config = Config {
        first_byte_timeout: Duration::from_secs(5),
        check_timeout: Duration::from_secs(3),
        ..Config::default()
    };
    World::with_peer(config, |peer| {
        peer.origin.first_byte_timeout = Duration::from_secs(2);
        peer.origin.progress_timeout = Duration::from_secs(1);
        peer.origin.retries = 2;
    })
    .await
}

/// What a good origin answers.
fn good(asked: &Asked, content: &[u8]) -> Vec<Act> {
    let etag = "ETag: \"one\"".to_owned();
    let length = |len: usize| format!("Content-Length: {len}");
    if asked.method == Method::HEAD {
        return vec![Act::Send(head("200 OK", &[etag, length(content.len())]))];
    }
    match asked.range_start() {
        Some(start) if start >= content.len() => whole("416 Range Not Satisfiable", &[], b""),
        Some(start) => {
            let range = format!("Content-Range: bytes {start}-{}/{}", content.len() - 1, content.len());
            whole("206 Partial Content", &[etag, range], &content[start..])
        }
        None => whole("200 OK", &[etag], content),
    }
}

/// Only so many bytes of what a good origin sends, counted from the start of the body.
fn cut_at(asked: &Asked, content: &[u8], body: usize) -> Vec<Act> {
    let Some(Act::Send(mut bytes)) = good(asked, content).pop() else { unreachable!() };
    let head = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
    bytes.truncate(head + body);
    vec![Act::Send(bytes)]
}

/// The same, counted from the start of the content.
fn stopped_at(asked: &Asked, content: &[u8], at: usize) -> Vec<Act> {
    cut_at(asked, content, at.saturating_sub(asked.range_start().unwrap_or(0)))
}

fn with_length(length: impl Into<String>, body: &[u8]) -> Vec<Act> {
    vec![Act::Send([head("200 OK", &[format!("Content-Length: {}", length.into())]), body.to_vec()].concat())]
}

fn chunked(body: &[u8], end: &[u8]) -> Vec<Act> {
    let mut bytes = head("200 OK", &["Transfer-Encoding: chunked".to_owned()]);
    for chunk in body.chunks(100_000) {
        write!(bytes, "{:x}\r\n", chunk.len()).unwrap();
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(end);
    vec![Act::Send(bytes)]
}

fn to(location: &str) -> Vec<Act> {
    whole("307 Temporary Redirect", &[format!("Location: {location}")], b"")
}

/// Lets an origin do its worst, and then its best.
async fn run(case: Case) {
    let Case { name, misdeed, heads_too, expect } = case;
    let content = bytes(LEN);
    let digest = Digest::sha256(&content);
    let mended = Arc::new(AtomicBool::new(false));
    let (its_content, its_state) = (content.clone(), mended.clone());
    let origin = BadOrigin::start(move |asked| {
        let behaves = its_state.load(Ordering::Relaxed) || (asked.method == Method::HEAD && !heads_too);
        if behaves { good(asked, &its_content) } else { misdeed(asked, &its_content) }
    })
    .await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{digest}?ns={}", origin.name);

    let answer = timeout(PROMPT, world.get(&path)).await;
    let answer = answer.unwrap_or_else(|_| panic!("{name}: no end within {PROMPT:?}"));
    let got = format!("{name}: {} and {} bytes, broken: {}", answer.status, answer.body.len(), answer.broken);
    // A body that breaks off is no success, whatever came before.
    assert!(
        answer.status != 200 || answer.broken || content.starts_with(&answer.body),
        "wrong bytes for {got}"
    );
    match expect {
        Right => assert!(answer.status == 200 && !answer.broken && answer.body == content, "{got}"),
        Status(status) => assert_eq!((answer.status, answer.broken), (status, false), "{got}"),
        Failure => assert!(answer.status >= 400 || (answer.broken && answer.body.len() < LEN), "{got}"),
    }

    let asked = origin.seen().len();
    assert!(asked < 20, "{name}: the origin was asked {asked} times");
    let kept = world.peer.store().entries();
    assert!(
        kept.iter().all(|entry| !entry.is_verified()) || expect == Right,
        "{name}: kept as if it were right"
    );
    mended.store(true, Ordering::Relaxed);
    let mut right = false;
    // The first answer may still find out that what is here came from a liar.
    for _ in 0..2 {
        let answer = timeout(PROMPT, world.get(&path)).await.unwrap();
        assert!(answer.status != 200 || content.starts_with(&answer.body), "{name}: wrong bytes when mended");
        right = right || (!answer.broken && answer.status == 200 && answer.body == content);
    }
    assert!(right, "{name}: no right bytes from the mended origin");
    world.stop().await;
}

async fn run_all(cases: Vec<Case>) {
    join_all(cases.into_iter().map(run)).await;
}

#[tokio::test]
async fn refusals_are_passed_on() {
    let mut cases = vec![];
    for heads_too in [false, true] {
        // 429 and 503 have everybody stay away for the time that Retry-After names: see below.
        for status in [401, 403, 404, 416, 500, 502, 504] {
            let refusal = whole(
                &format!("{status} No"),
                &["WWW-Authenticate: Basic realm=\"x\"".to_owned(), "Retry-After: 3600".to_owned()],
                b"<html>",
            );
            let answer = move |asked: &Asked, _: &[u8]| match (&asked.method, refusal.as_slice()) {
                (&Method::HEAD, [Act::Send(bytes)]) => {
                    vec![Act::Send(bytes[..bytes.len() - "<html>".len()].to_vec())]
                }
                _ => refusal.clone(),
            };
            let name = format!("{status}, to a HEAD too: {heads_too}");
            cases.push(Case { heads_too, ..case(name, Status(status), answer) });
        }
    }
    run_all(cases).await;
}

#[tokio::test]
async fn an_origin_that_wants_to_be_left_alone_is_left_alone_by_all() {
    let content = bytes(LEN);
    let digest = Digest::sha256(&content);
    for status in [429, 503] {
        for first in [format!("blobs/{digest}"), format!("manifests/{digest}"), "manifests/latest".into()] {
            let headers = ["Retry-After: 3600".to_owned(), "Content-Length: 0".to_owned()];
            let answer = vec![Act::Send(head(&format!("{status} Later"), &headers))];
            let origin = BadOrigin::start(move |_| answer.clone()).await;
            let world = impatient().await;
            for path in [first, format!("blobs/{digest}"), "manifests/latest".into()] {
                for method in [Method::GET, Method::HEAD] {
                    let path = format!("/v2/a/{path}?ns={}", origin.name);
                    let answer = timeout(PROMPT, world.ask(method, &path, &[])).await.unwrap();
                    assert_eq!(answer.status, status, "{path}");
                }
            }
            assert_eq!(origin.seen().len(), 1, "asked again although it wanted to be left alone");
            world.stop().await;
        }
    }
}

#[tokio::test]
async fn a_short_pause_is_waited_out() {
    for status in ["429 Later", "503 Later"] {
        let content = bytes(LEN);
        let digest = Digest::sha256(&content);
        let origin = BadOrigin::start(move |asked| match asked.before {
            0 => whole(status, &["Retry-After: 1".to_owned()], b""),
            _ => good(asked, &content),
        })
        .await;
        let world = impatient().await;
        let answer = world.get(&format!("/v2/a/blobs/{digest}?ns={}", origin.name)).await;
        assert!(answer.content() == bytes(LEN), "{status}");
        world.stop().await;
    }
}

#[tokio::test]
async fn lengths_that_are_wrong_or_missing() {
    let garbled = b"zz\r\nrubbish";
    run_all(vec![
        case("a length that is too long", Failure, |_, c| with_length((LEN + 1000).to_string(), c)),
        case("a length that is too short", Failure, |_, c| with_length((LEN - 1000).to_string(), c)),
        case("no length", Right, |_, c| vec![Act::Send([head("200 OK", &[]), c.to_vec()].concat())]),
        case("no length and no end", Failure, |_, c| {
            vec![Act::Send([head("200 OK", &[]), c[..LEN / 2].to_vec()].concat())]
        }),
        case("a length of nothing", Failure, |_, c| with_length("0", c)),
        case("a length that is no number", Failure, |_, c| with_length("many", c)),
        case("a negative length", Failure, |_, c| with_length("-1", c)),
        case("two lengths", Failure, |_, c| with_length(format!("{LEN}\r\nContent-Length: {}", LEN + 1), c)),
        case("a length above every disk", Failure, |_, c| with_length(i64::MAX.to_string(), c)),
        case("a length above every number", Failure, |_, c| with_length("9".repeat(30), c)),
        case("chunks", Right, |_, c| chunked(c, b"0\r\n\r\n")),
        case("chunks that break off", Failure, |_, c| chunked(&c[..LEN / 2], b"")),
        case("chunks of rubbish", Failure, |_, c| chunked(&c[..LEN / 2], garbled)),
        case("chunks that end early", Failure, |_, c| chunked(&c[..LEN / 2], b"0\r\n\r\n")),
    ])
    .await;
}

#[tokio::test]
async fn ranges_that_are_ignored_or_lies() {
    /// Breaks off after two leaves, and continues as `next` says.
    fn then(
        name: &str,
        expect: Expect,
        next: impl Fn(&Asked, &[u8]) -> Vec<Act> + Send + Sync + 'static,
    ) -> Case {
        case(name, expect, move |asked, content| match asked.range_start() {
            None if asked.before == 0 => cut_at(asked, content, 2 * LEAF),
            _ => next(asked, content),
        })
    }
    /// A 206 that says this of itself, with the bytes from `at` on.
    fn partial(content: &[u8], etag: &str, range: &str, at: usize) -> Vec<Act> {
        let headers = [format!("ETag: {etag}"), format!("Content-Range: {range}")];
        whole("206 Partial Content", &headers, &content[at..])
    }
    let other: Vec<u8> = bytes(LEN).iter().map(|byte| !byte).collect();
    let (also_other, same_tag) = (other.clone(), other.clone());
    run_all(vec![
        then("no ranges", Right, |_, c| whole("200 OK", &["ETag: \"one\"".to_owned()], c)),
        then("no ranges and another content", Failure, move |_, _| {
            whole("200 OK", &["ETag: \"two\"".to_owned()], &other)
        }),
        then("a range of another content", Failure, move |asked, _| {
            let start = asked.range_start().unwrap();
            partial(&also_other, "\"two\"", &format!("bytes {start}-{}/{LEN}", LEN - 1), start)
        }),
        then("a range of another content under the same tag", Failure, move |asked, _| {
            let start = asked.range_start().unwrap();
            partial(&same_tag, "\"one\"", &format!("bytes {start}-{}/{LEN}", LEN - 1), start)
        }),
        then("a range from elsewhere", Failure, |asked, c| {
            let start = asked.range_start().unwrap() - 1;
            partial(c, "\"one\"", &format!("bytes {start}-{}/{LEN}", LEN - 1), start)
        }),
        then("a range that is not where it says", Failure, |asked, c| {
            let start = asked.range_start().unwrap();
            partial(c, "\"one\"", &format!("bytes {start}-{}/{LEN}", LEN - 1), start - 1)
        }),
        then("a range of a longer content", Failure, |asked, c| {
            let start = asked.range_start().unwrap();
            partial(c, "\"one\"", &format!("bytes {start}-{}/{}", LEN - 1, LEN + 1), start)
        }),
        then("a range that does not say which", Failure, |_, c| {
            whole("206 Partial Content", &["ETag: \"one\"".to_owned()], &c[2 * LEAF..])
        }),
        then("no satisfiable range", Failure, |_, _| whole("416 No", &[], b"")),
        case("a part that nobody asked for", Failure, |_, c| {
            partial(c, "\"one\"", &format!("bytes 0-{}/{LEN}", LEN - 1), 0)
        }),
        case("a new tag with every answer", Failure, |asked, c| {
            let tag = format!("ETag: \"{}\"", asked.before);
            let mut bytes = head("200 OK", &[tag, format!("Content-Length: {LEN}")]);
            bytes.extend_from_slice(&c[..2 * LEAF]);
            vec![Act::Send(bytes)]
        }),
        case("no tag to continue with", Failure, |_, c| with_length(LEN.to_string(), &c[..2 * LEAF])),
    ])
    .await;
}

#[tokio::test]
async fn connections_that_break() {
    let mut cases = vec![];
    for at in [0, 1, LEAF - 1, 2 * LEAF + 7, LEN - 1] {
        for times in [1, usize::MAX] {
            let expect = if times == 1 { Right } else { Failure };
            cases.push(case(format!("a reset at {at}, {times} times"), expect, move |asked, content| {
                if asked.before < times {
                    [stopped_at(asked, content, at), vec![Act::Reset]].concat()
                } else {
                    good(asked, content)
                }
            }));
        }
    }
    cases.push(case("a reset without an answer", Failure, |_, _| vec![Act::Reset]));
    cases.push(case("an end within the head", Failure, |_, _| {
        vec![Act::Send(b"HTTP/1.1 200 OK\r\nCon".to_vec())]
    }));
    run_all(cases).await;
}

#[tokio::test]
async fn redirects_that_lead_nowhere() {
    run_all(vec![
        case("a redirect to itself", Status(502), |asked, _| to(&asked.path)),
        case("redirects without end", Status(502), |asked, _| to(&format!("/{}", asked.before))),
        case("a redirect to a metadata service", Status(502), |_, _| to("http://169.254.169.254/latest/")),
        case("a redirect to a file", Status(502), |_, _| to("file:///etc/passwd")),
        case("a redirect with a password", Status(502), |_, _| to("http://u:p@127.0.0.1:1/")),
        case("a redirect to nobody", Status(502), |_, _| to("http://127.0.0.1:1/")),
        case("a redirect without a location", Status(502), |_, _| whole("307 Temporary Redirect", &[], b"")),
        case("a redirect to rubbish", Status(502), |_, _| to("http://[::")),
    ])
    .await;
}

#[tokio::test]
async fn answers_that_take_for_ever() {
    let drip = Duration::from_millis(50);
    run_all(vec![
        case("no answer", Failure, |_, _| vec![Act::Hang]),
        case("a head byte by byte", Failure, move |_, _| {
            vec![Act::Drip(head("200 OK", &["X-Padding: ".to_owned() + &"x".repeat(1000)]), drip)]
        }),
        case("a body byte by byte", Failure, move |asked, content| {
            let mut acts = stopped_at(asked, content, 2 * LEAF);
            acts.push(Act::Drip(vec![0; 1000], drip));
            acts
        }),
        case("a body that stops", Failure, |asked, content| {
            [stopped_at(asked, content, 2 * LEAF), vec![Act::Hang]].concat()
        }),
        case("a slow but good one", Right, |asked, content| {
            [vec![Act::Pause(Duration::from_millis(500))], good(asked, content)].concat()
        }),
    ])
    .await;
}

#[tokio::test]
async fn answers_that_are_none() {
    let other: Vec<u8> = bytes(LEN).iter().map(|byte| !byte).collect();
    let digest = Digest::sha256(&other);
    let tell = move |body: &[u8]| {
        let header = format!("Docker-Content-Digest: {}", Digest::sha256(&bytes(LEN)));
        whole("200 OK", &[header], body)
    };
    let mut compressed = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
    compressed.write_all(&bytes(LEN)).unwrap();
    let compressed = compressed.finish().unwrap();
    run_all(vec![
        case("another protocol", Failure, |_, _| vec![Act::Send(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec())]),
        case("a head without end", Failure, |_, _| {
            vec![Act::Send(head("200 OK", &["X-Padding: ".to_owned() + &"x".repeat(4 << 20)])), Act::Hang]
        }),
        case("a status that is none", Failure, |_, c| whole("999 What", &[], c)),
        case("no content", Failure, |_, _| vec![Act::Send(head("204 No Content", &[]))]),
        case("another content under the right digest", Failure, move |_, _| tell(&other)),
        case("the right content under a wrong digest", Right, move |_, content| {
            whole("200 OK", &[format!("Docker-Content-Digest: {digest}")], content)
        }),
        case("a content that is compressed", Failure, move |_, _| {
            whole("200 OK", &["Content-Encoding: gzip".to_owned()], &compressed)
        }),
    ])
    .await;
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_credentials_along() {
    let content = bytes(LEN);
    let digest = Digest::sha256(&content);
    let store = BadOrigin::start({
        let content = content.clone();
        move |asked| good(asked, &content)
    })
    .await;
    let elsewhere = format!("http://{}/store?signature=s", store.name);
    let origin = BadOrigin::start(move |asked| match asked.header("authorization") {
        Some("Bearer good") if asked.method == Method::HEAD => vec![Act::Send(head("200 OK", &[]))],
        Some("Bearer good") => to(&elsewhere),
        _ => whole("401 Unauthorized", &["WWW-Authenticate: Bearer realm=\"x\"".to_owned()], b""),
    })
    .await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{digest}?ns={}", origin.name);
    let answer = world.ask(Method::GET, &path, &[("authorization", TOKEN), ("cookie", "c")]).await;
    assert!(answer.content() == content);
    let seen = store.seen();
    assert!(!seen.is_empty() && seen.iter().all(|asked| asked.header("authorization").is_none()), "{seen:?}");
    assert_eq!(world.get(&path).await.status, 401);
    world.stop().await;
}

#[tokio::test]
async fn a_challenge_that_always_changes_is_not_met_for_ever() {
    let origin = BadOrigin::start(|asked| {
        if asked.path.starts_with("/token") {
            return whole("200 OK", &[], format!("{{\"token\": \"{}\"}}", asked.before).as_bytes());
        }
        let realm = format!("http://{}/token?{}", asked.header("host").unwrap(), asked.before);
        let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\",scope=\"{}\"", asked.before);
        vec![Act::Send(head("401 Unauthorized", &[challenge, "Content-Length: 0".to_owned()]))]
    })
    .await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{}?ns={}", Digest::sha256(b"x"), origin.name);
    let answer = timeout(PROMPT, world.get(&path)).await.expect("an end");
    assert_eq!(answer.status, 401);
    assert!(
        answer.header("www-authenticate").is_some_and(|challenge| challenge.starts_with("Bearer realm="))
    );
    let asked = origin.seen().len();
    assert!(asked < 10, "the origin was asked {asked} times");
    world.stop().await;
}

/// Serves a content to whoever has the present token, which changes in the middle of the first body.
async fn origin_whose_tokens_expire(content: Vec<u8>) -> (BadOrigin, Arc<AtomicUsize>) {
    let present = Arc::new(AtomicUsize::new(0));
    let token = present.clone();
    let origin = BadOrigin::start(move |asked| {
        let now = token.load(Ordering::Relaxed);
        if asked.path.starts_with("/token") {
            return whole("200 OK", &[], format!("{{\"token\": \"{now}\"}}").as_bytes());
        }
        if asked.header("authorization") != Some(&format!("Bearer {now}")) {
            let realm = format!("http://{}/token", asked.header("host").unwrap());
            let challenge = format!("WWW-Authenticate: Bearer realm=\"{realm}\"");
            return vec![Act::Send(head("401 Unauthorized", &[challenge, "Content-Length: 0".to_owned()]))];
        }
        if asked.method == Method::GET && asked.range_start().is_none() && now == 0 {
            token.store(1, Ordering::Relaxed);
            return [cut_at(asked, &content, 2 * LEAF), vec![Act::Reset]].concat();
        }
        good(asked, &content)
    })
    .await;
    (origin, present)
}

#[tokio::test]
async fn a_token_of_this_node_that_expires_within_a_blob_is_renewed() {
    let content = bytes(LEN);
    let (origin, _) = origin_whose_tokens_expire(content.clone()).await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{}?ns={}", Digest::sha256(&content), origin.name);
    assert!(world.get(&path).await.content() == content);
    world.stop().await;
}

#[tokio::test]
async fn a_token_of_the_caller_that_expires_within_a_blob_breaks_the_connection() {
    let content = bytes(LEN);
    let (origin, _) = origin_whose_tokens_expire(content.clone()).await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{}?ns={}", Digest::sha256(&content), origin.name);
    let answer =
        timeout(PROMPT, world.ask(Method::GET, &path, &[("authorization", "Bearer 0")])).await.unwrap();
    assert!(answer.broken || answer.status == 401, "{}", answer.status);
    assert!(content.starts_with(&answer.body) && answer.body.len() < LEN);
    // The runtime gets itself a new token and goes on.
    let rest = format!("bytes={}-", answer.body.len());
    let headers = [("authorization", "Bearer 1"), ("range", rest.as_str())];
    let answer_two = world.ask(Method::GET, &path, &headers).await.content();
    assert!([answer.body, answer_two].concat() == content);
    world.stop().await;
}

/// The file in the store that has this many bytes.
fn stored_file(dir: &Path, len: usize) -> Option<PathBuf> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        let metadata = path.metadata().unwrap();
        if metadata.is_dir() {
            stored_file(&path, len)
        } else {
            (metadata.len() == len as u64).then_some(path)
        }
    })
}

#[tokio::test]
async fn bytes_that_change_on_disk_are_never_sent() {
    let content = bytes(LEN);
    let origin = BadOrigin::start({
        let content = content.clone();
        move |asked| good(asked, &content)
    })
    .await;
    let world = impatient().await;
    let path = format!("/v2/a/blobs/{}?ns={}", Digest::sha256(&content), origin.name);
    // Once from the origin, once from the file, which is then known to be right.
    for _ in 0..2 {
        assert!(world.get(&path).await.content() == content);
    }
    let file = stored_file(world.dir.path(), LEN).expect("a file of this length");
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.write_all_at(&[!content[LEAF + 5]], LEAF as u64 + 5).unwrap();
    let answer = world.get(&path).await;
    assert!(answer.broken || answer.status >= 400 || answer.body == content);
    assert!(answer.status != 200 || content.starts_with(&answer.body));
    // The damaged leaf is dropped and fetched again.
    assert!(world.get(&path).await.content() == content);
    world.stop().await;
}
