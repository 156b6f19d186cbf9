//! Takes leaves through compression and hands them on in order, with a bounded number of them in memory.

use std::{
    io,
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::{Builder, Scope, ScopedJoinHandle},
};

use darter_peer::{Digest, LeafSink, digest::Algorithm, layer::LeafEntry};

use super::{leaf::EncodedLeaf, pool::Pool};

/// One layer's leaves on their way: a shared pool compresses them, and a thread stores them.
///
/// Dropping it stops the thread.
pub(super) struct Pipeline<'scope> {
    pool: Arc<Pool>,
    /// Each leaf's result to come, in the order of the leaves.
    order: SyncSender<Receiver<io::Result<EncodedLeaf>>>,
    store: ScopedJoinHandle<'scope, io::Result<StoredLeaves>>,
}

/// What became of all leaves.
pub(super) struct StoredLeaves {
    pub(super) entries: Vec<LeafEntry>,
    /// SHA-256 of the raw tar.
    pub(super) diff_id: Digest,
}

/// The pipeline takes no more leaves: it failed, and [`Pipeline::finish`] says why.
#[derive(Debug)]
pub(super) struct Stopped;

impl<'scope> Pipeline<'scope> {
    /// Starts the storing thread.
    pub(super) fn start<'env: 'scope>(
        scope: &'scope Scope<'scope, 'env>,
        pool: Arc<Pool>,
        sink: &'scope mut dyn LeafSink,
    ) -> io::Result<Self> {
        let (order, results) = sync_channel(2 * pool.workers());
        let store =
            Builder::new().name("layer-store".into()).spawn_scoped(scope, move || store(results, sink))?;
        Ok(Self { pool, order, store })
    }

    /// Hands over the next leaf; waits while too many are under way.
    pub(super) fn push(&self, raw: Vec<u8>) -> Result<(), Stopped> {
        let (done, result) = sync_channel(1);
        self.order.send(result).map_err(|_| Stopped)?;
        self.pool.encode(raw, done).map_err(|_| Stopped)
    }

    /// Waits until the last leaf is stored.
    pub(super) fn finish(self) -> io::Result<StoredLeaves> {
        drop(self.order);
        self.store.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

fn store(
    results: Receiver<Receiver<io::Result<EncodedLeaf>>>,
    sink: &mut dyn LeafSink,
) -> io::Result<StoredLeaves> {
    let mut entries = Vec::new();
    let mut hasher = Algorithm::Sha256.hasher();
    for result in results {
        let leaf = result.recv().map_err(|_| io::Error::other("a compressing thread has ended"))??;
        hasher.update(&leaf.raw);
        sink.leaf(leaf.stored())?;
        entries.push(LeafEntry {
            raw_len: length(&leaf.raw)?,
            stored_len: length(leaf.stored())?,
            digest: leaf.digest,
        });
    }
    Ok(StoredLeaves { entries, diff_id: hasher.finish() })
}

fn length(bytes: &[u8]) -> io::Result<u32> {
    u32::try_from(bytes.len()).map_err(io::Error::other)
}
