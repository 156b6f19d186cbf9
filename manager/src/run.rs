//! Joining the parts: database, listeners, servers, shutdown.

use crate::{
    config::Config,
    db::{Db, OpenError},
    grpc, liveness,
    metrics::Metrics,
    name::ClusterName,
    rest,
    time::Time,
};
use darter_service::{
    Registry, admin, http,
    listen::{self, ListenError},
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Why the manager could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The database could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The configured clusters could not be stored.
    #[error("cannot store the configured clusters: {0}")]
    Clusters(#[source] sqlx::Error),
    /// A port could not be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A bound port has no address.
    #[error("cannot tell where a server listens: {0}")]
    Address(#[source] io::Error),
    /// The gRPC server ended by itself.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[source] tonic::transport::Error),
}

/// A manager that is ready to serve: its database is open and its ports are bound.
#[derive(Debug)]
pub struct Manager {
    config: Config,
    db: Db,
    grpc: TcpListener,
    rest: TcpListener,
    admin: TcpListener,
}

/// Runs the manager until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    Manager::start(config).await?.serve(shutdown).await
}

impl Manager {
    /// Opens the database, stores the configured clusters, and binds the ports.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        let db = Db::open(&config.database.path).await?;
        store_clusters(&db, &config).await.map_err(RunError::Clusters)?;
        Ok(Self {
            grpc: listen::bind("gRPC", config.grpc.listen).await?,
            rest: listen::bind("REST", config.rest.listen).await?,
            admin: listen::bind("metrics and health", config.admin.listen).await?,
            db,
            config,
        })
    }

    /// Where gRPC is served.
    pub fn grpc_address(&self) -> Result<SocketAddr, RunError> {
        self.grpc.local_addr().map_err(RunError::Address)
    }

    /// Where REST is served.
    pub fn rest_address(&self) -> Result<SocketAddr, RunError> {
        self.rest.local_addr().map_err(RunError::Address)
    }

    /// Where metrics and health are served.
    pub fn admin_address(&self) -> Result<SocketAddr, RunError> {
        self.admin.local_addr().map_err(RunError::Address)
    }

    /// Serves until shutdown, and closes the database.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let (grpc, rest, admin) = (self.grpc_address()?, self.rest_address()?, self.admin_address()?);
        info!(%grpc, %rest, %admin, database = %self.config.database.path.display(), "the manager serves");
        let Self { config, db, grpc, rest, admin } = self;
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ready = admin::Readiness::new([liveness::READY_PART]);
        // One server that fails takes the others with it.
        let stop = shutdown.child_token();
        let service =
            grpc::Service { db: db.clone(), keepalive: config.keepalive.clone(), metrics: metrics.clone() };
        let grpc = async {
            let served = grpc::serve(grpc, service, stop.clone()).await;
            stop.cancel();
            served
        };
        let (served, (), (), ()) = tokio::join!(
            grpc,
            http::serve(rest, rest::router(db.clone(), metrics.clone()), stop.clone()),
            admin::serve(admin, Arc::new(registry), ready.clone(), stop.clone()),
            liveness::run(db.clone(), config.keepalive, metrics, ready, stop.clone()),
        );
        db.close().await;
        info!("the manager has stopped");
        served.map_err(RunError::Grpc)
    }
}

async fn store_clusters(db: &Db, config: &Config) -> sqlx::Result<()> {
    let now = Time::now();
    db.forgive_absence(now, config.keepalive.lifetime()).await?;
    db.ensure_cluster(&ClusterName::default(), now).await?;
    for (name, values) in &config.clusters {
        if db.set_cluster(name, values, now).await? {
            info!(cluster = %name, "the dynamic configuration of a cluster is new");
        }
    }
    Ok(())
}
