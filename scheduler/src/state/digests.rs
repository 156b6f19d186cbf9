//! The leaf digests of a task, as far as they are known.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;

/// Length of a leaf's BLAKE3 digest in bytes.
pub(super) const DIGEST_LEN: usize = 32;

/// A run of digests never crosses a multiple of this: joining two stays cheap, and a run fits a message (256 KiB).
const BLOCK: u32 = 8192;

/// Runs of known digests. Memory grows with what was sent, never with what a sender merely names.
#[derive(Debug, Default)]
pub(super) struct LeafDigests {
    /// By the number of the first leaf; runs within a block neither touch nor overlap.
    runs: BTreeMap<u32, Vec<u8>>,
    count: u32,
}

/// What adding digests came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Added {
    /// At least one digest was not known.
    News,
    /// All were known, and are the same.
    Known,
    /// One differs from the digest that is known; nothing was added.
    Conflict,
}

impl LeafDigests {
    /// Adds the digests of the leaves from `first` on. The caller has checked that `digests` is a multiple of
    /// [`DIGEST_LEN`] and ends at a number below 2^32.
    pub(super) fn add(&mut self, first: u32, digests: &[u8]) -> Added {
        let (digests, _) = digests.as_chunks::<DIGEST_LEN>();
        let mut news = Vec::new();
        for (leaf, digest) in (first..).zip(digests) {
            match self.get(leaf) {
                Some(known) if known != digest => return Added::Conflict,
                Some(_) => {}
                None => news.push((leaf, digest)),
            }
        }
        if news.is_empty() {
            return Added::Known;
        }
        for (leaf, digest) in news {
            self.append(leaf, digest);
        }
        Added::News
    }

    /// Number of leaves whose digest is known.
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    /// Everything known, in runs that are short enough for a message.
    pub(super) fn runs(&self) -> impl Iterator<Item = (u32, Bytes)> + '_ {
        self.runs.iter().map(|(first, run)| (*first, Bytes::copy_from_slice(run)))
    }

    fn get(&self, leaf: u32) -> Option<&[u8]> {
        let (first, run) = self.runs.range(..=leaf).next_back()?;
        run.get(byte_range(leaf - first))
    }

    /// Adds the digest of a leaf that is not known, and joins it with its neighbours.
    fn append(&mut self, leaf: u32, digest: &[u8]) {
        self.count += 1;
        let block = leaf - leaf % BLOCK;
        let before = self.runs.range_mut(block..leaf).next_back().map(|(first, run)| (*first, run));
        let start = match before {
            Some((first, run)) if byte_range(leaf - first).start == run.len() => {
                run.extend_from_slice(digest);
                first
            }
            _ => {
                self.runs.insert(leaf, digest.to_vec());
                leaf
            }
        };
        if leaf + 1 == block + BLOCK {
            return;
        }
        if let Some(after) = self.runs.remove(&(leaf + 1))
            && let Some(run) = self.runs.get_mut(&start)
        {
            run.extend_from_slice(&after);
        }
    }
}

fn byte_range(leaf: u32) -> Range<usize> {
    let start = leaf as usize * DIGEST_LEN;
    start..start + DIGEST_LEN
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digests(leaves: Range<u32>) -> Vec<u8> {
        leaves.flat_map(|leaf| [u8::try_from(leaf % 251).unwrap(); DIGEST_LEN]).collect()
    }

    #[test]
    fn a_conflict_changes_nothing() {
        let mut known = LeafDigests::default();
        assert_eq!(known.add(2, &digests(2..4)), Added::News);
        assert_eq!(known.add(2, &digests(2..4)), Added::Known);
        assert_eq!(known.add(0, &[9; 4 * DIGEST_LEN]), Added::Conflict);
        assert_eq!(known.count(), 2);
    }

    #[test]
    fn runs_end_with_their_block() {
        let mut known = LeafDigests::default();
        known.add(5, &digests(5..BLOCK + 15));
        let runs: Vec<_> = known.runs().map(|(first, bytes)| (first, bytes.len() / DIGEST_LEN)).collect();
        assert_eq!(runs, [(5, BLOCK as usize - 5), (BLOCK, 15)]);
    }

    proptest! {
        #[test]
        fn any_order_comes_to_the_same(runs in proptest::collection::vec((0u32..200, 0u32..20), 1..40)) {
            // Around the end of a block.
            let base = BLOCK - 100;
            let runs: Vec<_> = runs.into_iter().map(|(first, count)| (base + first, count)).collect();
            let mut known = LeafDigests::default();
            for (first, count) in &runs {
                prop_assert!(known.add(*first, &digests(*first..first + count)) != Added::Conflict);
            }
            let mut bytes = vec![None; 2 * BLOCK as usize];
            for (first, part) in known.runs() {
                for (leaf, digest) in (first..).zip(part.chunks(DIGEST_LEN)) {
                    prop_assert_eq!(bytes[leaf as usize].replace(digest[0]), None, "leaf {} twice", leaf);
                    prop_assert_eq!(digest, digests(leaf..leaf + 1));
                }
            }
            prop_assert_eq!(known.count() as usize, bytes.iter().flatten().count());
            for leaf in 0..2 * BLOCK {
                let sent = runs.iter().any(|(first, count)| (*first..first + count).contains(&leaf));
                prop_assert_eq!(bytes[leaf as usize].is_some(), sent);
            }
            for pair in known.runs.iter().collect::<Vec<_>>().windows(2) {
                let end = pair[0].0 + u32::try_from(pair[0].1.len() / DIGEST_LEN).unwrap();
                prop_assert!(end < *pair[1].0 || end % BLOCK == 0, "runs touch");
            }
        }
    }
}
