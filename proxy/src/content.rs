//! Serves what a digest names: blobs streamed while they arrive, manifests once they are checked.

use std::pin::Pin;

use bytes::{Bytes, BytesMut};
use darter_peer::{
    BySource, Class, Content, TaskError, TaskId, Want,
    origin::{OriginError, Source},
};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, future, stream};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, RANGE},
    request::Parts,
};
use tokio::time::timeout;

use crate::{
    answer::{self, API_VERSION, Body, CONTENT_DIGEST, Failure, SOURCE},
    manifest::Manifest,
    proxy::{Proxy, source},
    range::{Selection, select},
    route::{Kind, Named},
};

/// Longest manifest that is passed on, in bytes. Registries take no longer ones (distribution specification,
/// "Pushing Manifests": at least 4 MiB must be taken).
const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

type Bits = Pin<Box<dyn Stream<Item = Result<Bytes, TaskError>> + Send>>;

/// What is sent of a content, but for the bytes.
struct Outline<'a> {
    named: &'a Named,
    len: u64,
    media_type: HeaderValue,
    source: &'static str,
}

impl Proxy {
    /// Answers a request for a content, after the origin let this caller read it.
    pub(crate) async fn content(&self, parts: &Parts, named: &Named) -> Result<Response<Body>, Failure> {
        let id = TaskId::of_digest(&named.digest);
        let here = self.peer.store().get(&id).is_some_and(|entry| entry.is_verified());
        if parts.method == Method::HEAD && !here {
            return self.head_at_origin(parts, named).await;
        }
        let source = source(self.upstream(&named.registry, &named.path(), named.kind)?, parts, named.kind);
        self.check(parts, named, &source).await?;
        let failure = |error| Failure::of_task(&error, named.kind);
        let want = Want { id, source: Some(source), class: Class::Stream };
        let (content, len) = self.open(want).await.map_err(failure)?;
        match named.kind {
            Kind::Blob => blob(parts, named, &content, len).await.map_err(failure),
            Kind::Manifest if len > MAX_MANIFEST => Err(Failure::too_large(MAX_MANIFEST)),
            Kind::Manifest => {
                let bytes = whole(&content, len).await.map_err(failure)?;
                Ok(self.manifest(parts, named, bytes, content.by_source()))
            }
        }
    }

    /// Lets the origin answer a HEAD, instead of fetching the whole content for it.
    async fn head_at_origin(&self, parts: &Parts, named: &Named) -> Result<Response<Body>, Failure> {
        let mut response = self.pass(parts, &named.registry, &named.path()).await?;
        if response.status().is_success() {
            let caller = self.caller(parts, &named.registry, &named.repository);
            self.access.learn(caller, [named.digest.clone()]);
            // Where a registry redirects to a blob store, that knows nothing of the registry's headers.
            response.headers_mut().insert(CONTENT_DIGEST, text(&named.digest.to_string()));
        }
        Ok(response)
    }

    async fn check(&self, parts: &Parts, named: &Named, source: &Source) -> Result<(), Failure> {
        let ask = async {
            let asked = timeout(self.config.check_timeout, self.peer.origin().head(source)).await;
            let late = || OriginError::Timeout {
                host: named.registry.clone(),
                awaited: "permission for the caller",
            };
            asked.unwrap_or_else(|_| Err(late()))
        };
        let caller = self.caller(parts, &named.registry, &named.repository);
        let checked = self.access.check(caller, &named.digest, ask).await;
        checked.map_err(|error| Failure::of_origin(&error, named.kind))
    }

    /// Opens a content that the caller may read, and waits for its length.
    async fn open(&self, want: Want) -> Result<(Content, u64), TaskError> {
        let open = async |want| {
            let content = self.peer.open(want).await?;
            let len = content.geometry().await?.len();
            Ok((content, len))
        };
        match open(want.clone()).await {
            // The task may have been running for somebody with lesser credentials.
            Err(TaskError::Origin { status: 401 | 403 | 404, .. }) => open(want).await,
            opened => opened,
        }
    }

