//! One content being distributed, and what the scheduler knows of it.

use std::{collections::BTreeMap, time::Duration};

use super::{
    claims::Claims,
    digests::LeafDigests,
    filter::is_blocked,
    graph::Change,
    ids::{HostKey, KeySet, TaskId},
    info::Untold,
    lease::{Attempt, Lease},
    members::{Members, Peer, Phase},
    message::{Shape, Source},
    place::Place,
    time::Time,
    timers::Timer,
    world::World,
};

/// A task that nobody wants is looked at after so long: forgotten if nobody holds it, otherwise its digests are, which
/// a holder can send again.
pub(super) const IDLE: Duration = Duration::from_secs(300);

/// One task.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) id: TaskId,
    pub(super) shape: Option<Shape>,
    pub(super) digests: LeafDigests,
    /// What those who take part are still to be told of them.
    pub(super) untold: Untold,
    /// Somebody checked the digest of the whole; otherwise the leaf digests are provisional.
    pub(super) verified: bool,
    /// The newest that a peer brought. Kept while somebody wants the task.
    pub(super) source: Option<Source>,
    pub(super) peers: Members,
    pub(super) claims: Claims,
    pub(super) leases: Vec<Lease>,
    /// Who lost a lease since somebody last finished.
    pub(super) attempts: Vec<Attempt>,
    /// The holder that was asked for the digests.
    pub(super) asked: Option<HostKey>,
    /// Holders that were asked in vain: nobody can fetch from them without digests.
    pub(super) silent: Vec<HostKey>,
    /// What [`Self::tend`] still has to do.
    pub(super) pending: Pending,
    /// Whether a reminder is under way: of the lease, of being idle.
    pub(super) watched: bool,
    idle_watched: bool,
    /// Until then those who have a part in it may still be on their way here from another scheduler, or from here there.
    settles_at: Time,
}

/// Work that waits for the end of an event, when all of its consequences are known.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Children that need parents.
    pub(super) needy: KeySet,
    /// Hosts that may have become good parents for others.
    pub(super) news: KeySet,
    /// Changed parent sets that were not sent yet.
    pub(super) changes: BTreeMap<HostKey, Change>,
}

impl Task {
    pub(super) fn new(id: TaskId) -> Self {
        Self {
            id,
            shape: None,
            digests: LeafDigests::default(),
            untold: Untold::default(),
            verified: false,
            source: None,
            peers: Members::default(),
            claims: Claims::default(),
            leases: Vec::new(),
            attempts: Vec::new(),
            asked: None,
            silent: Vec::new(),
            pending: Pending::default(),
            watched: false,
            idle_watched: false,
            settles_at: Time::default(),
        }
    }

    /// Restores what must always hold; called after everything that changes the task.
    pub(super) fn tend(&mut self, world: &mut World) {
        self.ensure_source(world);
        self.ask_for_digests(world);
        self.tend_claims(world);
        self.tend_graph(world);
        if self.peers.running().len() == 0 {
            self.rest(world);
        }
    }

    /// Nobody wants the task now.
    fn rest(&mut self, world: &mut World) {
        self.source = None;
        if self.leases.is_empty() {
            self.attempts.clear();
        }
        if !self.idle_watched {
            self.idle_watched = true;
            world.remind_in(IDLE, Timer::TaskIdle(self.id.clone()));
        }
    }

    /// The reminder of being idle has come; returns whether the task is to be forgotten.
    pub(super) fn idle(&mut self) -> bool {
        self.idle_watched = false;
        if self.peers.running().len() == 0 && self.leases.is_empty() {
            self.forget_digests();
        }
        self.peers.is_empty() && self.leases.is_empty()
    }

    /// Brings a host in or changes what it does.
    pub(super) fn set_phase(&mut self, world: &mut World, host: HostKey, phase: Phase) -> Option<&mut Peer> {
        let known = world.hosts.get_mut(host)?;
        known.tasks.insert(self.id.clone());
        let place = known.place;
        if phase != Phase::Running {
            self.leave_claims(world, host, &place);
        }
        Some(self.peers.set_phase(host, &place, phase))
    }

    /// Whether all who have a part in the task have had the time to come here. Until then nobody is sent to the origin:
    /// the one who reads it already may come.
    pub(super) fn is_settled(&self, world: &World) -> bool {
        world.is_settled() && world.now >= self.settles_at
    }

    /// The task is on its way from one scheduler to another.
    pub(super) fn unsettle(&mut self, world: &mut World) {
        let wait = world.settings.settle_time;
        self.settles_at = world.now.after(wait);
        world.remind_in(wait, Timer::TaskSettled(self.id.clone()));
    }

    /// Takes a host out: it is nobody's parent or child here any more. Its lease is another matter.
    pub(super) fn remove(&mut self, world: &mut World, host: HostKey) {
        self.drop_parents(world, host);
        self.drop_children(world, host);
        self.pending.changes.remove(&host);
        self.pending.needy.swap_remove(&host);
        let place = match world.hosts.get_mut(host) {
            Some(known) => {
                known.tasks.swap_remove(&self.id);
                known.place
            }
            None => Place::default(),
        };
        self.leave_claims(world, host, &place);
        self.peers.remove(host, &place);
        self.silent.retain(|silent| *silent != host);
        if self.asked == Some(host) {
            self.asked = None;
        }
    }

    /// A host wants the task no longer; what it holds it goes on serving.
    pub(super) fn stop(&mut self, world: &mut World, host: HostKey) {
        let Some(held) = self.peers.get(host).map(|peer| peer.held) else { return };
        self.drop_parents(world, host);
        if held > 0 {
            self.set_phase(world, host, Phase::Partial);
        } else {
            self.remove(world, host);
        }
    }

    /// Whether the content is held completely by a host that may serve it to `child`, or to anyone.
    pub(super) fn is_held(&self, world: &World, child: Option<HostKey>) -> bool {
        let child = child.and_then(|child| self.peers.get(child));
        let usable = |host: &HostKey| {
            world.is_available(*host)
                && !self.silent.contains(host)
                && !child.is_some_and(|child| is_blocked(world, child, *host))
        };
        self.peers.complete().any(|host| usable(&host))
    }
}
