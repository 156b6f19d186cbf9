//! A set of leaves of one task, as a bitmap.

use std::ops::Range;

/// Which leaves of a task are held, wanted or in flight. Leaves past the end are never members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LeafSet {
    words: Vec<u64>,
    leaves: u32,
    count: u32,
}

impl LeafSet {
    /// The empty set for a task of `leaves` leaves.
    pub fn new(leaves: u32) -> Self {
        Self { words: vec![0; leaves.div_ceil(64) as usize], leaves, count: 0 }
    }

    /// How many leaves the task has.
    pub fn leaves(&self) -> u32 {
        self.leaves
    }

    /// How many leaves are in the set.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Whether every leaf of the task is in the set.
    pub fn is_full(&self) -> bool {
        self.count == self.leaves
    }

    /// Whether `leaf` is in the set.
    pub fn contains(&self, leaf: u32) -> bool {
        self.words.get((leaf / 64) as usize).is_some_and(|word| word & (1 << (leaf % 64)) != 0)
    }

    /// Adds a leaf; true if it was not in the set.
    pub fn insert(&mut self, leaf: u32) -> bool {
        if leaf >= self.leaves || self.contains(leaf) {
            return false;
        }
        if let Some(word) = self.words.get_mut((leaf / 64) as usize) {
            *word |= 1 << (leaf % 64);
            self.count += 1;
        }
        true
    }

    /// Takes a leaf out; true if it was in the set.
    pub fn remove(&mut self, leaf: u32) -> bool {
        if !self.contains(leaf) {
            return false;
        }
        if let Some(word) = self.words.get_mut((leaf / 64) as usize) {
            *word &= !(1 << (leaf % 64));
            self.count -= 1;
        }
        true
    }

    /// Adds a run of leaves; those past the end are ignored.
    pub fn insert_range(&mut self, range: Range<u32>) {
        for leaf in range.start..range.end.min(self.leaves) {
            self.insert(leaf);
        }
    }

    /// The first leaf at or after `from` that is not in the set.
    pub fn first_missing(&self, from: u32) -> Option<u32> {
        self.next(from, |_, word| !word).filter(|leaf| *leaf < self.leaves)
    }

    /// The first leaf at or after `from` that is in the set.
    pub fn first_held(&self, from: u32) -> Option<u32> {
        self.next(from, |_, word| word)
    }

    /// The first leaf at or after `from` that is in both sets.
    pub fn first_common(&self, other: &Self, from: u32) -> Option<u32> {
        self.next(from, |at, word| word & other.word(at))
    }

    /// The first leaf at or after `from` that is in this set and all of `others`, and not in `except`.
    pub(crate) fn first_in_all(&self, others: &[&Self], except: &Self, from: u32) -> Option<u32> {
        self.next(from, |at, word| {
            others.iter().fold(word & !except.word(at), |bits, other| bits & other.word(at))
        })
    }

    /// Adds all leaves of another set of the same task.
    pub(crate) fn unite(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
        self.count = self.words.iter().map(|word| word.count_ones()).sum();
    }

    /// The runs of leaves in the set, in order.
    pub fn ranges(&self) -> Vec<Range<u32>> {
        let mut ranges = Vec::new();
        let mut from = 0;
        while let Some(start) = self.first_held(from) {
            let end = self.first_missing(start).unwrap_or(self.leaves);
            ranges.push(start..end);
            from = end;
        }
        ranges
    }

    fn word(&self, at: usize) -> u64 {
        self.words.get(at).copied().unwrap_or(0)
    }

    /// The first leaf at or after `from` whose bit is set in what `map` makes of the words, given with their places.
    fn next(&self, from: u32, map: impl Fn(usize, u64) -> u64) -> Option<u32> {
        let first = (from / 64) as usize;
        for (at, word) in self.words.iter().enumerate().skip(first) {
            let mut bits = map(at, *word);
            if at == first {
                bits &= u64::MAX << (from % 64);
            }
            if bits != 0 {
                return u32::try_from(at).ok().map(|at| at * 64 + bits.trailing_zeros());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set_of_numbers(
            leaves in 0u32..300,
            ops in proptest::collection::vec((any::<bool>(), 0u32..320), 0..200),
            from in 0u32..320,
        ) {
            let mut set = LeafSet::new(leaves);
            let mut reference = BTreeSet::new();
            for (add, leaf) in ops {
                if add {
                    prop_assert_eq!(set.insert(leaf), leaf < leaves && reference.insert(leaf));
                } else {
                    prop_assert_eq!(set.remove(leaf), reference.remove(&leaf));
                }
            }
            prop_assert_eq!(set.count() as usize, reference.len());
            prop_assert_eq!(set.is_full(), reference.len() == leaves as usize);
            prop_assert_eq!(set.first_held(from), reference.range(from..).next().copied());
            prop_assert_eq!(set.first_missing(from), (from..leaves).find(|leaf| !reference.contains(leaf)));
            let mut odd = LeafSet::new(leaves);
            (0..leaves).filter(|leaf| leaf % 2 == 1).for_each(|leaf| {
                odd.insert(leaf);
            });
            let common = reference.range(from..).find(|leaf| *leaf % 2 == 1).copied();
            prop_assert_eq!(set.first_common(&odd, from), common);
            let from_ranges: Vec<u32> = set.ranges().into_iter().flatten().collect();
            prop_assert_eq!(from_ranges, reference.into_iter().collect::<Vec<_>>());
        }
    }
}
