//! The simulation: events in the order of their time, the real scheduler, and peers with the real plan.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use darter_integration::scenario::ScenarioKind;
use darter_peer::{
    Border, Class, Geometry, LeafSet,
    plan::{Claim, Plan},
};
use darter_proto::scheduler::{
    Fault, PeerMessage, SchedulerMessage, peer_message::Message as Said, scheduler_message::Message as Heard,
};
use darter_scheduler::state::{self, Action, SessionId, Settings};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::{
    peer::{Peer, Showing, State, duration, id_of},
    scenario::{self, Scenario},
    uplink::{Id, Micros, Pipe, Wanted},
};

/// One way between two hosts, the scheduler's among them.
const LATENCY: Micros = 500;
/// How often the scheduler is told that time has passed.
const TICK: Micros = 100_000;
/// How often a peer looks whether there is something to report although no leaf comes.
const LOOK: Micros = 1_000_000;
/// How often a source looks whether it should show something again.
const SHOW: Micros = 100_000;
/// All come within this when they come at once.
const AT_ONCE: Micros = 100_000;
/// A run that takes so many times the bound hangs.
const HANGS: f64 = 30.0;

/// Something that happens to somebody.
#[derive(Debug)]
enum Event {
    Arrives(Id),
    Killed(Id),
    Said(Id, Box<Said>),
    Heard(Id, Box<SchedulerMessage>),
    Subscribed {
        child: Id,
        parent: Id,
    },
    /// A leaf has left an uplink, unless that has changed since.
    Sent {
        parent: Id,
        version: u32,
    },
    Leaf {
        child: Id,
        parent: Id,
        leaf: u32,
        asked: Micros,
    },
    OriginLeaf {
        peer: Id,
        leaf: u32,
    },
    Look(Id),
    Show(Id),
    Tick,
}

/// An event and its time; earlier ones come first, equally early ones in the order in which they were made.
#[derive(Debug)]
struct Due {
    at: Micros,
    order: u64,
    event: Event,
}

/// A running simulation.
pub(crate) struct Sim {
    scenario: Scenario,
    geometry: Geometry,
    leaves: u32,
    now: Micros,
    order: u64,
    due: BinaryHeap<Reverse<Due>>,
    scheduler: state::State,
    peers: Vec<Peer>,
    /// Into each rack, and out of it.
    racks: Vec<[Pipe; 2]>,
    rng: Xoshiro256PlusPlus,
    waiting: u32,
    counts: Counts,
}

/// Sums over a run.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) messages_up: u64,
    pub(crate) messages_down: u64,
    pub(crate) origin_leaves: u64,
    pub(crate) seed_leaves: u64,
    pub(crate) cross_leaves: u64,
    pub(crate) leaves: u64,
    pub(crate) duplicates: u64,
    pub(crate) scheduler: Duration,
    /// Seconds after its arrival at which each peer that lives and is not slow has finished.
    pub(crate) times: Vec<f64>,
    pub(crate) simulated: f64,
}

/// Runs until everybody who lives has everything.
pub(crate) fn run(scenario: &Scenario) -> Result<Counts> {
    let mut sim = Sim::new(scenario)?;
    let hangs = (scenario.bound() * HANGS * 1e6) as Micros;
    while sim.waiting > 0 {
        let Some(Reverse(Due { at, event, .. })) = sim.due.pop() else {
            bail!("nothing happens any more, and {} peers wait: {scenario:?}", sim.waiting);
        };
        if at > hangs {
            bail!("hangs with {} of {} peers unfinished: {scenario:?}", sim.waiting, scenario.peers);
        }
        sim.now = at;
        sim.on(event);
    }
    Ok(sim.outcome())
}

impl Sim {
    fn new(scenario: &Scenario) -> Result<Self> {
        let settings = Settings { settle_time: Duration::ZERO, ..Settings::default() };
        let in_rack = f64::from(scenario.peers.div_ceil(scenario.racks));
        let rack = Pipe::new(scenario.rate as f64 / 1e6 * in_rack / scenario::OVERSUBSCRIBED);
        let mut sim = Self {
            geometry: scenario.geometry()?,
            leaves: scenario.leaves(),
            now: 0,
            order: 0,
            due: BinaryHeap::new(),
            scheduler: state::State::new(settings, scenario.seed, state::Time::default()),
            peers: (0..=scenario.peers).map(|id| Peer::new(id, scenario)).collect(),
            racks: vec![[rack; 2]; scenario.racks as usize + usize::from(scenario.seed_apart)],
            rng: Xoshiro256PlusPlus::seed_from_u64(scenario.seed),
            waiting: scenario.peers,
            counts: Counts::default(),
            scenario: scenario.clone(),
        };
        sim.cast();
        sim.after(0, Event::Tick);
        Ok(sim)
    }

