//! The hosts that take part in one task.

use std::collections::HashMap;

use rand::{Rng, RngExt};

use super::{
    claims::Told,
    ids::{HostKey, KeyMap, KeySet, SessionId},
    message::{Class, Fingerprint},
    place::{Place, Scope},
    time::Time,
};

/// A host's part in one task. A few hundred bytes: there may be 100,000 of them in one task.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) phase: Phase,
    /// Leaves held.
    pub(super) held: u32,
    pub(super) class: Class,
    /// It registered with an origin, so it may be given a lease.
    pub(super) may_fetch: bool,
    /// What it would ask the origin, credentials included: who would ask the same gets the same answer.
    pub(super) request: Option<Fingerprint>,
    /// It knows length and digests by itself.
    pub(super) digests_known: bool,
    pub(super) parents: Vec<Link>,
    pub(super) children: Vec<HostKey>,
    pub(super) blocked: Vec<Block>,
    /// With so many leaves held the next parent is replaced.
    pub(super) rotate_at: u32,
    /// When a starving report was last acted on, and how many were since a leaf came.
    pub(super) starved: Time,
    pub(super) strikes: u32,
    /// The claims it was told since it registered.
    pub(super) told: Option<Told>,
}

/// What a host does in a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Holds a part, wants nothing.
    Partial,
    /// Fetches on the scheduler's word; nobody on that host has asked for it.
    Fetching,
    /// Registered: wants the rest.
    Running,
    /// Holds everything, checked.
    Complete,
}

/// A parent, as its child's entry keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) parent: HostKey,
    /// KiB it brought since the last rotation.
    pub(super) kib: u32,
    /// It was there at the last rotation.
    pub(super) old: bool,
}

/// A parent that a child gave up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) parent: HostKey,
    pub(super) ends: BlockEnds,
}

/// Until when a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockEnds {
    /// A wrong leaf is not forgotten while the task runs.
    Never,
    /// The parent may be back then, or earlier if it opens a session other than this.
    At(Time, Option<SessionId>),
}

/// The peers of a task, by host and by where they stand.
#[derive(Debug, Default)]
pub(super) struct Members {
    peers: KeyMap<Peer>,
    scopes: HashMap<Scope, Group>,
    /// Scopes in which nobody holds everything any more.
    bereft: Vec<Scope>,
    running: KeySet,
    complete: KeySet,
}

/// Those who stand in one scope.
#[derive(Debug, Default)]
struct Group {
    hosts: KeySet,
    /// How many of them hold everything.
    complete: u32,
}

impl Peer {
    pub(super) fn new(phase: Phase) -> Self {
        Self {
            phase,
            held: 0,
            class: Class::Background,
            may_fetch: false,
            request: None,
            digests_known: false,
            parents: Vec::new(),
            children: Vec::new(),
            blocked: Vec::new(),
            rotate_at: 0,
            starved: Time::default(),
            strikes: 0,
            told: None,
        }
    }

    /// Whether it takes leaves from parents.
    pub(super) fn is_child(&self) -> bool {
        matches!(self.phase, Phase::Running | Phase::Fetching)
    }

    pub(super) fn has_parent(&self, host: HostKey) -> bool {
        self.parents.iter().any(|link| link.parent == host)
    }
}

impl Members {
    pub(super) fn get(&self, host: HostKey) -> Option<&Peer> {
        self.peers.get(&host)
    }

    /// For everything but the phase: see [`Self::set_phase`].
    pub(super) fn get_mut(&mut self, host: HostKey) -> Option<&mut Peer> {
        self.peers.get_mut(&host)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (HostKey, &Peer)> {
        self.peers.iter().map(|(host, peer)| (*host, peer))
    }

    pub(super) fn len(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Hosts that hold everything.
    pub(super) fn complete(&self) -> impl ExactSizeIterator<Item = HostKey> + '_ {
        self.complete.iter().copied()
    }

    /// Hosts that registered and have not finished.
    pub(super) fn running(&self) -> impl ExactSizeIterator<Item = HostKey> + '_ {
        self.running.iter().copied()
    }

    /// Adds a host if it is not there yet, and says what it does. `place` is the host's, and the same every time.
    pub(super) fn set_phase(&mut self, host: HostKey, place: &Place, phase: Phase) -> &mut Peer {
        let was_complete = self.complete.swap_remove(&host);
        self.running.swap_remove(&host);
        match phase {
            Phase::Complete => drop(self.complete.insert(host)),
            Phase::Running => drop(self.running.insert(host)),
            Phase::Partial | Phase::Fetching => {}
        }
        for scope in place.scopes() {
            let group = self.scopes.entry(scope).or_default();
            group.hosts.insert(host);
            group.complete += u32::from(phase == Phase::Complete);
        }
        if was_complete {
            self.less_complete(place);
        }
        let peer = self.peers.entry(host).or_insert_with(|| Peer::new(phase));
        peer.phase = phase;
        peer
    }

    pub(super) fn remove(&mut self, host: HostKey, place: &Place) -> Option<Peer> {
        self.running.swap_remove(&host);
        if self.complete.swap_remove(&host) {
            self.less_complete(place);
        }
        for scope in place.scopes() {
            if let Some(group) = self.scopes.get_mut(&scope) {
                group.hosts.swap_remove(&host);
                if group.hosts.is_empty() {
                    self.scopes.remove(&scope);
                }
            }
        }
        self.peers.swap_remove(&host)
    }

    /// Whether somebody in a scope holds everything.
    pub(super) fn has_complete(&self, scope: Scope) -> bool {
        self.scopes.get(&scope).is_some_and(|group| group.complete > 0)
    }

    /// Takes out the scopes in which the last one that held everything is gone.
    pub(super) fn take_bereft(&mut self) -> Vec<Scope> {
        std::mem::take(&mut self.bereft)
    }

    fn less_complete(&mut self, place: &Place) {
        for scope in place.scopes() {
            if let Some(group) = self.scopes.get_mut(&scope) {
                group.complete = group.complete.saturating_sub(1);
                if group.complete == 0 {
                    self.bereft.push(scope);
                }
            }
        }
    }

    /// Up to `count` hosts by chance: of those in `scope`, or of all.
    pub(super) fn sample(&self, scope: Option<Scope>, count: usize, rng: &mut impl Rng, chosen: &mut KeySet) {
        match scope {
            Some(scope) => {
                if let Some(hosts) = self.scopes.get(&scope).map(|group| &group.hosts) {
                    sample(hosts.len(), count, rng, |at| chosen.extend(hosts.get_index(at).copied()));
                }
            }
            None => {
                sample(self.peers.len(), count, rng, |at| {
                    chosen.extend(self.peers.get_index(at).map(|p| *p.0))
                });
            }
        }
    }

    /// Up to `count` of the hosts that hold everything, by chance.
    pub(super) fn sample_complete(&self, count: usize, rng: &mut impl Rng, chosen: &mut KeySet) {
        sample(self.complete.len(), count, rng, |at| chosen.extend(self.complete.get_index(at).copied()));
    }
}

/// All positions below `len` if there are no more than `count`, else `count` by chance, some perhaps twice.
fn sample(len: usize, count: usize, rng: &mut impl Rng, mut take: impl FnMut(usize)) {
    if len <= count {
        (0..len).for_each(take);
    } else {
        (0..count).for_each(|_| take(rng.random_range(0..len)));
    }
}
