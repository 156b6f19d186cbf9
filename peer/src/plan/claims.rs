//! What a peer may bring over the border of its rack, zone or region: what is missing behind a border is to cross it
//! about once.
//!
//! Leaves fall into classes by their numbers, and the scheduler gives every class to one peer behind the border. The
//! others wait until the leaf is within. If a class that is to be had outside does not get on, one after the other
//! stands in for whoever should bring it.

use std::time::Duration;

use rand::{Rng, RngExt};

use crate::LeafSet;

/// Most classes.
const MAX_CLASSES: u32 = 32;
/// A class that does not get on for so long is given up on, and at most for so long if leaves usually come slowly.
const PATIENCE: Duration = Duration::from_millis(700);
const MAX_PATIENCE: Duration = Duration::from_secs(3);
/// So many times what a class usually takes for a leaf is waited.
const SLOW: f64 = 2.0;
/// Those that stand in come in so many rounds, a patience apart.
const ROUNDS: u32 = 3;
/// Share of a new pause between two leaves in the usual one.
const FRESH: f64 = 0.1;

/// The classes of leaves that this peer is to bring over a border.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    /// Number of classes: a leaf's is the remainder of its number. With none everybody may bring everything.
    pub classes: u32,
    /// A bit for each class that is this peer's.
    pub mine: u32,
}

impl Claim {
    /// Whether it says something that is understood here.
    pub(super) fn is_valid(&self) -> bool {
        (1..=MAX_CLASSES).contains(&self.classes)
    }
}

/// One border as a plan sees it.
#[derive(Debug)]
pub(super) struct Claims {
    claim: Claim,
    /// Leaves of the classes that are this peer's, or that it stands in for.
    bring: LeafSet,
    /// Leaves that parents on this side have.
    within: LeafSet,
    /// Until when each class that is to be had outside is waited for.
    deadlines: Vec<Option<Duration>>,
    /// Classes that this peer stands in for.
    stands_in: u32,
    /// The usual seconds between two leaves of any class, and when the last one came.
    pause: f64,
    last: Option<Duration>,
}

impl Claims {
    /// `None` if the claim says nothing.
    pub(super) fn new(claim: Claim, within: LeafSet) -> Option<Self> {
        if !claim.is_valid() {
            return None;
        }
        let mut claims = Self {
            claim,
            bring: LeafSet::new(within.leaves()),
            within,
            deadlines: vec![None; claim.classes as usize],
            stands_in: 0,
            pause: 0.0,
            last: None,
        };
        claims.deal();
        Some(claims)
    }

    /// Whether a leaf may be asked of a parent outside.
    pub(super) fn allows(&self, leaf: u32) -> bool {
        self.bring.contains(leaf) && !self.within.contains(leaf)
    }

    /// The first leaf at or after `from` that is open, that a parent outside has, and that may be asked of it.
    pub(super) fn first(&self, open: &LeafSet, have: &LeafSet, from: u32) -> Option<u32> {
        open.first_in_all(&[have, &self.bring], &self.within, from)
    }

    /// A parent on this side has a leaf.
    pub(super) fn sees(&mut self, leaf: u32, now: Duration) {
        if self.within.insert(leaf) {
            self.got_on(leaf, now);
        }
    }

    /// What parents on this side have has become less.
    pub(super) fn see_only(&mut self, within: LeafSet) {
        self.within = within;
    }

    /// A leaf is here.
    pub(super) fn landed(&mut self, leaf: u32, now: Duration) {
        if !self.within.contains(leaf) {
            self.got_on(leaf, now);
        }
    }

    /// The claim is another one now.
    pub(super) fn change(&mut self, claim: Claim) {
        if claim != self.claim {
            self.claim = claim;
            self.stands_in = 0;
            self.deadlines = vec![None; claim.classes as usize];
            self.deal();
        }
    }

