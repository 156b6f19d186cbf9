//! Layers made whole: from blobs of all kinds, and mounted by the kernel.

pub(super) mod archive;
mod blobs;
mod mounted;
mod oracle;
mod random;
mod real;
mod seen;

use std::io;

use darter_peer::{LayerMaker, LeafSink, MadeLayer, MakeError};

use super::{Maker, decode_leaf};

/// Keeps the stored leaves.
#[derive(Default)]
struct Leaves(Vec<Vec<u8>>);

impl LeafSink for Leaves {
    fn leaf(&mut self, stored: &[u8]) -> io::Result<()> {
        self.0.push(stored.to_vec());
        Ok(())
    }
}

/// A layer, its stored leaves, and the raw tar that they decode to.
struct Made {
    layer: MadeLayer,
    leaves: Vec<Vec<u8>>,
    raw: Vec<u8>,
}

fn make(mut blob: &[u8]) -> Result<Made, MakeError> {
    let mut leaves = Leaves::default();
    let layer = Maker::new().make(&mut blob, &mut leaves)?;
    let leaves = leaves.0;
    let decode = |(entry, stored): (_, &Vec<u8>)| decode_leaf(entry, stored).unwrap();
    let raw = layer.table.entries().iter().zip(&leaves).flat_map(decode).collect();
    Ok(Made { layer, leaves, raw })
}
