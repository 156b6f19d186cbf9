//! The session stream to the scheduler: one stream carries all tasks, and comes back by itself after a loss.

use std::{sync::Arc, time::Duration};

use darter_proto::{
    MAX_MESSAGE_LEN,
    scheduler::{
        Announce, Holding, Holdings, Host, Leave, PeerMessage, SchedulerMessage, peer_message,
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
    store::{Entry, Store},
    wire,
};

/// Deadline for connecting and for the scheduler's Welcome.
const HELLO_DEADLINE: Duration = Duration::from_secs(2);
/// A scheduler that does not answer a ping for so long is gone.
const PING_DEADLINE: Duration = Duration::from_secs(2);
/// Most tasks that one Holdings message carries.
const HOLDINGS_BATCH: usize = 500;

/// A handle on the session; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    live: watch::Receiver<Option<Live>>,
}

/// A session that is up.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Counts the sessions of this process: a new number means that the scheduler must be told everything again.
    pub(crate) generation: u64,
    /// Where the scheduler is.
    pub(crate) address: String,
    outgoing: mpsc::Sender<PeerMessage>,
}

/// What keeps a session up.
pub(crate) struct Keeper {
    /// The schedulers to try, in order, `http://ip:port`.
    pub(crate) addresses: watch::Receiver<Vec<String>>,
    /// How this host introduces itself to a new session.
    pub(crate) host: watch::Receiver<Host>,
    pub(crate) store: Store,
    pub(crate) profiles: Arc<Profiles>,
    /// Takes every message of the scheduler.
    pub(crate) inbox: mpsc::Sender<scheduler_message::Message>,
    pub(crate) shutdown: CancellationToken,
}

impl Session {
    /// The session, if it is up.
    pub(crate) fn live(&self) -> Option<Live> {
        self.live.borrow().clone()
    }

    /// Follows the session's coming and going.
    pub(crate) fn watch(&self) -> watch::Receiver<Option<Live>> {
        self.live.clone()
    }

    /// Sends a message; false if the session is down or its scheduler does not read.
    pub(crate) async fn send(&self, message: peer_message::Message) -> bool {
        match self.live() {
            Some(live) => live.send(message).await,
            None => false,
        }
    }
}

impl Live {
    /// Sends a message; false if the session went down or its scheduler does not read.
    pub(crate) async fn send(&self, message: peer_message::Message) -> bool {
        let message = PeerMessage { message: Some(message) };
        matches!(timeout(PING_DEADLINE, self.outgoing.send(message)).await, Ok(Ok(())))
    }
}

impl Keeper {
    /// Starts keeping a session up until shutdown; the returned future must be run by the caller's tracker.
    pub(crate) fn start(self) -> (Session, impl Future<Output = ()> + Send + use<>) {
        let (sender, live) = watch::channel(None);
        (Session { live }, self.run(sender))
    }

    async fn run(mut self, live: watch::Sender<Option<Live>>) {
        let shutdown = self.shutdown.clone();
        let mut generation = 0;
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        loop {
            let addresses = self.addresses.borrow_and_update().clone();
            for address in &addresses {
                generation += 1;
                let since = Instant::now();
                let ended = tokio::select! {
                    ended = self.once(address, generation, &live) => ended,
                    () = shutdown.cancelled() => {
                        leave(&live).await;
                        return;
                    }
                };
                live.send_replace(None);
                let was_up = ended.was_up;
                if was_up {
                    tracing::warn!(
                        scheduler = address,
                        reason = ended.reason,
                        "session lost, transfers go on"
                    );
                    if since.elapsed() > Duration::from_secs(5) {
                        backoff.reset();
                    }
                    break;
                }
                tracing::debug!(scheduler = address, reason = ended.reason, "no session");
            }
            tokio::select! {
                () = sleep(backoff.wait()) => {}
                changed = self.addresses.changed() => if changed.is_err() {
                    shutdown.cancelled().await;
                },
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// One session from connecting to its end.
    async fn once(&self, address: &str, generation: u64, live: &watch::Sender<Option<Live>>) -> Ended {
        let mut host = self.host.clone();
        host.mark_unchanged();
        match timeout(HELLO_DEADLINE, self.open(address)).await {
            Err(_) => Ended::never("no Welcome in time"),
            Ok(Err(reason)) => Ended::never(&reason),
            Ok(Ok((outgoing, mut incoming))) => {
                tracing::info!(scheduler = address, "session up");
                let up = Live { generation, address: address.to_owned(), outgoing };
                live.send_replace(Some(up.clone()));
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
                            if self.inbox.send(message).await.is_err() {
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
        address: &str,
    ) -> Result<(mpsc::Sender<PeerMessage>, tonic::Streaming<SchedulerMessage>), String> {
        let endpoint = Endpoint::from_shared(address.to_owned())
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
                if let Some(config) = welcome.config {
                    self.inbox
                        .send(scheduler_message::Message::Config(config))
                        .await
                        .map_err(|e| e.to_string())?;
                }
                Ok((outgoing, incoming))
            }
            Some(Err(status)) => Err(status.message().to_owned()),
            other => Err(format!(
                "expected Welcome, got {}",
                if other.is_some() { "another message" } else { "nothing" }
            )),
        }
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

async fn leave(live: &watch::Sender<Option<Live>>) {
    let current = live.borrow().clone();
    if let Some(current) = current
        && current.send(peer_message::Message::Leave(Leave {})).await
    {
        // Gives the stream a moment to carry it.
        sleep(Duration::from_millis(50)).await;
    }
    live.send_replace(None);
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
