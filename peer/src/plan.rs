//! Which leaf a child asks of which parent.
//!
//! Pure: time and chance come from outside, so that tests and simulations drive the same code as a transfer. Whoever
//! drives it tells what parents say and send ([`Plan::parent_has`], [`Plan::arrived`], [`Plan::landed`], …) and sends
//! what [`Plan::pick`] returns.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::Duration,
};

use rand::{Rng, RngExt};

use crate::{Class, Geometry, LeafSet};

/// Leaves asked of one parent and not yet here, at most.
const WINDOW: u32 = 8;
/// The same for what nobody waits for: a container's read must not wait behind much of it.
const BACKGROUND_WINDOW: u32 = 2;
/// Leaves of one request, at most.
const RUN: u32 = 4;
/// How many places are looked at for a rare leaf.
const SAMPLES: u32 = 16;
/// A leaf of a waiting container that is in flight for so long is asked of a second parent.
const HEDGE_DEMAND: Duration = Duration::from_millis(200);
/// The same for everything else.
const HEDGE: Duration = Duration::from_secs(2);
/// A parent that is too busy is not asked for so long.
const REST: Duration = Duration::from_millis(100);

/// Names a parent within one download.
pub type Key = u64;

/// What is wanted, what the parents have, and what is in flight.
#[derive(Debug)]
pub struct Plan {
    geometry: Geometry,
    /// Leaves that are here.
    held: LeafSet,
    /// Leaves whose digest is known: only these may be asked of parents.
    known: LeafSet,
    /// Known, not here, not in flight.
    open: LeafSet,
    /// Leaves a reader waits for.
    demanded: BTreeSet<(Class, u32)>,
    /// All leaves are wanted.
    fill: Option<Class>,
    /// There is no room to keep leaves: only what a reader waits for is wanted.
    passing: bool,
    parents: BTreeMap<Key, Parent>,
    in_flight: HashMap<u32, Vec<Flight>>,
    /// How many parents have each leaf.
    copies: Vec<u16>,
    /// No leaf before this one is open.
    cursor: u32,
}

#[derive(Debug)]
struct Parent {
    have: LeafSet,
    in_flight: u32,
    rests_until: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    parent: Key,
    since: Duration,
}

/// A request to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Whom to ask.
    pub parent: Key,
    /// What to ask for.
    pub leaves: Range<u32>,
    /// How urgent it is.
    pub class: Class,
}

impl Plan {
    /// A plan for a content of which `held` is here.
    pub fn new(geometry: Geometry, held: LeafSet) -> Self {
        let leaves = geometry.leaves();
        Self {
            geometry,
            held,
            known: LeafSet::new(leaves),
            open: LeafSet::new(leaves),
            demanded: BTreeSet::new(),
            fill: None,
            passing: false,
            parents: BTreeMap::new(),
            in_flight: HashMap::new(),
            copies: vec![0; leaves as usize],
            cursor: 0,
        }
    }

    /// Leaves that are here.
    pub fn held(&self) -> &LeafSet {
        &self.held
    }

    /// Whether something is wanted that is not here.
    pub fn wants(&self) -> bool {
        !self.demanded.is_empty() || (self.fill.is_some() && !self.held.is_full())
    }

    /// Whether something is on its way from a parent.
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Leaves that the origin need not send: here, on their way from a parent, or not wanted.
    pub fn covered(&self) -> LeafSet {
        let mut covered = self.held.clone();
        if self.passing {
            covered.insert_range(0..self.geometry.leaves());
            self.demanded.iter().for_each(|(_, leaf)| {
                covered.remove(*leaf);
            });
        }
        self.in_flight.keys().for_each(|leaf| {
            covered.insert(*leaf);
        });
        covered
    }

    /// A leaf's digest became known.
    pub fn know(&mut self, leaf: u32) {
        if self.known.insert(leaf) {
            self.reopen(leaf);
        }
    }

    /// A reader waits for these leaves.
    pub fn demand(&mut self, leaves: Range<u32>, class: Class) {
        for leaf in leaves {
            if leaf < self.geometry.leaves() && !self.held.contains(leaf) {
                self.demanded.insert((class, leaf));
            }
        }
    }

