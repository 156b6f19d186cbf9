//! Cuts a raw tar into leaves where its content says so, so that layers with equal parts share leaves.
//!
//! FastCDC (Xia et al., "The Design of Fast Content-Defined Chunking for Data Deduplication Based Storage Systems",
//! IEEE TPDS 31(9), 2020) with normalization level 1.

use fastcdc::v2020::FastCDC;

/// No leaf but the last is shorter, in bytes.
const MIN_LEN: usize = 32 * 1024;
/// What most leaves come near, in bytes.
const AVERAGE_LEN: usize = 128 * 1024;
/// No leaf is longer, in bytes.
pub(super) const MAX_LEN: usize = 256 * 1024;

/// Cuts a stream; where it cuts depends on the bytes alone, not on how they arrive.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    /// Bytes of the stream, and how many of them have been cut off. Others there are at most [`MAX_LEN`] once
    /// [`Self::next_leaf`] has returned `None`.
    bytes: Vec<u8>,
    cut_off: usize,
}

impl Cutter {
    /// Adds the next bytes of the stream. Take all leaves out before adding more.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..std::mem::take(&mut self.cut_off));
        self.bytes.extend_from_slice(bytes);
    }

    /// The next leaf, once no further byte can change where it ends.
    pub(super) fn next_leaf(&mut self) -> Option<Vec<u8>> {
        (self.waiting().len() >= MAX_LEN).then(|| self.cut())
    }

    /// The remaining leaves, once the stream has ended.
    pub(super) fn finish(mut self) -> impl Iterator<Item = Vec<u8>> {
        std::iter::from_fn(move || (!self.waiting().is_empty()).then(|| self.cut()))
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.cut_off..).unwrap_or_default()
    }

    fn cut(&mut self) -> Vec<u8> {
        let waiting = self.waiting();
        let chunker = FastCDC::new(waiting, MIN_LEN, AVERAGE_LEN, MAX_LEN);
        let (_, len) = chunker.cut(0, waiting.len());
        let leaf = waiting.get(..len).unwrap_or_default().to_vec();
        self.cut_off += len;
        leaf
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(bytes: &[u8], step: usize) -> Vec<Vec<u8>> {
        let mut cutter = Cutter::default();
        let mut leaves = Vec::new();
        for part in bytes.chunks(step) {
            cutter.push(part);
            leaves.extend(std::iter::from_fn(|| cutter.next_leaf()));
            assert!(cutter.waiting().len() < MAX_LEN);
        }
        leaves.extend(cutter.finish());
        leaves
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    #[test]
    fn an_insertion_changes_only_the_leaves_around_it() {
        let bytes = noise(20 << 20, 1);
        let mut changed = bytes.clone();
        changed.splice(10 << 20..10 << 20, *b"something new");
        let before: std::collections::HashSet<_> = cut(&bytes, 1 << 16).into_iter().collect();
        let after = cut(&changed, 1 << 16);
        let new = after.iter().filter(|leaf| !before.contains(*leaf)).count();
        assert!(after.len() > 20 && new <= 3, "{new} of {} leaves are new", after.len());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        #[test]
        fn cuts_alike_however_the_bytes_arrive(
            len in 0usize..6_000_000, zeros in 0usize..3_000_000, seed: u64, step in 1usize..1_500_000,
        ) {
            let mut bytes = noise(len, seed);
            bytes.resize(len + zeros, 0);
            let leaves = cut(&bytes, step);
            prop_assert_eq!(leaves.concat(), bytes.clone());
            prop_assert_eq!(&leaves, &cut(&bytes, 64 * 1024));
            for (index, leaf) in leaves.iter().enumerate() {
                prop_assert!(leaf.len() <= MAX_LEN && !leaf.is_empty());
                prop_assert!(leaf.len() >= MIN_LEN || index + 1 == leaves.len());
            }
        }
    }
}
