//! Who may go to the origin: one host per task, a seed peer first.

use std::time::Duration;

use darter_proto::scheduler::{self as proto, failure::Kind, scheduler_message as says};
use darter_service::rendezvous::weight;

use super::{
    event::Note,
    ids::{HostKey, SessionId},
    members::Phase,
    task::Task,
    time::Time,
    timers::Timer,
    world::{World, failure},
};

/// So many seed peers are tried before those who want the task themselves.
const SEED_ATTEMPTS: usize = 3;
/// After so many failures that are not the origin's answer nobody else is tried.
const ATTEMPTS: usize = 8;

/// A lease holder that has not said a word of the task for so long is frozen; others may be sooner. While it fetches it
/// says something four times a second, also when its origin is slow.
const SILENCE: Duration = Duration::from_millis(1500);

/// The permission to fetch a task from its origin.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) holder: HostKey,
    /// The holder's session when it got or confirmed the lease.
    session: Option<SessionId>,
    /// When it last showed progress.
    progress: Time,
    /// When it last said anything about the task.
    heard: Time,
    /// It showed none for so long that somebody else got a lease too.
    pub(super) stalled: bool,
    /// The holder already had it when it came to this scheduler.
    pub(super) returned: bool,
}

/// A lease that ended without the content.
#[derive(Debug)]
pub(super) struct Attempt {
    host: HostKey,
    /// `None` if the host went away, which says nothing about the origin.
    failure: Option<proto::Failure>,
}

impl Lease {
    /// How long the holder may go on as it does.
    fn left(&self, world: &World) -> Duration {
        let progress = world.settings.lease_progress_timeout.saturating_sub(world.now.since(self.progress));
        progress.min(SILENCE.saturating_sub(world.now.since(self.heard)))
    }
}

impl Task {
    /// Whether a host is under lease.
    pub(super) fn is_leased(&self, host: HostKey) -> bool {
        self.leases.iter().any(|lease| lease.holder == host)
    }

    /// If the task is wanted and nobody holds or fetches it, gives somebody a lease or tells those who wait that
    /// there is nobody.
    pub(super) fn ensure_source(&mut self, world: &mut World) {
        let wanted = self.peers.running().len() > 0;
        if !wanted || self.is_fetched() || self.is_held(world, None) || !self.is_settled(world) {
            return;
        }
        match self.next_holder(world) {
            Some(host) => self.grant(world, host),
            None => self.give_up(world),
        }
    }

    /// A host comes back and is already fetching from the origin: that is accepted, whoever else does.
    pub(super) fn accept_lease(&mut self, world: &mut World, host: HostKey) {
        self.lease_progress(world, host);
        let session = world.hosts.get(host).and_then(|host| host.session);
        match self.leases.iter_mut().find(|lease| lease.holder == host) {
            Some(lease) => lease.session = session,
            None => self.add_lease(world, host, true),
        }
        self.pending.news.insert(host);
    }

    /// A host registers without claiming a lease: one from an earlier session is not in its hands any more.
    pub(super) fn unclaimed_lease(&mut self, world: &World, host: HostKey) {
        let session = world.hosts.get(host).and_then(|host| host.session);
        self.leases.retain(|lease| lease.holder != host || lease.session == session);
    }

    /// A lease holder shows progress, perhaps later than expected.
    pub(super) fn lease_progress(&mut self, world: &World, host: HostKey) {
        let Some(lease) = self.leases.iter_mut().find(|lease| lease.holder == host) else { return };
        (lease.progress, lease.heard) = (world.now, world.now);
        if std::mem::take(&mut lease.stalled) {
            self.attempts.retain(|attempt| attempt.host != host);
        }
    }

    /// A lease holder lives, though it may not get on.
    pub(super) fn lease_alive(&mut self, world: &World, host: HostKey) {
        for lease in self.leases.iter_mut().filter(|lease| lease.holder == host) {
            lease.heard = world.now;
        }
    }

    /// The lease has done its work.
    pub(super) fn lease_fulfilled(&mut self, host: HostKey) {
        self.leases.retain(|lease| lease.holder != host);
        self.attempts.clear();
    }

    /// A lease holder could not do it.
    pub(super) fn lease_failed(&mut self, world: &mut World, host: HostKey, failure: proto::Failure) {
        let reason = failure.reason.clone();
        if failure.kind() == Kind::OriginStatus {
            self.answer_alike(world, host, &failure);
        }
        // That one host's consumer went away says nothing about the origin.
        let failure = Some(failure).filter(|failure| failure.kind() != Kind::Cancelled);
        self.lose_lease(world, host, reason, failure);
    }