    /// All leaves are wanted, if they can be kept.
    pub fn fill(&mut self, class: Class) {
        self.fill = Some(class).filter(|_| !self.passing);
    }

    /// There is no room to keep leaves: from now on only what a reader waits for is wanted. True the first time.
    pub fn pass(&mut self) -> bool {
        self.fill = None;
        !std::mem::replace(&mut self.passing, true)
    }

    /// A leaf that was here is gone.
    pub fn lost(&mut self, leaf: u32) {
        if self.held.remove(leaf) {
            self.reopen(leaf);
        }
    }

    /// A parent joins; it has nothing until it says so.
    pub fn add_parent(&mut self, key: Key) {
        let have = LeafSet::new(self.geometry.leaves());
        self.parents.entry(key).or_insert(Parent { have, in_flight: 0, rests_until: Duration::ZERO });
    }

    /// A parent said that it has these leaves.
    pub fn parent_has(&mut self, key: Key, ranges: &[Range<u32>]) {
        let Some(parent) = self.parents.get_mut(&key) else { return };
        for range in ranges {
            for leaf in range.start..range.end.min(self.geometry.leaves()) {
                if parent.have.insert(leaf)
                    && let Some(copies) = self.copies.get_mut(leaf as usize)
                {
                    *copies = copies.saturating_add(1);
                }
            }
        }
    }

    /// A parent is gone; what it owed is open again.
    pub fn remove_parent(&mut self, key: Key) {
        let Some(parent) = self.parents.remove(&key) else { return };
        for leaf in parent.have.ranges().into_iter().flatten() {
            if let Some(copies) = self.copies.get_mut(leaf as usize) {
                *copies = copies.saturating_sub(1);
            }
        }
        let owed: Vec<u32> = self
            .in_flight
            .iter()
            .filter(|(_, f)| f.iter().any(|f| f.parent == key))
            .map(|(leaf, _)| *leaf)
            .collect();
        for leaf in owed {
            self.end_flight(leaf, key);
        }
    }

    /// A parent does not have these leaves after all.
    pub fn lacks(&mut self, key: Key, leaves: Range<u32>) {
        for leaf in leaves.start..leaves.end.min(self.geometry.leaves()) {
            if self.parents.get_mut(&key).is_some_and(|parent| parent.have.remove(leaf))
                && let Some(copies) = self.copies.get_mut(leaf as usize)
            {
                *copies = copies.saturating_sub(1);
            }
            self.end_flight(leaf, key);
        }
    }

    /// A parent has too much to do to send these leaves now; it is left alone for a moment.
    pub fn busy(&mut self, key: Key, leaves: Range<u32>, now: Duration) {
        for leaf in leaves.start..leaves.end.min(self.geometry.leaves()) {
            self.end_flight(leaf, key);
        }
        if let Some(parent) = self.parents.get_mut(&key) {
            parent.rests_until = now + REST;
        }
    }

    /// A leaf came from a parent, right or wrong. Returns the other parents it was asked of, to be cancelled.
    pub fn arrived(&mut self, leaf: u32, key: Key) -> Vec<Key> {
        let others: Vec<Key> = self.in_flight.get(&leaf).into_iter().flatten().map(|f| f.parent).collect();
        self.end_flight(leaf, key);
        others.into_iter().filter(|other| *other != key).collect()
    }

    /// A leaf is here and verified, wherever it came from.
    pub fn landed(&mut self, leaf: u32) {
        self.held.insert(leaf);
        self.open.remove(leaf);
        for class in [Class::Demand, Class::Stream, Class::Profile, Class::Background] {
            self.demanded.remove(&(class, leaf));
        }
        for flight in self.in_flight.remove(&leaf).unwrap_or_default() {
            if let Some(parent) = self.parents.get_mut(&flight.parent) {
                parent.in_flight = parent.in_flight.saturating_sub(1);
            }
        }
    }

