//! A small deterministic cluster: peers that fetch leaves from each other in steps of 100 ms, as the scheduler under test
//! tells them to.

mod peer;
mod runs;

use std::collections::{BTreeMap, BTreeSet};

use darter_proto::scheduler::peer_message as said;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};

use self::peer::Peer;
use super::{super::*, invariants};

const TASK: &str = "sha256:51b";
const STEP_MILLIS: u64 = 100;

/// What happens in a simulation; a seed makes it happen the same way each time.
#[derive(Debug, Clone)]
struct Plan {
    peers: usize,
    seeds: usize,
    leaves: u32,
    /// All peers have come within so many steps.
    arrive_within: usize,
    /// Chance of each peer that it dies while it fetches. The seed peers live.
    deaths: f64,
    /// Peers that send wrong leaves.
    poisoners: usize,
    /// Step at which the scheduler is replaced by one that knows nothing.
    restart_at: Option<usize>,
    seed: u64,
}

struct Sim {
    plan: Plan,
    state: State,
    rng: Xoshiro256PlusPlus,
    peers: Vec<Peer>,
    by_name: BTreeMap<String, usize>,
    by_session: BTreeMap<SessionId, usize>,
    sessions: u64,
    step: usize,
    /// Leaves that the origin sent.
    origin_leaves: u64,
    messages: u64,
}

/// What came out of a simulation.
struct Outcome {
    steps: usize,
    origin_leaves: u64,
    messages: u64,
}

/// Runs until everybody who lives and wants the task has it.
fn run(plan: Plan) -> Outcome {
    let mut sim = Sim::new(plan);
    while !sim.is_done() {
        assert!(sim.step < 3000, "hangs with {} unfinished: {:?}", sim.unfinished(), sim.plan);
        sim.step();
    }
    Outcome { steps: sim.step, origin_leaves: sim.origin_leaves, messages: sim.messages }
}

