//! An origin that does what a test tells it to, however bad.

use std::{convert::Infallible, io, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, future, stream};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Duration, sleep},
};

/// A request as the origin saw it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: HeaderMap,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The start of the range asked for, 0 without one.
    pub(super) fn range_start(&self) -> usize {
        let range = self.header("range").and_then(|range| range.strip_prefix("bytes="));
        range.map_or(0, |range| range.split('-').next().unwrap().parse().unwrap())
    }
}

/// What a body does next.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Send(Bytes),
    Wait(Duration),
    Break,
    Hang,
}

/// An answer: status, headers, body.
#[derive(Debug, Clone)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<Step>,
    hang: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, headers: vec![], body: vec![], hang: false }
    }

    /// No answer at all.
    pub(super) fn never() -> Self {
        Self { hang: true, ..Self::new(200) }
    }

    pub(super) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(super) fn step(mut self, step: Step) -> Self {
        self.body.push(step);
        self
    }

    pub(super) fn bytes(self, bytes: &[u8]) -> Self {
        self.step(Step::Send(Bytes::copy_from_slice(bytes)))
    }

    /// A whole content: 200 with its length and an entity tag.
    pub(super) fn content(content: &[u8], tag: &str) -> Self {
        Self::new(200).header("content-length", content.len()).header("etag", tag).bytes(content)
    }

    /// The rest of a content from `start`: 206 with an entity tag.
    pub(super) fn rest(content: &[u8], start: usize, tag: &str) -> Self {
        let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
        let rest = &content[start..];
        Self::new(206)
            .header("content-length", rest.len())
            .header("content-range", range)
            .header("etag", tag)
            .bytes(rest)
    }

    /// The same answer, but the connection breaks after `len` bytes of the body.
    pub(super) fn broken_after(mut self, len: usize) -> Self {
        self.body = match self.body.remove(0) {
            Step::Send(bytes) => vec![Step::Send(bytes.slice(..len.min(bytes.len()))), Step::Break],
            other => vec![other],
        };
        self
    }
}

/// A running origin; it stops when dropped.
pub(super) struct BadOrigin {
    pub(super) base: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl BadOrigin {
    /// Starts an origin on a free port. `script` gets the request and how many there were before.
    pub(super) async fn start(script: impl Fn(&Seen, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(vec![]));
        let task = tokio::spawn(accept(listener, Arc::new(script), seen.clone()));
        Self { base, seen, task }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

impl Drop for BadOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Script = Arc<dyn Fn(&Seen, usize) -> Reply + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn accept(listener: TcpListener, script: Script, seen: Arc<Mutex<Vec<Seen>>>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (script, seen) = (script.clone(), seen.clone());
        let service = service_fn(move |request| answer(script.clone(), seen.clone(), request));
        connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn answer(
    script: Script,
    all: Arc<Mutex<Vec<Seen>>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, _) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().to_string();
    let seen = Seen { method: parts.method, path, headers: parts.headers };
    let before = {
        let mut all = all.lock();
        all.push(seen.clone());
        all.len() - 1
    };
    let reply = script(&seen, before);
    if reply.hang {
        future::pending::<()>().await;
    }
    let steps = stream::iter(reply.body).then(|step| async {
        match step {
            Step::Send(bytes) => Ok(bytes),
            Step::Wait(time) => {
                sleep(time).await;
                Ok(Bytes::new())
            }
            // Lets hyper flush what came before.
            Step::Break => {
                sleep(Duration::from_millis(20)).await;
                Err(io::Error::other("broken on purpose"))
            }
            Step::Hang => future::pending().await,
        }
    });
    let body = StreamBody::new(steps.map(|bytes| bytes.map(Frame::data))).boxed_unsync();
    let builder =
        reply.headers.iter().fold(Response::builder().status(reply.status), |b, (k, v)| b.header(k, v));
    Ok(builder.body(body).unwrap())
}