    /// Chooses the next requests and notes them as in flight. `now` is any monotonic time.
    ///
    /// What readers wait for comes first, in their order. The rest is half in order, for the reader of a stream, and
    /// half rarest first, so that peers have something to give each other. Background work waits while `hold` is set.
    pub fn pick(&mut self, now: Duration, hold: bool, rng: &mut impl Rng) -> Vec<Request> {
        let mut requests = self.pick_demanded(now, hold);
        if let Some(class) = self.fill.filter(|class| *class < Class::Background || !hold) {
            self.hedge_fill(now, class, &mut requests);
            while let Some(request) = self.pick_fill(now, class, rng) {
                requests.push(request);
            }
        }
        requests
    }

    fn pick_demanded(&mut self, now: Duration, hold: bool) -> Vec<Request> {
        let mut requests: Vec<Request> = Vec::new();
        let may = |(class, _): &(Class, u32)| *class < Class::Background || !hold;
        let demanded: Vec<(Class, u32)> = self.demanded.iter().copied().filter(may).take(64).collect();
        for (class, leaf) in demanded {
            let hedge = if class == Class::Demand { HEDGE_DEMAND } else { HEDGE };
            if let Some(parent) = self.parent_for(leaf, now, hedge, 2 * window(class)) {
                self.start_flight(leaf, parent, now);
                match requests.last_mut() {
                    Some(last) if last.parent == parent && last.class == class && last.leaves.end == leaf => {
                        last.leaves.end = leaf + 1;
                    }
                    _ => requests.push(Request { parent, leaves: leaf..leaf + 1, class }),
                }
            }
        }
        requests
    }

    /// The least busy parent that has a known, missing leaf and is not asked for it already.
    fn parent_for(&self, leaf: u32, now: Duration, hedge: Duration, window: u32) -> Option<Key> {
        if self.held.contains(leaf) || !self.known.contains(leaf) {
            return None;
        }
        let flights = self.in_flight.get(&leaf).map_or(&[][..], Vec::as_slice);
        let may = flights.is_empty()
            || (flights.len() == 1 && flights.iter().all(|f| now.saturating_sub(f.since) >= hedge));
        if !may {
            return None;
        }
        let has = |(key, parent): &(&Key, &Parent)| {
            parent.have.contains(leaf)
                && parent.in_flight < window
                && parent.rests_until <= now
                && flights.iter().all(|f| f.parent != **key)
        };
        self.parents.iter().filter(has).min_by_key(|(_, parent)| parent.in_flight).map(|(key, _)| *key)
    }

    /// Leaves in flight for long are asked of a second parent.
    fn hedge_fill(&mut self, now: Duration, class: Class, requests: &mut Vec<Request>) {
        let mut late: Vec<u32> = self
            .in_flight
            .iter()
            .filter(|(_, flights)| {
                flights.len() == 1 && flights.iter().all(|f| now.saturating_sub(f.since) >= HEDGE)
            })
            .map(|(leaf, _)| *leaf)
            .collect();
        // Equal runs of a simulation must not depend on the order of a hash map.
        late.sort_unstable();
        for leaf in late {
            if let Some(parent) = self.parent_for(leaf, now, HEDGE, 2 * window(class)) {
                self.start_flight(leaf, parent, now);
                requests.push(Request { parent, leaves: leaf..leaf + 1, class });
            }
        }
    }

    fn pick_fill(&mut self, now: Duration, class: Class, rng: &mut impl Rng) -> Option<Request> {
        let window = window(class);
        self.cursor = self.open.first_held(self.cursor)?;
        let mut idle: Vec<(u32, Key)> = self
            .parents
            .iter()
            .filter(|(_, p)| p.in_flight < window && p.rests_until <= now)
            .map(|(key, p)| (p.in_flight, *key))
            .collect();
        idle.sort_unstable();
        for (_, key) in idle {
            let Some(parent) = self.parents.get(&key) else { continue };
            let Some(first) = self.open.first_common(&parent.have, self.cursor) else { continue };
            let start = if rng.random_bool(0.5) { first } else { self.rarest(parent, first, rng) };
            let room = RUN.min(window - parent.in_flight.min(window));
            let piece = self.geometry.piece_of(start);
            let mut end = start + 1;
            while end - start < room
                && self.open.contains(end)
                && parent.have.contains(end)
                && self.geometry.piece_of(end) == piece
            {
                end += 1;
            }
            for leaf in start..end {
                self.start_flight(leaf, key, now);
            }
            return Some(Request { parent: key, leaves: start..end, class });
        }
        None
    }

