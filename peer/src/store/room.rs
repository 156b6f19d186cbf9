//! How much room contents take, and making room for more by eviction.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;

use super::{
    StoreConfig, StoreError,
    error::is_disk_full,
    inner::Inner,
    points::{Change, about_to},
    record::{Dropped, Record},
};
use crate::TaskId;

/// The room that contents may take and do take. An entry takes the stored length of its held leaves.
#[derive(Debug)]
pub(super) struct Room {
    quota: u64,
    min_free: u64,
    /// How far below its limits the store goes once it has to evict.
    ahead: u64,
    used: AtomicU64,
    /// Bytes that are not held any more and will soon be free on the disk.
    freeing: AtomicU64,
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
    pub(super) fn new(config: &StoreConfig, used: u64) -> Self {
        Self {
            quota: config.quota,
            min_free: config.min_free,
            ahead: config.evict_ahead.min(config.quota / 10),
            used: AtomicU64::new(used),
            freeing: AtomicU64::new(0),
            making: Mutex::new(()),
        }
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

    /// Leaves are no longer held.
    pub(super) fn dropped(&self, dropped: Dropped) {
        self.give_back(dropped.held);
        self.freeing.fetch_add(dropped.holes, Ordering::Relaxed);
    }

    /// What was not held any more is free on the disk.
    pub(super) fn freed(&self, holes: u64) {
        self.freeing.fetch_sub(holes, Ordering::Relaxed);
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

    /// Writes bytes for which room is reserved.
    pub(super) fn write(
        &self,
        file: &File,
        path: &Path,
        bytes: &[u8],
        offset: u64,
    ) -> Result<(), StoreError> {
        let written = about_to(Change::Write, path).and_then(|_point| file.write_all_at(bytes, offset));
        written.map_err(|e| match is_disk_full(&e) {
            true => self.full(bytes.len() as u64),
            false => StoreError::io("write", path)(e),
        })
    }

    /// Writing failed although there seemed to be room: evicts and waits until that is free. False if it cannot be. The
    /// caller holds no locks.
    pub(super) fn free_up(&self, error: &StoreError, of: Option<&Record>) -> bool {
        let StoreError::Full { needed, .. } = error else { return false };
        let evicted = of.is_none_or(|record| record.evicts) && {
            let _making = self.room.making.lock();
            self.room.freeing.load(Ordering::Relaxed) >= *needed
                || self.evict_pieces(*needed, needed + self.room.ahead, of.map(|record| &record.id))
        };
        // Without room for the metadata either, only whole files can make some.
        evicted && (self.queue.flush().is_ok() || self.evict_oldest(of))
    }

    /// Evicts as much as is necessary and possible to be below the limits.
    pub(super) fn keep_limits(&self) {
        let _making = self.room.making.lock();
        let wanted = self.wanted(0);
        if wanted > 0 && !self.evict_pieces(0, wanted + self.room.ahead, None) {
            tracing::debug!(wanted, "store: over its limits");
        }
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
        let short_on_disk = self.room.min_free.saturating_add(bytes).saturating_sub(self.soon_free());
        over_quota.max(short_on_disk)
    }

    fn make_room_locked(&self, bytes: u64, of: Option<&TaskId>) -> Result<(), StoreError> {
        let wanted = self.wanted(bytes);
        let upto = wanted + self.room.ahead;
        if wanted == 0 || self.evict_pieces(wanted, upto, of) { Ok(()) } else { Err(self.full(bytes)) }
    }

    /// Bytes free on the file system, with those that are about to be.
    fn soon_free(&self) -> u64 {
        self.free().saturating_add(self.room.freeing.load(Ordering::Relaxed))
    }

    /// Evicts up to `bytes`; what was evicted.
    pub(super) fn evict_now(&self, bytes: u64) -> u64 {
        let _making = self.room.making.lock();
        let before = self.room.used();
        self.evict_pieces(0, bytes, None);
        before.saturating_sub(self.room.used())
    }

    /// Bytes free on the file system; unlimited if it cannot say, since a write will tell.
    pub(super) fn free(&self) -> u64 {
        self.directory.free().unwrap_or_else(|e| {
            tracing::warn!(error = %e, "store: cannot ask the file system for its free space");
            u64::MAX
        })
    }
}
