//! One line in the log, and the counters, for each request: written when its answer has ended.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use darter_peer::Content;
use http::{Method, Response};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;

use crate::{
    answer::{Body, BodyError, SOURCE, Verdict},
    forward_proxy,
    metrics::{DecisionLabels, Metrics, RequestLabels, SourceLabels},
    proxy::Target,
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
    verdict: Verdict,
    /// Knows where its bytes came from, if the answer is one of a task.
    content: Option<Content>,
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
    pub(crate) fn new(method: &Method, path: &str, target: Option<&Target>, metrics: Metrics) -> Self {
        let short = |text: &str| text.chars().take(512).collect::<String>();
        let (route, registry) = match target {
            Some(Target::Mirror(Route::Ping)) => ("ping", String::new()),
            Some(Target::Mirror(Route::Content(named))) if named.kind == Kind::Blob => {
                ("blob", short(&named.registry))
            }
            Some(Target::Mirror(Route::Content(named))) => ("manifest", short(&named.registry)),
            Some(Target::Mirror(Route::Forward(forward))) if forward.tag_of.is_some() => {
                ("tag", short(&forward.registry))
            }
            Some(Target::Mirror(Route::Forward(forward))) => ("other", short(&forward.registry)),
            Some(Target::Url(url)) => ("url", short(&forward_proxy::host(url))),
            Some(Target::Tunnel) => ("tunnel", short(path)),
            Some(Target::Opened { registry, .. }) => ("intercepted", short(registry)),
            None => ("refused", String::new()),
        };
        let (method, path) = (short(method.as_str()), short(path));
        Self { method, route, registry, path, started: Instant::now(), metrics }
    }

    /// Follows an answer to its end.
    pub(crate) fn attach(self, response: Response<Body>) -> Response<Logged> {
        let (mut parts, body) = response.into_parts();
        let source = match parts.headers.get(SOURCE).map(|source| source.as_bytes()) {
            Some(b"local") => "local",
            Some(b"peer") => "peer",
            Some(b"seed") => "seed",
            Some(b"origin") => "origin",
            _ => "none",
        };
        let verdict = parts.extensions.remove().unwrap_or(Verdict { p2p: false, why: "none" });
        let content = parts.extensions.remove();
        let status = parts.status.as_u16();
        let labels = RequestLabels { route: self.route, status, source };
        self.metrics.requests.get_or_create(&labels).inc();
        let labels = DecisionLabels { p2p: if verdict.p2p { "yes" } else { "no" }, why: verdict.why };
        self.metrics.decisions.get_or_create(&labels).inc();
        let end = if body.is_end_stream() { End::Complete } else { End::Open };
        Response::from_parts(
            parts,
            Logged { body, line: self, status, source, verdict, content, bytes: 0, end },
        )
    }
}

impl Logged {
    /// Counts what was sent by where it came from. Which byte of a task came from where is not known, so that the
    /// task's shares stand for those of its readers.
    fn count(&self) {
        let counted = |source, bytes| {
            if bytes > 0 {
                self.line.metrics.bytes.get_or_create(&SourceLabels { source }).inc_by(bytes);
            }
        };
        let from = self.content.as_ref().map(Content::by_source).unwrap_or_default();
        let parts =
            [("local", from.local), ("peer", from.peer), ("seed", from.seed), ("origin", from.origin)];
        let total: u128 = parts.iter().map(|(_, bytes)| u128::from(*bytes)).sum();
        if total == 0 {
            return counted(self.source, self.bytes);
        }
        for (source, bytes) in parts {
            let share = u128::from(self.bytes) * u128::from(bytes) / total;
            counted(source, u64::try_from(share).unwrap_or(u64::MAX));
        }
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
        self.count();
        let Line { method, route, registry, path, started, .. } = &self.line;
        let millis = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let Self { status, source, bytes, end, verdict: Verdict { p2p, why }, .. } = self;
        tracing::info!(
            method,
            route,
            registry,
            path,
            status,
            source,
            p2p,
            why,
            bytes,
            millis,
            ?end,
            "answered"
        );
    }
}
