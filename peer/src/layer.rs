//! What a layer becomes: an index and a table of leaves. The engine moves both; `snapshotter` makes and mounts them.

use std::{io::Read, ops::Range};

use serde::{Deserialize, Serialize};

use crate::{Digest, LeafDigest, digest::leaf_digest, task::PIECE_LEN};

/// Which rules a layer was made by: how raw is cut, how leaves are stored, what the index says and how.
///
/// What was made by other rules than this program's is unknown to it, on the wire and on disk: the layer is made again.
/// Raise [`Self::CURRENT`] with every change after which a blob becomes another layer, or is to be read differently.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct LayerFormat;

/// A layer that was made by another version of this program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the layer has format {0}, and this version knows only {current}", current = LayerFormat::CURRENT)]
pub struct OtherLayerFormat(u32);

impl LayerFormat {
    /// Its number.
    pub const CURRENT: u32 = 2;
}

impl TryFrom<u32> for LayerFormat {
    type Error = OtherLayerFormat;

    fn try_from(number: u32) -> Result<Self, OtherLayerFormat> {
        if number == Self::CURRENT { Ok(Self) } else { Err(OtherLayerFormat(number)) }
    }
}

impl From<LayerFormat> for u32 {
    fn from(_: LayerFormat) -> Self {
        LayerFormat::CURRENT
    }
}

/// What a seed peer publishes of a layer once it has checked both digests of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerDescriptor {
    /// How it was made.
    pub format: LayerFormat,
    /// Digest of the blob as the registry has it.
    pub blob: Digest,
    /// SHA-256 of the raw tar, as in the image's config.
    pub diff_id: Digest,
    /// Length of the raw tar in bytes.
    pub raw_len: u64,
    /// BLAKE3 of the index, an EROFS metadata image.
    pub index: Digest,
    /// Length of the index in bytes.
    pub index_len: u64,
    /// BLAKE3 of the encoded leaf table.
    pub table: Digest,
    /// Length of the encoded leaf table in bytes.
    pub table_len: u64,
}

/// Takes the leaves of a layer in order while it is being made.
pub trait LeafSink: Send {
    /// Stores one leaf; `stored` are the bytes that will be sent and whose digest is checked.
    fn leaf(&mut self, stored: &[u8]) -> std::io::Result<()>;
}

/// Makes a layer out of a blob. Declared here, implemented by `snapshotter`, joined by the binary.
pub trait LayerMaker: Send + Sync + 'static {
    /// Reads `blob` (any supported compression of a tar) to its end and hands each leaf to `leaves`.
    ///
    /// Blocking, with bounded memory and deterministic: equal raw tars give equal indexes, tables and leaves.
    /// The caller checks the blob's digest; the maker reports the diffID that it computed.
    fn make(&self, blob: &mut dyn Read, leaves: &mut dyn LeafSink) -> Result<MadeLayer, MakeError>;
}

/// A layer as its maker left it; the leaves went to the sink.
#[derive(Debug, Clone)]
pub struct MadeLayer {
    /// SHA-256 of the raw tar.
    pub diff_id: Digest,
    /// Length of the raw tar in bytes.
    pub raw_len: u64,
    /// The EROFS metadata image.
    pub index: Vec<u8>,
    /// The table of the leaves that were handed to the sink.
    pub table: LeafTable,
}

/// Why a blob did not become a layer.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// The blob could not be read, or a leaf could not be stored.
    #[error("reading the blob or storing a leaf failed: {0}")]
    Io(#[from] std::io::Error),
    /// The blob is no tar, or one that must not be unpacked.
    #[error("the layer is refused: {0}")]
    Refused(String),
}

/// One leaf of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeafEntry {
    /// Length in the raw tar, in bytes.
    pub raw_len: u32,
    /// Length as stored and sent, in bytes. Equal to `raw_len` means stored as is, otherwise one zstd frame.
    pub stored_len: u32,
    /// BLAKE3 of the stored bytes.
    pub digest: LeafDigest,
}

/// How a layer's raw tar is cut into leaves, in the order of the raw tar.
///
/// Encoded as the magic `DRTLEAF1`, the number of leaves as u32, then per leaf raw length u32, stored length u32
/// and digest; all little-endian. Its root is the BLAKE3 of that encoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafTable {
    entries: Vec<LeafEntry>,
    /// Raw end offset of each leaf.
    raw_ends: Vec<u64>,
    /// Stored end offset of each leaf.
    stored_ends: Vec<u64>,
    /// First leaf of each piece.
    piece_starts: Vec<u32>,
}

const MAGIC: &[u8; 8] = b"DRTLEAF1";
const ENTRY_LEN: usize = 40;
/// A leaf longer than this is refused: it would have to be held in memory.
const MAX_LEAF_LEN: u32 = 16 * 1024 * 1024;

