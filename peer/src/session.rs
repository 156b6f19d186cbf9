//! A session stream with one scheduler: it carries all tasks, and comes back by itself after a loss.

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
        Announce, Holding, Holdings, Host, Leave, PeerMessage, SchedulerMessage, Welcome, peer_message,
        scheduler_client::SchedulerClient, scheduler_message,
    },
};
use darter_service::backoff::Backoff;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, timeout},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;

use crate::{
    profiles::Profiles,
    schedulers::{Live, Sessions},
    store::{Entry, Store},
    transfer::Keys,
    wire,
};

/// Deadline for connecting and for the scheduler's Welcome.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// A scheduler that does not answer a ping for so long is gone.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Most tasks that one Holdings message carries.
const HOLDINGS_BATCH: usize = 500;

/// What keeps the session with one scheduler up.
pub(crate) struct Keeper {
    /// `http://ip:port`.
    pub(crate) address: String,
    /// Cancelled when the address is not among the schedulers' any more: a session that is up stays, as long as it does.
    pub(crate) unlisted: CancellationToken,
    /// Numbers the sessions of this process.
    pub(crate) generations: Arc<AtomicU64>,
    pub(crate) sessions: watch::Sender<Sessions>,
    pub(crate) host: watch::Receiver<Host>,
    pub(crate) store: Store,
    pub(crate) profiles: Arc<Profiles>,
    /// Learns the scheduler's key for tickets.
    pub(crate) keys: Keys,
    pub(crate) inbox: mpsc::Sender<(Live, scheduler_message::Message)>,
    pub(crate) shutdown: CancellationToken,
}

impl Keeper {
    /// Keeps the session up until shutdown.
    pub(crate) async fn run(self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut scheduler: Option<String> = None;
        let mut back = false;
        loop {
            let generation = self.generations.fetch_add(1, Ordering::Relaxed);
            // One scheduler under two addresses would end each session for the sake of the other.
            let twice = scheduler.as_ref().is_some_and(|name| self.sessions.borrow().has(name));
            if !twice {
                let since = Instant::now();
                let ended = tokio::select! {
                    ended = self.once(generation, back, &mut scheduler) => ended,
                    () = self.shutdown.cancelled() => {
                        self.leave(generation).await;
                        return;
                    }
                };
                let address = &self.address;
                if ended.was_up {
                    self.sessions.send_modify(|sessions| sessions.remove(generation));
                    tracing::warn!(
                        scheduler = address,
                        reason = ended.reason,
                        "session lost, transfers go on"
                    );
                    if since.elapsed() > Duration::from_secs(5) {
                        backoff.reset();
                    }
                } else {
                    tracing::debug!(scheduler = address, reason = ended.reason, "no session");
                }
                back = true;
            }
            tokio::select! {
                () = sleep(backoff.wait()) => {}
                () = self.unlisted.cancelled() => return,
                () = self.shutdown.cancelled() => return,
            }
        }
    }

    /// One session from connecting to its end; `scheduler` becomes the name of who answers.
    async fn once(&self, generation: u64, back: bool, scheduler: &mut Option<String>) -> Ended {
        let mut host = self.host.clone();
        host.mark_unchanged();
        match timeout(HELLO_DEADLINE, self.open()).await {
            Err(_) => Ended::never("no Welcome in time"),
            Ok(Err(reason)) => Ended::never(&reason),
            Ok(Ok((outgoing, mut incoming, welcome))) => {
                tracing::info!(scheduler = self.address, "session up");
                *scheduler = Some(welcome.scheduler_id.clone());
                let _key = welcome.tickets.as_ref().and_then(|key| self.keys.learn(key));
                let up = Live::new(generation, &self.address, welcome.scheduler_id, outgoing);
                self.sessions.send_modify(|sessions| sessions.add(up.clone(), back));
                if let Some(config) = welcome.config {
                    self.inbox.send((up.clone(), scheduler_message::Message::Config(config))).await.ok();
                }
                loop {
                    let message = tokio::select! {
                        message = incoming.next() => message,
                        Ok(()) = host.changed() => {
                            let host = Some(host.borrow_and_update().clone());
                            up.send(peer_message::Message::Announce(Announce { host })).await;
                            continue;
                        }
                    };
                    match message {
                        Some(Ok(SchedulerMessage { message: Some(message) })) => {
                            up.set_silent(false);
                            if self.inbox.send((up.clone(), message)).await.is_err() {
                                return Ended::after("the peer is stopping");
                            }
                        }
                        Some(Ok(SchedulerMessage { message: None })) => {}
                        Some(Err(status)) => return Ended::after(status.message()),
                        None => return Ended::after("the scheduler ended the session"),
                    }
                }
            }
        }
    }