    /// Who comes when, who is slow and who dies. The first peer is the seed peer.
    fn cast(&mut self) {
        let half = (self.scenario.bound() * 0.5e6) as Micros;
        let Self { scenario, peers, rng, .. } = self;
        for peer in peers.iter_mut() {
            peer.is_seed = peer.id == 0;
            if peer.is_seed {
                continue;
            }
            let within = if scenario.kind == ScenarioKind::Spread { half } else { AT_ONCE };
            peer.arrives = 1000 + rng.random_range(0..within);
            if scenario.kind == ScenarioKind::Slow && rng.random_bool(scenario::SLOW) {
                peer.slow = true;
                peer.at_rate(scenario.rate as f64 * scenario::SLOW_RATE, scenario);
            }
            if scenario.kind == ScenarioKind::Churn && rng.random_bool(scenario::KILLED) {
                peer.killed_at = Some(half);
            }
        }
        let first = u32::from(!self.scenario.with_seed);
        for id in first..=self.scenario.peers {
            let (arrives, killed_at) = self.with(id, |peer| (peer.arrives, peer.killed_at));
            self.after(arrives, Event::Arrives(id));
            if let Some(at) = killed_at {
                self.after(at, Event::Killed(id));
            }
        }
    }

    fn on(&mut self, event: Event) {
        match event {
            Event::Arrives(id) => self.arrives(id),
            Event::Killed(id) => self.killed(id),
            Event::Said(id, said) => self.tell(id, *said),
            Event::Heard(id, heard) => self.heard(id, *heard),
            Event::Subscribed { child, parent } => self.subscribed(child, parent),
            Event::Sent { parent, version } => self.sent(parent, version),
            Event::Leaf { child, parent, leaf, asked } => self.leaf(child, parent, leaf, asked),
            Event::OriginLeaf { peer, leaf } => self.origin_leaf(peer, leaf),
            Event::Look(id) => self.look(id),
            Event::Show(id) => {
                self.show(id);
                self.after(SHOW, Event::Show(id));
            }
            Event::Tick => {
                self.schedule(state::Event::Tick);
                self.after(TICK, Event::Tick);
            }
        }
    }

    fn arrives(&mut self, id: Id) {
        self.schedule(state::Event::Opened(session(id)));
        let announce = self.peer(id).announce(self.scenario.racks);
        self.say(id, announce);
        if id > 0 {
            let register = self.peer(id).register();
            self.with(id, |peer| peer.state = State::Fetching);
            self.say(id, register);
            // Not all at the same moment.
            let wait = self.rng.random_range(0..LOOK);
            self.after(wait, Event::Look(id));
        }
    }

    /// A peer is gone all of a sudden. Who is connected to it notices, and so does the scheduler.
    fn killed(&mut self, id: Id) {
        if self.peer(id).state == State::Fetching {
            self.waiting -= 1;
        }
        let (parents, children) = self.with(id, |peer| {
            (peer.state, peer.plan) = (State::Dead, None);
            (std::mem::take(&mut peer.parents), std::mem::take(&mut peer.children))
        });
        for parent in parents.into_keys() {
            self.leave(id, parent);
        }
        for child in children {
            self.with(child, |peer| peer.lose_parent(id, Fault::Gone));
            self.ask(child);
            self.report(child);
        }
        self.schedule(state::Event::Closed(session(id)));
    }

    /// The scheduler hears what a peer said.
    fn tell(&mut self, id: Id, said: Said) {
        if self.peer(id).state != State::Dead {
            let message = PeerMessage { message: Some(said) };
            self.schedule(state::Event::Message(session(id), Box::new(message)));
        }
    }

