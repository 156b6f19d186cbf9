//! `darter peer`: joins the engine with the proxy, the snapshotter and the layer maker.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context;
use darter_peer::Peer;
use darter_proxy::Server;
use darter_service::{
    Registry,
    admin::{self, Readiness},
    config, listen,
    telemetry::LogConfig,
};
use darter_snapshotter::{Snapshotter, layer::Maker};
use serde::Deserialize;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// The configuration file of a peer or seed peer.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PeerRole {
    /// The engine.
    pub(crate) peer: darter_peer::Config,
    /// The registry mirror; absent: none.
    pub(crate) proxy: Option<darter_proxy::Config>,
    /// The snapshotter; absent: none.
    pub(crate) snapshotter: Option<darter_snapshotter::Config>,
    /// Metrics and health.
    pub(crate) admin: admin::Config,
    /// Logging.
    pub(crate) log: LogConfig,
}

impl Default for PeerRole {
    fn default() -> Self {
        Self {
            peer: darter_peer::Config::default(),
            proxy: None,
            snapshotter: None,
            admin: admin::Config { listen: SocketAddr::from(([127, 0, 0, 1], 7402)) },
            log: LogConfig::default(),
        }
    }
}

/// Runs until shutdown. `path` is the configuration file, of which SIGHUP reads anew what can be changed while running.
pub(crate) async fn run(config: PeerRole, path: &Path, shutdown: CancellationToken) -> anyhow::Result<()> {
    let hangups = signal(SignalKind::hangup()).context("handling SIGHUP")?;
    let mut metrics = Registry::default();
    let ready = Readiness::new(["peer"]);
    let admin = listen::bind("metrics and health", config.admin.listen).await?;
    let proxy = match config.proxy {
        Some(proxy) => Some((listen::bind("the proxy", proxy.listen).await?, proxy)),
        None => None,
    };
    let maker = Some(Arc::new(Maker::default()) as Arc<_>);
    let peer =
        Peer::start(config.peer, maker, &mut metrics, shutdown.clone()).await.context("starting the peer")?;
    let mut services: JoinSet<anyhow::Result<()>> = JoinSet::new();
    let mut server = None;
    if let Some((listener, proxy)) = proxy {
        let address = listener.local_addr()?.to_string();
        peer.add_status(Box::new(move |status| status.proxy_address.clone_from(&address)));
        let proxy = Server::new(proxy, peer.clone(), &mut metrics)?;
        peer.set_file_rules(proxy.file_rules());
        server = Some(proxy.clone());
        let until = shutdown.clone();
        services.spawn(async move {
            proxy.serve(listener, until).await;
            Ok(())
        });
    }
    services.spawn(reload(hangups, path.to_owned(), peer.clone(), server, shutdown.clone()));
    if let Some(snapshotter) = config.snapshotter {
        let socket = snapshotter.socket.display().to_string();
        let snapshotter = Snapshotter::start(&snapshotter, peer.clone(), &mut metrics).await?;
        let (layers, until) = (snapshotter.clone(), shutdown.clone());
        peer.add_status(Box::new(move |status| {
            status.snapshotter_socket = socket.clone();
            status.layers = layers.status();
            status.images = layers.images();
        }));
        services.spawn(async move { snapshotter.run(until).await.context("the snapshotter failed") });
    }
    ready.set("peer", Ok(()));
    let metrics = Arc::new(metrics);
    let (watching, until) = (ready.clone(), shutdown.clone());
    services.spawn(async move {
        admin::serve(admin, metrics, watching, until).await;
        Ok(())
    });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), peer = ?peer, "peer is running");
    let mut failure = None;
    while let Some(ended) = services.join_next().await {
        if let Err(error) = ended.context("a service panicked").and_then(|result| result) {
            failure.get_or_insert(error);
        }
        // One service's end, early or not, is everybody's: a half-alive peer would only look healthy.
        shutdown.cancel();
        ready.set("peer", Err("stopping".to_owned()));
    }
    peer.stopped().await;
    failure.map_or(Ok(()), Err)
}

/// Takes what can be changed while running from the configuration file at every SIGHUP.
async fn reload(
    mut hangups: Signal,
    path: PathBuf,
    peer: Peer,
    proxy: Option<Server>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    while let Some(Some(())) = shutdown.run_until_cancelled(hangups.recv()).await {
        let taken = || -> anyhow::Result<()> {
            let config: PeerRole = config::load(&path)?;
            if let (Some(server), Some(config)) = (&proxy, &config.proxy) {
                server.reload(config)?;
            }
            Ok(peer.reload(&config.peer)?)
        };
        match taken() {
            Ok(()) => tracing::info!(
                "registries, credentials, rules, limits and seed were read anew; all else needs a restart"
            ),
            Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
        }
    }
    Ok(())
}
