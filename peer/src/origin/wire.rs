//! One request, one response: connections, their limit per origin, deadlines and the rate limit of origins.

use std::{
    error::Error,
    fmt, io,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client, Error as ClientError,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioTimer},
};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tower::Service;
use url::Url;

use super::{
    OriginConfig, OriginError,
    egress::{Egress, Refused},
    registries::Road,
};
use crate::{Class, limits::Limits};

/// A body must bring at least this many bytes per progress timeout.
const PROGRESS: usize = 16 * 1024;
/// Most bytes kept of an answer that is no content.
const SMALL_BODY: usize = 64 * 1024;
/// Number of origins whose connection limits are remembered.
const ORIGINS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Roads whose connections are kept.
const ROADS: NonZeroUsize = NonZeroUsize::new(256).unwrap();

type Connector = HttpsConnector<HttpConnector<Resolver>>;

/// The connections to all origins.
pub(super) struct Wire {
    clients: Mutex<LruCache<u64, Client<Connector, Empty<Bytes>>>>,
    egress: Egress,
    connect_timeout: Duration,
    permits: Mutex<LruCache<String, Arc<Semaphore>>>,
    connections: usize,
    progress_timeout: Duration,
    limits: Limits,
}

impl Wire {
    pub(super) fn new(config: &OriginConfig, limits: Limits) -> Self {
        Self {
            clients: Mutex::new(LruCache::new(ROADS)),
            egress: Egress::new(&config.allow),
            connect_timeout: config.connect_timeout,
            permits: Mutex::new(LruCache::new(ORIGINS)),
            connections: config.connections.max(1),
            progress_timeout: config.progress_timeout,
            limits,
        }
    }

    /// Sends a request and waits for the head of its answer until `deadline`.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        road: &Road,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Response<WireBody>, OriginError> {
        let host = host(url);
        let egress = self.egress(road);
        egress.check_literal(url).map_err(|refused| OriginError::InvalidUrl(refused.to_string()))?;
        let uri: Uri = url
            .as_str()
            .parse()
            .map_err(|_| OriginError::InvalidUrl("it is no URI of RFC 3986".to_owned()))?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;

        let timed_out = |awaited| OriginError::Timeout { host: host.clone(), awaited };
        let permit = timeout_at(deadline, self.semaphore(url).acquire_owned())
            .await
            .map_err(|_| timed_out("free connection"))?
            .map_err(|_| timed_out("free connection"))?;
        let response = timeout_at(deadline, self.client(road, egress).request(request))
            .await
            .map_err(|_| timed_out("answer"))?
            .map_err(|error| failure(&host, &error))?;
        Ok(response.map(|incoming| WireBody {
            host,
            received: 0,
            rest: Rest::Running { incoming, _permit: permit },
            timeout: self.progress_timeout,
            budget: Budget { left: self.progress_timeout, bytes: 0 },
            limits: self.limits.clone(),
        }))
    }

    /// Which addresses a road may lead to.
    pub(super) fn egress(&self, road: &Road) -> Egress {
        if road.private { self.egress.with_private() } else { self.egress.clone() }
    }

    fn client(&self, road: &Road, egress: Egress) -> Client<Connector, Empty<Bytes>> {
        let make = || {
            Client::builder(TokioExecutor::new())
                .timer(TokioTimer::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(Duration::from_secs(30))
                .build(connector(self.connect_timeout, road, egress))
        };
        self.clients.lock().get_or_insert(road.id, make).clone()
    }

    fn semaphore(&self, url: &Url) -> Arc<Semaphore> {
        let origin = url.origin().ascii_serialization();
        self.permits.lock().get_or_insert(origin, || Arc::new(Semaphore::new(self.connections))).clone()
    }
}

/// Resolves names to addresses that may be asked.
#[derive(Clone)]
struct Resolver(Egress);

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<vec::IntoIter<SocketAddr>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        self.0.resolve(name)
    }
}

/// The body of an answer as it comes from the origin.
pub struct WireBody {
    host: String,
    received: u64,
    rest: Rest,
    timeout: Duration,
    budget: Budget,
    limits: Limits,
}

/// What is still to come of a body.
enum Rest {
    Running { incoming: Incoming, _permit: OwnedSemaphorePermit },
    Buffered(Bytes),
    Ended,
}

/// How much longer the body may take for its next [`PROGRESS`] bytes. Time in which nobody asks for bytes is free.
struct Budget {
    left: Duration,
    bytes: usize,
}