    fn manifest(&self, parts: &Parts, named: &Named, bytes: Bytes, from: BySource) -> Response<Body> {
        let manifest = Manifest::parse(&bytes);
        let caller = self.caller(parts, &named.registry, &named.repository);
        self.access.learn_members(caller, manifest.children());
        let len = bytes.len() as u64;
        let outline = Outline { named, len, media_type: manifest.media_type(), source: main_source(from) };
        let selection = selection(&parts.headers, &outline);
        let part = match &selection {
            // Both ends lie within the bytes.
            Selection::Part(range) => bytes.slice(index(range.start)..index(range.end)),
            Selection::Whole | Selection::Unsatisfiable => bytes,
        };
        respond(&outline, &parts.method, selection, || answer::full(part))
    }
}

/// Answers with a blob. The first bytes are awaited, so that a failure before them is still a status.
async fn blob(
    parts: &Parts,
    named: &Named,
    content: &Content,
    len: u64,
) -> Result<Response<Body>, TaskError> {
    let media_type = HeaderValue::from_static("application/octet-stream");
    let mut outline = Outline { named, len, media_type, source: "local" };
    let selection = selection(&parts.headers, &outline);
    let mut bits: Bits = match &selection {
        Selection::Whole if len == 0 => {
            content.finished().await?;
            Box::pin(stream::empty())
        }
        Selection::Whole => Box::pin(content.read(0..len)),
        Selection::Part(range) => Box::pin(content.read(range.clone())),
        Selection::Unsatisfiable => Box::pin(stream::empty()),
    };
    if parts.method == Method::GET {
        let first = bits.try_next().await?;
        bits = Box::pin(stream::iter(first.map(Ok)).chain(bits));
        outline.source = main_source(content.by_source());
    }
    Ok(respond(&outline, &parts.method, selection, || answer::streamed(bits)))
}

/// All bytes of a small content, checked.
async fn whole(content: &Content, len: u64) -> Result<Bytes, TaskError> {
    let bytes = content.read(0..len).try_fold(BytesMut::new(), |mut whole, bytes| {
        whole.extend_from_slice(&bytes);
        future::ok(whole)
    });
    let bytes = bytes.await?.freeze();
    content.finished().await?;
    Ok(bytes)
}

/// What part of the content the request gets. `If-Range` with anything but this content's tag asks for all of it.
fn selection(headers: &HeaderMap, outline: &Outline<'_>) -> Selection {
    let same = headers.get(IF_RANGE).is_none_or(|tag| tag.as_bytes() == tag_of(outline.named).as_bytes());
    let range = headers.get(RANGE).filter(|_| same).and_then(|range| range.to_str().ok());
    select(range, outline.len)
}

/// The answer with all headers that a registry sends.
fn respond(
    outline: &Outline<'_>,
    method: &Method,
    selection: Selection,
    body: impl FnOnce() -> Body,
) -> Response<Body> {
    let Outline { named, len, .. } = outline;
    let (status, sent, content_range) = match selection {
        Selection::Whole => (StatusCode::OK, *len, None),
        Selection::Part(range) => {
            let header = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, range.end - range.start, Some(header))
        }
        Selection::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0, Some(format!("bytes */{len}"))),
    };
    let with_body = method == Method::GET && status.is_success();
    let mut response = Response::new(if with_body { body() } else { answer::empty() });
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    headers.insert(CONTENT_DIGEST, text(&named.digest.to_string()));
    headers.insert(CONTENT_LENGTH, sent.into());
    headers.insert(CONTENT_TYPE, outline.media_type.clone());
    headers.insert(ETAG, text(&tag_of(named)));
    headers.insert(SOURCE, HeaderValue::from_static(outline.source));
    headers.extend(content_range.map(|range| (CONTENT_RANGE, text(&range))));
    response
}

/// The entity tag of a content: its digest.
fn tag_of(named: &Named) -> String {
    format!("\"{}\"", named.digest)
}

/// A header made of digits and plain letters.
fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).unwrap_or(HeaderValue::from_static(""))
}

/// Where most of the bytes came from.
fn main_source(from: BySource) -> &'static str {
    let sources = [(from.local, "local"), (from.peer, "peer"), (from.seed, "seed"), (from.origin, "origin")];
    sources.into_iter().max_by_key(|(bytes, _)| *bytes).map_or("local", |(_, name)| name)
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
