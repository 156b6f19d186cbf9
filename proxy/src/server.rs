//! Listens for runtimes: HTTP/1.1 and HTTP/2, without TLS and, where the proxy has a certificate, with it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use darter_peer::{Peer, control::FileRules, origin::OriginError};
use darter_service::{Registry, listen};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulConnection, GracefulShutdown, Watcher},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    AuthorityError, Config,
    metrics::Metrics,
    outlet::{Connection, Outlet},
    patience::Patience,
    proxy::{Place, Proxy},
    rules::{RuleError, Rules},
};

/// Longest time for the head of a request, and for an idle connection.
pub(crate) const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Requests at a time on one HTTP/2 connection.
const STREAMS: u32 = 128;

/// Why the proxy does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configured registry for requests that name none is no registry.
    #[error("proxy.default_registry {name:?}: {source}")]
    DefaultRegistry {
        /// What was configured.
        name: String,
        /// What is wrong.
        source: OriginError,
    },
    /// A rule cannot be used.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// The certificate authority for intercepted registries cannot be used.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Only one of the two is there.
    #[error("proxy.certificate_file and proxy.key_file belong together")]
    HalfCertificate,
    /// The proxy's own certificate cannot be used.
    #[error("the proxy's certificate: {0}")]
    Certificate(std::io::Error),
}

/// A proxy that can take other rules while it serves.
#[derive(Clone)]
pub struct Server {
    proxy: Arc<Proxy>,
}

impl Server {
    /// Checks the configuration.
    ///
    /// # Errors
    /// The configuration makes no sense.
    pub fn new(config: Config, peer: Peer, metrics: &mut Registry) -> Result<Self, ServeError> {
        peer.registries().base(&config.default_registry).map_err(|source| ServeError::DefaultRegistry {
            name: config.default_registry.clone(),
            source,
        })?;
        Ok(Self { proxy: Arc::new(Proxy::new(config, peer, Metrics::register(metrics))?) })
    }

    /// Takes the rules of another configuration for requests that come from now on.
    ///
    /// # Errors
    /// A rule cannot be used; then the old ones stay.
    pub fn reload(&self, config: &Config) -> Result<(), RuleError> {
        self.proxy.rules.store(Arc::new(Rules::new(&config.rules)?));
        Ok(())
    }

    /// The rules as they apply to files that do not come through the proxy.
    pub fn file_rules(&self) -> FileRules {
        let proxy = Arc::downgrade(&self.proxy);
        Box::new(move |url| proxy.upgrade().map_or(Ok(Vec::new()), |proxy| proxy.file_rule(url)))
    }

    /// Serves runtimes on `listener` until shutdown; then running answers get [`Config::drain_timeout`] to end.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        accept(listener, self.proxy, shutdown).await;
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Serves runtimes on `listener` until shutdown; then running answers get [`Config::drain_timeout`] to end.
///
/// # Errors
/// The configuration makes no sense.
pub fn serve(
    listener: TcpListener,
    config: Config,
    peer: Peer,
    metrics: &mut Registry,
    shutdown: CancellationToken,
) -> impl Future<Output = Result<(), ServeError>> + Send + use<> {
    let server = Server::new(config, peer, metrics);
    async move {
        server?.serve(listener, shutdown).await;
        Ok(())
    }
}

async fn accept(listener: TcpListener, proxy: Arc<Proxy>, shutdown: CancellationToken) {
    let (connections, graceful, abort) =
        (TaskTracker::new(), GracefulShutdown::new(), CancellationToken::new());
    let slots = Arc::new(Semaphore::new(proxy.config.connections.max(1)));
    while let Some(Ok(slot)) = shutdown.run_until_cancelled(slots.clone().acquire_owned()).await {
        let Some(stream) = shutdown.run_until_cancelled(listen::accept(&listener)).await else { break };
        let served = connection(stream, proxy.clone(), graceful.watcher());
        let abort = abort.clone();
        connections.spawn(async move {
            abort.run_until_cancelled(served).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if timeout(proxy.config.drain_timeout, graceful.shutdown()).await.is_err() {
        tracing::warn!("running answers are cut off, because they did not end in time");
    }
    abort.cancel();
    connections.wait().await;
    proxy.stop.cancel();
    proxy.tasks.close();
    proxy.tasks.wait().await;
}

/// Serves one connection; with a certificate it may begin with TLS.
async fn connection(stream: TcpStream, proxy: Arc<Proxy>, watcher: Watcher) {
    let place = Place::Front(stream.local_addr().ok());
    let tls = match &proxy.tls {
        Some(tls) if begins_with_tls(&stream).await => Some(tls.clone()),
        _ => None,
    };
    let outlet = Outlet::default();
    let stream = Connection::new(stream, outlet.clone());
    let stream = Patience::new(stream, proxy.config.write_timeout);
    let ended = match tls {
        None => watcher.watch(serving(TokioIo::new(stream), proxy, place, Some(outlet))).await,
        Some(tls) => match timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
            // What is encrypted has to be read, so nothing is sent straight from a file.
            Ok(Ok(stream)) => watcher.watch(serving(TokioIo::new(stream), proxy, place, None)).await,
            Ok(Err(error)) => Err(error.into()),
            Err(elapsed) => Err(elapsed.into()),
        },
    };
    log_end(ended);
}

/// Serves a connection that is not one of the listener's.
pub(crate) async fn exchange<I>(io: I, proxy: Arc<Proxy>, place: Place)
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    log_end(serving(io, proxy, place, None).await);
}

fn serving<I>(
    io: I,
    proxy: Arc<Proxy>,
    place: Place,
    outlet: Option<Outlet>,
) -> impl GracefulConnection<Error = Box<dyn std::error::Error + Send + Sync>> + Send
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_concurrent_streams(STREAMS);
    let service = service_fn(move |mut request: Request<Incoming>| {
        let (proxy, place) = (proxy.clone(), place.clone());
        if let Some(outlet) = &outlet {
            request.extensions_mut().insert(outlet.clone());
        }
        async move { Ok::<_, Infallible>(proxy.answer(request, &place).await) }
    });
    builder.serve_connection_with_upgrades(io, service).into_owned()
}

/// Whether a connection begins with the type of a TLS handshake record, 22, which no method begins with.
async fn begins_with_tls(stream: &TcpStream) -> bool {
    let mut first = [0];
    matches!(timeout(HEAD_TIMEOUT, stream.peek(&mut first)).await, Ok(Ok(1))) && first == [22]
}

fn log_end(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        // A client that hangs up is an error here, too.
        tracing::debug!(error, "connection of a runtime ended");
    }
}
