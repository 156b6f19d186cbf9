//! Makes a layer in one pass over its blob.

use std::{cell::Cell, io::Read, num::NonZero, thread};

use darter_peer::{LayerMaker, LeafSink, LeafTable, MadeLayer, MakeError};

use super::{
    cut::Cutter,
    decompress::RawTar,
    erofs,
    pipeline::{Pipeline, Stopped, StoredLeaves},
    tar,
    tree::Tree,
};

/// How much of the raw tar is handled at once, in bytes.
const BUFFER_LEN: usize = 128 * 1024;

/// More compressing threads than this would wait for the one that inflates.
const MAX_WORKERS: usize = 4;

/// Makes layers out of blobs: gzip, zstd or uncompressed tars.
///
/// Takes some 30 MiB for a layer, and what its index needs (up to 128 MiB more if zstd's window is that large).
#[derive(Debug, Clone)]
pub struct Maker {
    workers: usize,
}

impl Maker {
    /// A maker that compresses on as many threads as there are cores, four at most.
    pub fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { workers: cores.min(MAX_WORKERS) }
    }
}

impl Default for Maker {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerMaker for Maker {
    fn make(&self, blob: &mut dyn Read, leaves: &mut dyn LeafSink) -> Result<MadeLayer, MakeError> {
        let blob_failed = Cell::new(false);
        let raw = RawTar::new(blob, &blob_failed)?;
        thread::scope(|scope| {
            let pipeline = Pipeline::start(scope, self.workers, leaves)?;
            match follow(raw, &pipeline)? {
                Followed::Whole { tree, raw_len } => finish(&tree, raw_len, pipeline.finish()?),
                Followed::Stopped => {
                    pipeline.finish()?;
                    Err(MakeError::Io(std::io::Error::other("the leaves were not stored")))
                }
            }
        })
    }
}

/// How far the raw tar was followed.
enum Followed {
    /// To its end.
    Whole { tree: Tree, raw_len: u64 },
    /// Until the leaves could no longer be stored.
    Stopped,
}

/// Reads the raw tar to its end, builds its tree, and hands its leaves to the pipeline.
fn follow(mut raw: RawTar<'_>, pipeline: &Pipeline<'_>) -> Result<Followed, MakeError> {
    let mut headers = tar::Reader::default();
    let mut tree = Tree::default();
    let mut cutter = Cutter::default();
    let mut buffer = vec![0; BUFFER_LEN];
    loop {
        let len = raw.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..len).filter(|bytes| !bytes.is_empty()) else { break };
        headers.feed(bytes, &mut |entry| tree.apply(entry))?;
        cutter.push(bytes);
        while let Some(leaf) = cutter.next_leaf() {
            if let Err(Stopped) = pipeline.push(leaf) {
                return Ok(Followed::Stopped);
            }
        }
    }
    let raw_len = headers.finish()?;
    for leaf in cutter.finish() {
        if let Err(Stopped) = pipeline.push(leaf) {
            return Ok(Followed::Stopped);
        }
    }
    Ok(Followed::Whole { tree, raw_len })
}

fn finish(tree: &Tree, raw_len: u64, leaves: StoredLeaves) -> Result<MadeLayer, MakeError> {
    let table = LeafTable::new(leaves.entries).map_err(|err| MakeError::Refused(err.to_string()))?;
    let index = erofs::write(tree, raw_len)?;
    Ok(MadeLayer { diff_id: leaves.diff_id, raw_len, index, table })
}
