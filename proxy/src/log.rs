//! One line in the log, and the counters, for each request: written when its answer has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, request::Parts};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::{
    answer::{Body, BodyError, SOURCE},
    metrics::{Metrics, RequestLabels, SourceLabels},
    route::{Kind, Route},
};

/// A request and what became of it. Holds nothing secret: no header, and no query but the registry in it.
pub(crate) struct Line {
    method: String,
    route: &'static str,
    registry: String,
    path: String,
    started: Instant,
    metrics: Metrics,
}

/// An answer's body that counts what is sent.
pub(crate) struct Logged {
    body: Body,
    line: Line,
    status: u16,
    source: &'static str,
    bytes: u64,
    end: End,
}

/// How an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Not yet; if it stays so, the client went away.
    Open,
    Complete,
    Broken,
}

impl Line {
    pub(crate) fn new(parts: &Parts, route: Option<&Route>, metrics: Metrics) -> Self {
        let (name, registry) = match route {
            Some(Route::Ping) => ("ping", ""),
            Some(Route::Content(named)) if named.kind == Kind::Blob => ("blob", named.registry.as_str()),
            Some(Route::Content(named)) => ("manifest", named.registry.as_str()),
            Some(Route::Forward(forward)) if forward.tag_of.is_some() => ("tag", forward.registry.as_str()),
            Some(Route::Forward(forward)) => ("other", forward.registry.as_str()),
            None => ("refused", ""),
        };
        let short = |text: &str| text.chars().take(512).collect();
        Self {
            method: short(parts.method.as_str()),
            route: name,
            registry: short(registry),
            path: short(parts.uri.path()),
            started: Instant::now(),
            metrics,
        }
    }

    /// Follows an answer to its end.
    pub(crate) fn attach(self, response: Response<Body>) -> Response<Logged> {
        let (parts, body) = response.into_parts();
        let source = match parts.headers.get(SOURCE).map(|source| source.as_bytes()) {
            Some(b"local") => "local",
            Some(b"peer") => "peer",
            Some(b"seed") => "seed",
            Some(b"origin") => "origin",
            _ => "none",
        };
        let status = parts.status.as_u16();
        let labels = RequestLabels { route: self.route, status, source };
        self.metrics.requests.get_or_create(&labels).inc();
        let end = if body.is_end_stream() { End::Complete } else { End::Open };
        Response::from_parts(parts, Logged { body, line: self, status, source, bytes: 0, end })
    }
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                let sent = frame.data_ref().map_or(0, |data| data.len() as u64);
                self.bytes += sent;
                self.line.metrics.bytes.get_or_create(&SourceLabels { source: self.source }).inc_by(sent);
                if self.body.is_end_stream() {
                    self.end = End::Complete;
                }
            }
            Some(Err(error)) => {
                self.end = End::Broken;
                self.line.metrics.broken.inc();
                tracing::warn!(registry = self.line.registry, path = self.line.path, %error, "answer broken off");
            }
            None => self.end = End::Complete,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let Line { method, route, registry, path, started, .. } = &self.line;
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Self { status, source, bytes, end, .. } = self;
        tracing::info!(method, route, registry, path, status, source, bytes, millis, ?end, "answered");
    }
}