    /// The rarest of some open leaves that the parent has, at random places.
    fn rarest(&self, parent: &Parent, first: u32, rng: &mut impl Rng) -> u32 {
        let leaves = self.geometry.leaves().max(1);
        let places = (0..SAMPLES).map(|_| rng.random_range(0..leaves));
        places
            .filter_map(|from| self.open.first_common(&parent.have, from))
            .min_by_key(|leaf| self.copies.get(*leaf as usize).copied().unwrap_or(0))
            .unwrap_or(first)
    }

    fn start_flight(&mut self, leaf: u32, key: Key, now: Duration) {
        self.open.remove(leaf);
        self.in_flight.entry(leaf).or_default().push(Flight { parent: key, since: now });
        if let Some(parent) = self.parents.get_mut(&key) {
            parent.in_flight += 1;
        }
    }

    fn end_flight(&mut self, leaf: u32, key: Key) {
        let Some(flights) = self.in_flight.get_mut(&leaf) else { return };
        let before = flights.len();
        flights.retain(|flight| flight.parent != key);
        if flights.len() < before
            && let Some(parent) = self.parents.get_mut(&key)
        {
            parent.in_flight = parent.in_flight.saturating_sub(1);
        }
        if flights.is_empty() {
            self.in_flight.remove(&leaf);
            self.reopen(leaf);
        }
    }

    fn reopen(&mut self, leaf: u32) {
        if self.known.contains(leaf) && !self.held.contains(leaf) && !self.in_flight.contains_key(&leaf) {
            self.open.insert(leaf);
            self.cursor = self.cursor.min(leaf);
        }
    }
}