    fn heard(&mut self, id: Id, heard: SchedulerMessage) {
        if self.peer(id).state == State::Dead {
            return;
        }
        match heard.message {
            Some(Heard::TaskInfo(info)) => {
                let known = u32::try_from(info.digests.len() / 32).unwrap_or(u32::MAX);
                if info.leaves > 0 && matches!(self.peer(id).state, State::Fetching) {
                    self.plan(id);
                    self.learn(id, info.first..info.first + known);
                    self.ask(id);
                }
            }
            Some(Heard::Parents(change)) if self.peer(id).state == State::Fetching => {
                for parent in change.remove.iter().filter_map(|host| id_of(host)) {
                    self.leave(id, parent);
                    self.with(id, |peer| peer.lose_parent(parent, Fault::None));
                }
                for parent in change.add.iter().filter_map(|parent| id_of(&parent.host)) {
                    self.with(id, |peer| _ = peer.parents.entry(parent).or_default());
                    self.after(2 * LATENCY, Event::Subscribed { child: id, parent });
                }
                for claim in change.claims {
                    let claim = Claim { classes: claim.classes, mine: claim.mine };
                    self.with(id, |peer| {
                        peer.claim = Some(claim);
                        peer.plan.iter_mut().for_each(|plan| plan.claim(Border::Rack, claim));
                    });
                }
                self.ask(id);
            }
            Some(Heard::Lease(_) | Heard::Fetch(_)) => {
                let leaves = self.leaves;
                self.with(id, |peer| {
                    (peer.leased, peer.state) = (true, State::Fetching);
                    peer.showing = Some(Box::new(Showing::new(leaves)));
                });
                self.after(SHOW, Event::Show(id));
                self.after(self.leaf_time(), Event::OriginLeaf { peer: id, leaf: 0 });
            }
            _ => {}
        }
    }

    /// The geometry is known: the plan begins, with the parents that are known already.
    fn plan(&mut self, id: Id) {
        if self.peer(id).plan.is_some() {
            return;
        }
        let mut plan = Plan::new(self.geometry.clone(), LeafSet::new(self.leaves));
        plan.fill(Class::Stream);
        self.peer(id).claim.iter().for_each(|claim| plan.claim(Border::Rack, *claim));
        self.with(id, |peer| peer.plan = Some(Box::new(plan)));
        let parents: Vec<Id> = self.peer(id).parents.keys().copied().collect();
        for parent in parents {
            self.after(2 * LATENCY, Event::Subscribed { child: id, parent });
        }
    }

    fn learn(&mut self, id: Id, leaves: Range<u32>) {
        self.with(id, |peer| {
            if let Some(plan) = &mut peer.plan {
                leaves.for_each(|leaf| plan.know(leaf));
            }
        });
    }

    fn subscribed(&mut self, child: Id, parent: Id) {
        let here = self.peer(child);
        if here.state != State::Fetching || here.plan.is_none() || !here.parents.contains_key(&parent) {
            return;
        }
        if self.peer(parent).state == State::Dead {
            self.with(child, |peer| peer.lose_parent(parent, Fault::Unreachable));
            self.report(child);
            return;
        }
        let leaves = self.leaves;
        let rack = self.peer(child).rack;
        let has = self.with(parent, |peer| {
            if !peer.children.insert(child) {
                return Vec::new();
            }
            let beyond = peer.border_to(rack);
            if let Some(showing) = &mut peer.showing {
                showing.join(child, beyond);
                Vec::new()
            } else if peer.state == State::Done {
                std::iter::once(0..leaves).collect()
            } else {
                peer.plan.as_ref().map(|plan| plan.held().ranges()).unwrap_or_default()
            }
        });
        let (seed, rack) = (self.peer(parent).is_seed, self.peer(parent).rack);
        self.with(child, |peer| {
            let beyond = peer.border_to(rack);
            if let Some(plan) = &mut peer.plan {
                plan.add_parent(u64::from(parent), seed, beyond);
                plan.parent_has(u64::from(parent), &has);
            }
        });
        self.ask(child);
        self.show(parent);
    }

    /// The child is no child of this parent any more.
    fn leave(&mut self, child: Id, parent: Id) {
        self.with(parent, |peer| {
            peer.children.remove(&child);
            peer.uplink.cancel(child, None);
            if let Some(showing) = &mut peer.showing {
                showing.leave(child);
            }
        });
    }

