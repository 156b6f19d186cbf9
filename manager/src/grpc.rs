//! The gRPC service for schedulers and peers.

#[cfg(test)]
mod tests;

use crate::{
    config::KeepAlive,
    db::{Db, KeepAliveError},
    instance::{Instance, Key, Kind},
    metrics::Metrics,
    name::{ClusterName, Invalid},
    time::Time,
};
use darter_proto::manager::{
    self as proto, DynamicConfig, GetConfigRequest, KeepAliveReply, KeepAliveRequest, LeaveReply,
    LeaveRequest, ListSchedulersReply, ListSchedulersRequest, ListSeedsReply, ListSeedsRequest,
    manager_server::{Manager, ManagerServer},
};
use darter_service::listen;
use std::{future::Future, time::Duration};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport};
use tracing::{debug, warn};

/// The largest request; a keepalive has about 1.5 kB at most.
const MAX_REQUEST_LEN: usize = 16 * 1024;
/// How long a request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Requests of one connection that are worked on at the same time.
const REQUESTS_PER_CONNECTION: usize = 16;
/// How often a silent connection is asked whether its other end still lives, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// How long open connections may take to end after shutdown.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// What answers the requests.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) db: Db,
    pub(crate) keepalive: KeepAlive,
    pub(crate) metrics: Metrics,
}

/// Serves until shutdown.
pub(crate) async fn serve(
    listener: TcpListener,
    service: Service,
    shutdown: CancellationToken,
) -> Result<(), transport::Error> {
    let manager = ManagerServer::new(service).max_decoding_message_size(MAX_REQUEST_LEN);
    let served = transport::Server::builder()
        .timeout(REQUEST_DEADLINE)
        .concurrency_limit_per_connection(REQUESTS_PER_CONNECTION)
        .http2_keepalive_interval(Some(PING.0))
        .http2_keepalive_timeout(Some(PING.1))
        .add_service(manager)
        .serve_with_incoming_shutdown(listen::incoming(listener), shutdown.cancelled());
    let overdue = async {
        shutdown.cancelled().await;
        sleep(DRAIN_DEADLINE).await;
    };
    tokio::select! {
        served = served => served,
        () = overdue => Ok(()),
    }
}

impl Service {
    async fn answer<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        let answer = work.await;
        let code = answer.as_ref().map_or_else(Status::code, |_| tonic::Code::Ok);
        self.metrics.count("grpc", method.into(), format!("{code:?}"));
        answer.map(Response::new)
    }

    async fn register(&self, request: KeepAliveRequest) -> Result<KeepAliveReply, Status> {
        let wire = request.instance.ok_or_else(|| Status::invalid_argument("instance is missing"))?;
        let instance = Instance::try_from(wire).map_err(invalid)?;
        match self.db.keep_alive(&instance, Time::now(), self.keepalive.lifetime()).await {
            Ok(config_version) => {
                let interval_ms = self.keepalive.interval.as_millis().try_into().unwrap_or(u32::MAX);
                Ok(KeepAliveReply { interval_ms, config_version })
            }
            Err(KeepAliveError::UnknownCluster) => Err(unknown(&instance.cluster)),
            Err(error @ KeepAliveError::Full) => Err(Status::resource_exhausted(error.to_string())),
            Err(KeepAliveError::Database(error)) => Err(failed(error)),
        }
    }

    async fn forget(&self, request: LeaveRequest) -> Result<LeaveReply, Status> {
        let key = Key::try_from(request).map_err(invalid)?;
        let was_known = self.db.leave(&key).await.map_err(failed)?;
        debug!(cluster = %key.cluster, kind = key.kind.as_str(), id = key.id, was_known, "an instance left");
        Ok(LeaveReply {})
    }

    async fn active(&self, cluster: String, kind: Kind) -> Result<Vec<proto::Instance>, Status> {
        let cluster = self.known(cluster).await?.name;
        let active = self.db.active(&cluster, kind, Time::now()).await.map_err(failed)?;
        Ok(active.into_iter().map(proto::Instance::from).collect())
    }

    async fn known(&self, cluster: String) -> Result<crate::db::Cluster, Status> {
        let name = ClusterName::from_wire(cluster).map_err(invalid)?;
        self.db.cluster(&name).await.map_err(failed)?.ok_or_else(|| unknown(&name))
    }
}

#[tonic::async_trait]
impl Manager for Service {
    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveReply>, Status> {
        self.answer("KeepAlive", self.register(request.into_inner())).await
    }

    async fn list_schedulers(
        &self,
        request: Request<ListSchedulersRequest>,
    ) -> Result<Response<ListSchedulersReply>, Status> {
        let schedulers = self.active(request.into_inner().cluster, Kind::Scheduler);
        let reply = async { Ok(ListSchedulersReply { schedulers: schedulers.await? }) };
        self.answer("ListSchedulers", reply).await
    }

    async fn list_seeds(
        &self,
        request: Request<ListSeedsRequest>,
    ) -> Result<Response<ListSeedsReply>, Status> {
        let seeds = self.active(request.into_inner().cluster, Kind::Seed);
        self.answer("ListSeeds", async { Ok(ListSeedsReply { seeds: seeds.await? }) }).await
    }

    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<DynamicConfig>, Status> {
        let cluster = self.known(request.into_inner().cluster);
        self.answer("GetConfig", async { Ok(cluster.await?.config) }).await
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.answer("Leave", self.forget(request.into_inner())).await
    }
}

fn invalid(error: Invalid) -> Status {
    Status::invalid_argument(error.to_string())
}

fn unknown(cluster: &ClusterName) -> Status {
    Status::not_found(format!(
        "the manager knows no cluster \"{cluster}\"; add [clusters.\"{cluster}\"] to its configuration"
    ))
}

/// What the database said is for the log, not for the network.
fn failed(error: sqlx::Error) -> Status {
    warn!(%error, "the database failed");
    Status::unavailable("the manager's database failed; its log says why")
}
