//! A handle on one stored task.

use std::{
    fs::File,
    io, iter,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use tokio::sync::watch;

use super::{
    StoreError,
    checks::Version,
    error::is_disk_full,
    inner::{Inner, delete, removed},
    record::{OpenError, Record},
};
use crate::{Geometry, LeafDigest, TaskId, digest::leaf_digest};

/// A handle on one stored task.
///
/// The data file is open from the first use of its bytes until the last handle that used it is dropped. A handle does
/// not keep the task in the store, a [`Pin`] does; but as long as it has the file open, what was evicted still takes
/// disk space.
#[derive(Debug)]
pub struct Entry {
    store: Arc<Inner>,
    pub(super) record: Arc<Record>,
    file: OnceLock<Arc<File>>,
}

/// Keeps an entry from eviction while it lives.
#[derive(Debug)]
pub struct Pin {
    store: Arc<Inner>,
    record: Arc<Record>,
}

/// Where a leaf's bytes are. What is read there was not checked against a digest.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this file, from this offset on.
    File(Arc<File>, u64),
    /// Only in memory.
    Memory(Bytes),
}

impl Entry {
    pub(super) fn new(store: Arc<Inner>, record: Arc<Record>) -> Self {
        Self { store, record, file: OnceLock::new() }
    }

    /// The task's id.
    pub fn id(&self) -> &TaskId {
        &self.record.id
    }

    /// How the content is cut.
    pub fn geometry(&self) -> &Geometry {
        &self.record.geometry
    }

    /// Where a held leaf's bytes are, for `sendfile` and `pread`. Good while the entry is pinned.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::Removed`] if the entry is gone; [`StoreError::Io`] if the file cannot be
    /// opened.
    pub fn place(&self, leaf: u32) -> Result<Place, StoreError> {
        if let Some(bytes) = self.record.passing(leaf) {
            return Ok(Place::Memory(bytes));
        }
        self.check_not_removed()?;
        let range = self.leaf_range(leaf)?;
        if !self.has(leaf) {
            return Err(self.not_held(leaf));
        }
        Ok(Place::File(self.open()?.clone(), range.start))
    }

    /// The data file. What is read here is not checked against a digest, and bytes of leaves that are not held on disk
    /// have no meaning.
    pub(crate) fn file(&self) -> Result<Arc<File>, StoreError> {
        self.open().cloned()
    }

    /// Number of held leaves.
    pub fn held(&self) -> u32 {
        self.record.readable().count()
    }

    /// Whether leaves could not be kept on disk since the entry was last unpinned: what is held now may soon be gone.
    pub fn is_unkept(&self) -> bool {
        self.record.is_unkept()
    }

