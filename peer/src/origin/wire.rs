//! One request, one response: connections, their limit per origin, deadlines and the rate limit of origins.

use std::{error::Error, fmt, io, num::NonZeroUsize, sync::Arc, time::Duration, vec};

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{
        Client, Error as ClientError,
        connect::{HttpConnector, dns::Name},
    },
    rt::{TokioExecutor, TokioTimer},
};
use lru::LruCache;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tower::util::ServiceFn;
use url::Url;

use super::{OriginConfig, OriginError, egress};
use crate::limits::Limits;

/// A body must bring at least this many bytes per progress timeout.
const PROGRESS: usize = 16 * 1024;
/// Most bytes kept of an answer that is no content.
const SMALL_BODY: usize = 64 * 1024;
/// Number of origins whose connection limits are remembered.
const ORIGINS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

type Resolver = ServiceFn<fn(Name) -> BoxFuture<'static, io::Result<vec::IntoIter<std::net::SocketAddr>>>>;
type Connector = HttpsConnector<HttpConnector<Resolver>>;

/// The connections to all origins.
pub(super) struct Wire {
    client: Client<Connector, Empty<Bytes>>,
    permits: Mutex<LruCache<String, Arc<Semaphore>>>,
    connections: usize,
    progress_timeout: Duration,
    limits: Limits,
}

impl Wire {
    pub(super) fn new(config: &OriginConfig, limits: Limits) -> Result<Self, rustls::Error> {
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector(config.connect_timeout)?);
        Ok(Self {
            client,
            permits: Mutex::new(LruCache::new(ORIGINS)),
            connections: config.connections.max(1),
            progress_timeout: config.progress_timeout,
            limits,
        })
    }

    /// Sends a request and waits for the head of its answer until `deadline`.
    pub(super) async fn send(
        &self,
        method: &Method,
        url: &Url,
        headers: HeaderMap,
        deadline: Instant,
    ) -> Result<Response<WireBody>, OriginError> {
        let host = host(url);
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
        let response = timeout_at(deadline, self.client.request(request))
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

    fn semaphore(&self, url: &Url) -> Arc<Semaphore> {
        let origin = url.origin().ascii_serialization();
        self.permits.lock().get_or_insert(origin, || Arc::new(Semaphore::new(self.connections))).clone()
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
        self.limits.origin.take(data.len() as u64).await;
        Ok(Some(data))
    }

    /// Who answers.
    pub(super) fn host(&self) -> &str {
        &self.host
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

fn connector(connect_timeout: Duration) -> Result<Connector, rustls::Error> {
    let resolver: Resolver = tower::service_fn(egress::resolve);
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(connect_timeout));
    http.set_keepalive(Some(Duration::from_secs(30)));
    Ok(HttpsConnectorBuilder::new()
        .with_tls_config(tls()?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http))
}

/// TLS that trusts the system's certificate authorities.
fn tls() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let builder = match builder.clone().with_native_roots() {
        Ok(builder) => builder,
        Err(error) => {
            tracing::warn!(%error, "no origin can be asked over https: install the system's CA certificates");
            builder.with_root_certificates(RootCertStore::empty())
        }
    };
    Ok(builder.with_no_client_auth())
}

/// Host and port of a URL, the only part of it that errors and logs show.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// Why there is no answer: TLS, or the connection.
fn failure(host: &str, error: &ClientError) -> OriginError {
    let (host, reason) = (host.to_owned(), chain(error));
    if is_tls(error) { OriginError::Tls { host, reason } } else { OriginError::Unreachable { host, reason } }
}

fn is_tls(error: &(dyn Error + 'static)) -> bool {
    // An io::Error hides the error that it was made of from `source`.
    let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || inner.is_some_and(|inner| is_tls(inner))
        || error.source().is_some_and(is_tls)
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
