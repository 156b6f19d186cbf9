//! The gRPC service: one stream per peer, and one actor that owns the state.

mod actor;
mod outbox;
#[cfg(test)]
mod tests;
mod tickets;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use darter_proto::{
    MAX_MESSAGE_LEN,
    scheduler::{
        PeerMessage, StatusReply, StatusRequest,
        scheduler_server::{Scheduler, SchedulerServer},
    },
};
use darter_service::listen;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::{Instant, sleep, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming, transport};

pub(crate) use self::{actor::Actor, tickets::Issuer};
use self::{
    actor::Command,
    outbox::{Outbox, Outgoing},
};
use crate::state::{SessionId, Settings};

/// How often a silent connection is asked whether its other end still lives, and how long it may take to say so.
const PING: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(5));
/// How long a Status request may take.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Requests of one connection at the same time: a session, and a few questions.
const REQUESTS_PER_CONNECTION: u32 = 16;
/// Messages that one session may send a second; one that sends more is read more slowly.
const MESSAGES_PER_SECOND: u32 = 1000;
/// Commands that may wait for the actor.
const COMMANDS: usize = 1024;
/// How long open connections may take to end after shutdown.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// What answers the requests; all clones speak to the same actor.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    commands: mpsc::Sender<Command>,
    /// The tasks that read from peers.
    readers: TaskTracker,
    slots: Arc<Semaphore>,
    sessions: Arc<AtomicU64>,
    tickets: Arc<Issuer>,
}

impl Service {
    /// Makes the service and the queue of commands that its actor takes.
    pub(crate) fn new(max_sessions: usize, tickets: Issuer) -> (Self, mpsc::Receiver<Command>) {
        let (commands, queue) = mpsc::channel(COMMANDS);
        let slots = Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS)));
        let (readers, sessions, tickets) = (TaskTracker::new(), Arc::default(), Arc::new(tickets));
        (Self { commands, readers, slots, sessions, tickets }, queue)
    }

    /// Serves until shutdown; then the sessions are ended by the actor, and this waits for them.
    pub(crate) async fn serve(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> Result<(), transport::Error> {
        let readers = self.readers.clone();
        let scheduler = SchedulerServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN);
        let served = transport::Server::builder()
            .timeout(REQUEST_DEADLINE)
            .max_concurrent_streams(Some(REQUESTS_PER_CONNECTION))
            .http2_keepalive_interval(Some(PING.0))
            .http2_keepalive_timeout(Some(PING.1))
            .add_service(scheduler)
            .serve_with_incoming_shutdown(listen::incoming(listener), shutdown.cancelled());
        let overdue = async {
            shutdown.cancelled().await;
            sleep(DRAIN_DEADLINE).await;
        };
        let served = tokio::select! {
            served = served => served,
            () = overdue => Ok(()),
        };
        readers.close();
        readers.wait().await;
        served
    }

    /// Gives the actor new settings.
    pub(crate) async fn change_settings(&self, settings: Settings) -> Result<(), Status> {
        self.send(Command::Settings(Box::new(settings))).await
    }

    async fn send(&self, command: Command) -> Result<(), Status> {
        self.commands.send(command).await.map_err(|_| stopping())
    }

    /// Passes on what a peer says until its stream or its session ends.
    async fn read(self, mut incoming: Streaming<PeerMessage>, session: SessionId, ended: CancellationToken) {
        let mut pace = Pace::new();
        let read = async {
            while let Ok(Some(message)) = incoming.message().await {
                pace.next().await;
                if self.send(Command::Said(session, Box::new(message))).await.is_err() {
                    break;
                }
            }
        };
        ended.run_until_cancelled(read).await;
        // An actor that is gone needs no word.
        self.send(Command::Closed(session)).await.ok();
    }
}

#[tonic::async_trait]
impl Scheduler for Service {
    type SessionStream = Outgoing;

    async fn session(
        &self,
        request: Request<Streaming<PeerMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let full = |_| Status::resource_exhausted("the scheduler has as many sessions as it may have");
        let slot: OwnedSemaphorePermit = self.slots.clone().try_acquire_owned().map_err(full)?;
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (outbox, outgoing) = Outbox::new(self.tickets.clone());
        let ended = outbox.ended();
        self.send(Command::Opened(session, outbox)).await?;
        let read = self.clone().read(request.into_inner(), session, ended);
        self.readers.spawn(async move {
            read.await;
            drop(slot);
        });
        Ok(Response::new(outgoing))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Status(reply)).await?;
        answer.await.map(Response::new).map_err(|_| stopping())
    }
}

fn stopping() -> Status {
    Status::unavailable("the scheduler stops")
}

/// Holds a session to its number of messages a second.
struct Pace {
    second: Instant,
    messages: u32,
}

impl Pace {
    fn new() -> Self {
        Self { second: Instant::now(), messages: 0 }
    }

    /// Waits until the next message may be taken.
    async fn next(&mut self) {
        let end = self.second + Duration::from_secs(1);
        if Instant::now() >= end {
            *self = Self::new();
        } else if self.messages >= MESSAGES_PER_SECOND {
            sleep_until(end).await;
            *self = Self::new();
        }
        self.messages += 1;
    }
}
