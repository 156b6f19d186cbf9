//! Sessions, and the hosts that come and go with them.

use std::time::Duration;

use darter_proto::scheduler::{self as proto, scheduler_message as says};

use super::{
    State, hosts,
    ids::{HostKey, SessionId, TaskId},
    members::Phase,
    message::Announce,
    timers::Timer,
};

/// A session that has not announced its host after so long is closed.
const ANNOUNCE_WITHIN: Duration = Duration::from_secs(10);

/// One stream to a peer.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// Known once the host is announced.
    pub(super) host: Option<HostKey>,
}

impl State {
    pub(super) fn opened(&mut self, session: SessionId) {
        self.sessions.insert(session, Session::default());
        self.world.remind_in(ANNOUNCE_WITHIN, Timer::Unannounced(session));
    }

    pub(super) fn closed(&mut self, id: SessionId) {
        let Some(Session { host: Some(key) }) = self.sessions.remove(&id) else { return };
        let Some(host) = self.world.hosts.get_mut(key) else { return };
        host.session = None;
        host.away_since = self.world.now;
        self.withdraw(key);
        self.remember(key);
    }

    /// Ends a session because of what came through it.
    pub(super) fn refuse(&mut self, id: SessionId, reason: String) {
        self.world.close(id, reason);
        self.closed(id);
    }

    pub(super) fn check_announced(&mut self, id: SessionId) {
        if self.sessions.get(&id).is_some_and(|session| session.host.is_none()) {
            self.refuse(id, format!("no announcement within {} s", ANNOUNCE_WITHIN.as_secs()));
        }
    }

    /// The first message of a session. If the host has another session, that one is over.
    pub(super) fn announced(&mut self, id: SessionId, announce: Announce) {
        let key = self.world.hosts.key(&announce.id);
        let leased = key.map(|key| self.replace(key)).unwrap_or_default();
        let key = self.world.hosts.announce(id, announce);
        self.sessions.insert(id, Session { host: Some(key) });
        let scheduler_id = self.world.settings.scheduler_id.clone();
        let config = Some(self.world.settings.rates);
        let welcome = proto::Welcome { scheduler_id, config, ..proto::Welcome::default() };
        self.world.send_to_session(id, says::Message::Welcome(welcome));
        for task in leased {
            self.change(&task, |task, world| {
                task.set_phase(world, key, Phase::Fetching);
            });
        }
        if self.world.hosts.is_seed(key) {
            self.make_waiting_layers();
        }
    }

    /// A host has become a seed peer, or is none any more. What it fetches or makes as a seed peer it brings to its end.
    pub(super) fn announced_again(&mut self, id: SessionId, key: HostKey, announce: Announce) {
        if self.world.hosts.key(&announce.id) != Some(key) {
            return self.refuse(id, "a second announcement, of another host".to_owned());
        }
        self.world.hosts.set_seed(key, announce.host.seed);
        if announce.host.seed {
            self.make_waiting_layers();
        }
    }

    /// The peer is going: as if it were gone, but its session ends when it wants.
    pub(super) fn leave(&mut self, key: HostKey) {
        if let Some(host) = self.world.hosts.get_mut(key) {
            host.leaving = true;
        }
        self.withdraw(key);
    }

    /// The reminder to forget a host has come.
    pub(super) fn check_gone(&mut self, key: HostKey) {
        let now = self.world.now;
        let Some(host) = self.world.hosts.get_mut(key) else { return };
        host.away_watched = false;
        if host.session.is_some() {
            return;
        }
        if now.since(host.away_since) >= hosts::REMEMBERED && !host.conduct.is_ejected(now) {
            self.world.hosts.forget(key);
        } else {
            self.remember(key);
        }
    }

    /// Forgets a host without a session, at once or, if there is something to remember, later.
    fn remember(&mut self, key: HostKey) {
        let Some(host) = self.world.hosts.get_mut(key) else { return };
        if !host.has_record() {
            self.world.hosts.forget(key);
        } else if !host.away_watched {
            host.away_watched = true;
            self.world.remind_in(hosts::REMEMBERED, Timer::HostGone(key));
        }
    }

    /// Takes a host out of all tasks and layers.
    fn withdraw(&mut self, key: HostKey) {
        for task in self.tasks_of(key) {
            self.change(&task, |task, world| task.lost(world, key));
        }
        self.host_left_layers(key);
    }

    /// Ends the host's session in favour of a newer one; returns the tasks that it may still be fetching under lease.
    fn replace(&mut self, key: HostKey) -> Vec<TaskId> {
        let Some(old) = self.world.hosts.get(key).and_then(|host| host.session) else { return Vec::new() };
        self.sessions.remove(&old);
        self.world.close(old, "the host opened a newer session".to_owned());
        let tasks = self.tasks_of(key);
        for task in &tasks {
            self.change(task, |task, world| task.replaced(world, key));
        }
        self.host_left_layers(key);
        let leased = |id: &TaskId| self.tasks.get(id).is_some_and(|task| task.is_leased(key));
        tasks.into_iter().filter(leased).collect()
    }

    fn tasks_of(&self, key: HostKey) -> Vec<TaskId> {
        self.world.hosts.get(key).map(|host| host.tasks.iter().cloned().collect()).unwrap_or_default()
    }
}
