//! What a source shows to whom: a leaf that nobody has before one that somebody has.
//!
//! Children that see everything a source has ask it for much the same leaves, and its uplink, which everything new must
//! pass, carries many of them twice. So a source that has several children shows each leaf to one of them only; the
//! others get it from that one. It shows as much as it can send, no more: what is shown is also the child's turn. While
//! nothing is new and the uplink would be idle it shows again what few have seen, so that nothing is lost with a child.
//!
//! The nearest children come first: if there are some in the source's own rack, what is new goes to them, and over the
//! rack's border from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use crate::{Border, LeafSet};

/// Leaves that are shown and not sent yet, over all children: at least, and at most for each child.
const MIN_WINDOW: f64 = 4.0;
const MAX_WINDOW_PER_CHILD: usize = 16;
/// A leaf that was sent so soon after it was shown lets the window grow; one that took so long lets it shrink.
const SOON: Duration = Duration::from_millis(100);
const LATE: Duration = Duration::from_millis(300);
/// A child that does not ask for what it was shown within this time does not want it. On a full link the news alone takes
/// some 200 ms to arrive, and who asks a little later than this is sent what another is sent too.
const PATIENCE: Duration = Duration::from_secs(1);
/// The same for a leaf that is shown again: most that are shown it have it from somebody else.
const AGAIN: Duration = Duration::from_millis(250);
/// So long nothing new must have come before leaves are shown a second time, while more is to come.
const LULL: Duration = Duration::from_millis(150);

/// Children of which none has taken anything for so long do not keep those who stand farther away waiting.
const STUCK: Duration = Duration::from_secs(3);

/// Names a child of a task.
pub type ChildKey = u64;

/// What one source shows of one task.
#[derive(Debug)]
pub struct Offers {
    /// Leaves that the source holds.
    held: LeafSet,
    /// Held leaves that nobody was sent and nobody is about to ask for.
    fresh: LeafSet,
    /// Leaves that were sent at least once to the nearest children there are.
    sent: LeafSet,
    /// Beyond which border those stand.
    nearest: Option<Border>,
    /// Held leaves as they came.
    order: Vec<u32>,
    /// How many children each leaf was shown to.
    shown: Vec<u16>,
    children: BTreeMap<ChildKey, Child>,
    next_child: ChildKey,
    /// Leaves shown and not yet sent, over all children, at most.
    window: f64,
    /// When the uplink last had something new to send.
    busy: Duration,
}

#[derive(Debug)]
struct Child {
    /// It stands beyond this border.
    beyond: Option<Border>,
    /// When it was last sent a leaf.
    answered: Duration,
    shown: LeafSet,
    /// How much of [`Offers::order`] an only child has been shown.
    seen: usize,
    due: BTreeMap<u32, Due>,
    /// Leaves shown so far that were new: who got fewest is next.
    turns: u64,
}

/// A leaf that was shown and not sent yet.
#[derive(Debug, Clone, Copy)]
struct Due {
    since: Duration,
    patience: Duration,
    asked: bool,
}

impl Offers {
    /// A task of so many leaves, of which nothing is held.
    pub fn new(leaves: u32) -> Self {
        Self {
            held: LeafSet::new(leaves),
            fresh: LeafSet::new(leaves),
            sent: LeafSet::new(leaves),
            nearest: None,
            order: Vec::new(),
            shown: vec![0; leaves as usize],
            children: BTreeMap::new(),
            next_child: 0,
            window: 2.0 * MIN_WINDOW,
            busy: Duration::ZERO,
        }
    }

    /// A child comes; it may stand beyond a border.
    pub fn join(&mut self, beyond: Option<Border>) -> ChildKey {
        let key = self.next_child;
        self.next_child += 1;
        // A newcomer takes its turn with the others; it does not get all turns that it missed.
        let turns = self.children.values().map(|child| child.turns).min().unwrap_or(0);
        let shown = LeafSet::new(self.held.leaves());
        let child = Child { beyond, answered: Duration::ZERO, shown, seen: 0, due: BTreeMap::new(), turns };
        let first = self.children.is_empty();
        self.children.insert(key, child);
        if first || beyond < self.nearest {
            self.approach(first, beyond);
        }
        key
    }

