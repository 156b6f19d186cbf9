//! The task that talks to the manager.

use super::Manager;
use crate::backoff::Backoff;
use darter_proto::{
    MAX_MESSAGE_LEN,
    manager::{
        DynamicConfig, GetConfigRequest, Instance, KeepAliveRequest, LeaveRequest, ListSchedulersRequest,
        ListSeedsRequest, manager_client::ManagerClient,
    },
};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, transport::Channel};
use tracing::{debug, info, warn};

/// How long one RPC may take.
const RPC_DEADLINE: Duration = Duration::from_secs(3);
/// How long the good-bye at shutdown may take.
const LEAVE_DEADLINE: Duration = Duration::from_secs(1);
/// The shortest and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// The keepalive intervals that are accepted from a manager; others are moved to the nearer end.
const INTERVAL: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// The connection of one instance to its manager.
#[derive(Debug)]
pub struct Link {
    client: ManagerClient<Channel>,
    instance: watch::Receiver<Instance>,
    /// As which the manager knows it.
    known: Option<Instance>,
    schedulers: watch::Sender<Arc<[Instance]>>,
    seeds: watch::Sender<Arc<[Instance]>>,
    config: watch::Sender<DynamicConfig>,
    reachable: watch::Sender<bool>,
}

pub(super) fn new(channel: Channel, instance: Instance) -> (Manager, Link) {
    let client = ManagerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_LEN);
    let instance = watch::Sender::new(instance);
    let link = Link {
        client,
        instance: instance.subscribe(),
        known: None,
        schedulers: watch::Sender::default(),
        seeds: watch::Sender::default(),
        config: watch::Sender::default(),
        reachable: watch::Sender::default(),
    };
    let manager = Manager {
        instance,
        schedulers: link.schedulers.subscribe(),
        seeds: link.seeds.subscribe(),
        config: link.config.subscribe(),
        reachable: link.reachable.subscribe(),
    };
    (manager, link)
}

impl Link {
    /// Keeps the instance alive and the answers fresh until shutdown, then says good-bye.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        loop {
            let Some(round) = shutdown.run_until_cancelled(self.round()).await else { break };
            self.report(round.as_ref().err());
            let wait = match round {
                Ok(interval) => {
                    backoff.reset();
                    interval
                }
                Err(_) => backoff.wait(),
            };
            let next = async {
                tokio::select! {
                    () = sleep(wait) => {}
                    Ok(()) = self.instance.changed() => {}
                }
            };
            if shutdown.run_until_cancelled(next).await.is_none() {
                break;
            }
        }
        let instance = self.instance.borrow().clone();
        self.leave(instance).await;
    }

    /// One keepalive and the questions that go with it. Returns when the next one is due.
    async fn round(&mut self) -> Result<Duration, Status> {
        let instance = self.instance.borrow_and_update().clone();
        if let Some(before) = self.known.take_if(|known| known.kind != instance.kind) {
            self.leave(before).await;
        }
        let cluster = instance.cluster.clone();
        let request = KeepAliveRequest { instance: Some(instance.clone()) };
        let reply = within(RPC_DEADLINE, self.client.keep_alive(request)).await?;
        self.known = Some(instance);
        self.refresh_lists(&cluster).await?;
        if reply.config_version != self.config.borrow().version {
            let request = GetConfigRequest { cluster };
            let config = within(RPC_DEADLINE, self.client.get_config(request)).await?;
            debug!(version = config.version, "new dynamic configuration");
            self.config.send_replace(config);
        }
        Ok(Duration::from_millis(reply.interval_ms.into()).clamp(INTERVAL.0, INTERVAL.1))
    }

    async fn refresh_lists(&mut self, cluster: &str) -> Result<(), Status> {
        let request = ListSchedulersRequest { cluster: cluster.to_owned() };
        let schedulers = within(RPC_DEADLINE, self.client.list_schedulers(request)).await?.schedulers;
        if !schedulers.is_empty() {
            replace(&self.schedulers, schedulers);
        }
        let request = ListSeedsRequest { cluster: cluster.to_owned() };
        let seeds = within(RPC_DEADLINE, self.client.list_seeds(request)).await?.seeds;
        replace(&self.seeds, seeds);
        Ok(())
    }

    /// Logs when the manager goes away and when it comes back, not each failure between.
    fn report(&self, error: Option<&Status>) {
        let before = self.reachable.send_replace(error.is_none());
        match error {
            Some(error) if before => {
                warn!(code = ?error.code(), reason = error.message(), "lost the manager")
            }
            Some(error) => debug!(code = ?error.code(), reason = error.message(), "no manager yet"),
            None if !before => info!("the manager answers"),
            None => {}
        }
    }

    async fn leave(&mut self, instance: Instance) {
        let Instance { kind, id, cluster, .. } = instance;
        let request = LeaveRequest { kind, id, cluster };
        if let Err(error) = within(LEAVE_DEADLINE, self.client.leave(request)).await {
            debug!(code = ?error.code(), reason = error.message(), "could not leave the manager");
        }
    }
}

async fn within<T>(
    deadline: Duration,
    rpc: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Status> {
    match timeout(deadline, rpc).await {
        Ok(answer) => answer.map(Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the manager did not answer in time")),
    }
}

/// Shows a new list, and wakes those who watch only if it differs.
fn replace(list: &watch::Sender<Arc<[Instance]>>, new: Vec<Instance>) {
    list.send_if_modified(|old| {
        let differs = **old != *new;
        if differs {
            *old = new.into();
        }
        differs
    });
}
