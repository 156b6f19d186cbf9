//! A peer of the simulation: the real plan, and around it what a download does for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use darter_peer::{
    Border,
    plan::{ChildKey, Claim, Offers, Plan},
};
use darter_proto::scheduler::{
    Announce, Digests, Fault, Finished, Host, ParentReport, Place, Progress, Register, Source, Task,
    TaskProgress, peer_message::Message as Said,
};

use super::{
    scenario::Scenario,
    uplink::{Id, Micros, Pipe, Uplink},
};

/// The one task of a simulation.
pub(crate) const TASK: &str = "sha256:51b";
/// Progress is reported after so much more of the content, or after so long; and no more often than `REPORT`.
const REPORT_SHARE: u32 = 20;
const REPORT: Micros = 250_000;
const REPORT_AFTER: Micros = 2_000_000;
/// Without a leaf for so long the scheduler is told.
const STARVING_AFTER: Micros = 700_000;

/// What a peer is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there yet; a seed peer that nothing was asked of.
    Idle,
    Fetching,
    Done,
    Dead,
}

#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) id: Id,
    pub(crate) is_seed: bool,
    pub(crate) rack: u32,
    pub(crate) arrives: Micros,
    pub(crate) killed_at: Option<Micros>,
    pub(crate) slow: bool,
    pub(crate) state: State,
    /// Known once the content's length is; gone when everything is here.
    pub(crate) plan: Option<Box<Plan>>,
    /// What it is to bring into its rack, once the scheduler has said so.
    pub(crate) claim: Option<Claim>,
    pub(crate) leased: bool,
    /// Who serves this peer, and what it was told since the last report.
    pub(crate) parents: BTreeMap<Id, Report>,
    /// Whom this peer serves.
    pub(crate) children: BTreeSet<Id>,
    /// What a source shows to its children.
    pub(crate) showing: Option<Box<Showing>>,
    pub(crate) uplink: Uplink,
    pub(crate) downlink: Pipe,
    /// The plan found nothing to ask for: it is asked again as soon as a parent has something new.
    pub(crate) hungry: bool,
    pub(crate) finished: Option<Micros>,
    pub(crate) last_leaf: Micros,
    /// Reports of parents that are gone.
    last_words: Vec<ParentReport>,
    from_origin: u64,
    from_peers: u64,
    reported: Micros,
    reported_held: u32,
}

/// What a source shows to whom.
#[derive(Debug)]
pub(crate) struct Showing {
    offers: Offers,
    children: BTreeMap<Id, ChildKey>,
    ids: BTreeMap<ChildKey, Id>,
}

impl Showing {
    pub(crate) fn new(leaves: u32) -> Self {
        Self { offers: Offers::new(leaves), children: BTreeMap::new(), ids: BTreeMap::new() }
    }

    pub(crate) fn join(&mut self, child: Id, beyond: Option<Border>) {
        let key = self.offers.join(beyond);
        self.children.insert(child, key);
        self.ids.insert(key, child);
    }

    pub(crate) fn leave(&mut self, child: Id) {
        if let Some(key) = self.children.remove(&child) {
            self.ids.remove(&key);
            self.offers.leave(key);
        }
    }

    pub(crate) fn holds(&mut self, leaf: u32) {
        self.offers.holds(std::slice::from_ref(&(leaf..leaf + 1)));
    }

    pub(crate) fn asked(&mut self, child: Id, leaf: u32, now: Micros) {
        if let Some(key) = self.children.get(&child) {
            self.offers.asked(*key, leaf, duration(now));
        }
    }

    pub(crate) fn answered(&mut self, child: Id, leaf: u32, sent: bool, now: Micros) {
        if let Some(key) = self.children.get(&child) {
            self.offers.answered(*key, leaf, sent, duration(now));
        }
    }

    /// What is to be shown to whom now.
    pub(crate) fn show(&mut self, now: Micros) -> Vec<(Id, Vec<u32>)> {
        let shown = self.offers.show(duration(now));
        shown.into_iter().filter_map(|(key, leaves)| Some((*self.ids.get(&key)?, leaves))).collect()
    }
}

/// How a parent did since the last report.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Report {
    leaves: u32,
    waited: Micros,
}

impl Peer {
    pub(crate) fn new(id: Id, scenario: &Scenario) -> Self {
        let rate = scenario.rate as f64 / 1e6;
        Self {
            id,
            is_seed: false,
            rack: if id == 0 && scenario.seed_apart { scenario.racks } else { id % scenario.racks },
            arrives: 0,
            killed_at: None,
            slow: false,
            state: State::Idle,
            plan: None,
            claim: None,
            leased: false,
            parents: BTreeMap::new(),
            children: BTreeSet::new(),
            showing: None,
            uplink: Uplink::new(rate, scenario.uploads, scenario.unit),
            downlink: Pipe::new(rate),
            hungry: true,
            finished: None,
            last_leaf: 0,
            last_words: Vec::new(),
            from_origin: 0,
            from_peers: 0,
            reported: 0,
            reported_held: 0,
        }
    }

