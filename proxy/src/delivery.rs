//! Sends a content or a part of it, as the conditions and the range in the request ask for.

use std::{ops::Range, pin::Pin, sync::Arc};

use bytes::Bytes;
use darter_peer::{BySource, Content, StoredFile, TaskError};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode, Version,
    header::{
        ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED, RANGE,
    },
    request::Parts,
};

use crate::{
    answer::{self, Body, SOURCE},
    outlet::Outlet,
    range::{Selection, select},
};

/// Bytes of a stored content that are checked and sent at a time.
const STRETCH: u64 = 1024 * 1024;

type Bits = Pin<Box<dyn Stream<Item = Result<Bytes, TaskError>> + Send>>;

/// What is sent of a content, but for the bytes.
pub(crate) struct Outline {
    pub(crate) len: u64,
    /// Headers that go with the content whatever part of it is sent; a strong `ETag` among them.
    pub(crate) headers: HeaderMap,
    /// Where it comes from.
    pub(crate) source: &'static str,
}

/// What a request gets.
enum Given {
    Selection(Selection),
    /// It has the content already.
    NotModified,
}

/// Answers with a content while it arrives. The first bytes are awaited, so that a failure before them is still a
/// status.
pub(crate) async fn stream(
    parts: &Parts,
    content: &Content,
    mut outline: Outline,
) -> Result<Response<Body>, TaskError> {
    let given = given(&parts.headers, &outline);
    let stored = stored(parts, content).await?;
    let mut bits: Bits = match &given {
        Given::Selection(Selection::Whole) if outline.len == 0 => {
            content.finished().await?;
            Box::pin(stream::empty())
        }
        Given::Selection(Selection::Whole) => match stored {
            Some(stored) => Box::pin(stored.stretches(0..outline.len)),
            None => Box::pin(content.read(0..outline.len)),
        },
        Given::Selection(Selection::Part(range)) => match stored {
            Some(stored) => Box::pin(stored.stretches(range.clone())),
            None => Box::pin(checked(content, range.clone())),
        },
        Given::Selection(Selection::Unsatisfiable) | Given::NotModified => Box::pin(stream::empty()),
    };
    if parts.method == Method::GET {
        let first = bits.try_next().await?;
        bits = Box::pin(stream::iter(first.map(Ok)).chain(bits));
        outline.source = main_source(content.by_source());
    }
    let mut response = respond(&outline, &parts.method, given, || answer::streamed(bits));
    response.extensions_mut().insert(content.clone());
    Ok(response)
}

/// A content that is here completely, for a connection that can send it from its file.
struct Stored {
    /// All of it; nobody need read them.
    whole: Bytes,
    file: Arc<StoredFile>,
}

async fn stored(parts: &Parts, content: &Content) -> Result<Option<Stored>, TaskError> {
    // Over HTTP/2 every byte is copied into frames anyway.
    let outlet = parts.extensions.get::<Outlet>().filter(|_| parts.version <= Version::HTTP_11);
    let Some(outlet) = outlet.filter(|_| parts.method == Method::GET) else { return Ok(None) };
    let Some(file) = content.stored_file().await?.filter(|file| !file.is_empty()) else { return Ok(None) };
    let file = Arc::new(file);
    let whole = outlet.offer(file.clone()).map_err(|error| TaskError::Local(error.to_string()))?;
    Ok(Some(Stored { whole, file }))
}

impl Stored {
    /// Stretches of the content, each checked before it is given.
    fn stretches(self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, TaskError>> + Send + use<> {
        stream::try_unfold((self, range), |(stored, range): (Self, Range<u64>)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let stretch = range.start..range.end.min((range.start / STRETCH + 1) * STRETCH);
            stored.file.check(stretch.clone()).await?;
            // Within the content, whose length the mapping has.
            let bytes = stored.whole.slice(index(stretch.start)..index(stretch.end));
            Ok(Some((bytes, (stored, stretch.end..range.end))))
        })
    }
}