/// Bytes that are not a leaf table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a leaf table: {0}")]
pub struct InvalidLeafTable(&'static str);

impl LeafTable {
    /// Checks the lengths and adds up the offsets.
    pub fn new(entries: Vec<LeafEntry>) -> Result<Self, InvalidLeafTable> {
        u32::try_from(entries.len()).map_err(|_| InvalidLeafTable("too many leaves"))?;
        let mut raw_ends = Vec::with_capacity(entries.len());
        let mut stored_ends = Vec::with_capacity(entries.len());
        let mut piece_starts = Vec::new();
        let (mut raw, mut stored, mut piece_end) = (0u64, 0u64, 0u64);
        for (leaf, entry) in (0u32..).zip(&entries) {
            if entry.raw_len == 0 || entry.stored_len == 0 || entry.stored_len > entry.raw_len {
                return Err(InvalidLeafTable("a leaf is empty or longer stored than raw"));
            }
            if entry.raw_len > MAX_LEAF_LEN {
                return Err(InvalidLeafTable("a leaf is longer than 16 MiB"));
            }
            if leaf == 0 || stored >= piece_end {
                piece_starts.push(leaf);
                piece_end = stored + PIECE_LEN;
            }
            raw += u64::from(entry.raw_len);
            stored += u64::from(entry.stored_len);
            raw_ends.push(raw);
            stored_ends.push(stored);
        }
        Ok(Self { entries, raw_ends, stored_ends, piece_starts })
    }

    /// The encoding that is sent and whose BLAKE3 is the root.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + self.entries.len() * ENTRY_LEN);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&self.leaves().to_le_bytes());
        for entry in &self.entries {
            out.extend_from_slice(&entry.raw_len.to_le_bytes());
            out.extend_from_slice(&entry.stored_len.to_le_bytes());
            out.extend_from_slice(&entry.digest);
        }
        out
    }

    /// The reverse of [`Self::encode`]; anything else is refused.
    pub fn decode(bytes: &[u8]) -> Result<Self, InvalidLeafTable> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(InvalidLeafTable("wrong magic"))?;
        let (count, rest) = rest.split_first_chunk::<4>().ok_or(InvalidLeafTable("truncated"))?;
        let count = u32::from_le_bytes(*count) as usize;
        let (chunks, tail) = rest.as_chunks::<ENTRY_LEN>();
        if chunks.len() != count || !tail.is_empty() {
            return Err(InvalidLeafTable("its length does not fit its number of leaves"));
        }
        let entries = chunks.iter().map(|chunk| {
            let (raw, rest) = chunk.split_first_chunk::<4>()?;
            let (stored, rest) = rest.split_first_chunk::<4>()?;
            Some(LeafEntry {
                raw_len: u32::from_le_bytes(*raw),
                stored_len: u32::from_le_bytes(*stored),
                digest: *rest.first_chunk()?,
            })
        });
        Self::new(entries.collect::<Option<_>>().ok_or(InvalidLeafTable("truncated"))?)
    }

    /// BLAKE3 of the encoding.
    pub fn root(&self) -> Digest {
        Digest::blake3(&self.encode())
    }

    /// Number of leaves.
    pub fn leaves(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// One leaf's lengths and digest.
    pub fn get(&self, leaf: u32) -> Option<&LeafEntry> {
        self.entries.get(leaf as usize)
    }

    /// All leaves in order.
    pub fn entries(&self) -> &[LeafEntry] {
        &self.entries
    }

    /// Length of the raw tar in bytes.
    pub fn raw_len(&self) -> u64 {
        self.raw_ends.last().copied().unwrap_or(0)
    }

    /// Length of all stored leaves in bytes.
    pub fn stored_len(&self) -> u64 {
        self.stored_ends.last().copied().unwrap_or(0)
    }

    /// Where a leaf lies in the raw tar.
    pub fn raw_range(&self, leaf: u32) -> Option<Range<u64>> {
        range(&self.raw_ends, leaf)
    }

    /// Where a leaf lies in the stored content.
    pub fn stored_range(&self, leaf: u32) -> Option<Range<u64>> {
        range(&self.stored_ends, leaf)
    }

    /// The leaf that holds the raw byte at `offset`; `None` past the end.
    pub fn leaf_at_raw(&self, offset: u64) -> Option<u32> {
        at(&self.raw_ends, offset)
    }

    /// The leaf that holds the stored byte at `offset`; `None` past the end.
    pub fn leaf_at_stored(&self, offset: u64) -> Option<u32> {
        at(&self.stored_ends, offset)
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        u32::try_from(self.piece_starts.len()).unwrap_or(u32::MAX)
    }

    /// The leaves of a piece; empty if there is no such piece.
    pub fn piece_leaves(&self, piece: u32) -> Range<u32> {
        let start = self.piece_starts.get(piece as usize).copied().unwrap_or(self.leaves());
        let end = self.piece_starts.get(piece as usize + 1).copied().unwrap_or(self.leaves());
        start..end
    }

    /// The piece that a leaf belongs to.
    pub fn piece_of(&self, leaf: u32) -> Option<u32> {
        if leaf >= self.leaves() {
            return None;
        }
        let after = self.piece_starts.partition_point(|start| *start <= leaf);
        u32::try_from(after.checked_sub(1)?).ok()
    }

    /// Whether `stored` are the bytes of this leaf.
    pub fn verifies(&self, leaf: u32, stored: &[u8]) -> bool {
        self.get(leaf)
            .is_some_and(|e| e.stored_len as usize == stored.len() && e.digest == leaf_digest(stored))
    }
}