    /// Gives it links of another rate, in bytes per second.
    pub(crate) fn at_rate(&mut self, rate: f64, scenario: &Scenario) {
        self.uplink = Uplink::new(rate / 1e6, scenario.uploads, scenario.unit);
        self.downlink = Pipe::new(rate / 1e6);
    }

    pub(crate) fn announce(&self, racks: u32) -> Said {
        let rack = if racks > 1 { format!("r{}", self.rack) } else { String::new() };
        Said::Announce(Announce {
            host: Some(Host {
                id: host_id(self.id),
                name: host_id(self.id),
                transfer_address: "10.0.0.1:7401".to_owned(),
                place: Some(Place { rack, ..Place::default() }),
                seed: self.is_seed,
                upload_slots: 0,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
        })
    }

    /// The border between this peer and another one.
    pub(crate) fn border_to(&self, rack: u32) -> Option<Border> {
        (self.rack != rack).then_some(Border::Rack)
    }

    pub(crate) fn register(&self) -> Said {
        let source = Source { url: "https://origin.example/v2/blob".to_owned(), headers: Vec::new() };
        Said::Register(Register {
            task: Some(Task { id: TASK.to_owned(), source: Some(source) }),
            held: 0,
            class: 1,
            digests_known: false,
            moved: false,
            from_origin: false,
        })
    }

    pub(crate) fn held(&self, leaves: u32) -> u32 {
        match (&self.plan, self.state) {
            (_, State::Done) => leaves,
            (Some(plan), _) => plan.held().count(),
            (None, _) => 0,
        }
    }

    pub(crate) fn holds(&self, leaf: u32) -> bool {
        self.state == State::Done || self.plan.as_ref().is_some_and(|plan| plan.held().contains(leaf))
    }

    /// Whether it shows each leaf to one child only, as who reads the origin does, and a seed peer.
    pub(crate) fn is_source(&self) -> bool {
        self.is_seed || self.leased
    }

    pub(crate) fn count_leaf(&mut self, now: Micros, parent: Id, asked: Micros, bytes: u64) {
        if let Some(report) = self.parents.get_mut(&parent) {
            report.leaves += 1;
            report.waited += now - asked;
        }
        self.from_peers += bytes;
        self.last_leaf = now;
    }

    pub(crate) fn count_origin(&mut self, now: Micros, bytes: u64) {
        self.from_origin += bytes;
        self.last_leaf = now;
    }

    /// A parent is gone, or could not be reached.
    pub(crate) fn lose_parent(&mut self, parent: Id, fault: Fault) {
        if self.parents.remove(&parent).is_some() && fault != Fault::None {
            let report = ParentReport { host: host_id(parent), fault: fault.into(), ..Default::default() };
            self.last_words.push(report);
        }
        if let Some(plan) = &mut self.plan {
            plan.remove_parent(u64::from(parent));
        }
    }

    /// What the scheduler is to be told now, if anything.
    pub(crate) fn report(&mut self, now: Micros, unit: u64, leaves: u32) -> Option<Said> {
        let held = self.held(leaves);
        let wants = self.state == State::Fetching && self.plan.as_ref().is_some_and(|plan| plan.wants());
        let starving = wants && now - self.last_leaf >= STARVING_AFTER;
        let further = held - self.reported_held >= (leaves / REPORT_SHARE).max(1);
        let since = now - self.reported;
        let due = since >= REPORT && (further || starving || !self.last_words.is_empty());
        let changed = self.from_origin > 0 || self.from_peers > 0;
        let quiet = since < REPORT_AFTER || !changed;
        if quiet && !due {
            return None;
        }
        (self.reported, self.reported_held) = (now, held);
        let mut parents = std::mem::take(&mut self.last_words);
        for (parent, report) in self.parents.iter_mut().filter(|(_, report)| report.leaves > 0) {
            let Report { leaves, waited } = std::mem::take(report);
            parents.push(ParentReport {
                host: host_id(*parent),
                bytes: u64::from(leaves) * unit,
                busy_us: waited,
                leaves,
                ..ParentReport::default()
            });
        }
        let progress = TaskProgress {
            task: TASK.to_owned(),
            held,
            from_origin: std::mem::take(&mut self.from_origin),
            from_peers: std::mem::take(&mut self.from_peers),
            parents,
            starving,
        };
        Some(Said::Progress(Progress { tasks: vec![progress] }))
    }

    pub(crate) fn digests(&self, leaf: u32, scenario: &Scenario) -> Said {
        Said::Digests(Digests {
            task: TASK.to_owned(),
            length: scenario.bytes,
            leaves: scenario.leaves(),
            first: leaf,
            digests: leaf.to_le_bytes().repeat(8).into(),
            verified: false,
        })
    }

    pub(crate) fn finished(&self, scenario: &Scenario) -> Said {
        Said::Finished(Finished { task: TASK.to_owned(), length: scenario.bytes, leaves: scenario.leaves() })
    }
}

pub(crate) fn host_id(id: Id) -> String {
    format!("peer-{id}")
}

/// The peer with this host id.
pub(crate) fn id_of(host: &str) -> Option<Id> {
    host.strip_prefix("peer-")?.parse().ok()
}

/// As the plan counts time.
pub(crate) fn duration(now: Micros) -> Duration {
    Duration::from_micros(now)
}
