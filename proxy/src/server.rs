//! Listens for runtimes: HTTP/1.1 and HTTP/2 without TLS.

use std::{convert::Infallible, sync::Arc, time::Duration};

use darter_peer::{Peer, origin::OriginError};
use darter_service::{Registry, listen};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config,
    metrics::Metrics,
    patience::Patience,
    proxy::Proxy,
    rules::{RuleError, Rules},
};

/// Longest time for the head of a request, and for an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
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
        let served = connection(stream, proxy.clone(), &graceful);
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

fn connection(
    stream: TcpStream,
    proxy: Arc<Proxy>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(HEAD_TIMEOUT)
        .max_concurrent_streams(STREAMS);
    let local = stream.local_addr().ok();
    let stream = Patience::new(stream, proxy.config.write_timeout);
    let service = service_fn(move |request: Request<Incoming>| {
        let proxy = proxy.clone();
        async move { Ok::<_, Infallible>(proxy.answer(request, local).await) }
    });
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    let served = graceful.watch(served);
    async move {
        if let Err(error) = served.await {
            // A client that hangs up is an error here, too.
            tracing::debug!(error, "connection of a runtime ended");
        }
    }
}
