//! Builds the index of a raw tar that streams by.

use darter_peer::MakeError;

use super::{erofs, tar, tree::Tree};

/// An index in the making; equal raw tars make equal ones. Its memory depends on the number of entries alone.
#[derive(Debug, Default)]
pub(crate) struct Indexer {
    headers: tar::Reader,
    tree: Tree,
}

impl Indexer {
    /// Takes the next bytes of the raw tar.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Result<(), MakeError> {
        let Self { headers, tree } = self;
        Ok(headers.feed(bytes, &mut |entry| tree.apply(entry))?)
    }

    /// The index, once the raw tar has ended, and how many bytes the raw tar had.
    pub(crate) fn finish(self) -> Result<(Vec<u8>, u64), MakeError> {
        let raw_len = self.headers.finish()?;
        Ok((erofs::write(&self.tree, raw_len)?, raw_len))
    }
}