/// Leaves of a class asked of one parent and not yet here, at most.
fn window(class: Class) -> u32 {
    if class == Class::Background { BACKGROUND_WINDOW } else { WINDOW }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;
    use crate::LEAF_LEN;

    fn plan(leaves: u32) -> Plan {
        let geometry = Geometry::Fixed { len: u64::from(leaves) * u64::from(LEAF_LEN) };
        Plan::new(geometry, LeafSet::new(leaves))
    }

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn asks_only_for_leaves_with_a_known_digest() {
        let mut plan = plan(8);
        let mut rng = SmallRng::seed_from_u64(1);
        plan.fill(Class::Stream);
        plan.add_parent(1);
        plan.parent_has(1, std::slice::from_ref(&(0..8)));
        assert_eq!(plan.pick(at(0), false, &mut rng), []);
        plan.know(3);
        assert_eq!(
            plan.pick(at(0), false, &mut rng),
            [Request { parent: 1, leaves: 3..4, class: Class::Stream }]
        );
    }

    #[test]
    fn what_a_container_waits_for_comes_first_and_is_hedged() {
        let mut plan = plan(64);
        let mut rng = SmallRng::seed_from_u64(1);
        (0..64).for_each(|leaf| plan.know(leaf));
        plan.fill(Class::Background);
        for parent in [1, 2] {
            plan.add_parent(parent);
            plan.parent_has(parent, std::slice::from_ref(&(0..64)));
        }
        plan.demand(40..41, Class::Demand);
        let first = plan.pick(at(0), false, &mut rng).remove(0);
        assert_eq!((first.leaves.clone(), first.class), (40..41, Class::Demand));
        let again = plan.pick(at(300), false, &mut rng).remove(0);
        assert_eq!(again.leaves, 40..41);
        assert_ne!(again.parent, first.parent);
    }

    #[test]
    fn background_work_is_held_while_a_container_waits_for_something() {
        let mut plan = plan(64);
        let mut rng = SmallRng::seed_from_u64(1);
        (0..64).for_each(|leaf| plan.know(leaf));
        plan.add_parent(1);
        plan.parent_has(1, std::slice::from_ref(&(0..64)));
        plan.fill(Class::Background);
        plan.demand(5..6, Class::Background);
        plan.demand(9..10, Class::Demand);
        let asked = plan.pick(at(0), true, &mut rng);
        assert_eq!(asked, [Request { parent: 1, leaves: 9..10, class: Class::Demand }]);
        plan.landed(9);
        assert!(!plan.pick(at(1), false, &mut rng).is_empty());
    }

    #[test]
    fn what_a_lost_parent_owed_is_asked_of_another() {
        let mut plan = plan(4);
        let mut rng = SmallRng::seed_from_u64(1);
        (0..4).for_each(|leaf| plan.know(leaf));
        plan.fill(Class::Stream);
        plan.add_parent(1);
        plan.parent_has(1, std::slice::from_ref(&(0..4)));
        while !plan.pick(at(0), false, &mut rng).is_empty() {}
        assert!(plan.is_waiting());
        plan.remove_parent(1);
        assert!(!plan.is_waiting());
        plan.add_parent(2);
        plan.parent_has(2, std::slice::from_ref(&(0..4)));
        let asked: u32 = plan.pick(at(0), false, &mut rng).iter().map(|r| r.leaves.len() as u32).sum();
        assert_eq!(asked, 4);
    }

    #[test]
    fn without_room_only_what_is_waited_for_is_asked_for() {
        let mut plan = plan(64);
        let mut rng = SmallRng::seed_from_u64(1);
        (0..64).for_each(|leaf| plan.know(leaf));
        plan.add_parent(1);
        plan.parent_has(1, std::slice::from_ref(&(0..64)));
        plan.pass();
        plan.fill(Class::Stream);
        assert_eq!(plan.pick(at(0), false, &mut rng), []);
        plan.demand(7..9, Class::Stream);
        assert_eq!(plan.covered().first_missing(0), Some(7));
        let asked = plan.pick(at(0), false, &mut rng);
        assert_eq!(asked, [Request { parent: 1, leaves: 7..9, class: Class::Stream }]);
        assert!(plan.covered().is_full());
        plan.landed(7);
        plan.lost(7);
        assert_eq!(plan.pick(at(1), false, &mut rng), []);
        plan.demand(7..8, Class::Stream);
        assert_eq!(plan.pick(at(1), false, &mut rng).len(), 1);
    }

    proptest! {
        /// Whatever parents come, refuse and go: every leaf that some steady parent has arrives, none twice at once.
        #[test]
        fn finishes_with_flaky_parents(seed in any::<u64>(), leaves in 1u32..200, flaky in 0u64..5) {
            let mut plan = plan(leaves);
            let mut rng = SmallRng::seed_from_u64(seed);
            (0..leaves).for_each(|leaf| plan.know(leaf));
            plan.fill(Class::Stream);
            let whole = 0..leaves;
            for key in 0..=flaky {
                plan.add_parent(key);
                plan.parent_has(key, std::slice::from_ref(&whole));
            }
            let mut rounds = 0;
            while plan.wants() {
                rounds += 1;
                prop_assert!(rounds < 10_000);
                for request in plan.pick(at(rounds), false, &mut rng) {
                    for leaf in request.leaves {
                        prop_assert!(!plan.held().contains(leaf));
                        if request.parent == 0 || rng.random_bool(0.5) {
                            plan.arrived(leaf, request.parent);
                            plan.landed(leaf);
                        } else if rng.random_bool(0.5) {
                            plan.lacks(request.parent, leaf..leaf + 1);
                        } else {
                            plan.busy(request.parent, leaf..leaf + 1, at(rounds));
                        }
                    }
                }
                if rng.random_bool(0.05) {
                    plan.remove_parent(rng.random_range(1..=flaky.max(1)));
                }
            }
            prop_assert!(plan.held().is_full());
            prop_assert!(!plan.is_waiting());
        }
    }
}
