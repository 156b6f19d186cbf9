//! Which leaves of a task are held, with their digests, and how that is written as rows.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use crate::{LeafDigest, LeafSet};

/// Leaves per row: 64 MiB of a blob, about what one commit covers.
pub(super) const BLOCK: u32 = 256;
const DIGEST_LEN: usize = size_of::<LeafDigest>();
const BITMAP_LEN: usize = (BLOCK / 8) as usize;

/// The held leaves of one task. Rows are written for blocks of [`BLOCK`] leaves that changed since the last commit.
#[derive(Debug)]
pub(super) struct Leaves {
    held: LeafSet,
    /// Digests of the held leaves, by block; those of other leaves have no meaning.
    digests: BTreeMap<u32, Box<[LeafDigest; BLOCK as usize]>>,
    dirty: BTreeSet<u32>,
}

/// One block as it is stored; no bytes mean no row.
pub(super) type BlockRow = (u32, Vec<u8>);

impl Leaves {
    /// None of `leaves` leaves is held.
    pub(super) fn new(leaves: u32) -> Self {
        Self { held: LeafSet::new(leaves), digests: BTreeMap::new(), dirty: BTreeSet::new() }
    }

    /// The held leaves.
    pub(super) fn held(&self) -> &LeafSet {
        &self.held
    }

    /// A held leaf's digest.
    pub(super) fn digest(&self, leaf: u32) -> Option<LeafDigest> {
        if !self.held.contains(leaf) {
            return None;
        }
        self.digests.get(&(leaf / BLOCK))?.get((leaf % BLOCK) as usize).copied()
    }

    /// Adds a leaf; false if it was held already.
    pub(super) fn insert(&mut self, leaf: u32, digest: LeafDigest) -> bool {
        if !self.held.insert(leaf) {
            return false;
        }
        let block = self.digests.entry(leaf / BLOCK).or_insert_with(|| Box::new([LeafDigest::default(); _]));
        if let Some(slot) = block.get_mut((leaf % BLOCK) as usize) {
            *slot = digest;
        }
        self.dirty.insert(leaf / BLOCK);
        true
    }

    /// Drops a leaf; false if it was not held.
    pub(super) fn remove(&mut self, leaf: u32) -> bool {
        let removed = self.held.remove(leaf);
        if removed {
            self.dirty.insert(leaf / BLOCK);
        }
        removed
    }

    /// The held leaves of the blocks whose rows have to be written.
    pub(super) fn held_in_dirty(&self) -> Vec<u32> {
        self.dirty.iter().flat_map(|block| self.held_in(*block)).collect()
    }

    fn held_in(&self, block: u32) -> impl Iterator<Item = u32> {
        block_leaves(block, self.held.leaves()).filter(|leaf| self.held.contains(*leaf))
    }

    /// The rows that have to be written; they count as written from now on.
    pub(super) fn take_dirty(&mut self) -> Vec<BlockRow> {
        std::mem::take(&mut self.dirty).into_iter().map(|block| (block, self.row(block))).collect()
    }

    /// The rows of these blocks were not written after all.
    pub(super) fn not_written(&mut self, blocks: impl IntoIterator<Item = u32>) {
        self.dirty.extend(blocks);
    }

    /// A bitmap of the held leaves, then the digests of these in order.
    fn row(&self, block: u32) -> Vec<u8> {
        let mut bitmap = [0u8; BITMAP_LEN];
        let mut digests = Vec::new();
        for leaf in self.held_in(block) {
            let at = (leaf % BLOCK) as usize;
            if let (Some(byte), Some(digest)) = (bitmap.get_mut(at / 8), self.digest(leaf)) {
                *byte |= 1 << (at % 8);
                digests.extend_from_slice(&digest);
            }
        }
        if digests.is_empty() { Vec::new() } else { [bitmap.as_slice(), &digests].concat() }
    }

    /// Adds what a row says; false if the row is no such row.
    pub(super) fn load(&mut self, block: u32, row: &[u8]) -> bool {
        let Some((bitmap, digests)) = row.split_first_chunk::<BITMAP_LEN>() else { return false };
        let (digests, rest) = digests.as_chunks::<DIGEST_LEN>();
        let bits: u32 = bitmap.iter().map(|byte| byte.count_ones()).sum();
        if !rest.is_empty() || digests.len() != bits as usize {
            return false;
        }
        let mut digests = digests.iter();
        for (leaf, at) in block_leaves(block, u32::MAX).zip(0usize..) {
            let set = bitmap.get(at / 8).is_some_and(|byte| byte & (1 << (at % 8)) != 0);
            match if set { digests.next() } else { None } {
                Some(digest) if leaf < self.held.leaves() => {
                    self.insert(leaf, *digest);
                }
                Some(_) => return false,
                None => {}
            }
        }
        self.dirty.remove(&block);
        true
    }
}

/// The leaves of a block, of which there are `leaves`.
fn block_leaves(block: u32, leaves: u32) -> Range<u32> {
    let start = block.saturating_mul(BLOCK).min(leaves);
    start..start.saturating_add(BLOCK).min(leaves)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(leaf: u32) -> LeafDigest {
        crate::digest::leaf_digest(&leaf.to_le_bytes())
    }

    proptest! {
        #[test]
        fn loads_what_its_rows_say(
            count in 1u32..1000,
            ops in proptest::collection::vec((any::<bool>(), 0u32..1000), 0..300),
        ) {
            let mut leaves = Leaves::new(count);
            let mut rows = BTreeMap::new();
            for (add, leaf) in ops {
                if add { leaves.insert(leaf, digest(leaf)); } else { leaves.remove(leaf); }
                if leaf % 7 == 0 {
                    rows.extend(leaves.take_dirty());
                }
            }
            rows.extend(leaves.take_dirty());
            let mut loaded = Leaves::new(count);
            for (block, row) in rows.iter().filter(|(_, row)| !row.is_empty()) {
                prop_assert!(loaded.load(*block, row));
            }
            prop_assert!(loaded.take_dirty().is_empty());
            prop_assert_eq!(loaded.held(), leaves.held());
            for leaf in 0..count {
                prop_assert_eq!(loaded.digest(leaf), leaves.held().contains(leaf).then(|| digest(leaf)));
            }
        }

        #[test]
        fn refuses_rubbish(block in any::<u32>(), row in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut leaves = Leaves::new(1000);
            leaves.load(block, &row);
            prop_assert!(leaves.held().count() <= 256);
        }
    }

    #[test]
    fn a_row_for_leaves_past_the_end_is_refused() {
        let mut long = Leaves::new(300);
        long.insert(299, digest(299));
        let rows = long.take_dirty();
        assert!(!Leaves::new(299).load(1, &rows[0].1));
    }
}
