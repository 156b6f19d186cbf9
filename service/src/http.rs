//! A small HTTP/1.1 server around an axum router, with every wait bounded.
//!
//! It is for the few requests of people and monitoring (admin, REST), not for content.

use crate::listen::accept;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

/// Connections served at once; more wait in the listener's backlog.
const MAX_CONNECTIONS: usize = 256;
/// How long a client may take to send the head of a request, the idle time between two requests included.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long one connection may live; a client that reads its answer slowly, or not at all, must come again.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(600);
/// How long requests that are being answered may take after shutdown.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// Serves `router` on `listener` until shutdown, and returns when the connections are closed.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    while let Some(Ok(slot)) = shutdown.run_until_cancelled(slots.clone().acquire_owned()).await {
        let Some(stream) = shutdown.run_until_cancelled(accept(&listener)).await else { break };
        let served = connection(stream, router.clone(), shutdown.clone());
        let abort = abort.clone();
        connections.spawn(async move {
            abort.run_until_cancelled(timeout(CONNECTION_DEADLINE, served)).await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    if timeout(DRAIN_DEADLINE, connections.wait()).await.is_err() {
        abort.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        debug!(%error, "an HTTP connection ended early");
    }
}
