//! The one task that owns the state: takes what peers say, and time, and does what the state decides.

use std::{collections::BTreeMap, time::Duration};

use darter_proto::scheduler::{Announce, PeerMessage, StatusReply, peer_message};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::{debug, info, warn};

use super::{outbox::Outbox, stopping};
use crate::{
    metrics::Metrics,
    state::{Action, Event, Note, SessionId, Settings, State, Time},
};

/// How often the state is told that time has passed.
const TICK: Duration = Duration::from_millis(100);

/// What the actor is told.
#[derive(Debug)]
pub(crate) enum Command {
    Opened(SessionId, Outbox),
    Said(SessionId, Box<PeerMessage>),
    Closed(SessionId),
    Settings(Box<Settings>),
    Status(oneshot::Sender<StatusReply>),
}

/// Owner of the state.
#[derive(Debug)]
pub(crate) struct Actor {
    state: State,
    started: Instant,
    outboxes: BTreeMap<SessionId, Outbox>,
    metrics: Metrics,
}

impl Actor {
    pub(crate) fn new(settings: Settings, metrics: Metrics) -> Self {
        let state = State::new(settings, rand::random(), Time::default());
        Self { state, started: Instant::now(), outboxes: BTreeMap::new(), metrics }
    }

    /// Works until shutdown, then ends all sessions.
    pub(crate) async fn run(mut self, mut commands: mpsc::Receiver<Command>, shutdown: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        loop {
            tokio::select! {
                Some(command) = commands.recv() => self.command(command),
                _ = ticks.tick() => self.tick(),
                () = shutdown.cancelled() => break,
            }
        }
        for outbox in std::mem::take(&mut self.outboxes).into_values() {
            outbox.end(stopping(), false);
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Opened(session, outbox) => {
                self.outboxes.insert(session, outbox);
                self.on(Event::Opened(session));
            }
            Command::Said(session, message) => {
                self.metrics.messages.inc();
                self.note_host(session, &message);
                self.on(Event::Message(session, message));
            }
            Command::Closed(session) => {
                self.outboxes.remove(&session);
                self.on(Event::Closed(session));
            }
            Command::Settings(settings) => self.on(Event::Settings(settings)),
            Command::Status(reply) => {
                if reply.send(self.state.status()).is_err() {
                    debug!("whoever asked for the status has gone");
                }
            }
        }
    }

    /// The tickets of a session are for the host that announces itself in it.
    fn note_host(&self, session: SessionId, message: &PeerMessage) {
        if let Some(peer_message::Message::Announce(Announce { host: Some(host) })) = &message.message
            && let Some(outbox) = self.outboxes.get(&session)
        {
            outbox.announced(&host.id);
        }
    }

    fn tick(&mut self) {
        self.on(Event::Tick);
        self.metrics.show(self.state.counts(), self.state.counters());
    }

    fn on(&mut self, event: Event) {
        let mut events = vec![event];
        // A session that turns out to be stuck is one more event.
        while let Some(event) = events.pop() {
            let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
            for action in self.state.on(Time::from_millis(millis), event) {
                if let Some(stuck) = self.act(action) {
                    events.push(Event::Closed(stuck));
                }
            }
        }
    }

    /// Does what the state decided; returns the session that does not read any more.
    fn act(&mut self, action: Action) -> Option<SessionId> {
        match action {
            Action::Send(session, message) => {
                let stuck = self.outboxes.get(&session)?.send(*message).is_err();
                stuck.then(|| self.end(session, "it does not read", true))
            }
            Action::Close(session, reason) => {
                self.end(session, &reason, false);
                None
            }
            Action::Note(note) => {
                log(&note);
                None
            }
        }
    }

    fn end(&mut self, session: SessionId, reason: &str, stuck: bool) -> SessionId {
        if let Some(outbox) = self.outboxes.remove(&session) {
            warn!(session = session.0, reason, "ended a session");
            self.metrics.closed.inc();
            outbox.end(Status::failed_precondition(reason), stuck);
        }
        session
    }
}

fn log(note: &Note) {
    match note {
        Note::Leased { .. } => info!("{note}"),
        Note::GivenUp { .. } => debug!("{note}"),
        Note::LeaseLost { .. }
        | Note::TaskFailed { .. }
        | Note::Discarded { .. }
        | Note::Ejected { .. }
        | Note::OverLimit { .. } => warn!("{note}"),
    }
}
