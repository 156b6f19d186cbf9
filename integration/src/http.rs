//! A plain HTTP client, as small as the fixtures need it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::TryStreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::BoxBody};
use hyper::body::Frame;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio_util::io::ReaderStream;

/// A request that is not answered in full within this time has failed.
const DEADLINE: Duration = Duration::from_secs(120);

/// The body of a request.
pub type Body = BoxBody<Bytes, std::io::Error>;

/// An answer with its whole body.
#[derive(Debug)]
pub struct Answer {
    /// Its status; any status is a success for this client.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// No body.
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed()
}

/// These bytes as the body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// The content of a file as the body, read while it is sent.
pub async fn file(path: &Path) -> Result<Body> {
    let file = tokio::fs::File::open(path).await.with_context(|| format!("opening {}", path.display()))?;
    let frames = ReaderStream::with_capacity(file, 256 * 1024).map_ok(Frame::data);
    Ok(BodyExt::boxed(StreamBody::new(frames)))
}

/// A GET of `url`.
pub async fn get(url: &str) -> Result<Answer> {
    send(Request::get(url).body(empty())?).await
}

/// A request of any kind, on a connection of its own.
pub async fn send(request: Request<Body>) -> Result<Answer> {
    let what = format!("{} {}", request.method(), request.uri());
    let answer = tokio::time::timeout(DEADLINE, exchange(request)).await;
    answer.with_context(|| format!("{what}: no answer within {DEADLINE:?}"))?.context(what)
}

async fn exchange(request: Request<Body>) -> Result<Answer> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (parts, body) = client.request(request).await?.into_parts();
    Ok(Answer { status: parts.status, headers: parts.headers, body: body.collect().await?.to_bytes() })
}