/// Streams a part of a content; its last bytes are kept back until the whole was checked, because what comes straight
/// from an origin can be known to be wrong only then.
fn checked(
    content: &Content,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, TaskError>> + Send + use<> {
    let bits: Bits = Box::pin(content.read(range));
    let begin = (bits, None, content.clone());
    stream::try_unfold(begin, |(mut bits, mut held, content): (Bits, Option<Bytes>, Content)| async move {
        loop {
            match (bits.try_next().await?, held) {
                (Some(next), Some(before)) => return Ok(Some((before, (bits, Some(next), content)))),
                (Some(next), None) => held = Some(next),
                (None, Some(last)) => {
                    content.finished().await?;
                    return Ok(Some((last, (bits, None, content))));
                }
                (None, None) => return Ok(None),
            }
        }
    })
}

/// Answers to a `HEAD`.
pub(crate) fn head(parts: &Parts, outline: &Outline) -> Response<Body> {
    respond(outline, &Method::HEAD, given(&parts.headers, outline), answer::empty)
}

/// Answers with a small content that is here.
pub(crate) fn whole(parts: &Parts, bytes: Bytes, outline: &Outline) -> Response<Body> {
    let given = given(&parts.headers, outline);
    let part = match &given {
        // Both ends lie within the bytes.
        Given::Selection(Selection::Part(range)) => bytes.slice(index(range.start)..index(range.end)),
        _ => bytes,
    };
    respond(outline, &parts.method, given, || answer::full(part))
}

fn given(headers: &HeaderMap, outline: &Outline) -> Given {
    let tag = outline.headers.get(ETAG);
    if headers.get_all(IF_NONE_MATCH).iter().any(|tags| names(tags, tag)) {
        return Given::NotModified;
    }
    // `If-Range` with anything but this content's tag or time asks for all of it.
    let is_this =
        |value: &HeaderValue| Some(value) == tag || Some(value) == outline.headers.get(LAST_MODIFIED);
    let range = headers.get(RANGE).filter(|_| headers.get(IF_RANGE).is_none_or(is_this));
    Given::Selection(select(range.and_then(|range| range.to_str().ok()), outline.len))
}

/// Whether a list of entity tags has this one, or `*` (RFC 9110, section 13.1.2, weak comparison).
fn names(list: &HeaderValue, tag: Option<&HeaderValue>) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let tag = tag.and_then(|tag| tag.to_str().ok()).map(opaque);
    let list = list.to_str().unwrap_or_default();
    list.trim() == "*" || list.split(',').any(|one| Some(opaque(one)) == tag)
}

/// The answer with all its headers.
fn respond(outline: &Outline, method: &Method, given: Given, body: impl FnOnce() -> Body) -> Response<Body> {
    let len = outline.len;
    let (status, sent, content_range) = match given {
        Given::Selection(Selection::Whole) => (StatusCode::OK, Some(len), None),
        Given::Selection(Selection::Part(range)) => {
            let header = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, Some(range.end - range.start), Some(header))
        }
        Given::Selection(Selection::Unsatisfiable) => {
            (StatusCode::RANGE_NOT_SATISFIABLE, Some(0), Some(format!("bytes */{len}")))
        }
        Given::NotModified => (StatusCode::NOT_MODIFIED, None, None),
    };
    let with_body = method == Method::GET && status.is_success();
    let mut response = Response::new(if with_body { body() } else { answer::empty() });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    *headers = outline.headers.clone();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(SOURCE, HeaderValue::from_static(outline.source));
    headers.extend(sent.map(|sent| (CONTENT_LENGTH, sent.into())));
    headers.extend(content_range.and_then(|range| Some((CONTENT_RANGE, HeaderValue::try_from(range).ok()?))));
    response
}

/// Where most of the bytes came from.
pub(crate) fn main_source(from: BySource) -> &'static str {
    let sources = [(from.local, "local"), (from.peer, "peer"), (from.seed, "seed"), (from.origin, "origin")];
    sources.into_iter().max_by_key(|(bytes, _)| *bytes).map_or("local", |(_, name)| name)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
