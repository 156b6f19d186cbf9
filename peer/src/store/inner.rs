//! What all handles of one store share.

use std::{
    collections::{HashMap, hash_map},
    fs,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

use super::{
    StoreError,
    directory::Directory,
    error::is_disk_full,
    metrics::StoreMetrics,
    passing::Passing,
    points::{Change, about_to},
    queue::Queue,
    record::{OpenError, Record, Snapshot},
    recovery::Recovered,
    room::Room,
    sharing::Owners,
};
use crate::{Digest, Geometry, LayerDescriptor, TaskId};

/// What all handles of one store share.
///
/// Locks, in the order in which they may be taken: a record's `write`, `room`, `passing`, `tasks`, `owners`, a record's
/// `state`, `layers`, the queue's.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) directory: Directory,
    pub(super) room: Arc<Room>,
    pub(super) passing: Passing,
    pub(super) owners: Owners,
    pub(super) metrics: StoreMetrics,
    pub(super) queue: Arc<Queue>,
    pub(super) host_id: String,
    pub(super) losses: broadcast::Sender<TaskId>,
    /// Changes with every new task.
    pub(super) creations: watch::Sender<u64>,
    pub(super) tasks: Mutex<HashMap<TaskId, Arc<Record>>>,
    pub(super) layers: Mutex<HashMap<Digest, LayerDescriptor>>,
    /// The latest time of use that was given out.
    clock: AtomicU64,
}

impl Inner {
    pub(super) fn new(
        directory: Directory,
        room: Arc<Room>,
        passing: Passing,
        queue: Arc<Queue>,
        host_id: String,
        Recovered { records, layers }: Recovered,
    ) -> Self {
        let clock = records.iter().map(|record| record.last_use()).max().unwrap_or(0);
        Self {
            directory,
            room,
            passing,
            owners: Owners::default(),
            metrics: StoreMetrics::default(),
            queue,
            host_id,
            losses: broadcast::Sender::new(1024),
            creations: watch::Sender::new(0),
            tasks: Mutex::new(records.into_iter().map(|record| (record.id.clone(), record)).collect()),
            layers: Mutex::new(layers.into_iter().map(|layer| (layer.blob.clone(), layer)).collect()),
            clock: AtomicU64::new(clock),
        }
    }

    /// The task's record, which counts as used now.
    pub(super) fn get(&self, id: &TaskId) -> Option<Arc<Record>> {
        let record = self.tasks.lock().get(id).cloned()?;
        if record.touch(self.now()) {
            self.queue.changed(&record, 0);
        }
        Some(record)
    }

    /// Picks from all records.
    pub(super) fn records<T>(&self, pick: impl FnMut(&Arc<Record>) -> Option<T>) -> Vec<T> {
        self.tasks.lock().values().filter_map(pick).collect()
    }

    /// A record for a new task, not yet in the store.
    pub(super) fn new_record(&self, id: &TaskId, geometry: Geometry) -> Record {
        let generation = rand::random();
        let path = self.directory.data_file(id, generation);
        Record::new(id.clone(), geometry, generation, path)
    }

    /// Puts a record into the store, or returns the one that came before it.
    pub(super) fn put_in(&self, record: Arc<Record>) -> Result<(), Arc<Record>> {
        match self.tasks.lock().entry(record.id.clone()) {
            hash_map::Entry::Occupied(there) => Err(there.get().clone()),
            hash_map::Entry::Vacant(vacant) => {
                record.touch(self.now());
                vacant.insert(record.clone());
                self.queue.changed(&record, 0);
                self.creations.send_modify(|creations| *creations += 1);
                Ok(())
            }
        }
    }

    /// Takes a record out of the store and deletes its file; the bytes it held, or `None` if it is pinned (and
    /// `unpinned_only`) or out already.
    pub(super) fn take_out(&self, record: &Arc<Record>, unpinned_only: bool) -> Option<u64> {
        let freed = {
            let mut tasks = self.tasks.lock();
            let freed = record.retire(unpinned_only)?;
            tasks.remove(&record.id);
            self.queue.removed(&record.id);
            self.forget_layers(&tasks, &record.id);
            freed
        };
        self.room.give_back(freed.held);
        self.room.freed(freed.holes);
        self.release_passing(record);
        self.disown(record, 0..record.geometry.leaves());
        delete(record);
        record.bump();
        Some(freed.held)
    }

    /// What was written since a record's last good sync may be lost.
    pub(super) fn not_synced(&self, snapshot: &Snapshot) {
        let record = &snapshot.record;
        let dropped = record.not_synced(snapshot);
        self.room.dropped(dropped);
        if dropped.leaves > 0 {
            self.disown(record, 0..record.geometry.leaves());
            record.bump();
            self.announce(&record.id);
        }
    }

    /// Takes out a record whose data file is gone.
    pub(super) fn lost(&self, record: &Arc<Record>) {
        tracing::warn!(task = %record.id, file = %record.path.display(), "store: a data file is gone");
        if self.take_out(record, false).is_some() {
            self.announce(&record.id);
        }
    }

    /// Forgets leaves that turned out to be bad.
    pub(super) fn drop_leaves(&self, record: &Arc<Record>, leaves: impl IntoIterator<Item = u32>) {
        let leaves: Vec<u32> = leaves.into_iter().collect();
        let dropped = record.drop_leaves(leaves.iter().copied());
        if dropped.leaves > 0 {
            self.disown(record, leaves);
            self.room.dropped(dropped);
            self.queue.changed(record, 0);
            record.bump();
            self.announce(&record.id);
        }
    }

    /// The reverse of [`Record::pin`].
    pub(super) fn unpin(&self, record: &Arc<Record>) {
        if record.unpin() {
            self.release_passing(record);
        }
    }

    /// Why a record's file could not be opened.
    pub(super) fn open_error(&self, record: &Arc<Record>, error: OpenError) -> StoreError {
        match error {
            OpenError::Io(e) if is_disk_full(&e) => self.full(record.geometry.len()),
            OpenError::Io(e) => StoreError::io("open", &record.path)(e),
            OpenError::Removed => removed(record),
            OpenError::Lost => {
                self.lost(record);
                removed(record)
            }
        }
    }

    /// Tells of a task that lost leaves, or is gone.
    pub(super) fn announce(&self, id: &TaskId) {
        // An error only means that nobody listens.
        self.losses.send(id.clone()).ok();
    }

    /// A time of use later than all before it: microseconds since 1970 unless the clock was set back.
    pub(super) fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let before = self.clock.fetch_max(now, Ordering::Relaxed);
        if before < now { now } else { self.clock.fetch_add(1, Ordering::Relaxed).wrapping_add(1) }
    }
}

/// Deletes a record's data file. If that fails, the next start does it: no row speaks of the file.
pub(super) fn delete(record: &Record) {
    match about_to(Change::Delete, &record.path).and_then(|_point| fs::remove_file(&record.path)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(error = %e, file = %record.path.display(), "store: cannot delete a data file");
        }
        _ => {}
    }
}

/// The error for a task that was taken out.
pub(super) fn removed(record: &Record) -> StoreError {
    StoreError::Removed(record.id.clone())
}