    /// Sends the requests that the plan chooses.
    fn ask(&mut self, id: Id) {
        let now = self.now;
        let Self { peers, rng, .. } = self;
        let Some(plan) = peers.get_mut(id as usize).and_then(|peer| peer.plan.as_mut()) else { return };
        let requests = plan.pick(duration(now), false, rng);
        self.with(id, |peer| peer.hungry = requests.is_empty());
        for request in requests {
            let parent = Id::try_from(request.parent).unwrap_or(Id::MAX);
            for leaf in request.leaves {
                let wanted = Wanted { child: id, leaf, asked: now };
                let wants = |peer: &mut Peer| {
                    peer.showing.iter_mut().for_each(|showing| showing.asked(id, leaf, now));
                    peer.uplink.want(now, wanted)
                };
                if self.with(parent, wants) {
                    self.foresee(parent);
                }
            }
        }
    }

    fn foresee(&mut self, parent: Id) {
        if let Some((at, version)) = self.peer(parent).uplink.next_end() {
            self.at(at, Event::Sent { parent, version });
        }
    }

    fn sent(&mut self, parent: Id, version: u32) {
        let now = self.now;
        let sent = self.with(parent, |peer| peer.uplink.ended(now, version));
        if sent.is_empty() || self.peer(parent).state == State::Dead {
            return;
        }
        self.foresee(parent);
        let unit = self.scenario.unit;
        for sent in sent {
            let Wanted { child, leaf, asked } = sent.wanted;
            let mut at = self.with(child, |peer| peer.downlink.pass(unit, sent.since, now));
            let (from, to) = (self.peer(parent).rack, self.peer(child).rack);
            if from != to {
                for (rack, way) in [(to, 0), (from, 1)] {
                    if let Some(pipe) = self.racks.get_mut(rack as usize).and_then(|rack| rack.get_mut(way)) {
                        at = at.max(pipe.pass(unit, sent.since, now));
                    }
                }
                self.counts.cross_leaves += 1;
            }
            self.counts.seed_leaves += u64::from(self.peer(parent).is_source());
            self.with(parent, |peer| {
                if let Some(showing) = &mut peer.showing {
                    showing.answered(child, leaf, true, now);
                }
            });
            self.at(at + LATENCY, Event::Leaf { child, parent, leaf, asked });
        }
        self.show(parent);
    }

    fn leaf(&mut self, child: Id, parent: Id, leaf: u32, asked: Micros) {
        self.counts.leaves += 1;
        let (now, unit) = (self.now, self.scenario.unit);
        if self.peer(child).holds(leaf) {
            self.counts.duplicates += 1;
            return;
        }
        let Some(others) = self.with(child, |peer| {
            let plan = peer.plan.as_mut()?;
            let others = plan.arrived(leaf, u64::from(parent), duration(now));
            plan.landed(leaf);
            peer.count_leaf(now, parent, asked, unit);
            Some(others)
        }) else {
            return;
        };
        for other in others.into_iter().filter_map(|other| Id::try_from(other).ok()) {
            self.with(other, |peer| {
                if peer.uplink.cancel(child, Some(leaf))
                    && let Some(showing) = &mut peer.showing
                {
                    showing.answered(child, leaf, false, now);
                }
            });
        }
        self.landed(child, leaf);
        self.report(child);
    }

    /// A source shows its children what it is their turn to get.
    fn show(&mut self, source: Id) {
        let now = self.now;
        // What is shown may be asked for at once, and that may free a turn.
        loop {
            let shown = self.with(source, |peer| peer.showing.as_mut().map(|showing| showing.show(now)));
            let shown = shown.unwrap_or_default();
            if shown.is_empty() {
                return;
            }
            for (child, leaves) in shown {
                self.has(source, child, &leaves);
            }
        }
    }

    /// A child hears that a parent has leaves.
    fn has(&mut self, parent: Id, child: Id, leaves: &[u32]) {
        let ask = self.with(child, |peer| {
            if let Some(plan) = &mut peer.plan {
                leaves.iter().for_each(|leaf| {
                    plan.parent_has(u64::from(parent), std::slice::from_ref(&(*leaf..leaf + 1)))
                });
            }
            peer.hungry
        });
        if ask || self.peer(parent).is_source() {
            self.ask(child);
        }
    }

