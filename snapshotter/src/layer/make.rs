//! Makes a layer in one pass over its blob.

use std::{
    cell::Cell,
    io::{self, Read},
    num::NonZero,
    sync::{
        Arc, Weak,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{self, Builder},
};

use darter_peer::{LayerMaker, LeafSink, LeafTable, MadeLayer, MakeError};
use parking_lot::Mutex;

use super::{
    cut::Cutter,
    decompress::RawTar,
    indexer::Indexer,
    pipeline::{Pipeline, Stopped},
    pool::Pool,
};

/// How much of the raw tar is handed on at once, in bytes.
const PART_LEN: usize = 256 * 1024;
/// How many such parts wait to be cut.
const PARTS_AHEAD: usize = 4;

/// More compressing threads than this would wait for those that inflate, and each holds leaves in memory.
const MAX_WORKERS: usize = 8;

/// Makes layers out of blobs: gzip, zstd or uncompressed tars.
///
/// One thread inflates, one follows the tar and cuts it, one stores the leaves; compressing them is done by threads that
/// all layers share. A layer takes some 50 MiB, and what its index needs (up to 128 MiB more if zstd's window is that
/// large).
#[derive(Debug, Clone)]
pub struct Maker {
    workers: usize,
    /// Lives while layers are being made.
    pool: Arc<Mutex<Weak<Pool>>>,
}

impl Maker {
    /// A maker that compresses on as many threads as there are cores, eight at most.
    pub fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        Self { workers: cores.min(MAX_WORKERS), pool: Arc::default() }
    }

    fn pool(&self) -> io::Result<Arc<Pool>> {
        let mut shared = self.pool.lock();
        if let Some(pool) = shared.upgrade() {
            return Ok(pool);
        }
        let pool = Arc::new(Pool::start(self.workers)?);
        *shared = Arc::downgrade(&pool);
        Ok(pool)
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
        let pool = self.pool()?;
        thread::scope(|scope| {
            let pipeline = Pipeline::start(scope, pool, leaves)?;
            let (parts, coming) = sync_channel(PARTS_AHEAD);
            let (used, spare) = sync_channel(PARTS_AHEAD);
            let follow = move || follow(&coming, &used, pipeline);
            let following = Builder::new().name("layer-cut".into()).spawn_scoped(scope, follow)?;
            let inflated = inflate(raw, &spare, parts);
            let followed = following.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            // What was made of a tar that stops in the middle does not count.
            inflated.and(followed)
        })
    }
}

/// Some bytes of the raw tar, at the front of the buffer.
struct Part {
    buffer: Vec<u8>,
    len: usize,
}

/// Reads the raw tar to its end, or until nobody wants it any more.
fn inflate(mut raw: RawTar<'_>, spare: &Receiver<Vec<u8>>, parts: SyncSender<Part>) -> Result<(), MakeError> {
    loop {
        let mut buffer = spare.try_recv().unwrap_or_else(|_| vec![0; PART_LEN]);
        let len = raw.read(&mut buffer)?;
        if len == 0 || parts.send(Part { buffer, len }).is_err() {
            return Ok(());
        }
    }
}

/// Builds the index of a raw tar and hands its leaves to the pipeline.
fn follow(
    parts: &Receiver<Part>,
    used: &SyncSender<Vec<u8>>,
    pipeline: Pipeline<'_>,
) -> Result<MadeLayer, MakeError> {
    let mut indexer = Indexer::default();
    let mut cutter = Cutter::default();
    for Part { buffer, len } in parts {
        let bytes = buffer.get(..len).unwrap_or_default();
        indexer.feed(bytes)?;
        cutter.push(bytes);
        while let Some(leaf) = cutter.next_leaf() {
            if let Err(Stopped) = pipeline.push(leaf) {
                return Err(why_stopped(pipeline));
            }
        }
        // Full if the other thread has ended, or had to make one because this one was late.
        used.try_send(buffer).ok();
    }
    let (index, raw_len) = indexer.finish()?;
    for leaf in cutter.finish() {
        if let Err(Stopped) = pipeline.push(leaf) {
            return Err(why_stopped(pipeline));
        }
    }
    let leaves = pipeline.finish()?;
    let table = LeafTable::new(leaves.entries).map_err(|err| MakeError::Refused(err.to_string()))?;
    Ok(MadeLayer { diff_id: leaves.diff_id, raw_len, index, table })
}

fn why_stopped(pipeline: Pipeline<'_>) -> MakeError {
    match pipeline.finish() {
        Err(error) => MakeError::Io(error),
        Ok(_) => MakeError::Io(io::Error::other("the leaves were not stored")),
    }
}