impl WireBody {
    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// [`OriginError::Truncated`] if the connection broke, [`OriginError::Timeout`] if too little arrives.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        let incoming = match &mut self.rest {
            Rest::Running { incoming, .. } => incoming,
            Rest::Buffered(bytes) => {
                let bytes = std::mem::take(bytes);
                self.rest = Rest::Ended;
                return Ok((!bytes.is_empty()).then_some(bytes));
            }
            Rest::Ended => return Ok(None),
        };
        let asked = Instant::now();
        let data = timeout(self.budget.left, next_data(incoming))
            .await
            .map_err(|_| OriginError::Timeout { host: self.host.clone(), awaited: "further bytes" })?
            .map_err(|error| OriginError::Truncated {
                host: self.host.clone(),
                received: self.received,
                reason: chain(&error),
            })?;
        let Some(data) = data else {
            self.rest = Rest::Ended;
            return Ok(None);
        };
        self.budget.spend(asked.elapsed(), data.len(), self.timeout);
        self.received += data.len() as u64;
        self.limits.origin.take(Class::Stream, data.len() as u64).await;
        Ok(Some(data))
    }

    /// Who answers.
    pub(super) fn host(&self) -> &str {
        &self.host
    }

    /// Whether the host of this URL answers.
    pub(super) fn is_from(&self, url: &Url) -> bool {
        self.host == host(url)
    }

    /// The beginning of the body, 64 KiB at most, whatever comes after it; a broken body ends where it broke.
    pub(super) async fn beginning(mut self) -> Bytes {
        let mut beginning = BytesMut::new();
        while let Ok(Some(bytes)) = self.next().await {
            let room = SMALL_BODY - beginning.len();
            beginning.extend_from_slice(bytes.get(..room).unwrap_or(&bytes));
            if beginning.len() == SMALL_BODY {
                break;
            }
        }
        beginning.freeze()
    }

    /// The same body, read ahead if it is small enough, so that it holds no connection while something else is asked.
    pub(super) async fn buffered(self) -> Self {
        let (host, timeout, limits) = (self.host.clone(), self.timeout, self.limits.clone());
        let bytes = self.beginning().await;
        let budget = Budget { left: timeout, bytes: 0 };
        Self { host, received: 0, rest: Rest::Buffered(bytes), timeout, budget, limits }
    }
}

impl fmt::Debug for WireBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireBody")
            .field("host", &self.host)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

impl Budget {
    fn spend(&mut self, time: Duration, bytes: usize, timeout: Duration) {
        self.bytes += bytes;
        self.left = self.left.saturating_sub(time);
        if self.bytes >= PROGRESS {
            *self = Self { left: timeout, bytes: 0 };
        }
    }
}

/// The next data frame; trailers are passed over.
async fn next_data(incoming: &mut Incoming) -> Result<Option<Bytes>, hyper::Error> {
    while let Some(frame) = incoming.frame().await {
        match frame?.into_data() {
            Ok(data) if !data.is_empty() => return Ok(Some(data)),
            _ => {}
        }
    }
    Ok(None)
}

fn connector(connect_timeout: Duration, road: &Road, egress: Egress) -> Connector {
    let mut http = HttpConnector::new_with_resolver(Resolver(egress));
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(connect_timeout));
    http.set_keepalive(Some(Duration::from_secs(30)));
    HttpsConnectorBuilder::new()
        .with_tls_config((*road.tls).clone())
        .https_or_http()
        .enable_http1()
        .wrap_connector(http)
}

/// Host and port of a URL, the only part of it that errors and logs show.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Why there is no answer: an address that may not be asked, TLS, or the connection.
fn failure(host: &str, error: &ClientError) -> OriginError {
    if let Some(refused) = cause::<Refused>(error) {
        return OriginError::InvalidUrl(format!("{host}: {refused}"));
    }
    let (host, reason) = (host.to_owned(), chain(error));
    if cause::<rustls::Error>(error).is_some() {
        OriginError::Tls { host, reason }
    } else {
        OriginError::Unreachable { host, reason }
    }
}

/// The cause of this type, if an error has one.
fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    // An io::Error hides the error that it was made of from `source`.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    let inner = inner.and_then(|inner| cause::<E>(inner));
    error.downcast_ref::<E>().or(inner).or_else(|| error.source().and_then(cause::<E>))
}

/// An error with its causes, none of which holds more than addresses.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
