//! What waits to be made durable, and the thread that does it.
//!
//! The order is what makes the store crash-safe: a batch first takes a snapshot of the changed records, then makes their
//! data durable (fdatasync, and the directory where a file is new), and only then commits the rows in one transaction.
//! Memory runs ahead of the disk by about [`DELAY`] or [`BYTES`], whichever comes first.

use std::{
    collections::{HashMap, HashSet},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    StoreError,
    directory::sync_dir,
    inner::Inner,
    metadata::{Changes, Metadata},
    points::{Change, about_to},
    record::{Record, Snapshot, bytes_of},
};
use crate::{Digest, LayerDescriptor, TaskId};

/// Longest time for which a change waits.
const DELAY: Duration = Duration::from_millis(500);
/// Most written bytes that wait.
const BYTES: u64 = 64 << 20;

/// What waits to be made durable.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// There is something to do.
    work: Condvar,
    /// A batch was done.
    done: Condvar,
    /// Tests hold this to look at the directory between two batches.
    #[cfg(test)]
    pub(super) pause: Mutex<()>,
}

#[derive(Debug, Default)]
struct Waiting {
    batch: Batch,
    bytes: u64,
    /// When the oldest change came.
    since: Option<Instant>,
    /// Do it without waiting for more.
    at_once: bool,
    /// Number of the batch that gathers now, and of the last one that was tried.
    gathering: u64,
    tried: u64,
    /// Why the last one failed.
    failure: Option<String>,
    closing: bool,
    closed: bool,
}

#[derive(Debug, Default)]
struct Batch {
    /// By generation: a task that was removed and created again has two records.
    changed: HashMap<u64, Arc<Record>>,
    removed: HashSet<TaskId>,
    layers: HashMap<Digest, Option<LayerDescriptor>>,
}

impl Queue {
    /// A record changed, and `bytes` were written to its file.
    pub(super) fn changed(&self, record: &Arc<Record>, bytes: u64) {
        self.put(|waiting| {
            waiting.batch.changed.insert(record.generation, record.clone());
            waiting.bytes += bytes;
            waiting.bytes >= BYTES
        });
    }

    /// A record changed in a way that must not be forgotten if it can be helped.
    pub(super) fn changed_urgent(&self, record: &Arc<Record>) {
        self.put(|waiting| {
            waiting.batch.changed.insert(record.generation, record.clone());
            waiting.at_once = true;
            true
        });
    }

    /// A task is no longer in the store.
    pub(super) fn removed(&self, id: &TaskId) {
        self.put(|waiting| {
            waiting.batch.removed.insert(id.clone());
            false
        });
    }

    /// A layer descriptor is new, or is to be forgotten.
    pub(super) fn layer(&self, blob: &Digest, descriptor: Option<LayerDescriptor>) {
        self.put(|waiting| {
            waiting.batch.layers.insert(blob.clone(), descriptor);
            false
        });
    }

    /// Waits until everything that was queued before is durable.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        let mut waiting = self.waiting.lock();
        let mine = waiting.gathering;
        waiting.at_once = true;
        self.work.notify_one();
        while waiting.tried <= mine && !waiting.closed {
            self.done.wait(&mut waiting);
        }
        match &waiting.failure {
            Some(failure) => Err(StoreError::Flush(failure.clone())),
            None if waiting.tried <= mine => Err(StoreError::Closed),
            None => Ok(()),
        }
    }

    /// Fails once the store is closed or closing.
    pub(super) fn check_open(&self) -> Result<(), StoreError> {
        let waiting = self.waiting.lock();
        if waiting.closing || waiting.closed { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// Lets the thread end after one more batch.
    pub(super) fn close(&self) {
        self.waiting.lock().closing = true;
        self.work.notify_one();
    }

    /// The thread: writes batches until the queue is closed.
    pub(super) fn run(&self, mut metadata: Metadata, store: &Inner) {
        let _closed = Closed(self);
        while let Some(batch) = self.next() {
            #[cfg(test)]
            let _pause = self.pause.lock();
            let outcome = batch.write(&mut metadata, store);
            self.tried(outcome);
        }
    }

    /// Wakes the thread if there was nothing to do before, or if `put` says so.
    fn put(&self, put: impl FnOnce(&mut Waiting) -> bool) {
        let mut waiting = self.waiting.lock();
        let wake = put(&mut waiting);
        if waiting.since.is_none() {
            waiting.since = Some(Instant::now());
            self.work.notify_one();
        } else if wake {
            self.work.notify_one();
        }
    }

    /// Waits for the next batch; `None` once the queue is closed and nothing is left to do.
    fn next(&self) -> Option<Batch> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.closing && (waiting.since.is_none() || waiting.failure.is_some()) && !waiting.at_once {
                return None;
            }
            if waiting.at_once || waiting.closing || waiting.bytes >= BYTES {
                return Some(take(&mut waiting));
            }
            match waiting.since.map(|since| since + DELAY) {
                None => self.work.wait(&mut waiting),
                Some(due) if Instant::now() >= due => return Some(take(&mut waiting)),
                Some(due) => {
                    self.work.wait_until(&mut waiting, due);
                }
            }
        }
    }

    fn tried(&self, outcome: Outcome) {
        let mut waiting = self.waiting.lock();
        waiting.tried = waiting.gathering;
        match (&waiting.failure, &outcome.failure) {
            (None, Some(e)) => tracing::warn!(error = %e, "store: changes are not durable yet, trying again"),
            (Some(_), None) => tracing::info!("store: changes are durable again"),
            _ => {}
        }
        if outcome.failure.is_some() {
            put_back(&mut waiting, outcome.again);
        }
        waiting.failure = outcome.failure;
        self.done.notify_all();
    }
}

