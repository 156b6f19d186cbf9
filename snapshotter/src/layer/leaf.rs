//! Compresses one leaf, and gives its raw bytes back.

use std::io;

use darter_peer::{
    digest::{LeafDigest, leaf_digest},
    layer::LeafEntry,
};
use zstd::{
    bulk::{Compressor, Decompressor},
    zstd_safe::compress_bound,
};

/// Level 3 leaves of real layers take together 0.93 of the gzip blob, level 1 leaves 1.02.
const ZSTD_LEVEL: i32 = 3;

/// A leaf is compressed if that saves at least this part of it: below, decompressing costs more than it saves.
const LEAST_SAVING: usize = 32;

/// Stored bytes that do not decode to the leaf that their entry describes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the stored leaf does not decode to its {raw_len} raw bytes: {why}")]
pub struct LeafError {
    raw_len: u32,
    why: String,
}

/// Compresses leaves one after another.
pub(super) struct Encoder {
    zstd: Compressor<'static>,
    /// Kept from leaf to leaf, since a frame's length is not known before.
    frame: Vec<u8>,
}

/// A leaf on its way to the sink.
pub(super) struct EncodedLeaf {
    pub(super) raw: Vec<u8>,
    /// The one zstd frame that is stored, or `None` if the leaf is stored as is.
    frame: Option<Vec<u8>>,
    /// BLAKE3 of the stored bytes.
    pub(super) digest: LeafDigest,
}

impl Encoder {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { zstd: Compressor::new(ZSTD_LEVEL)?, frame: Vec::new() })
    }

    pub(super) fn encode(&mut self, raw: Vec<u8>) -> io::Result<EncodedLeaf> {
        self.frame.clear();
        self.frame.reserve(compress_bound(raw.len()));
        let len = self.zstd.compress_to_buffer(&raw, &mut self.frame)?;
        let frame = (len + raw.len() / LEAST_SAVING < raw.len()).then(|| self.frame.clone());
        let digest = leaf_digest(frame.as_ref().unwrap_or(&raw));
        Ok(EncodedLeaf { raw, frame, digest })
    }
}

impl EncodedLeaf {
    /// The bytes that are stored and sent.
    pub(super) fn stored(&self) -> &[u8] {
        self.frame.as_ref().unwrap_or(&self.raw)
    }
}

/// The raw bytes of a leaf, exactly `entry.raw_len` of them; whatever `stored` holds, no more memory is taken.
///
/// Checks lengths only: the digest of `stored` is checked where the bytes come from.
pub fn decode_leaf(entry: &LeafEntry, stored: &[u8]) -> Result<Vec<u8>, LeafError> {
    let refuse = |why: String| LeafError { raw_len: entry.raw_len, why };
    if stored.len() != entry.stored_len as usize {
        return Err(refuse(format!("{} stored bytes instead of {}", stored.len(), entry.stored_len)));
    }
    if entry.stored_len == entry.raw_len {
        return Ok(stored.to_vec());
    }
    let mut raw = Vec::with_capacity(entry.raw_len as usize);
    let mut zstd = Decompressor::new().map_err(|err| refuse(err.to_string()))?;
    zstd.decompress_to_buffer(stored, &mut raw).map_err(|err| refuse(err.to_string()))?;
    if raw.len() != entry.raw_len as usize {
        return Err(refuse(format!("it holds {}", raw.len())));
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(raw: &[u8]) -> (LeafEntry, Vec<u8>) {
        let leaf = Encoder::new().unwrap().encode(raw.to_vec()).unwrap();
        let stored = leaf.stored().to_vec();
        let (raw_len, stored_len) = (raw.len() as u32, stored.len() as u32);
        (LeafEntry { raw_len, stored_len, digest: leaf.digest }, stored)
    }

    #[test]
    fn compresses_only_what_gets_shorter() {
        let (text, stored) = encode(&b"the same again ".repeat(1000));
        assert!(text.stored_len < text.raw_len / 10);
        assert_eq!(text.digest, leaf_digest(&stored));
        let mut noise = vec![0; 100_000];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let (entry, stored) = encode(&noise);
        assert_eq!(stored, noise);
        assert_eq!(entry.stored_len, entry.raw_len);
    }

    #[test]
    fn refuses_a_frame_of_another_length() {
        let (entry, stored) = encode(&[7; 100_000]);
        for raw_len in [1, 99_999, 100_001] {
            assert!(decode_leaf(&LeafEntry { raw_len, ..entry }, &stored).is_err(), "{raw_len}");
        }
        assert!(decode_leaf(&entry, &stored[1..]).is_err());
    }

    proptest! {
        #[test]
        fn decodes_what_it_encodes(unit in proptest::collection::vec(any::<u8>(), 1..2000), times in 1usize..50) {
            let raw = unit.repeat(times);
            let (entry, stored) = encode(&raw);
            prop_assert_eq!(decode_leaf(&entry, &stored).unwrap(), raw);
        }

        #[test]
        fn rubbish_is_an_error(mut stored in proptest::collection::vec(any::<u8>(), 1..300), raw_len in 301u32..9000) {
            let entry = LeafEntry { raw_len, stored_len: stored.len() as u32, digest: [0; 32] };
            prop_assert!(decode_leaf(&entry, &stored).is_err());
            stored.splice(..0, [0x28, 0xb5, 0x2f, 0xfd]);
            let entry = LeafEntry { stored_len: stored.len() as u32, ..entry };
            if let Ok(raw) = decode_leaf(&entry, &stored) {
                prop_assert_eq!(raw.len(), raw_len as usize);
            }
        }
    }
}
