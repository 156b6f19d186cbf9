//! What every part of the state machine works with: the clock, chance, the hosts, reminders, and the way out.

use std::time::Duration;

use darter_proto::scheduler::{self as proto, scheduler_message as says};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    event::{Action, Counters, Note},
    hosts::Hosts,
    ids::{HostId, HostKey, SessionId, TaskId},
    settings::Settings,
    time::Time,
    timers::{Timer, Timers},
};

/// Everything but tasks, layers and sessions, so that a task can be changed while this is at hand.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Time,
    pub(super) settings: Settings,
    pub(super) rng: Xoshiro256PlusPlus,
    pub(super) hosts: Hosts,
    pub(super) counters: Counters,
    /// Memory for the leaf digests of all tasks in bytes.
    pub(super) digest_bytes: usize,
    settles_at: Time,
    timers: Timers,
    actions: Vec<Action>,
}

impl World {
    pub(super) fn new(settings: Settings, seed: u64, now: Time) -> Self {
        let settles_at = now.after(settings.settle_time);
        let mut timers = Timers::default();
        timers.at(settles_at, Timer::Settled);
        Self {
            now,
            settings,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            hosts: Hosts::default(),
            counters: Counters::default(),
            digest_bytes: 0,
            settles_at,
            timers,
            actions: Vec::new(),
        }
    }

    /// Whether the peers of a former scheduler have had the time to come back.
    pub(super) fn is_settled(&self) -> bool {
        self.now >= self.settles_at
    }

    pub(super) fn remind_in(&mut self, wait: Duration, timer: Timer) {
        self.timers.at(self.now.after(wait), timer);
    }

    pub(super) fn next_reminder(&mut self) -> Option<Timer> {
        self.timers.pop(self.now)
    }

    pub(super) fn is_available(&self, host: HostKey) -> bool {
        self.hosts.is_available(host, self.now)
    }

    /// A host does not answer; nothing is asked of it until it says something.
    pub(super) fn mute(&mut self, key: HostKey) {
        if let Some(host) = self.hosts.get_mut(key) {
            host.mute = true;
            self.remind_in(Duration::ZERO, Timer::Mute(key));
        }
    }

    /// Sends to a host, if it is here.
    pub(super) fn send(&mut self, host: HostKey, message: says::Message) {
        if let Some(session) = self.hosts.get(host).and_then(|host| host.session) {
            self.send_to_session(session, message);
        }
    }

    pub(super) fn send_to_session(&mut self, session: SessionId, message: says::Message) {
        let message = proto::SchedulerMessage { message: Some(message) };
        self.actions.push(Action::Send(session, Box::new(message)));
    }

    pub(super) fn close(&mut self, session: SessionId, reason: String) {
        self.actions.push(Action::Close(session, reason));
    }

    pub(super) fn note(&mut self, note: Note) {
        self.actions.push(Action::Note(note));
    }

    pub(super) fn take_actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    pub(super) fn task_failed(&mut self, host: HostKey, task: &TaskId, failure: proto::Failure) {
        let failed = proto::TaskFailed { task: task.to_string(), failure: Some(failure) };
        self.send(host, says::Message::TaskFailed(failed));
    }

    /// A host's id for people; hosts that are gone have none any more.
    pub(super) fn host_id(&self, host: HostKey) -> Option<HostId> {
        self.hosts.get(host).map(|host| host.id.clone())
    }
}

/// A failure that the scheduler itself states.
pub(super) fn failure(kind: proto::failure::Kind, reason: &str) -> proto::Failure {
    proto::Failure { kind: kind.into(), status: 0, reason: reason.to_owned() }
}
