//! What a peer decides for itself: which leaf a child asks of which parent ([`Plan`]), and which leaf a source shows to
//! which child ([`Offers`]).
//!
//! Pure: time and chance come from outside, so that tests and simulations drive the same code as a transfer. Whoever
//! drives a plan tells it what parents say and send ([`Plan::parent_has`], [`Plan::arrived`], [`Plan::landed`], …) and
//! sends what [`Plan::pick`] returns.

mod claims;
mod offers;
mod pace;
mod parents;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    time::Duration,
};

use rand::{Rng, RngExt};

pub use self::{
    claims::Claim,
    offers::{ChildKey, Offers},
};
use self::{
    claims::Claims,
    pace::Pace,
    parents::{Parent, ranked},
};
use crate::{Border, Class, Geometry, LeafSet};

/// Leaves on their way however short the way is: so many that the link does not run dry while parents come and go, and so
/// few that leaves do not grow old in the queues of parents.
const FLOOR: usize = 8;
/// The same for what nobody waits for: a container's read must not wait behind much of it.
const BACKGROUND_FLOOR: usize = 1;
/// Leaves on their way from one source that shows them to nobody else: it shows as many as it can send.
const SOURCE_WINDOW: u32 = 16;
/// How many places are looked at for a rare leaf.
const SAMPLES: u32 = 16;
/// A leaf that is on its way for so many times the usual wait is late: it is asked of a second parent.
const LATE: u32 = 3;
/// No leaf is late before this time.
const LATE_MIN: Duration = Duration::from_millis(200);
/// The same for a leaf that a container waits for.
const LATE_MIN_DEMAND: Duration = Duration::from_millis(20);
/// Every leaf is late after this time.
const LATE_MAX: Duration = Duration::from_secs(2);
/// A leaf on its way that became more urgent is asked for with its new class if it is not here after so long. Sooner it is
/// likely to be on the wire, and would come twice.
const HASTEN: Duration = Duration::from_millis(25);
/// One leaf in so many may be asked of a second parent only because there is nothing else left to ask for.
const HEDGED: u32 = 50;
/// How often it is looked for leaves that others do not bring over a border.
const LOOK: Duration = Duration::from_millis(100);
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
    /// What may be brought over each border, where that was said.
    claims: BTreeMap<Border, Claims>,
    in_flight: HashMap<u32, Vec<Flight>>,
    /// How many parents have each leaf.
    copies: Vec<u16>,
    /// No leaf before this one is open.
    cursor: u32,
    pace: Pace,
    /// Leaves that were asked of a second parent for want of anything else.
    hedged: u32,
    /// The latest time that was told, and when it was last looked after the claims.
    now: Duration,
    looked: Duration,
}

#[derive(Debug, Clone, Copy)]
struct Flight {
    parent: Key,
    since: Duration,
    /// How urgently the parent was asked.
    class: Class,
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
            claims: BTreeMap::new(),
            in_flight: HashMap::new(),
            copies: vec![0; leaves as usize],
            cursor: 0,
            pace: Pace::default(),
            hedged: 0,
            now: Duration::ZERO,
            looked: Duration::ZERO,
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

    /// A parent joins; it has nothing until it says so. A `source` reads the origin or holds everything: it shows to
    /// one child what it shows to nobody else, and may have more than it shows. It may stand `beyond` a border.
    pub fn add_parent(&mut self, key: Key, source: bool, beyond: Option<Border>) {
        let leaves = self.geometry.leaves();
        self.parents.entry(key).or_insert_with(|| Parent::new(leaves, source, beyond));
    }

