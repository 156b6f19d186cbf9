//! What the start of a container read of an image's layers.
//!
//! Encoded as the magic `DRTSTRT1`, the number of layers as u16, the digest of each one's leaf table (32 bytes), and the
//! runs of leaves in the order in which they were read: the layer's number u16, the number of leaves u16 and the first
//! leaf u32; all little-endian.

use std::collections::HashSet;

use darter_peer::Digest;

const MAGIC: &[u8; 8] = b"DRTSTRT1";
/// An image has at most 127 layers, which is what an overlay can stack.
const MAX_LAYERS: usize = 127;
/// Most runs of leaves: together with the layers' digests below the 64 KiB that a scheduler takes.
const MAX_RUNS: usize = 7000;

/// One leaf of one of the image's layers, the lowest layer is number 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct StartLeaf {
    pub(crate) layer: u16,
    pub(crate) leaf: u32,
}

/// The leaves that a start read, each once, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    /// The digest of each layer's leaf table: leaves of another table are other leaves.
    tables: Vec<[u8; 32]>,
    leaves: Vec<StartLeaf>,
}

impl Profile {
    /// A profile of an image whose layers have these leaf tables.
    pub(super) fn new(tables: &[Digest], leaves: Vec<StartLeaf>) -> Option<Self> {
        let tables: Option<Vec<_>> = tables.iter().map(root).collect();
        tables.filter(|tables| tables.len() <= MAX_LAYERS).map(|tables| Self { tables, leaves })
    }

    /// The leaves that are those of an image with these leaf tables.
    pub(super) fn leaves(&self, tables: &[Digest]) -> Vec<StartLeaf> {
        let fits: Vec<bool> = self
            .tables
            .iter()
            .zip(tables)
            .map(|(known, table)| root(table).as_ref() == Some(known))
            .collect();
        let mut seen = HashSet::new();
        let leaves = self.leaves.iter().copied();
        leaves.filter(|leaf| fits.get(usize::from(leaf.layer)) == Some(&true) && seen.insert(*leaf)).collect()
    }

    /// The encoding, cut off where it would become too long.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&u16::try_from(self.tables.len()).unwrap_or(u16::MAX).to_le_bytes());
        self.tables.iter().for_each(|table| out.extend_from_slice(table));
        let follows =
            |a: &StartLeaf, b: &StartLeaf| a.layer == b.layer && a.leaf.checked_add(1) == Some(b.leaf);
        let runs = self.leaves.chunk_by(follows).flat_map(|run| run.chunks(usize::from(u16::MAX)));
        for run in runs.take(MAX_RUNS) {
            let Some(first) = run.first() else { continue };
            out.extend_from_slice(&first.layer.to_le_bytes());
            out.extend_from_slice(&u16::try_from(run.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&first.leaf.to_le_bytes());
        }
        out
    }

    /// The reverse of [`Self::encode`]. `None` for anything else: it comes from another node.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (count, rest) = bytes.strip_prefix(MAGIC)?.split_first_chunk::<2>()?;
        let count = usize::from(u16::from_le_bytes(*count));
        let (tables, rest) = rest.split_at_checked(count.checked_mul(32)?)?;
        let (tables, (runs, tail)) = (tables.as_chunks::<32>().0.to_vec(), rest.as_chunks::<8>());
        if count > MAX_LAYERS || runs.len() > MAX_RUNS || !tail.is_empty() {
            return None;
        }
        let mut leaves = Vec::new();
        for [l0, l1, c0, c1, first @ ..] in runs {
            let (layer, count) = (u16::from_le_bytes([*l0, *l1]), u16::from_le_bytes([*c0, *c1]));
            let first = u32::from_le_bytes(*first);
            let end = first.checked_add(u32::from(count))?;
            leaves.extend((first..end).map(|leaf| StartLeaf { layer, leaf }));
            // However the runs overlap, they name no more leaves than a large image has.
            if leaves.len() > MAX_RUNS * 64 {
                return None;
            }
        }
        Some(Self { tables, leaves })
    }
}

fn root(table: &Digest) -> Option<[u8; 32]> {
    table.bytes().first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tables() -> [Digest; 2] {
        [Digest::blake3(b"a"), Digest::blake3(b"b")]
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(leaves in proptest::collection::vec((0..2u16, 0..40u32), 0..200)) {
            let leaves = leaves.into_iter().map(|(layer, leaf)| StartLeaf { layer, leaf }).collect();
            let profile = Profile::new(&tables(), leaves).unwrap();
            prop_assert_eq!(Profile::decode(&profile.encode()), Some(profile));
        }

        #[test]
        fn survives_rubbish(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend_from_slice(&[1, 0]);
            with_magic.extend_from_slice(&[0; 32]);
            with_magic.extend_from_slice(&bytes);
            Profile::decode(&bytes);
            if let Some(profile) = Profile::decode(&with_magic) {
                prop_assert!(profile.leaves.len() <= MAX_RUNS * 64);
            }
        }
    }

    #[test]
    fn names_each_leaf_once_and_none_of_a_layer_that_is_cut_otherwise() {
        let leaf = |layer, leaf| StartLeaf { layer, leaf };
        let leaves = vec![leaf(1, 5), leaf(0, 2), leaf(1, 5), leaf(7, 0)];
        let profile = Profile::new(&tables(), leaves).unwrap();
        assert_eq!(profile.leaves(&tables()), [leaf(1, 5), leaf(0, 2)]);
        let [first, _] = tables();
        assert_eq!(profile.leaves(&[first, Digest::blake3(b"c")]), [leaf(0, 2)]);
    }
}
