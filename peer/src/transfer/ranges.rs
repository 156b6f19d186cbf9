//! Sets of leaves as ascending ranges that do not touch.

use std::ops::Range;

/// What is in `now` but not in `before`.
pub(super) fn added(now: &[Range<u32>], before: &[Range<u32>]) -> Vec<Range<u32>> {
    let mut added = Vec::new();
    let mut known = before.iter().peekable();
    for range in now {
        let mut start = range.start;
        while start < range.end {
            while known.next_if(|known| known.end <= start).is_some() {}
            let (gap_end, next) = match known.peek() {
                Some(known) if known.start < range.end => (known.start, known.end),
                _ => (range.end, range.end),
            };
            if start < gap_end {
                added.push(start..gap_end);
            }
            start = next;
        }
    }
    added
}

/// Joins numbers into ranges; ascending runs become one.
pub(super) fn joined(leaves: impl IntoIterator<Item = u32>) -> Vec<Range<u32>> {
    let mut ranges: Vec<Range<u32>> = Vec::new();
    for leaf in leaves {
        match ranges.last_mut() {
            Some(last) if last.end == leaf => last.end = leaf.saturating_add(1),
            _ => ranges.push(leaf..leaf.saturating_add(1)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn added_is_the_difference_of_sets(
            now in proptest::collection::btree_set(0u32..200, 0..150),
            before in proptest::collection::btree_set(0u32..200, 0..150),
        ) {
            let ranges = added(&joined(now.iter().copied()), &joined(before.iter().copied()));
            let numbers: BTreeSet<u32> = ranges.iter().cloned().flatten().collect();
            prop_assert_eq!(&numbers, &now.difference(&before).copied().collect());
            prop_assert_eq!(ranges, joined(numbers));
        }
    }
}
