//! The parent's side: serves the leaves of the store to children.

mod admission;
mod announce;
mod child;
mod desk;
mod listen;
mod queue;
mod send;

use std::{sync::Arc, time::Duration};

use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use self::{admission::Admission, desk::Desks};
use super::{config::TransferConfig, metrics::TransferMetrics, sources::Sources, tickets::Keys};
use crate::{Limits, store::Store};

/// How long not to accept after that failed, as it does when there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the store to children.
#[derive(Debug)]
pub struct Server {
    store: Store,
    limits: Limits,
    config: TransferConfig,
    metrics: TransferMetrics,
    admission: Arc<Admission>,
    sources: Sources,
    keys: Keys,
    desks: Desks,
}

impl Server {
    /// One for the children that show tickets of the schedulers with these `keys`.
    pub fn new(
        store: Store,
        limits: Limits,
        config: TransferConfig,
        metrics: TransferMetrics,
        sources: Sources,
        keys: Keys,
    ) -> Self {
        let admission = Admission::new(config.upload_slots);
        Self { store, limits, config, metrics, admission, sources, keys, desks: Desks::default() }
    }

    /// Serves until `shutdown`, in turns what this host is the source of; then finishes the leaves being sent, tells the
    /// children, and returns.
    pub async fn serve(self, listener: TcpListener, shutdown: CancellationToken) {
        let server = Arc::new(self);
        let mut children = JoinSet::new();
        server.accept(&listener, &mut children, &shutdown).await;
        drop(listener);
        let drained =
            timeout(server.config.progress_timeout, async { while children.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(children = children.len(), "children did not take their last leaves in time");
            children.shutdown().await;
        }
    }

    async fn accept(
        self: &Arc<Self>,
        listener: &TcpListener,
        children: &mut JoinSet<()>,
        shutdown: &CancellationToken,
    ) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                Some(ended) = children.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "serving a child failed");
                    }
                }
                accepted = listener.accept() => match accepted {
                    Ok((_, address)) if children.len() >= self.config.connections => {
                        tracing::warn!(%address, limit = self.config.connections, "child turned away: too many connections");
                    }
                    Ok((stream, address)) => {
                        children.spawn(child::serve(self.clone(), stream, address, shutdown.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a child");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    }
}