    /// What this peer is to bring over a border. The rest it leaves to others there, unless a reader waits for it more
    /// urgently than for the whole, or nobody brings it.
    pub fn claim(&mut self, border: Border, claim: Claim) {
        if let Some(claims) = self.claims.get_mut(&border).filter(|_| claim.is_valid()) {
            claims.change(claim);
        } else {
            self.claims.remove(&border);
            let claims = Claims::new(claim, self.within(border));
            self.claims.extend(claims.map(|claims| (border, claims)));
        }
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
                    let within = self.claims.iter_mut().filter(|(border, _)| parent.is_within(**border));
                    within.for_each(|(_, claims)| claims.sees(leaf, self.now));
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
        self.see_less();
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
        self.see_less();
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
    pub fn arrived(&mut self, leaf: u32, key: Key, now: Duration) -> Vec<Key> {
        self.now = now;
        let flights = self.in_flight.get(&leaf).map_or(&[][..], Vec::as_slice);
        let since = flights.iter().find(|flight| flight.parent == key).map(|flight| flight.since);
        let others = flights.iter().map(|flight| flight.parent).filter(|other| *other != key).collect();
        if let Some(since) = since {
            let wait = now.saturating_sub(since);
            self.pace.arrived(wait, now);
            if let Some(parent) = self.parents.get_mut(&key) {
                parent.arrived(wait, now);
            }
        }
        self.end_flight(leaf, key);
        others
    }

    /// A leaf is here and verified, wherever it came from.
    pub fn landed(&mut self, leaf: u32) {
        self.held.insert(leaf);
        self.open.remove(leaf);
        self.claims.values_mut().for_each(|claims| claims.landed(leaf, self.now));
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
    /// What readers wait for more urgently than for the whole comes first, in their order. Then what a source shows to
    /// nobody else. The rest is half in order, for the reader of a stream, and half rarest first, so that peers have
    /// something to give each other. Background work waits while `hold` is set.
    pub fn pick(&mut self, now: Duration, hold: bool, rng: &mut impl Rng) -> Vec<Request> {
        let mut requests = Requests::default();
        self.look_after_claims(now, rng);
        self.pick_demanded(now, hold, &mut requests);
        if let Some(class) = self.fill.filter(|class| *class < Class::Background || !hold) {
            self.pick_from_sources(class, now, &mut requests);
            self.pick_fill(class, now, rng, &mut requests);
        }
        self.hedge(now, hold, &mut requests);
        requests.0
    }

    fn pick_demanded(&mut self, now: Duration, hold: bool, requests: &mut Requests) {
        let fill = self.fill.filter(|fill| *fill < Class::Background);
        // What the whole is wanted for as urgently comes with the whole.
        let may = |(class, _): &(Class, u32)| {
            (*class < Class::Background || !hold) && fill.is_none_or(|fill| *class < fill)
        };
        let demanded: Vec<(Class, u32)> = self.demanded.iter().copied().filter(may).take(64).collect();
        for (class, leaf) in demanded {
            if let Some(parent) = self.hasten(leaf, class, now) {
                requests.push(parent, leaf, class);
                continue;
            }
            if !self.open.contains(leaf)
                || (class > Class::Demand && self.in_flight.len() >= self.window(class))
            {
                continue;
            }
            let anywhere = class < Class::Background || self.passing;
            if let Some(parent) = self.parent_for(leaf, class, now, &[], anywhere) {
                self.start_flight(leaf, parent, class, now);
                requests.push(parent, leaf, class);
            }
        }
    }

    /// The parent that a leaf was asked of some time ago, and that has to hear that the leaf became more urgent: else it
    /// waits there behind everything that is more urgent than it was.
    fn hasten(&mut self, leaf: u32, class: Class, now: Duration) -> Option<Key> {
        let flights = self.in_flight.get_mut(&leaf)?;
        if flights.iter().any(|flight| flight.class <= class) {
            return None;
        }
        let flight = flights.first_mut().filter(|flight| now.saturating_sub(flight.since) >= HASTEN)?;
        flight.class = class;
        Some(flight.parent)
    }

    fn pick_from_sources(&mut self, class: Class, now: Duration, requests: &mut Requests) {
        if class == Class::Background {
            return;
        }
        let sources: Vec<Key> = self.parents.iter().filter(|(_, p)| p.source).map(|(key, _)| *key).collect();
        for key in sources {
            let mut from = 0;
            while let Some(parent) = self.parents.get(&key)
                && parent.in_flight < SOURCE_WINDOW
                && parent.rests_until <= now
                && let Some(leaf) = self.open.first_common(&parent.have, from)
            {
                from = leaf + 1;
                if self.copies_of(leaf) == 1 {
                    self.start_flight(leaf, key, class, now);
                    requests.push(key, leaf, class);
                }
            }
        }
    }

    fn pick_fill(&mut self, class: Class, now: Duration, rng: &mut impl Rng, requests: &mut Requests) {
        let window = self.window(class);
        while self.in_flight.len() < window {
            let Some(cursor) = self.open.first_held(self.cursor) else { return };
            self.cursor = cursor;
            let mut ranked = ranked(&self.parents, now, rng);
            self.claimed_first(&mut ranked, window);
            let Some((key, leaf)) = ranked.into_iter().find_map(|key| {
                let parent = self.parents.get(&key)?;
                Some((key, self.choose(parent, rng)?))
            }) else {
                return;
            };
            self.start_flight(leaf, key, class, now);
            requests.push(key, leaf, class);
        }
    }

    /// Which open leaf to ask of a parent.
    fn choose(&self, parent: &Parent, rng: &mut impl Rng) -> Option<u32> {
        let first = self.first_of(parent, self.cursor)?;
        if rng.random_bool(0.5) {
            let has = |(_, leaf): &&(Class, u32)| {
                self.open.contains(*leaf) && parent.have.contains(*leaf) && self.allows(parent, *leaf)
            };
            let waited_for = self.demanded.iter().take(64).find(has);
            return Some(waited_for.map_or(first, |(_, leaf)| *leaf));
        }
        let leaves = self.geometry.leaves().max(1);
        let places = (0..SAMPLES).map(|_| rng.random_range(0..leaves));
        let rare =
            places.filter_map(|from| self.first_of(parent, from)).min_by_key(|leaf| self.copies_of(*leaf));
        Some(rare.unwrap_or(first))
    }

    /// The first leaf at or after `from` that is open and may be asked of a parent.
    fn first_of(&self, parent: &Parent, from: u32) -> Option<u32> {
        match self.claims_on(parent) {
            Some(claims) => claims.first(&self.open, &parent.have, from),
            None => self.open.first_common(&parent.have, from),
        }
    }

    /// The parent that is likely to be the first to bring an open leaf; from `anywhere`, or only from where it may come.
    fn parent_for(
        &self,
        leaf: u32,
        class: Class,
        now: Duration,
        except: &[Key],
        anywhere: bool,
    ) -> Option<Key> {
        let may_have = |parent: &Parent| {
            (parent.have.contains(leaf) || (parent.source && class == Class::Demand))
                && (anywhere || self.allows(parent, leaf))
        };
        self.parents
            .iter()
            .filter(|(key, parent)| may_have(parent) && parent.rests_until <= now && !except.contains(key))
            .min_by_key(|(_, parent)| (!parent.have.contains(leaf), parent.expected(now)))
            .map(|(key, _)| *key)
    }

    /// Leaves that are late are asked of a second parent: always if a container waits or a parent stands still, and
    /// within limits if there is nothing else to ask for.
    fn hedge(&mut self, now: Duration, hold: bool, requests: &mut Requests) {
        let usual = self.pace.usual_wait();
        let mut late: Vec<(Duration, u32, Key, Class)> = Vec::new();
        for (leaf, flights) in &self.in_flight {
            let [flight] = flights.as_slice() else { continue };
            let demanded = self.demanded.contains(&(Class::Demand, *leaf));
            let class = if demanded { Class::Demand } else { self.fill.unwrap_or(Class::Stream) };
            let min = if demanded { LATE_MIN_DEMAND } else { LATE_MIN };
            let age = now.saturating_sub(flight.since);
            if age >= (usual * LATE).clamp(min, LATE_MAX) && (class < Class::Background || !hold) {
                late.push((age, *leaf, flight.parent, class));
            }
        }
        late.sort_unstable_by(|a, b| b.cmp(a));
        for (age, leaf, asked, class) in late {
            let must = class == Class::Demand || age >= LATE_MAX;
            let may = self.hedged < (self.geometry.leaves() / HEDGED).max(1)
                && self.in_flight.len() < self.window(class);
            if (must || may)
                && let Some(parent) = self.parent_for(leaf, class, now, &[asked], must)
            {
                self.hedged += u32::from(!must);
                self.start_flight(leaf, parent, class, now);
                requests.push(parent, leaf, class);
            }
        }
    }

    /// The claims that a parent beyond their border is asked under.
    fn claims_on(&self, parent: &Parent) -> Option<&Claims> {
        self.claims.get(&parent.beyond?)
    }

    fn allows(&self, parent: &Parent, leaf: u32) -> bool {
        self.claims_on(parent).is_none_or(|claims| claims.allows(leaf))
    }

    /// Parents beyond a border come first, since everybody on this side waits for what is brought from there; but no more
    /// than half of what is on its way is theirs, so that a narrow link does not keep the near ones waiting.
    fn claimed_first(&self, ranked: &mut Vec<Key>, window: usize) {
        if self.claims.is_empty() {
            return;
        }
        let claimed = |parent: &&Parent| self.claims_on(parent).is_some();
        let in_flight: u32 = self.parents.values().filter(claimed).map(|parent| parent.in_flight).sum();
        let is_claimed = |key: &Key| self.parents.get(key).is_some_and(|parent| claimed(&parent));
        if in_flight as usize * 2 < window {
            ranked.sort_by_key(|key| !is_claimed(key));
        } else {
            ranked.retain(|key| !is_claimed(key));
        }
    }

    fn look_after_claims(&mut self, now: Duration, rng: &mut impl Rng) {
        self.now = now;
        if self.claims.is_empty() || now.saturating_sub(self.looked) < LOOK {
            return;
        }
        self.looked = now;
        for (border, claims) in &mut self.claims {
            let outside = self.parents.values().filter(|parent| parent.beyond == Some(*border));
            claims.look(&self.open, outside.map(|parent| &parent.have), now, rng);
        }
    }

    /// What parents on this side of a border have.
    fn within(&self, border: Border) -> LeafSet {
        let mut within = LeafSet::new(self.geometry.leaves());
        let parents = self.parents.values().filter(|parent| parent.is_within(border));
        parents.for_each(|parent| within.unite(&parent.have));
        within
    }

    /// A parent has less than before, or is gone.
    fn see_less(&mut self) {
        for border in Border::ALL {
            let within = self.claims.contains_key(&border).then(|| self.within(border));
            if let (Some(claims), Some(within)) = (self.claims.get_mut(&border), within) {
                claims.see_only(within);
            }
        }
    }

    /// Leaves of a class that may be on their way.
    fn window(&self, class: Class) -> usize {
        self.pace.window(if class == Class::Background { BACKGROUND_FLOOR } else { FLOOR })
    }

    fn copies_of(&self, leaf: u32) -> u16 {
        self.copies.get(leaf as usize).copied().unwrap_or(0)
    }

    fn start_flight(&mut self, leaf: u32, key: Key, class: Class, now: Duration) {
        self.open.remove(leaf);
        self.in_flight.entry(leaf).or_default().push(Flight { parent: key, since: now, class });
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

/// Requests in the making: neighbours of one parent are asked for together.
#[derive(Debug, Default)]
struct Requests(Vec<Request>);

impl Requests {
    fn push(&mut self, parent: Key, leaf: u32, class: Class) {
        match self.0.last_mut() {
            Some(last) if last.parent == parent && last.class == class && last.leaves.end == leaf => {
                last.leaves.end = leaf + 1;
            }
            _ => self.0.push(Request { parent, leaves: leaf..leaf + 1, class }),
        }
    }
}
