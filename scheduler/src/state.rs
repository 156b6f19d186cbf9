//! The scheduler as a pure state machine: `(now, event) -> actions`. No I/O, no clock and no chance of its own, so
//! that a service, a simulation and a test drive the very same code.
//!
//! State is soft: it is learned from what peers say, and after a restart learned again. Time must not go back from one
//! event to the next; whoever drives the machine gives a [`Event::Tick`] every 100 to 250 ms.

mod claims;
mod conduct;
mod digests;
mod event;
mod filter;
mod graph;
mod history;
mod hosts;
mod ids;
mod info;
mod layers;
mod lease;
mod members;
mod membership;
mod message;
mod place;
mod profiles;
mod progress;
mod score;
mod sessions;
mod settings;
mod status;
mod task;
mod time;
mod timers;
mod world;

use std::collections::HashMap;

use darter_proto::scheduler::{self as proto, failure::Kind, scheduler_message as says};
use indexmap::IndexMap;

pub use self::{
    event::{Action, Counters, Counts, Event, Note},
    ids::{HostId, SessionId, TaskId},
    settings::Settings,
    time::Time,
};
use self::{
    ids::HostKey,
    layers::Layers,
    message::{Digests, Holding, Message, Register},
    profiles::Profiles,
    sessions::Session,
    task::Task,
    timers::Timer,
    world::{World, failure},
};

/// Most tasks that one host may take part in, and that there may be at all.
const MAX_TASKS_PER_HOST: usize = 65_536;
const MAX_TASKS: usize = 4 << 20;
/// Most memory for leaf digests in bytes: enough for 8 TiB of contents being fetched at the same time.
const MAX_DIGEST_BYTES: usize = 1 << 30;

/// Everything a scheduler knows and decides.
#[derive(Debug)]
pub struct State {
    world: World,
    tasks: IndexMap<TaskId, Task>,
    layers: Layers,
    profiles: Profiles,
    sessions: HashMap<SessionId, Session>,
}

impl State {
    /// A scheduler that knows nobody yet. Equal seeds and equal events give equal actions.
    pub fn new(settings: Settings, seed: u64, now: Time) -> Self {
        Self {
            world: World::new(settings, seed, now),
            tasks: IndexMap::new(),
            layers: Layers::default(),
            profiles: Profiles::default(),
            sessions: HashMap::new(),
        }
    }

    /// Takes an event in; the actions are to be done in their order.
    pub fn on(&mut self, now: Time, event: Event) -> Vec<Action> {
        self.world.now = self.world.now.max(now);
        match event {
            Event::Opened(session) => self.opened(session),
            Event::Closed(session) => self.closed(session),
            Event::Message(session, message) => self.message(session, *message),
            Event::Settings(settings) => self.new_settings(*settings),
            Event::Tick => self.tick(),
        }
        self.world.take_actions()
    }

    /// Sums since the start.
    pub fn counters(&self) -> Counters {
        self.world.counters
    }

    /// How much there is right now.
    pub fn counts(&self) -> Counts {
        Counts {
            hosts: self.sessions.values().filter(|session| session.host.is_some()).count(),
            tasks: self.tasks.len(),
            layers: self.layers.len(),
            profiles: self.profiles.len(),
            digest_bytes: self.world.digest_bytes,
        }
    }

    fn message(&mut self, id: SessionId, message: proto::PeerMessage) {
        let Some(session) = self.sessions.get(&id) else { return };
        let host = session.host;
        match (Message::try_from(message), host) {
            (Err(invalid), _) => self.refuse(id, invalid.to_string()),
            (Ok(Message::Announce(announce)), None) => self.announced(id, announce),
            (Ok(Message::Announce(announce)), Some(host)) => self.announced_again(id, host, announce),
            (Ok(_), None) => self.refuse(id, "the first message is not an announcement".to_owned()),
            (Ok(message), Some(host)) => {
                let Some(known) = self.world.hosts.get_mut(host) else { return };
                known.mute = false;
                if !known.leaving {
                    self.said(host, message);
                }
            }
        }
    }

    fn said(&mut self, host: HostKey, message: Message) {
        match message {
            // Taken care of before.
            Message::Announce(_) => {}
            Message::Holdings { tasks, layers } => {
                self.holdings(host, tasks);
                self.layers_held(host, layers);
            }
            Message::Register(register) => self.register(host, register),
            Message::Progress(reports) => self.progress(host, reports),
            Message::Digests(digests) => self.digests(host, digests),
            Message::Finished { task, shape } => {
                self.join(host, &task, |task, world| task.finished(world, host, shape));
            }
            Message::Failed { task, failure } => {
                self.change(&task, |task, world| task.failed(world, host, failure));
            }
            Message::Dropped(tasks) => {
                for task in tasks {
                    self.change(&task, |task, world| task.dropped(world, host));
                }
            }
            Message::LayerWanted { blob, diff_id } => self.layer_wanted(host, blob, diff_id),
            Message::LayerMade { blob, result } => self.layer_made(host, &blob, result),
            Message::LayerWrong(layer) => self.layer_wrong(host, &layer),
            Message::Moved(task) => self.change(&task, |task, world| task.moved(world, host)),
            Message::ProfileWanted { image } => self.profile_wanted(host, image),
            Message::StartProfile(profile) => self.start_profile(profile),
            Message::Leave => self.leave(host),
        }
    }