    /// Stored length of the leaves that are held on disk, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.record.held_bytes()
    }

    /// Whether a leaf is held.
    pub fn has(&self, leaf: u32) -> bool {
        self.record.has(leaf)
    }

    /// The held leaves as runs, in order.
    pub fn have_ranges(&self) -> Vec<Range<u32>> {
        self.record.readable().ranges()
    }

    /// The leaves that are not held as runs, in order.
    pub fn missing(&self) -> Vec<Range<u32>> {
        let mut start = 0;
        let mut missing = Vec::new();
        let end = self.geometry().leaves();
        for held in self.have_ranges().into_iter().chain(iter::once(end..end)) {
            if start < held.start {
                missing.push(start..held.start);
            }
            start = held.end;
        }
        missing
    }

    /// Whether all leaves are held on disk.
    pub fn is_complete(&self) -> bool {
        self.record.leaves(|leaves| leaves.held().is_full())
    }

    /// Whether all leaves are held and the whole was checked.
    pub fn is_verified(&self) -> bool {
        self.record.is_verified()
    }

    /// Whether the task was evicted or removed; then no leaf is held any more, and none can be written.
    pub fn is_removed(&self) -> bool {
        self.record.is_removed()
    }

    /// A leaf's digest: from the leaf table, for a blob only that of a held leaf.
    pub fn digest(&self, leaf: u32) -> Option<LeafDigest> {
        match self.geometry() {
            Geometry::Table(table) => table.get(leaf).map(|entry| entry.digest),
            Geometry::Fixed { .. } => self.record.digest(leaf),
        }
    }

    /// The digests of a run of leaves one after the other; `None` if one of them is not known.
    pub fn digests(&self, leaves: Range<u32>) -> Option<Vec<u8>> {
        let digests: Option<Vec<LeafDigest>> = leaves.map(|leaf| self.digest(leaf)).collect();
        digests.map(|digests| digests.concat())
    }

    /// Stores a leaf whose digest the caller has checked; false if it was there already.
    ///
    /// The leaf can be read at once and becomes durable within about half a second.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room for it, in the quota or on the disk; the entry is as it was.
    pub fn write_leaf(&self, leaf: u32, digest: LeafDigest, bytes: &[u8]) -> Result<bool, StoreError> {
        self.store.queue.check_open()?;
        let range = self.leaf_range(leaf)?;
        let (expected, got) = (range.end - range.start, bytes.len() as u64);
        if expected != got {
            return Err(StoreError::WrongLength { id: self.id().clone(), leaf, expected, got });
        }
        if matches!(self.geometry(), Geometry::Table(_)) && self.digest(leaf) != Some(digest) {
            return Err(StoreError::WrongDigest(self.id().clone()));
        }
        let _writing = self.record.write.lock();
        self.check_not_removed()?;
        if self.has(leaf) {
            return Ok(false);
        }
        let room = self.store.reserve(got, Some(&self.record))?;
        let file = self.open()?;
        self.store.write(file, &self.record.path, bytes, range.start, Some(&self.record))?;
        if !self.record.insert(leaf, digest, got, file) {
            // Evicted since; the file may have been made after that.
            delete(&self.record);
            return Err(removed(&self.record));
        }
        room.keep();
        self.store.queue.changed(&self.record, got);
        self.store.note_room();
        self.record.bump();
        Ok(true)
    }

    /// As [`Self::write_leaf`], but a leaf for which there is no room, or that the disk does not take, is kept in memory
    /// for those who wait for it, until others need that memory or the entry is unpinned.
    ///
    /// # Errors
    /// As [`Self::write_leaf`], of a leaf that is longer than all that may be kept in memory.
    pub fn take_leaf(&self, leaf: u32, digest: LeafDigest, bytes: Bytes) -> Result<(), StoreError> {
        match self.write_leaf(leaf, digest, &bytes) {
            Err(error @ (StoreError::Full { .. } | StoreError::Io { .. })) => {
                self.store.pass(&self.record, leaf, digest, bytes, error)
            }
            written => written.map(drop),
        }
    }

    /// Reads a held leaf and checks its digest.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::Rotten`] if the disk returned something else than was written (or nothing):
    /// the leaf is dropped and can be written anew.
    pub fn read_leaf(&self, leaf: u32) -> Result<Bytes, StoreError> {
        if let Some(bytes) = self.record.passing(leaf) {
            return Ok(bytes);
        }
        self.check_not_removed()?;
        let range = self.leaf_range(leaf)?;
        let digest = self.record.leaves(|leaves| leaves.digest(leaf)).ok_or_else(|| self.not_held(leaf))?;
        let mut bytes = vec![0; (range.end - range.start) as usize];
        match self.open()?.read_exact_at(&mut bytes, range.start) {
            Ok(()) if leaf_digest(&bytes) == digest => Ok(bytes.into()),
            Ok(()) => Err(self.rotten(leaf, "its digest is wrong")),
            Err(e) if is_damage(&e) => Err(self.rotten(leaf, &e.to_string())),
            Err(e) => Err(self.io("read")(e)),
        }
    }

    /// Reads a held leaf and checks its digest, unless that was done a short time ago and the file has not been changed
    /// since. For what is then sent from [`Self::file`]: it must be on disk.
    ///
    /// # Errors
    /// As [`Self::read_leaf`].
    pub fn check_leaf(&self, leaf: u32) -> Result<(), StoreError> {
        // Before it is read: what is changed meanwhile has another version afterwards.
        let version = Version::of(self.open()?).map_err(self.io("examine"))?;
        if !self.record.checks(|checks| checks.has(leaf, version)) {
            if self.record.passing(leaf).is_some() {
                // In memory only.
                return Err(self.not_held(leaf));
            }
            self.read_leaf(leaf)?;
            self.record.checks(|checks| checks.note(leaf, self.geometry().leaves(), version));
        }
        Ok(())
    }

    /// Whether [`Self::check_leaf`] would not read any of these leaves. Does not block.
    pub fn is_checked(&self, leaves: Range<u32>) -> bool {
        let version = self.open().ok().and_then(|file| Version::of(file).ok());
        let Some(version) = version.filter(|_| !self.is_removed()) else { return false };
        self.record.checks(|checks| leaves.into_iter().all(|leaf| checks.has(leaf, version)))
    }

    /// Notes that the whole content was checked. Durable at the earliest with all its leaves; [`super::Store::flush`]
    /// waits for that.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] if leaves are missing.
    pub fn mark_verified(&self) -> Result<(), StoreError> {
        self.store.queue.check_open()?;
        self.check_not_removed()?;
        if self.is_verified() {
            return Ok(());
        }
        if !self.record.set_verified() {
            return Err(StoreError::Incomplete(self.id().clone()));
        }
        self.store.queue.changed_urgent(&self.record);
        self.record.bump();
        Ok(())
    }

    /// Changes after every written leaf, and when the entry is verified, loses leaves, or is removed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.record.changes.subscribe()
    }

    /// Keeps the entry from eviction while the guard lives. An entry that was removed before stays removed: see
    /// [`Self::is_removed`].
    pub fn pin(self: &Arc<Self>) -> Pin {
        self.record.pin();
        Pin { store: self.store.clone(), record: self.record.clone() }
    }

    /// Drops a held leaf whose content is not what it should be.
    pub(super) fn drop_leaf(&self, leaf: u32) {
        self.store.drop_leaves(&self.record, [leaf]);
    }

    fn open(&self) -> Result<&Arc<File>, StoreError> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.record.open().map_err(|e| match e {
            OpenError::Io(e) if is_disk_full(&e) => self.store.full(self.geometry().len()),
            OpenError::Io(e) => self.io("open")(e),
            OpenError::Removed => removed(&self.record),
            OpenError::Lost => {
                self.store.lost(&self.record);
                removed(&self.record)
            }
        })?;
        Ok(self.file.get_or_init(|| file))
    }

    fn rotten(&self, leaf: u32, reason: &str) -> StoreError {
        tracing::warn!(task = %self.id(), leaf, reason, "store: damaged on disk, dropped");
        self.store.metrics.damaged.inc();
        self.drop_leaf(leaf);
        StoreError::Rotten { id: self.id().clone(), leaf }
    }

    fn not_held(&self, leaf: u32) -> StoreError {
        StoreError::NotHeld { id: self.id().clone(), leaf }
    }

    fn leaf_range(&self, leaf: u32) -> Result<Range<u64>, StoreError> {
        self.geometry().leaf_range(leaf).ok_or_else(|| StoreError::NoLeaf { id: self.id().clone(), leaf })
    }

    fn check_not_removed(&self) -> Result<(), StoreError> {
        if self.is_removed() { Err(removed(&self.record)) } else { Ok(()) }
    }

    fn io(&self, what: &'static str) -> impl FnOnce(io::Error) -> StoreError {
        StoreError::io(what, &self.record.path)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        if self.record.unpin() {
            self.store.release_passing(&self.record);
        }
    }
}

/// Whether a failed read says that the bytes are gone, not that they cannot be read just now.
fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(libc::EIO)
}