    /// A child goes. What it was about to get is new again.
    pub fn leave(&mut self, key: ChildKey) {
        let Some(child) = self.children.remove(&key) else { return };
        child.due.into_keys().for_each(|leaf| self.renew(leaf));
    }

    /// The source holds these leaves now.
    pub fn holds(&mut self, ranges: &[Range<u32>]) {
        for leaf in ranges.iter().cloned().flatten() {
            if self.held.insert(leaf) {
                self.order.push(leaf);
                self.renew(leaf);
            }
        }
    }

    /// A child asks for a leaf, shown or not.
    pub fn asked(&mut self, key: ChildKey, leaf: u32, now: Duration) {
        let Some(child) = self.children.get_mut(&key) else { return };
        child.shown.insert(leaf);
        child.due.entry(leaf).or_insert(Due { since: now, patience: PATIENCE, asked: true }).asked = true;
        self.fresh.remove(leaf);
    }

    /// A leaf was sent to a child, or will not be.
    pub fn answered(&mut self, key: ChildKey, leaf: u32, sent: bool, now: Duration) {
        let due = self.children.get_mut(&key).and_then(|child| {
            child.answered = now;
            child.due.remove(&leaf)
        });
        let nearest = self.children.get(&key).is_none_or(|child| child.beyond <= self.nearest);
        if sent && nearest {
            self.sent.insert(leaf);
            self.fresh.remove(leaf);
        } else {
            self.renew(leaf);
        }
        let Some(due) = due.filter(|_| sent) else { return };
        let wait = now.saturating_sub(due.since);
        if wait < SOON {
            self.window += 1.0;
        } else if wait > LATE {
            self.window *= 0.9;
        }
        let most = (self.children.len() * MAX_WINDOW_PER_CHILD) as f64;
        self.window = self.window.clamp(MIN_WINDOW, most.max(MIN_WINDOW));
    }

    /// What is to be shown to whom now.
    pub fn show(&mut self, now: Duration) -> Vec<(ChildKey, Vec<u32>)> {
        self.expire(now);
        let mut news: BTreeMap<ChildKey, Vec<u32>> = BTreeMap::new();
        if self.children.len() == 1 {
            for (key, child) in &mut self.children {
                let new = self.order.get(child.seen..).unwrap_or_default();
                let hidden: Vec<u32> = new.iter().copied().filter(|leaf| child.shown.insert(*leaf)).collect();
                child.seen = self.order.len();
                for leaf in &hidden {
                    if let Some(shown) = self.shown.get_mut(*leaf as usize) {
                        *shown = shown.saturating_add(1);
                    }
                }
                news.insert(*key, hidden);
            }
        }
        let groups = self.groups(now);
        self.nearest = groups.first().copied().unwrap_or(self.nearest);
        let mut due: usize = self.members(&groups).map(|(_, child)| child.due.len()).sum();
        while (due as f64) < self.window
            && let Some((key, leaf)) = self.next_fresh(&groups)
        {
            self.show_to(key, leaf, now, PATIENCE);
            news.entry(key).or_default().push(leaf);
            self.busy = now;
            due += 1;
        }
        let lull = now.saturating_sub(self.busy) >= LULL || self.sent.is_full();
        while lull
            && (due as f64) < self.window
            && let Some((key, leaf)) = self.next_again()
        {
            self.show_to(key, leaf, now, AGAIN);
            news.entry(key).or_default().push(leaf);
            due += 1;
        }
        news.into_iter().filter(|(_, leaves)| !leaves.is_empty()).collect()
    }

    /// The nearest children stand here now. To those that stand nearer than others before all is new.
    fn approach(&mut self, first: bool, nearest: Option<Border>) {
        self.nearest = nearest;
        if !first {
            self.sent = LeafSet::new(self.held.leaves());
            self.held.ranges().into_iter().flatten().for_each(|leaf| self.renew(leaf));
        }
    }

    /// By which borders children stand beyond, nearest first, without those of which none gets on.
    fn groups(&self, now: Duration) -> Vec<Option<Border>> {
        let mut groups: Vec<_> = self.children.values().map(|child| child.beyond).collect();
        groups.sort_unstable();
        groups.dedup();
        groups.retain(|group| {
            let members = || self.children.values().filter(|child| child.beyond == *group);
            let oldest = members().flat_map(|child| child.due.values()).map(|due| due.since).min();
            let answered = members().map(|child| child.answered).max();
            oldest
                .is_none_or(|oldest| now.saturating_sub(answered.map_or(oldest, |at| at.max(oldest))) < STUCK)
        });
        groups
    }