    /// The origin refused what a host wanted for itself: all who would ask just the same need not ask. Another host, as a
    /// seed peer, may be refused for what it is.
    fn answer_alike(&mut self, world: &mut World, host: HostKey, failure: &proto::Failure) {
        let asker = self.peers.get(host).filter(|peer| peer.phase == Phase::Running);
        let Some(request) = asker.and_then(|peer| peer.request) else { return };
        let alike = |other: &HostKey| {
            let peer = self.peers.get(*other);
            *other != host
                && !self.is_leased(*other)
                && peer.is_some_and(|peer| peer.request == Some(request))
        };
        let alike: Vec<_> = self.peers.running().filter(alike).collect();
        for other in alike {
            self.fail(world, other, failure.clone());
        }
    }

    /// A lease holder is gone, is not to be used any more or does not hold the task any more.
    pub(super) fn lease_abandoned(&mut self, world: &mut World, host: HostKey, reason: &str) {
        self.lose_lease(world, host, reason.to_owned(), None);
    }

    /// Takes notice of lease holders that have not shown progress for too long, if there is another to try. Without
    /// one it is up to the holder when to give up.
    pub(super) fn check_leases(&mut self, world: &mut World) {
        self.watched = false;
        let timeout = world.settings.lease_progress_timeout;
        let late = self.leases.iter().find(|lease| !lease.stalled && lease.left(world).is_zero());
        let late = late.map(|lease| (lease.holder, world.now.since(lease.heard) >= SILENCE));
        if let Some((host, frozen)) = late
            && self.next_holder(world).is_some()
        {
            let reason = if frozen {
                world.mute(host);
                format!("not a word for {} s", SILENCE.as_secs_f32())
            } else {
                format!("no progress for {} s", timeout.as_secs_f32())
            };
            for lease in self.leases.iter_mut().filter(|lease| lease.holder == host) {
                lease.stalled = true;
            }
            world.note(lost(self, world, host, reason.clone()));
            self.attempts.push(Attempt { host, failure: Some(failure(Kind::OriginUnreachable, &reason)) });
        }
        self.watch(world);
    }

    /// A child gets nothing although others hold the task: it may fetch by itself, if nobody does.
    pub(super) fn grant_to_child(&mut self, world: &mut World, child: HostKey) {
        let may = self.peers.get(child).is_some_and(|peer| peer.may_fetch);
        if may && !self.is_fetched() && self.is_settled(world) && !self.was_tried(child) {
            self.grant(world, child);
        }
    }

    /// Whether somebody reads the origin and gets on.
    pub(super) fn is_fetched(&self) -> bool {
        self.leases.iter().any(|lease| !lease.stalled)
    }

    fn grant(&mut self, world: &mut World, host: HostKey) {
        let peer = self.peers.get(host);
        let own = peer.is_some_and(|peer| peer.phase == Phase::Running && peer.may_fetch);
        let wants = peer.is_some_and(|peer| peer.phase == Phase::Running);
        self.leases.retain(|lease| lease.holder != host);
        self.add_lease(world, host, false);
        if own {
            world.send(host, says::Message::Lease(proto::Lease { task: self.id.to_string() }));
        } else {
            if !wants {
                self.set_phase(world, host, Phase::Fetching);
            }
            let source = self.source.as_ref().map(|source| source.to_wire());
            let task = Some(proto::Task { id: self.id.to_string(), source });
            world.send(host, says::Message::Fetch(proto::Fetch { task }));
            self.send_info(world, host);
        }
        if !self.has_digests() && self.peers.get(host).is_some_and(|peer| peer.held > 0) {
            self.ask(world, host);
        }
        self.pending.needy.insert(host);
        self.pending.news.insert(host);
        world.counters.leases += 1;
        if let Some(host) = world.host_id(host) {
            world.note(Note::Leased { task: self.id.clone(), host });
        }
    }

    fn add_lease(&mut self, world: &mut World, host: HostKey, returned: bool) {
        let session = world.hosts.get(host).and_then(|host| host.session);
        let now = world.now;
        self.leases.push(Lease {
            holder: host,
            session,
            progress: now,
            heard: now,
            stalled: false,
            returned,
        });
        self.watch(world);
    }