    /// Looks for classes that do not get on, given what is open and what parents outside have.
    pub(super) fn look<'a>(
        &mut self,
        open: &LeafSet,
        outside: impl Iterator<Item = &'a LeafSet>,
        now: Duration,
        rng: &mut impl Rng,
    ) {
        let waited_for = self.waited_for(open, outside);
        let patience = self.patience();
        let mut given_up = 0;
        for (class, deadline) in (0u32..).zip(&mut self.deadlines) {
            if waited_for & (1 << class) == 0 {
                *deadline = None;
                continue;
            }
            let until =
                *deadline.get_or_insert_with(|| now + patience.mul_f64(1.0 + turn(self.claim, class, rng)));
            if now >= until {
                given_up |= 1 << class;
            }
        }
        if given_up != 0 {
            self.stands_in |= given_up;
            self.deal();
        }
    }

    /// Classes of leaves that are open, to be had outside, not within and not this peer's.
    fn waited_for<'a>(&self, open: &LeafSet, outside: impl Iterator<Item = &'a LeafSet>) -> u32 {
        let mut classes = 0;
        for have in outside {
            let mut from = 0;
            while let Some(leaf) = open.first_in_all(&[have], &self.within, from) {
                from = leaf + 1;
                if !self.bring.contains(leaf) {
                    classes |= 1 << (leaf % self.claim.classes);
                }
            }
        }
        classes
    }

    fn patience(&self) -> Duration {
        let usual = SLOW * self.pause * f64::from(self.claim.classes);
        Duration::from_secs_f64(usual.min(MAX_PATIENCE.as_secs_f64())).max(PATIENCE)
    }

    fn got_on(&mut self, leaf: u32, now: Duration) {
        if let Some(deadline) = self.deadlines.get_mut((leaf % self.claim.classes) as usize) {
            *deadline = None;
        }
        if let Some(last) = self.last.replace(now) {
            let pause = now.saturating_sub(last).min(MAX_PATIENCE).as_secs_f64();
            self.pause += FRESH * (pause - self.pause);
        }
    }

    fn deal(&mut self) {
        let (classes, leaves) = (self.claim.classes, self.bring.leaves());
        self.bring = LeafSet::new(leaves);
        let mine = self.claim.mine | self.stands_in;
        for class in (0..classes).filter(|class| mine & (1 << class) != 0) {
            (class..leaves).step_by(classes as usize).for_each(|leaf| _ = self.bring.insert(leaf));
        }
    }
}

/// How many patiences after the first a peer with this claim stands in for a class: those first whose own class is next to
/// it. Who has none cannot know whether anybody has.
fn turn(claim: Claim, class: u32, rng: &mut impl Rng) -> f64 {
    if claim.mine == 0 {
        return rng.random_range(0.3..1.5);
    }
    let owns = |step: &u32| claim.mine & (1 << ((class + step) % claim.classes)) != 0;
    let round = (1..ROUNDS).find(owns).unwrap_or(ROUNDS) - 1;
    f64::from(round) + rng.random_range(0.0..0.5)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    const LEAVES: u32 = 32;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn full() -> LeafSet {
        let mut full = LeafSet::new(LEAVES);
        full.insert_range(0..LEAVES);
        full
    }

    fn claims(mine: u32) -> Claims {
        Claims::new(Claim { classes: 8, mine }, LeafSet::new(LEAVES)).unwrap()
    }

    /// Classes that may be brought.
    fn classes(claims: &Claims) -> u32 {
        (0..LEAVES).filter(|leaf| claims.allows(*leaf)).fold(0, |classes, leaf| classes | 1 << (leaf % 8))
    }

    fn look(claims: &mut Claims, millis: u64) {
        claims.look(&full(), [&full()].into_iter(), at(millis), &mut SmallRng::seed_from_u64(1));
    }

    #[test]
    fn only_its_own_classes_may_be_brought_and_only_what_is_not_within() {
        let mut claims = claims(0b101);
        assert_eq!(classes(&claims), 0b101);
        claims.sees(8, at(0));
        assert_eq!((claims.allows(0), claims.allows(8)), (true, false));
        assert_eq!(claims.first(&full(), &full(), 3), Some(10));
        claims.change(Claim { classes: 8, mine: 0b10 });
        assert_eq!(classes(&claims), 0b10);
        assert!(Claims::new(Claim::default(), full()).is_none());
        assert!(Claims::new(Claim { classes: 33, mine: 1 }, full()).is_none());
    }

    #[test]
    fn a_class_that_does_not_get_on_is_stood_in_for_by_its_neighbour_first() {
        let (mut near, mut far) = (claims(0b10), claims(0b1_0000));
        for claims in [&mut near, &mut far] {
            look(claims, 0);
            look(claims, 690);
        }
        assert_eq!((classes(&near), classes(&far)), (0b10, 0b1_0000));
        look(&mut near, 1100);
        look(&mut far, 1100);
        assert_eq!(classes(&near), 0b11, "the one before its own");
        assert_eq!(classes(&far), 0b1_1000);
        look(&mut near, 3000);
        assert_eq!(classes(&near), 0xff);
    }

    #[test]
    fn whoever_gets_on_is_waited_for() {
        let mut claims = claims(0b10);
        for step in 0..30 {
            look(&mut claims, step * 100);
            // One of each class in turn, and again when all were seen.
            claims.see_only(LeafSet::new(LEAVES));
            (0..8)
                .filter(|class| *class != 0 || step > 25)
                .for_each(|class| claims.sees(class, at(step * 100)));
            claims.see_only(LeafSet::new(LEAVES));
        }
        assert_eq!(classes(&claims), 0b11);
    }
}