/// Takes the gathered batch.
fn take(waiting: &mut MutexGuard<'_, Waiting>) -> Batch {
    waiting.gathering += 1;
    waiting.bytes = 0;
    waiting.since = None;
    waiting.at_once = false;
    std::mem::take(&mut waiting.batch)
}

/// What came meanwhile is newer than what failed.
fn put_back(waiting: &mut MutexGuard<'_, Waiting>, failed: Batch) {
    waiting.batch.changed.extend(failed.changed);
    waiting.batch.removed.extend(failed.removed);
    for (blob, descriptor) in failed.layers {
        waiting.batch.layers.entry(blob).or_insert(descriptor);
    }
    waiting.since = Some(Instant::now());
}

/// What became of a batch.
#[derive(Default)]
struct Outcome {
    /// Why it is not durable, or not all of it.
    failure: Option<String>,
    /// What is to be tried again then.
    again: Batch,
}

impl Batch {
    fn write(self, metadata: &mut Metadata, store: &Inner) -> Outcome {
        let mut outcome = Outcome::default();
        let mut synced = Vec::with_capacity(self.changed.len());
        for snapshot in self.changed.values().filter_map(Record::snapshot) {
            match sync(&snapshot) {
                Ok(()) => synced.push(snapshot),
                Err(e) => {
                    let record = snapshot.record.clone();
                    store.not_synced(&snapshot);
                    outcome.failure = Some(format!("cannot sync {}: {e}", record.path.display()));
                    outcome.again.changed.insert(record.generation, record);
                }
            }
        }
        let changes = Changes { removed: &self.removed, tasks: &synced, layers: &self.layers };
        if let Err(e) = metadata.commit(&changes) {
            for snapshot in &synced {
                snapshot.record.not_written(snapshot);
                if snapshot.record.is_removed() {
                    store.room.freed(bytes_of(&snapshot.record.geometry, &snapshot.holes));
                }
            }
            return Outcome { failure: Some(e.to_string()), again: self };
        }
        for Snapshot { record, holes, .. } in &synced {
            if let Err(error) = record.punch(holes) {
                let file = record.path.display();
                tracing::warn!(%error, %file, "store: the room of evicted leaves cannot be freed");
            }
            store.room.freed(bytes_of(&record.geometry, holes));
        }
        outcome
    }
}

/// Makes a snapshot's bytes durable, and the name of their file.
fn sync(snapshot: &Snapshot) -> io::Result<()> {
    if let Some(file) = &snapshot.unsynced {
        let _point = about_to(Change::Sync, &snapshot.record.path)?;
        file.sync_data()?;
    }
    if snapshot.new_file {
        // content/ab/file: the name of the file is in ab, the name of ab in content.
        for directory in snapshot.record.path.ancestors().skip(1).take(2) {
            match sync_dir(directory) {
                // Deleted under us, with the file: that shows when the file is next opened.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                synced => synced?,
            }
        }
    }
    Ok(())
}

/// Tells those who wait that the thread has ended, however it did.
struct Closed<'a>(&'a Queue);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.waiting.lock().closed = true;
        self.0.done.notify_all();
    }
}