    fn origin_leaf(&mut self, id: Id, leaf: u32) {
        let (now, unit) = (self.now, self.scenario.unit);
        if self.peer(id).state != State::Fetching {
            return;
        }
        self.plan(id);
        if !self.peer(id).holds(leaf) {
            self.counts.origin_leaves += 1;
            self.with(id, |peer| {
                peer.count_origin(now, unit);
                if let Some(plan) = &mut peer.plan {
                    plan.know(leaf);
                    plan.landed(leaf);
                }
            });
            let digests = self.peer(id).digests(leaf, &self.scenario);
            self.say(id, digests);
            self.landed(id, leaf);
            self.report(id);
        }
        if leaf + 1 < self.leaves {
            self.after(self.leaf_time(), Event::OriginLeaf { peer: id, leaf: leaf + 1 });
        }
    }

    /// A leaf is here: the children hear of it, and the plan goes on.
    fn landed(&mut self, id: Id, leaf: u32) {
        let leaves = self.leaves;
        if self.with(id, |peer| peer.showing.as_mut().map(|showing| showing.holds(leaf))).is_some() {
            self.show(id);
        } else {
            let children: Vec<Id> = self.peer(id).children.iter().copied().collect();
            for child in children {
                self.has(id, child, &[leaf]);
            }
        }
        if self.peer(id).held(leaves) == leaves {
            self.done(id);
        } else {
            self.ask(id);
        }
    }

    fn done(&mut self, id: Id) {
        let now = self.now;
        let finished = self.peer(id).finished(&self.scenario);
        let parents = self.with(id, |peer| {
            (peer.state, peer.plan, peer.finished) = (State::Done, None, Some(now));
            std::mem::take(&mut peer.parents)
        });
        for parent in parents.into_keys() {
            self.leave(id, parent);
        }
        self.say(id, finished);
        if !self.peer(id).is_seed {
            self.waiting -= 1;
        }
    }

    fn look(&mut self, id: Id) {
        if self.peer(id).state == State::Fetching {
            self.ask(id);
            self.report(id);
            self.after(LOOK, Event::Look(id));
        }
    }

    fn report(&mut self, id: Id) {
        let (now, unit, leaves) = (self.now, self.scenario.unit, self.leaves);
        if let Some(said) = self.with(id, |peer| peer.report(now, unit, leaves)) {
            self.say(id, said);
        }
    }

    fn say(&mut self, id: Id, said: Said) {
        self.counts.messages_up += 1;
        self.after(LATENCY, Event::Said(id, Box::new(said)));
    }

    /// Gives the scheduler an event and does what it decides.
    fn schedule(&mut self, event: state::Event) {
        let began = Instant::now();
        let actions = self.scheduler.on(state::Time::from_millis(self.now / 1000), event);
        self.counts.scheduler += began.elapsed();
        for action in actions {
            if let Action::Send(session, message) = action {
                self.counts.messages_down += 1;
                let id = Id::try_from(session.0).unwrap_or(Id::MAX);
                self.after(LATENCY, Event::Heard(id, message));
            }
        }
    }

    /// What the origin, or an uplink by itself, needs for a leaf.
    fn leaf_time(&self) -> Micros {
        self.scenario.unit * 1_000_000 / self.scenario.rate
    }

    fn after(&mut self, wait: Micros, event: Event) {
        self.at(self.now + wait, event);
    }

    fn at(&mut self, at: Micros, event: Event) {
        self.order += 1;
        self.due.push(Reverse(Due { at, order: self.order, event }));
    }

    #[expect(clippy::indexing_slicing, reason = "peers are numbered from 0 and none is ever taken out")]
    fn peer(&self, id: Id) -> &Peer {
        &self.peers[id as usize]
    }

    #[expect(clippy::indexing_slicing, reason = "as above")]
    fn with<T>(&mut self, id: Id, change: impl FnOnce(&mut Peer) -> T) -> T {
        change(&mut self.peers[id as usize])
    }

    fn outcome(self) -> Counts {
        let normal = self.peers.iter().filter(|peer| !peer.is_seed && !peer.slow);
        let times = normal.filter_map(|peer| Some((peer.finished? - peer.arrives) as f64 / 1e6)).collect();
        Counts { times, simulated: self.now as f64 / 1e6, ..self.counts }
    }
}

fn session(id: Id) -> SessionId {
    SessionId(u64::from(id))
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}
