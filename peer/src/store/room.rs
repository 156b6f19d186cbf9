//! How much room contents take, and making room for more by eviction.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;

use super::{StoreError, error::is_disk_full, inner::Inner, record::Record};
use crate::TaskId;

/// The room that contents may take and do take. An entry takes the stored length of its held leaves.
#[derive(Debug)]
pub(super) struct Room {
    quota: u64,
    min_free: u64,
    used: AtomicU64,
    /// Held while room is made, so that two do not evict for the same want.
    making: Mutex<()>,
}

/// Room that was set aside for bytes about to be written; given back unless they were.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    pub(super) fn new(quota: u64, min_free: u64, used: u64) -> Self {
        Self { quota, min_free, used: AtomicU64::new(used), making: Mutex::new(()) }
    }

    pub(super) fn quota(&self) -> u64 {
        self.quota
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// `bytes` are no longer stored.
    pub(super) fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Reserved<'_> {
    /// The bytes were written: the room stays taken.
    pub(super) fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.room.give_back(self.bytes);
    }
}

impl Inner {
    /// Sets room aside, evicting if necessary, but never the task `of` itself.
    pub(super) fn reserve(&self, bytes: u64, of: Option<&Record>) -> Result<Reserved<'_>, StoreError> {
        let _making = self.room.making.lock();
        if of.is_none_or(|record| record.evicts) {
            self.make_room_locked(bytes, of.map(|record| &record.id))?;
        } else if self.wanted(bytes) > 0 {
            return Err(self.full(bytes));
        }
        self.room.used.fetch_add(bytes, Ordering::Relaxed);
        Ok(Reserved { room: &self.room, bytes })
    }

    /// Evicts until `bytes` more would fit. Evicts nothing if that cannot be reached.
    pub(super) fn make_room(&self, bytes: u64) -> Result<(), StoreError> {
        let _making = self.room.making.lock();
        self.make_room_locked(bytes, None)
    }

    /// Writes bytes for which room is reserved. If the file system is full in spite of its own numbers, evicts and tries
    /// once more.
    pub(super) fn write(
        &self,
        file: &File,
        path: &Path,
        bytes: &[u8],
        offset: u64,
        of: Option<&Record>,
    ) -> Result<(), StoreError> {
        let needed = bytes.len() as u64;
        let written = match file.write_all_at(bytes, offset) {
            Err(e) if is_disk_full(&e) && self.evict(needed, of) => file.write_all_at(bytes, offset),
            written => written,
        };
        written
            .map_err(|e| if is_disk_full(&e) { self.full(needed) } else { StoreError::io("write", path)(e) })
    }

    fn evict(&self, bytes: u64, of: Option<&Record>) -> bool {
        let _making = self.room.making.lock();
        of.is_none_or(|record| record.evicts) && self.evict_locked(bytes, of.map(|record| &record.id))
    }

    /// The error that says how full everything is.
    pub(super) fn full(&self, needed: u64) -> StoreError {
        StoreError::Full {
            needed,
            used: self.room.used(),
            quota: self.room.quota,
            free: self.free(),
            min_free: self.room.min_free,
        }
    }

    /// Bytes that have to go before `bytes` more fit.
    fn wanted(&self, bytes: u64) -> u64 {
        let over_quota = self.room.used().saturating_add(bytes).saturating_sub(self.room.quota);
        let short_on_disk = self.room.min_free.saturating_add(bytes).saturating_sub(self.free());
        over_quota.max(short_on_disk)
    }

    fn make_room_locked(&self, bytes: u64, of: Option<&TaskId>) -> Result<(), StoreError> {
        let wanted = self.wanted(bytes);
        if wanted == 0 || self.evict_locked(wanted, of) { Ok(()) } else { Err(self.full(bytes)) }
    }

    /// Evicts unpinned tasks, least recently used first, until they are worth `wanted` bytes.
    fn evict_locked(&self, wanted: u64, of: Option<&TaskId>) -> bool {
        let mut candidates: Vec<(u64, u64, Arc<Record>)> = self.records(|record| {
            let held = record.held_bytes();
            let evictable = held > 0 && !record.is_pinned() && Some(&record.id) != of;
            evictable.then(|| (record.last_use(), held, record.clone()))
        });
        if candidates.iter().map(|(_, held, _)| held).sum::<u64>() < wanted {
            return false;
        }
        candidates.sort_unstable_by_key(|(last_use, ..)| *last_use);
        let mut freed = 0;
        for (_, _, record) in candidates {
            if freed >= wanted {
                break;
            }
            if let Some(bytes) = self.take_out(&record, true) {
                freed += bytes;
                tracing::debug!(task = %record.id, bytes, "store: evicted");
                self.announce(&record.id);
            }
        }
        freed >= wanted
    }

    /// Bytes free on the file system; unlimited if it cannot say, since a write will tell.
    fn free(&self) -> u64 {
        self.directory.free().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "store: cannot ask the file system for its free space");
            u64::MAX
        })
    }
}
