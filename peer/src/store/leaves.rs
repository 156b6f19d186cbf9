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

/// Which leaves of one block a row speaks of: a bit for each, the lowest of a byte first.
#[derive(Debug, Default, PartialEq, Eq)]
struct Bitmap([u8; BITMAP_LEN]);

/// The held leaves of one task. Rows are written for blocks of [`BLOCK`] leaves that changed since the last commit.
#[derive(Debug)]
pub(super) struct Leaves {
    held: LeafSet,
    /// Those of them whose bytes are in another task's file.
    shared: LeafSet,
    /// Digests of the held leaves, by block; those of other leaves have no meaning.
    digests: BTreeMap<u32, Box<[LeafDigest; BLOCK as usize]>>,
    dirty: BTreeSet<u32>,
}

/// One block as it is stored; no bytes mean no row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct BlockRows {
    pub(super) block: u32,
    /// The leaves in the own file: a bitmap, then their digests in order.
    pub(super) own: Vec<u8>,
    /// The leaves held by reference: a bitmap.
    pub(super) shared: Vec<u8>,
}

impl Leaves {
    /// None of `leaves` leaves is held.
    pub(super) fn new(leaves: u32) -> Self {
        Self {
            held: LeafSet::new(leaves),
            shared: LeafSet::new(leaves),
            digests: BTreeMap::new(),
            dirty: BTreeSet::new(),
        }
    }

    /// The held leaves.
    pub(super) fn held(&self) -> &LeafSet {
        &self.held
    }

    /// The held leaves whose bytes are in another task's file.
    pub(super) fn shared(&self) -> &LeafSet {
        &self.shared
    }

    /// Whether a leaf is held whose bytes are in another task's file.
    pub(super) fn is_shared(&self, leaf: u32) -> bool {
        self.shared.contains(leaf)
    }

    /// Whether a leaf is held whose bytes are in the task's own file.
    pub(super) fn owns(&self, leaf: u32) -> bool {
        self.held.contains(leaf) && !self.is_shared(leaf)
    }

    /// The held leaves whose bytes are in the task's own file.
    pub(super) fn own(&self) -> impl Iterator<Item = u32> {
        self.held.ranges().into_iter().flatten().filter(|leaf| !self.is_shared(*leaf))
    }

    /// A held leaf is by reference from now on, or not any more.
    pub(super) fn set_shared(&mut self, leaf: u32, shared: bool) {
        let changed = if shared { self.shared.insert(leaf) } else { self.shared.remove(leaf) };
        if changed {
            self.dirty.insert(leaf / BLOCK);
        }
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
        self.shared.remove(leaf);
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
    pub(super) fn take_dirty(&mut self) -> Vec<BlockRows> {
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        dirty.map(|block| BlockRows { block, own: self.row(block), shared: self.shared_row(block) }).collect()
    }

    /// The rows of these blocks were not written after all.
    pub(super) fn not_written(&mut self, blocks: impl IntoIterator<Item = u32>) {
        self.dirty.extend(blocks);
    }

    fn shared_row(&self, block: u32) -> Vec<u8> {
        let mut bitmap = Bitmap::default();
        self.held_in(block).filter(|leaf| self.is_shared(*leaf)).for_each(|leaf| bitmap.set(leaf));
        if bitmap == Bitmap::default() { Vec::new() } else { bitmap.0.to_vec() }
    }

    fn row(&self, block: u32) -> Vec<u8> {
        let mut bitmap = Bitmap::default();
        let mut digests = Vec::new();
        for leaf in self.held_in(block).filter(|leaf| !self.is_shared(*leaf)) {
            if let Some(digest) = self.digest(leaf) {
                bitmap.set(leaf);
                digests.extend_from_slice(&digest);
            }
        }
        if digests.is_empty() { Vec::new() } else { [bitmap.0.as_slice(), &digests].concat() }
    }

    /// Adds what a row of leaves held by reference says, whose digests are known otherwise; false if it is no such row.
    pub(super) fn load_shared(
        &mut self,
        block: u32,
        row: &[u8],
        digest: impl Fn(u32) -> Option<LeafDigest>,
    ) -> bool {
        let Ok(bitmap) = row.try_into().map(Bitmap) else { return false };
        for leaf in bitmap.leaves(block) {
            let Some(digest) = digest(leaf) else { return false };
            // A leaf that is in the own file needs no other's.
            if self.insert(leaf, digest) {
                self.shared.insert(leaf);
            }
        }
        self.dirty.remove(&block);
        true
    }

    /// Adds what a row says; false if the row is no such row.
    pub(super) fn load(&mut self, block: u32, row: &[u8]) -> bool {
        let Some((bitmap, digests)) = row.split_first_chunk::<BITMAP_LEN>() else { return false };
        let (digests, rest) = digests.as_chunks::<DIGEST_LEN>();
        let bitmap = Bitmap(*bitmap);
        if !rest.is_empty() || digests.len() != bitmap.count() {
            return false;
        }
        for (leaf, digest) in bitmap.leaves(block).zip(digests) {
            if leaf >= self.held.leaves() {
                return false;
            }
            self.insert(leaf, *digest);
        }
        self.dirty.remove(&block);
        true
    }
}

impl Bitmap {
    fn set(&mut self, leaf: u32) {
        let at = (leaf % BLOCK) as usize;
        if let Some(byte) = self.0.get_mut(at / 8) {
            *byte |= 1 << (at % 8);
        }
    }

    fn count(&self) -> usize {
        self.0.iter().map(|byte| byte.count_ones() as usize).sum()
    }

    /// The leaves whose bits are set, if this is the bitmap of `block`.
    fn leaves(&self, block: u32) -> impl Iterator<Item = u32> {
        let set = |at: usize| self.0.get(at / 8).is_some_and(|byte| byte & (1 << (at % 8)) != 0);
        block_leaves(block, u32::MAX).zip(0..).filter(move |(_, at)| set(*at)).map(|(leaf, _)| leaf)
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
                if leaf % 5 == 0 && leaves.held().contains(leaf) {
                    leaves.set_shared(leaf, leaf % 2 == 0);
                }
                if leaf % 7 == 0 {
                    rows.extend(leaves.take_dirty().into_iter().map(|rows| (rows.block, rows)));
                }
            }
            rows.extend(leaves.take_dirty().into_iter().map(|rows| (rows.block, rows)));
            let mut loaded = Leaves::new(count);
            for rows in rows.values() {
                prop_assert!(rows.own.is_empty() || loaded.load(rows.block, &rows.own));
            }
            for rows in rows.values() {
                prop_assert!(rows.shared.is_empty() || loaded.load_shared(rows.block, &rows.shared, |leaf| Some(digest(leaf))));
            }
            prop_assert!(loaded.take_dirty().is_empty());
            prop_assert_eq!(loaded.held(), leaves.held());
            prop_assert_eq!(loaded.shared(), leaves.shared());
            for leaf in 0..count {
                prop_assert_eq!(loaded.digest(leaf), leaves.held().contains(leaf).then(|| digest(leaf)));
            }
        }

        #[test]
        fn refuses_rubbish(block in any::<u32>(), row in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut leaves = Leaves::new(1000);
            leaves.load(block, &row);
            leaves.load_shared(block, &row, |leaf| (leaf < 1000).then(|| digest(leaf)));
            prop_assert!(leaves.held().count() <= 512);
        }
    }

    #[test]
    fn a_row_for_leaves_past_the_end_is_refused() {
        let mut long = Leaves::new(300);
        long.insert(299, digest(299));
        let rows = long.take_dirty();
        assert!(!Leaves::new(299).load(1, &rows[0].own));
    }
}