impl Sim {
    fn new(plan: Plan) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(plan.seed);
        let mut peers: Vec<_> =
            (0..plan.seeds).map(|n| Peer::new(&format!("seed{n}"), true, plan.leaves)).collect();
        for n in 0..plan.peers {
            let mut peer = Peer::new(&format!("peer{n}"), false, plan.leaves);
            peer.arrives_at = rng.random_range(0..=plan.arrive_within);
            peer.poisons = n < plan.poisoners;
            let dies = rng.random_bool(plan.deaths);
            peer.dies_at = dies.then(|| peer.arrives_at + rng.random_range(1..60));
            peers.push(peer);
        }
        // Somebody must live to see the end.
        peers.last_mut().unwrap().dies_at = None;
        let by_name = peers.iter().enumerate().map(|(at, peer)| (peer.name.clone(), at)).collect();
        Self {
            state: settled(&plan),
            plan,
            rng,
            peers,
            by_name,
            by_session: BTreeMap::new(),
            sessions: 0,
            step: 0,
            origin_leaves: 0,
            messages: 0,
        }
    }

    fn is_done(&self) -> bool {
        self.step > self.plan.arrive_within && self.unfinished() == 0
    }

    fn unfinished(&self) -> usize {
        self.peers.iter().filter(|peer| peer.alive && peer.wants && !peer.is_complete()).count()
    }

    fn step(&mut self) {
        self.step += 1;
        if self.plan.restart_at == Some(self.step) {
            self.restart();
        }
        self.come_and_go();
        let mut order: Vec<_> = (0..self.peers.len()).collect();
        order.shuffle(&mut self.rng);
        for at in order {
            if self.peers[at].is_fetching() {
                self.fetch(at);
                self.report(at);
            }
        }
        self.on(Event::Tick);
        self.check();
    }

    /// The scheduler is gone; a new one knows nothing. The peers go on fetching, and come back within two seconds.
    fn restart(&mut self) {
        let now = Time::from_millis(self.step as u64 * STEP_MILLIS);
        self.state = State::new(Settings::default(), self.plan.seed + 1, now);
        self.by_session.clear();
        for peer in &mut self.peers {
            peer.session = None;
            peer.connects_at = self.step + self.rng.random_range(1..18);
        }
    }

    fn come_and_go(&mut self) {
        for at in 0..self.peers.len() {
            let peer = &mut self.peers[at];
            if peer.dies_at == Some(self.step) {
                peer.alive = false;
                if let Some(session) = peer.session.take() {
                    self.by_session.remove(&session);
                    self.on(Event::Closed(session));
                }
                continue;
            }
            let peer = &mut self.peers[at];
            peer.wants |= !peer.seed && self.step > peer.arrives_at;
            let here = peer.seed || peer.wants;
            if peer.alive && here && peer.session.is_none() && self.step >= peer.connects_at {
                self.connect(at);
            }
        }
    }

    fn connect(&mut self, at: usize) {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.by_session.insert(session, at);
        self.peers[at].session = Some(session);
        // What the new session says first is the whole parent set, and a new scheduler knows nothing of blocks.
        self.peers[at].parents.clear();
        self.peers[at].blocked.clear();
        self.on(Event::Opened(session));
        for message in self.peers[at].greeting() {
            self.say(at, message);
        }
    }

    fn say(&mut self, at: usize, message: said::Message) {
        if let Some(session) = self.peers[at].session {
            let message = proto::PeerMessage { message: Some(message) };
            self.on(Event::Message(session, Box::new(message)));
        }
    }

    fn on(&mut self, event: Event) {
        let now = Time::from_millis(self.step as u64 * STEP_MILLIS);
        for action in self.state.on(now, event) {
            match action {
                Action::Send(session, message) => {
                    let at = self.by_session[&session];
                    self.messages += 1;
                    let answer = self.peers[at].told(message.message.unwrap());
                    if let Some(answer) = answer {
                        self.say(at, answer);
                    }
                }
                Action::Close(_, reason) => panic!("a session was closed: {reason}"),
                Action::Note(_) => {}
            }
        }
    }

    /// Takes leaves from the origin or from parents, as many as fit into a step.
    fn fetch(&mut self, at: usize) {
        if self.peers[at].leased {
            let fetched = self.peers[at].read_origin();
            self.origin_leaves += u64::from(fetched.end - fetched.start);
            let digests = self.peers[at].digests(fetched);
            self.say(at, digests);
        }
        let mut missing: Vec<_> = self.peers[at].requestable().collect();
        missing.shuffle(&mut self.rng);
        let mut room = peer::LEAVES_PER_STEP;
        for leaf in missing {
            let holder = |name: &&String| {
                let parent = &self.peers[self.by_name[*name]];
                parent.alive && parent.has[leaf]
            };
            let holders: Vec<_> = self.peers[at].parents.iter().filter(holder).cloned().collect();
            if holders.is_empty() || room == 0 {
                continue;
            }
            room -= 1;
            let parent = &holders[self.rng.random_range(0..holders.len())];
            let poisoned = self.peers[self.by_name[parent]].poisons;
            self.peers[at].received(leaf, parent, poisoned);
        }
    }

    fn report(&mut self, at: usize) {
        if let Some(report) = self.peers[at].report() {
            self.say(at, report);
        }
        if self.peers[at].is_complete() {
            let finished = self.peers[at].finish();
            self.say(at, finished);
        }
    }

    /// What the peers were told is what the scheduler believes, and nobody was told a parent that it has blocked.
    fn check(&self) {
        invariants::check(&self.state);
        let Some(task) = self.state.tasks.get(TASK) else { return };
        for peer in self.peers.iter().filter(|peer| peer.session.is_some() && peer.is_fetching()) {
            let key = self.state.world.hosts.key(&ids::HostId::parse(&peer.name).unwrap()).unwrap();
            let Some(known) = task.peers.get(key) else { continue };
            let parents =
                known.parents.iter().map(|link| self.state.world.host_id(link.parent).unwrap().to_string());
            assert_eq!(parents.collect::<BTreeSet<_>>(), peer.parents, "parents of {}", peer.name);
            assert!(peer.parents.is_disjoint(&peer.blocked), "{} got a blocked parent", peer.name);
        }
    }
}

/// A scheduler that has been up for long.
fn settled(plan: &Plan) -> State {
    let settings = Settings { settle_time: std::time::Duration::ZERO, ..Settings::default() };
    State::new(settings, plan.seed, Time::default())
}