    async fn open(
        &self,
    ) -> Result<(mpsc::Sender<PeerMessage>, tonic::Streaming<SchedulerMessage>, Welcome), String> {
        let endpoint = Endpoint::from_shared(self.address.clone())
            .map_err(|e| e.to_string())?
            .connect_timeout(HELLO_DEADLINE)
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(PING_DEADLINE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let channel = endpoint.connect().await.map_err(|e| format!("cannot connect: {e}"))?;
        let mut client = SchedulerClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN);
        let (outgoing, receiver) = mpsc::channel(1024);
        let say = async |message| {
            outgoing.send(PeerMessage { message: Some(message) }).await.map_err(|e| e.to_string())
        };
        let host = self.host.borrow().clone();
        say(peer_message::Message::Announce(Announce { host: Some(host) })).await?;
        let response =
            client.session(ReceiverStream::new(receiver)).await.map_err(|s| s.message().to_owned())?;
        for holdings in self.holdings() {
            say(peer_message::Message::Holdings(holdings)).await?;
        }
        for profile in self.profiles.to_tell() {
            say(peer_message::Message::StartProfile(profile)).await?;
        }
        let mut incoming = response.into_inner();
        match incoming.next().await {
            Some(Ok(SchedulerMessage { message: Some(scheduler_message::Message::Welcome(welcome)) })) => {
                Ok((outgoing, incoming, welcome))
            }
            Some(Err(status)) => Err(status.message().to_owned()),
            other => Err(format!(
                "expected Welcome, got {}",
                if other.is_some() { "another message" } else { "nothing" }
            )),
        }
    }

    async fn leave(&self, generation: u64) {
        let current = self.sessions.borrow().with(generation);
        if let Some(current) = current
            && current.send(peer_message::Message::Leave(Leave {})).await
        {
            // Gives the stream a moment to carry it.
            sleep(Duration::from_millis(50)).await;
        }
        self.sessions.send_modify(|sessions| sessions.remove(generation));
    }

    fn holdings(&self) -> Vec<Holdings> {
        let tasks: Vec<Holding> =
            self.store.entries().iter().map(holding).filter(|h| h.held > 0 || h.verified).collect();
        let mut messages: Vec<Holdings> = tasks
            .chunks(HOLDINGS_BATCH)
            .map(|tasks| Holdings { tasks: tasks.to_vec(), layers: Vec::new() })
            .collect();
        let layers: Vec<_> = self.store.layers().iter().map(wire::layer_to_proto).collect();
        messages.extend(
            layers
                .chunks(HOLDINGS_BATCH)
                .map(|layers| Holdings { tasks: Vec::new(), layers: layers.to_vec() }),
        );
        messages
    }
}

struct Ended {
    was_up: bool,
    reason: String,
}

impl Ended {
    fn never(reason: &str) -> Self {
        Self { was_up: false, reason: reason.to_owned() }
    }

    fn after(reason: &str) -> Self {
        Self { was_up: true, reason: reason.to_owned() }
    }
}

/// What the scheduler is told of an entry.
pub(crate) fn holding(entry: &Arc<Entry>) -> Holding {
    Holding {
        task: entry.id().to_string(),
        length: entry.geometry().len(),
        leaves: entry.geometry().leaves(),
        verified: entry.is_verified(),
        held: entry.held(),
    }
}