    fn holdings(&mut self, host: HostKey, holdings: Vec<Holding>) {
        for holding in holdings {
            if !self.join(host, &holding.task, |task, world| task.hold(world, host, &holding)) {
                break;
            }
        }
    }

    fn register(&mut self, host: HostKey, register: Register) {
        let id = register.task.id.clone();
        if !self.join(host, &id, |task, world| task.register(world, host, register)) {
            let failure = failure(Kind::Local, "the scheduler has too many tasks");
            self.world.task_failed(host, &id, failure);
        }
    }

    fn digests(&mut self, host: HostKey, sent: Digests) {
        let full =
            |state: &Self| state.world.digest_bytes.saturating_add(sent.digests.len()) > MAX_DIGEST_BYTES;
        if full(self) {
            self.forget_idle_digests();
        }
        if full(self) {
            let failure = failure(Kind::Local, "the scheduler has no room for more leaf digests");
            self.change(&sent.task, |task, world| task.fail_all(world, &failure));
            return;
        }
        let id = sent.task.clone();
        if sent.verified {
            self.join(host, &id, |task, world| task.take_digests(world, host, sent));
        } else {
            self.change(&id, |task, world| task.take_digests(world, host, sent));
        }
    }

    fn forget_idle_digests(&mut self) {
        for task in self.tasks.values_mut().filter(|task| task.peers.running().len() == 0) {
            self.world.digest_bytes = self.world.digest_bytes.saturating_sub(task.digest_bytes());
            task.forget_digests();
        }
    }

    fn new_settings(&mut self, settings: Settings) {
        let rates = settings.rates;
        let changed = self.world.settings.rates != rates;
        self.world.settings = settings;
        if changed {
            let announced = self.sessions.iter().filter(|(_, session)| session.host.is_some());
            let mut sessions: Vec<_> = announced.map(|(id, _)| *id).collect();
            sessions.sort_unstable();
            for session in sessions {
                self.world.send_to_session(session, says::Message::Config(rates));
            }
        }
    }

    fn tick(&mut self) {
        while let Some(timer) = self.world.next_reminder() {
            match timer {
                Timer::Settled => self.settled(),
                Timer::Unannounced(session) => self.check_announced(session),
                Timer::HostGone(host) => self.check_gone(host),
                Timer::TaskSettled(task) => self.change(&task, |_, _| {}),
                Timer::TaskIdle(task) => self.check_idle(&task),
                Timer::Lease(task) => self.change(&task, Task::check_leases),
                Timer::Untold(task) => self.change(&task, Task::tell_untold),
                Timer::DigestsAsked(task, host) => self.change(&task, |task, _| task.check_answer(host)),
                Timer::Mute(host) => self.see_to_tasks_of(host),
                Timer::Making(blob, seed) => self.check_layer(&blob, seed),
            }
        }
    }

    /// What waited for peers to come back is decided now.
    fn settled(&mut self) {
        let wanted = self.tasks.values().filter(|task| task.peers.running().len() > 0);
        for task in wanted.map(|task| task.id.clone()).collect::<Vec<_>>() {
            self.change(&task, |_, _| {});
        }
        self.make_waiting_layers();
    }

    /// Whether the host may be asked for something has changed.
    fn see_to_tasks_of(&mut self, host: HostKey) {
        let tasks = self.world.hosts.get(host).map(|host| host.tasks.iter().cloned().collect::<Vec<_>>());
        for task in tasks.unwrap_or_default() {
            self.change(&task, |_, _| {});
        }
    }

    fn check_idle(&mut self, id: &TaskId) {
        let mut forget = false;
        self.change(id, |task, _| forget = task.idle());
        if forget {
            self.tasks.swap_remove(id);
        }
    }

    /// Changes a task, if it is known, and then sees to everything that follows.
    fn change(&mut self, id: &TaskId, change: impl FnOnce(&mut Task, &mut World)) {
        let Some(task) = self.tasks.get_mut(id) else { return };
        let before = task.digest_bytes();
        change(task, &mut self.world);
        task.tend(&mut self.world);
        let without = self.world.digest_bytes.saturating_sub(before);
        self.world.digest_bytes = without.saturating_add(task.digest_bytes());
    }

    /// Like [`Self::change`] for something that makes the host take part in the task; returns `false` if there are too
    /// many tasks for that.
    fn join(&mut self, host: HostKey, id: &TaskId, change: impl FnOnce(&mut Task, &mut World)) -> bool {
        let Some(known) = self.world.hosts.get(host) else { return false };
        let room = known.tasks.len() < MAX_TASKS_PER_HOST && self.tasks.len() < MAX_TASKS;
        if !room && !known.tasks.contains(id) {
            let host = known.id.clone();
            self.world.note(Note::OverLimit { host, what: "tasks" });
            return false;
        }
        let new = !self.tasks.contains_key(id);
        self.tasks.entry(id.clone()).or_insert_with(|| Task::new(id.clone()));
        self.change(id, change);
        if new && self.tasks.get(id).is_some_and(|task| task.peers.is_empty()) {
            // It came to nothing, as a holding of no leaf, and must not leave anything behind.
            self.change(id, |task, _| task.forget_digests());
            self.tasks.swap_remove(id);
        }
        true
    }
}

#[cfg(test)]
mod tests;
