//! Makes a layer out of a blob: its index and its leaves.
//!
//! One pass over the blob, with bounded memory: [`Maker`] decompresses it, `tar` follows the headers in the raw
//! tar, `tree` applies them one after another as containerd would, and `erofs` writes the resulting tree as the
//! index, whose files point into the raw tar (all three in [`Indexer`]). Meanwhile the raw tar is `cut` into leaves, which
//! are compressed (`leaf`, by the threads in `pool`) and handed on in order (`pipeline`). Equal raw tars give equal indexes,
//! tables and leaves.
//!
//! What an index cannot express (hard links out of the layer, holes that are not between whole blocks) or this does not
//! resolve (paths through a symbolic link), and what containerd would not unpack either, is refused with the entry's name; the caller then
//! unpacks the blob as usual.

mod cut;
mod decompress;
mod entry;
mod erofs;
mod indexer;
mod leaf;
mod make;
mod pipeline;
mod pool;
mod refusal;
mod tar;
#[cfg(test)]
mod tests;
mod tree;

pub(crate) use indexer::Indexer;
pub use leaf::{LeafError, decode_leaf};
pub use make::Maker;
pub use tree::IMPLIED_XATTR;