    fn members(&self, groups: &[Option<Border>]) -> impl Iterator<Item = (&ChildKey, &Child)> {
        self.children.iter().filter(|(_, child)| groups.contains(&child.beyond))
    }

    /// The first leaf that is new, for the child that has least to do with what it was shown, of the nearest that have not
    /// seen all that is new.
    fn next_fresh(&self, groups: &[Option<Border>]) -> Option<(ChildKey, u32)> {
        let first = self.fresh.first_held(0)?;
        for group in groups {
            let members = || self.members(std::slice::from_ref(group));
            let most = (self.window as usize / members().count().max(1)).max(2);
            let load = |child: &Child| (child.due.len(), child.turns);
            let free = || members().filter(|(_, child)| child.due.len() < most);
            let (key, child) = free().min_by_key(|(_, child)| load(child))?;
            if !child.shown.contains(first) {
                return Some((*key, first));
            }
            // It was shown this one before and did not want it.
            let unseen = self.fresh.ranges().into_iter().flatten().find(|leaf| !child.shown.contains(*leaf));
            if let Some(leaf) = unseen {
                return Some((*key, leaf));
            }
            let others = free().filter(|(_, child)| !child.shown.contains(first));
            if let Some((key, _)) = others.min_by_key(|(_, child)| load(child)) {
                return Some((*key, first));
            }
        }
        None
    }

    /// The leaf that fewest have been shown, and of those the last one, for an idle child that has not seen it.
    fn next_again(&self) -> Option<(ChildKey, u32)> {
        // Who stands farther away may not take most of it, and has the nearest to get it from.
        let may = |child: &Child| child.beyond <= self.nearest || self.sent.is_full();
        let idle = self.children.iter().filter(|(_, child)| child.due.len() < 2 && may(child));
        let (key, child) = idle
            .filter(|(_, child)| child.shown.count() < self.held.count())
            .min_by_key(|(_, child)| (child.beyond, child.due.len(), child.turns))?;
        let hidden = self.held.ranges().into_iter().flatten().filter(|leaf| !child.shown.contains(*leaf));
        let rarest = hidden.min_by_key(|leaf| (self.shown.get(*leaf as usize).copied(), u32::MAX - leaf))?;
        Some((*key, rarest))
    }

    fn show_to(&mut self, key: ChildKey, leaf: u32, now: Duration, patience: Duration) {
        self.fresh.remove(leaf);
        if let Some(shown) = self.shown.get_mut(leaf as usize) {
            *shown = shown.saturating_add(1);
        }
        if let Some(child) = self.children.get_mut(&key) {
            child.shown.insert(leaf);
            child.due.insert(leaf, Due { since: now, patience, asked: false });
            child.turns += 1;
        }
    }

    /// Takes back what children do not ask for.
    fn expire(&mut self, now: Duration) {
        let mut unwanted = BTreeSet::new();
        for child in self.children.values_mut() {
            child.due.retain(|leaf, due| {
                let keep = due.asked || now.saturating_sub(due.since) < due.patience;
                if !keep {
                    unwanted.insert(*leaf);
                }
                keep
            });
        }
        unwanted.into_iter().for_each(|leaf| self.renew(leaf));
    }

