//! The hosts this scheduler knows, by session and by what they hold.

use std::{collections::HashMap, time::Duration};

use darter_proto::scheduler as proto;
use indexmap::IndexSet;

use super::{
    conduct::Conduct,
    history::Served,
    ids::{HostId, HostKey, KeyMap, KeySet, SessionId, TaskId},
    message::Announce,
    place::Place,
    settings::Settings,
    time::Time,
};

/// A host that has served, or is a bad node, is remembered for so long without a session.
pub(super) const REMEMBERED: Duration = Duration::from_secs(600);

/// How much more a seed peer serves than another host.
const SEED_SLOTS: u32 = 4;

/// One peer process on one host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) id: HostId,
    pub(super) announced: proto::Host,
    pub(super) place: Place,
    /// `None` while it is away.
    pub(super) session: Option<SessionId>,
    /// When the last session ended.
    pub(super) away_since: Time,
    /// Whether a reminder to forget it is under way.
    pub(super) away_watched: bool,
    /// It said that it goes; nothing is asked of it any more.
    pub(super) leaving: bool,
    /// It has a session and does not answer.
    pub(super) mute: bool,
    /// Children in all tasks.
    pub(super) children: u32,
    /// Tasks it takes part in.
    pub(super) tasks: IndexSet<TaskId>,
    /// Blobs whose layer it announced.
    pub(super) layers: IndexSet<TaskId>,
    pub(super) served: Served,
    pub(super) conduct: Conduct,
}

/// All hosts that have a session or had one not long ago.
#[derive(Debug, Default)]
pub(super) struct Hosts {
    by_key: KeyMap<Host>,
    by_id: HashMap<HostId, HostKey>,
    seeds: KeySet,
    next: u64,
}

impl Host {
    pub(super) fn is_seed(&self) -> bool {
        self.announced.seed
    }

    /// Whether something may be asked of it: it is here, stays, and behaves.
    pub(super) fn is_available(&self, now: Time) -> bool {
        self.session.is_some() && !self.leaving && !self.mute && !self.conduct.is_ejected(now)
    }

    /// Whether something is known of it that it would not say itself.
    pub(super) fn has_record(&self) -> bool {
        self.served.response.mean().is_some() || !self.conduct.is_clean()
    }

    /// How many children it serves before others are preferred.
    pub(super) fn slots(&self, settings: &Settings) -> u32 {
        match self.announced.upload_slots {
            0 if self.is_seed() => settings.children_per_parent.saturating_mul(SEED_SLOTS),
            0 => settings.children_per_parent,
            wanted => wanted,
        }
    }
}

impl Hosts {
    pub(super) fn get(&self, key: HostKey) -> Option<&Host> {
        self.by_key.get(&key)
    }

    pub(super) fn get_mut(&mut self, key: HostKey) -> Option<&mut Host> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn key(&self, id: &HostId) -> Option<HostKey> {
        self.by_id.get(id).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (HostKey, &Host)> {
        self.by_key.iter().map(|(key, host)| (*key, host))
    }

    /// Seed peers that something may be asked of.
    pub(super) fn seeds(&self, now: Time) -> impl Iterator<Item = (HostKey, &Host)> {
        let known = self.seeds.iter().filter_map(|key| Some((*key, self.get(*key)?)));
        known.filter(move |(_, host)| host.is_available(now))
    }

    pub(super) fn is_available(&self, key: HostKey, now: Time) -> bool {
        self.get(key).is_some_and(|host| host.is_available(now))
    }

    /// Whether it was announced as a seed peer.
    pub(super) fn is_seed(&self, key: HostKey) -> bool {
        self.get(key).is_some_and(Host::is_seed)
    }

    /// A host speaks through a new session. What is known of its conduct stays; what it holds it will say again.
    pub(super) fn announce(&mut self, session: SessionId, announce: Announce) -> HostKey {
        let Announce { id, host: announced } = announce;
        let key = *self.by_id.entry(id.clone()).or_insert_with(|| {
            self.next += 1;
            HostKey(self.next)
        });
        let seed = announced.seed;
        let place = announced.place.as_ref().map(Place::new).unwrap_or_default();
        let host = self.by_key.entry(key).or_insert_with(|| Host::new(id));
        host.session = Some(session);
        host.leaving = false;
        host.place = place;
        host.announced = announced;
        self.set_seed(key, seed);
        key
    }

    /// The host is a seed peer from now on, or is none.
    pub(super) fn set_seed(&mut self, key: HostKey, seed: bool) {
        if let Some(host) = self.by_key.get_mut(&key) {
            host.announced.seed = seed;
        }
        if seed {
            self.seeds.insert(key);
        } else {
            self.seeds.swap_remove(&key);
        }
    }

    /// Forgets a host; the caller has taken it out of all tasks and layers.
    pub(super) fn forget(&mut self, key: HostKey) {
        if let Some(host) = self.by_key.swap_remove(&key) {
            self.by_id.remove(&host.id);
            self.seeds.swap_remove(&key);
        }
    }
}

impl Host {
    fn new(id: HostId) -> Self {
        Self {
            id,
            announced: proto::Host::default(),
            place: Place::default(),
            session: None,
            away_since: Time::default(),
            away_watched: false,
            leaving: false,
            mute: false,
            children: 0,
            tasks: IndexSet::new(),
            layers: IndexSet::new(),
            served: Served::default(),
            conduct: Conduct::default(),
        }
    }
}