fn range(ends: &[u64], leaf: u32) -> Option<Range<u64>> {
    let leaf = leaf as usize;
    let end = *ends.get(leaf)?;
    let start = leaf.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
    Some(start..end)
}

fn at(ends: &[u64], offset: u64) -> Option<u32> {
    let leaf = ends.partition_point(|end| *end <= offset);
    (leaf < ends.len()).then(|| u32::try_from(leaf).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Geometry;

    fn table(lens: &[(u32, u32)]) -> LeafTable {
        let entries = lens.iter().map(|(stored, more)| LeafEntry {
            raw_len: stored + more,
            stored_len: *stored,
            digest: leaf_digest(&stored.to_le_bytes()),
        });
        LeafTable::new(entries.collect()).unwrap()
    }

    #[test]
    fn a_layer_of_another_format_is_unknown() {
        let digest = Digest::sha256(b"");
        let [blob, diff_id, index, table] = std::array::from_fn(|_| digest.clone());
        let (raw_len, index_len, table_len) = (0, 0, 0);
        let format = LayerFormat;
        let ours = LayerDescriptor { format, blob, diff_id, raw_len, index, index_len, table, table_len };
        let json = serde_json::to_value(&ours).unwrap();
        assert_eq!(serde_json::from_value::<LayerDescriptor>(json.clone()).unwrap(), ours);
        let mut other = json.clone();
        let next = LayerFormat::CURRENT + 1;
        other["format"] = next.into();
        let error = serde_json::from_value::<LayerDescriptor>(other).unwrap_err();
        assert!(error.to_string().contains(&format!("format {next}")), "{error}");
        let mut older = json;
        older.as_object_mut().unwrap().remove("format");
        serde_json::from_value::<LayerDescriptor>(older).unwrap_err();
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(lens in proptest::collection::vec((1u32..2_000_000, 0u32..2_000_000), 0..60)) {
            let table = table(&lens);
            prop_assert_eq!(&LeafTable::decode(&table.encode()).unwrap(), &table);
        }

        #[test]
        fn never_panics_on_rubbish(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut with_magic = MAGIC.to_vec();
            with_magic.extend_from_slice(&bytes);
            LeafTable::decode(&bytes).ok();
            LeafTable::decode(&with_magic).ok();
        }

        #[test]
        fn leaves_and_pieces_cover_everything_once(
            lens in proptest::collection::vec((1u32..2_000_000, 0u32..1000), 1..60),
        ) {
            let table = std::sync::Arc::new(table(&lens));
            let geometry = Geometry::Table(table.clone());
            let (mut raw, mut stored, mut leaves) = (0, 0, 0);
            for piece in 0..geometry.pieces() {
                for leaf in geometry.piece_leaves(piece) {
                    prop_assert_eq!(leaf, leaves);
                    prop_assert_eq!(geometry.piece_of(leaf), Some(piece));
                    let r = table.raw_range(leaf).unwrap();
                    let s = geometry.leaf_range(leaf).unwrap();
                    prop_assert_eq!((r.start, s.start), (raw, stored));
                    prop_assert_eq!(table.leaf_at_raw(r.start), Some(leaf));
                    prop_assert_eq!(table.leaf_at_raw(r.end - 1), Some(leaf));
                    prop_assert_eq!(geometry.leaf_at(s.end - 1), Some(leaf));
                    (raw, stored, leaves) = (r.end, s.end, leaves + 1);
                }
            }
            prop_assert_eq!(leaves, geometry.leaves());
            prop_assert_eq!((raw, stored), (table.raw_len(), geometry.len()));
            prop_assert_eq!(table.leaf_at_raw(raw), None);
        }
    }
}