    /// A leaf is new, unless somebody was sent it or is about to be.
    fn renew(&mut self, leaf: u32) {
        let due = self.children.values().any(|child| child.due.contains_key(&leaf));
        let unseen =
            self.children.is_empty() || self.children.values().any(|child| !child.shown.contains(leaf));
        if self.held.contains(leaf) && !self.sent.contains(leaf) && !due && unseen {
            self.fresh.insert(leaf);
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn source(leaves: u32, children: usize) -> (Offers, Vec<ChildKey>) {
        let mut offers = Offers::new(leaves);
        let children = (0..children).map(|_| offers.join(None)).collect();
        offers.holds(&[0..leaves]);
        (offers, children)
    }

    #[test]
    fn an_only_child_sees_everything() {
        let (mut offers, children) = source(100, 1);
        assert_eq!(offers.show(at(0)), [(children[0], (0..100).collect())]);
        assert!(offers.show(at(1)).is_empty());
    }

    #[test]
    fn what_a_child_does_not_want_or_leaves_behind_is_shown_to_another() {
        let (mut offers, children) = source(2, 2);
        let shown = offers.show(at(0));
        assert_eq!(shown, [(children[0], vec![0]), (children[1], vec![1])]);
        offers.asked(children[0], 0, at(1));
        offers.leave(children[0]);
        assert_eq!(offers.show(at(2)), [(children[1], vec![0])]);
        offers.asked(children[1], 0, at(3));
        let third = offers.join(None);
        // Leaf 1 was not asked for.
        assert_eq!(offers.show(at(1100)), [(third, vec![1])]);
    }

    #[test]
    fn what_only_those_far_away_were_sent_is_new_to_those_nearby() {
        let mut offers = Offers::new(4);
        let far = offers.join(Some(Border::Rack));
        offers.holds(&[0..2]);
        assert_eq!(offers.show(at(0)), [(far, vec![0, 1])]);
        offers.asked(far, 0, at(1));
        offers.asked(far, 1, at(1));
        offers.answered(far, 0, true, at(2));
        let near = offers.join(None);
        assert_eq!(offers.show(at(3)), [(near, vec![0])]);
        offers.answered(far, 1, true, at(4));
        assert_eq!(offers.show(at(5)), [(near, vec![1])]);
    }

    #[test]
    fn what_is_new_goes_to_the_nearest_as_long_as_they_take_it() {
        let mut offers = Offers::new(100);
        let far = [Some(Border::Rack); 3].map(|beyond| offers.join(beyond));
        let near = offers.join(None);
        for leaf in 0..20 {
            offers.holds(&[leaf..leaf + 1]);
            let now = at(u64::from(leaf));
            assert_eq!(offers.show(now), [(near, vec![leaf])]);
            offers.asked(near, leaf, now);
            offers.answered(near, leaf, true, now);
        }
        // It freezes.
        offers.holds(&[0..100]);
        for (_, leaves) in offers.show(at(20)) {
            leaves.into_iter().for_each(|leaf| offers.asked(near, leaf, at(20)));
        }
        assert!(offers.show(at(1000)).is_empty());
        let shown = offers.show(at(4000));
        assert!(shown.len() == 3 && shown.iter().all(|(child, _)| far.contains(child)), "{shown:?}");
    }

    proptest! {
        /// Children that take what they are shown: every leaf is sent once before any is sent twice, in the end all are
        /// shown to all, and no child is left out.
        #[test]
        fn unsent_first(leaves in 1u32..300, count in 2usize..12, arriving in any::<bool>()) {
            let mut offers = Offers::new(leaves);
            let children: Vec<_> = (0..count).map(|_| offers.join(None)).collect();
            let mut here = 0;
            let (mut sent, mut first) = (vec![0u32; leaves as usize], BTreeMap::<ChildKey, u32>::new());
            let mut had: BTreeMap<ChildKey, BTreeSet<u32>> = BTreeMap::new();
            for round in 1.. {
                prop_assert!(round < 100_000);
                let now = at(round * 10);
                here = if arriving { (here + 3).min(leaves) } else { leaves };
                offers.holds(&[0..here]);
                let shown = offers.show(now);
                if shown.is_empty() && here == leaves && had.values().all(|had| had.len() == leaves as usize) && had.len() == count {
                    break;
                }
                for (child, shown) in shown {
                    for leaf in shown {
                        prop_assert!(had.entry(child).or_default().insert(leaf), "shown twice");
                        offers.asked(child, leaf, now);
                        offers.answered(child, leaf, true, now);
                        sent[leaf as usize] += 1;
                        if sent[leaf as usize] > 1 {
                            prop_assert!(sent[..here as usize].iter().all(|sent| *sent > 0), "twice before once");
                        } else {
                            *first.entry(child).or_default() += 1;
                        }
                    }
                }
            }
            if leaves as usize >= 4 * count {
                let (least, most) = (first.values().min(), first.values().max());
                prop_assert!(first.len() == children.len() && most.unwrap() - least.unwrap() <= 4, "{first:?}");
            }
        }
    }
}
