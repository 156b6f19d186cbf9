//! Joining the parts: listeners, the actor, the servers, the manager, shutdown.

use std::{io, net::SocketAddr, sync::Arc};

use darter_proto::{manager::DynamicConfig, ticket::NoKey};
use darter_service::{
    Registry, admin,
    listen::{self, ListenError},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{
    config::Config,
    manager,
    metrics::Metrics,
    service::{Actor, Issuer, Service},
};

/// The part of the service that is ready when peers are served.
const READY_PART: &str = "sessions";

/// Why the scheduler could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A port could not be bound.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A bound port has no address.
    #[error("cannot tell where a server listens: {0}")]
    Address(#[source] io::Error),
    /// The key for tickets could not be made.
    #[error(transparent)]
    Tickets(#[from] NoKey),
    /// The gRPC server ended by itself.
    #[error("the gRPC server failed: {0}")]
    Grpc(#[source] tonic::transport::Error),
}

/// A scheduler that is ready to serve: its ports are bound.
#[derive(Debug)]
pub struct Scheduler {
    config: Config,
    grpc: TcpListener,
    admin: TcpListener,
}

/// Runs the scheduler until shutdown.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    // Boxed: it holds all servers, and is moved around by whoever runs it.
    Box::pin(Scheduler::start(config).await?.serve(shutdown)).await
}

impl Scheduler {
    /// Binds the ports.
    pub async fn start(config: Config) -> Result<Self, RunError> {
        Ok(Self {
            grpc: listen::bind("gRPC", config.listen).await?,
            admin: listen::bind("metrics and health", config.admin.listen).await?,
            config,
        })
    }

    /// Where peers are served.
    pub fn grpc_address(&self) -> Result<SocketAddr, RunError> {
        self.grpc.local_addr().map_err(RunError::Address)
    }

    /// Where metrics and health are served.
    pub fn admin_address(&self) -> Result<SocketAddr, RunError> {
        self.admin.local_addr().map_err(RunError::Address)
    }

    /// Serves until shutdown.
    pub async fn serve(self, shutdown: CancellationToken) -> Result<(), RunError> {
        let (grpc, admin) = (self.grpc_address()?, self.admin_address()?);
        let Self { config, grpc: listener, admin: admin_listener } = self;
        // Stable over restarts, and different for two schedulers on one host.
        let id = format!("{}:{}", config.name(), grpc.port());
        info!(id, %grpc, %admin, "the scheduler serves");
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let ready = admin::Readiness::new([READY_PART]);
        let (service, commands) = Service::new(config.max_sessions, Issuer::new()?);
        let actor = Actor::new(config.settings(&id, &DynamicConfig::default()), metrics);
        ready.set(READY_PART, Ok(()));
        // One server that fails takes the others with it.
        let stop = shutdown.child_token();
        let sessions = async {
            let served = service.clone().serve(listener, stop.clone()).await;
            stop.cancel();
            served
        };
        let (served, (), (), ()) = tokio::join!(
            sessions,
            actor.run(commands, stop.clone()),
            manager::follow(&config, &id, grpc, &service, stop.clone()),
            admin::serve(admin_listener, Arc::new(registry), ready, stop.clone()),
        );
        info!("the scheduler has stopped");
        served.map_err(RunError::Grpc)
    }
}