    fn lose_lease(
        &mut self,
        world: &mut World,
        host: HostKey,
        reason: String,
        failure: Option<proto::Failure>,
    ) {
        if !self.is_leased(host) {
            return;
        }
        self.leases.retain(|lease| lease.holder != host);
        self.attempts.retain(|attempt| attempt.host != host);
        self.attempts.push(Attempt { host, failure });
        world.note(lost(self, world, host, reason));
    }

    fn watch(&mut self, world: &mut World) {
        let left = self.leases.iter().filter(|lease| !lease.stalled).map(|lease| lease.left(world)).min();
        let Some(left) = left.filter(|_| !self.watched) else { return };
        self.watched = true;
        // One that is late and may stay so is looked at again after another timeout.
        let wait = if left.is_zero() { world.settings.lease_progress_timeout } else { left };
        world.remind_in(wait, Timer::Lease(self.id.clone()));
    }

    /// The next host to try, if any: a seed peer, else of those who want the task themselves the one that holds most.
    fn next_holder(&self, world: &World) -> Option<HostKey> {
        let failures = self.attempts.iter().filter_map(|attempt| attempt.failure.as_ref());
        let refused = failures.clone().any(|failure| failure.kind() == Kind::OriginStatus);
        let others = failures.filter(|failure| failure.kind() != Kind::OriginStatus).count();
        if others >= ATTEMPTS {
            return None;
        }
        // After the origin refused one request, others may have better credentials, not other seed peers.
        let seeds_left = !refused && others < SEED_ATTEMPTS && self.source.is_some();
        let seed = if seeds_left { self.next_seed(world) } else { None };
        seed.or_else(|| self.next_registered(world))
    }

    fn next_seed(&self, world: &World) -> Option<HostKey> {
        let may = |key| !self.was_tried(key) && !self.silent.contains(&key);
        let untried = world.hosts.seeds(world.now).filter(|(key, _)| may(*key));
        untried.max_by_key(|(_, host)| weight(self.id.as_str(), host.id.as_str())).map(|(key, _)| key)
    }

    fn next_registered(&self, world: &World) -> Option<HostKey> {
        let eligible = self.peers.running().filter_map(|key| {
            let peer = self.peers.get(key).filter(|peer| peer.may_fetch)?;
            let host = world.hosts.get(key).filter(|host| host.is_available(world.now))?;
            (!self.was_tried(key)).then(|| (peer.held, weight(self.id.as_str(), host.id.as_str()), key))
        });
        eligible.max().map(|(_, _, key)| key)
    }

    fn was_tried(&self, host: HostKey) -> bool {
        self.is_leased(host) || self.attempts.iter().any(|attempt| attempt.host == host)
    }

    /// Nobody is left who could fetch the task. Those who wait are told, unless a lease may still come to something or
    /// other peers hold leaves.
    fn give_up(&mut self, world: &mut World) {
        let last = self.attempts.iter().rev().find_map(|attempt| attempt.failure.clone());
        let exchange = self.peers.running().any(|child| self.has_other_holder(child));
        if !self.leases.is_empty() || (last.is_none() && exchange) {
            return;
        }
        let failure = last.unwrap_or_else(|| failure(Kind::NotFound, "nobody holds it or can fetch it"));
        self.fail_all(world, &failure);
    }

    fn has_other_holder(&self, child: HostKey) -> bool {
        self.peers.iter().any(|(host, peer)| host != child && peer.held > 0)
    }

    /// Tells all who wait that they will not get the task.
    pub(super) fn fail_all(&mut self, world: &mut World, failure: &proto::Failure) {
        let waiting: Vec<_> = self.peers.running().collect();
        let (task, reason) = (self.id.clone(), failure.reason.clone());
        world.note(Note::TaskFailed { task, waiting: waiting.len(), reason });
        for host in waiting {
            self.fail(world, host, failure.clone());
        }
        self.attempts.clear();
    }

    /// Tells one peer that it will not get the task.
    pub(super) fn fail(&mut self, world: &mut World, host: HostKey, failure: proto::Failure) {
        world.task_failed(host, &self.id, failure);
        self.leases.retain(|lease| lease.holder != host);
        self.stop(world, host);
    }
}

fn lost(task: &Task, world: &World, host: HostKey, reason: String) -> Note {
    Note::LeaseLost { task: task.id.clone(), host: world.host_id(host), reason }
}
