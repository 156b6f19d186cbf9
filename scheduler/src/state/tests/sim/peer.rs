//! A peer as the scheduler sees it.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use darter_proto::scheduler::peer_message as said;

use super::{super::super::*, TASK};

/// Leaves that a peer takes from its parents, and from the origin, in one step.
pub(super) const LEAVES_PER_STEP: usize = 8;
const ORIGIN_LEAVES_PER_STEP: u32 = 8;
const LEAF_LEN: u64 = 10;

pub(super) struct Peer {
    pub(super) name: String,
    pub(super) seed: bool,
    pub(super) poisons: bool,
    pub(super) alive: bool,
    pub(super) wants: bool,
    pub(super) arrives_at: usize,
    pub(super) dies_at: Option<usize>,
    pub(super) connects_at: usize,
    pub(super) session: Option<SessionId>,
    pub(super) leased: bool,
    pub(super) has: Vec<bool>,
    pub(super) parents: BTreeSet<String>,
    pub(super) blocked: BTreeSet<String>,
    digest_known: Vec<bool>,
    finished: bool,
    reported: u32,
    from_origin: u64,
    served: BTreeMap<String, u32>,
    wrong: BTreeSet<String>,
}

impl Peer {
    pub(super) fn new(name: &str, seed: bool, leaves: u32) -> Self {
        Self {
            name: name.to_owned(),
            seed,
            poisons: false,
            alive: true,
            wants: false,
            arrives_at: 0,
            dies_at: None,
            connects_at: 0,
            session: None,
            leased: false,
            has: vec![false; leaves as usize],
            parents: BTreeSet::new(),
            blocked: BTreeSet::new(),
            digest_known: vec![false; leaves as usize],
            finished: false,
            reported: 0,
            from_origin: 0,
            served: BTreeMap::new(),
            wrong: BTreeSet::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.has.iter().all(|has| *has)
    }

    pub(super) fn is_fetching(&self) -> bool {
        self.alive && !self.finished && (self.wants || self.leased)
    }

    fn held(&self) -> u32 {
        u32::try_from(self.has.iter().filter(|has| **has).count()).unwrap()
    }

    fn leaves(&self) -> u32 {
        u32::try_from(self.has.len()).unwrap()
    }

    fn length(&self) -> u64 {
        u64::from(self.leaves()) * LEAF_LEN
    }

    /// What a session begins with.
    pub(super) fn greeting(&self) -> Vec<said::Message> {
        let host = proto::Host {
            id: self.name.clone(),
            transfer_address: "127.0.0.1:7400".into(),
            seed: self.seed,
            ..Default::default()
        };
        let mut greeting = vec![said::Message::Announce(proto::Announce { host: Some(host) })];
        let held = self.held();
        if held > 0 {
            let task = TASK.into();
            let (length, leaves, verified) = (self.length(), self.leaves(), self.finished);
            let tasks = vec![proto::Holding { task, length, leaves, verified, held }];
            greeting.push(said::Message::Holdings(proto::Holdings { tasks, layers: vec![] }));
        }
        if self.is_fetching() {
            let source = proto::Source { url: "http://origin/".into(), headers: vec![] };
            let task = Some(proto::Task { id: TASK.into(), source: Some(source) });
            let (class, from_origin) = (1, self.leased);
            let register =
                proto::Register { task, held, class, digests_known: false, from_origin, moved: false };
            greeting.push(said::Message::Register(register));
        }
        greeting
    }

    /// Takes up what the scheduler says; returns what there is to answer.
    pub(super) fn told(&mut self, message: says::Message) -> Option<said::Message> {
        match message {
            says::Message::TaskInfo(info) => {
                let count = u32::try_from(info.digests.len() / 32).unwrap();
                (info.first..info.first + count).for_each(|leaf| self.digest_known[leaf as usize] = true);
            }
            says::Message::Parents(change) => {
                self.parents.retain(|parent| !change.remove.contains(parent));
                self.parents.extend(change.add.into_iter().map(|parent| parent.host));
            }
            says::Message::Lease(_) | says::Message::Fetch(_) => self.leased = true,
            says::Message::SendDigests(_) => {
                let known = (0..self.leaves()).take_while(|leaf| self.digest_known[*leaf as usize]).count();
                return Some(self.digests(0..u32::try_from(known).unwrap()));
            }
            says::Message::Welcome(_) => {}
            other => panic!("{} was told {other:?}", self.name),
        }
        None
    }

    /// The next leaves from the origin, in order.
    pub(super) fn read_origin(&mut self) -> Range<u32> {
        let first = u32::try_from(self.has.iter().position(|has| !has).unwrap_or(self.has.len())).unwrap();
        let mut end = first;
        while end < self.leaves() && end < first + ORIGIN_LEAVES_PER_STEP && !self.has[end as usize] {
            self.has[end as usize] = true;
            self.digest_known[end as usize] = true;
            end += 1;
        }
        self.from_origin += u64::from(end - first) * LEAF_LEN;
        first..end
    }

    pub(super) fn digests(&self, leaves: Range<u32>) -> said::Message {
        let digest = |leaf: u32| leaf.to_le_bytes().repeat(8);
        said::Message::Digests(proto::Digests {
            task: TASK.into(),
            length: self.length(),
            leaves: self.leaves(),
            first: leaves.start,
            digests: leaves.flat_map(digest).collect(),
            verified: self.finished,
        })
    }

    /// Leaves that are missing and could be checked.
    pub(super) fn requestable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.has.len()).filter(|leaf| !self.has[*leaf] && self.digest_known[*leaf])
    }

    pub(super) fn received(&mut self, leaf: usize, parent: &str, poisoned: bool) {
        if poisoned {
            self.parents.remove(parent);
            self.blocked.insert(parent.to_owned());
            self.wrong.insert(parent.to_owned());
        } else {
            self.has[leaf] = true;
            *self.served.entry(parent.to_owned()).or_default() += 1;
        }
    }

    /// How it went since the last report, if there is anything to say.
    pub(super) fn report(&mut self) -> Option<said::Message> {
        let held = self.held();
        let starving = held == self.reported && !self.is_complete();
        self.reported = held;
        let report = |host: &String, leaves: u32, fault: proto::Fault| proto::ParentReport {
            host: host.clone(),
            bytes: u64::from(leaves) * LEAF_LEN,
            busy_us: u64::from(leaves) * 10_000,
            leaves,
            fault: fault.into(),
            reason: String::new(),
        };
        let served = self.served.iter().map(|(host, leaves)| report(host, *leaves, proto::Fault::None));
        let wrong = self.wrong.iter().map(|host| report(host, 0, proto::Fault::WrongLeaf));
        let task = proto::TaskProgress {
            task: TASK.into(),
            held,
            from_origin: self.from_origin,
            from_peers: self.served.values().map(|leaves| u64::from(*leaves) * LEAF_LEN).sum(),
            parents: served.chain(wrong).collect(),
            starving,
        };
        self.served.clear();
        self.wrong.clear();
        self.from_origin = 0;
        Some(said::Message::Progress(proto::Progress { tasks: vec![task] }))
    }

    pub(super) fn finish(&mut self) -> said::Message {
        self.finished = true;
        self.leased = false;
        self.parents.clear();
        said::Message::Finished(proto::Finished {
            task: TASK.into(),
            length: self.length(),
            leaves: self.leaves(),
        })
    }
}
