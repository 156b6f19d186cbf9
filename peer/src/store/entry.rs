//! A handle on one stored task.

use std::{
    fs::File,
    io, iter,
    ops::Range,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use rustix::{buffer::spare_capacity, io::Errno};
use tokio::sync::watch;

use super::{
    StoreError,
    checks::Version,
    inner::{Inner, delete, removed},
    record::Record,
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

/// Where a leaf's bytes are, and stay while this lives. What is read there was not checked against a digest.
#[derive(Debug)]
pub enum Place {
    /// In this file, from this offset on.
    File(Arc<File>, u64, Pin),
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

    /// Where a held leaf's bytes are, for `sendfile` and `pread`.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::Removed`] if the entry is gone; [`StoreError::Io`] if the file cannot be
    /// opened.
    pub fn place(&self, leaf: u32) -> Result<Place, StoreError> {
        if let Some(bytes) = self.record.passing(leaf) {
            return Ok(Place::Memory(bytes));
        }
        let place = self.locate(leaf)?;
        self.touch(leaf);
        Ok(place)
    }

    /// As [`Self::place`], but does not count as use.
    fn locate(&self, leaf: u32) -> Result<Place, StoreError> {
        self.check_not_removed()?;
        let range = self.leaf_range(leaf)?;
        if self.record.is_shared(leaf) {
            let (owner, leaf) = self.store.owner(&self.record, leaf).ok_or_else(|| self.not_held(leaf))?;
            let pin = Pin { store: self.store.clone(), record: owner.clone() };
            let file = owner.open().map_err(|error| self.store.open_error(&owner, error))?;
            let offset = owner.geometry.leaf_range(leaf).map_or(0, |range| range.start);
            return Ok(Place::File(file, offset, pin));
        }
        // Pinned first: it may not be evicted between the look at it and at its bytes.
        self.record.pin();
        let pin = Pin { store: self.store.clone(), record: self.record.clone() };
        if !self.record.owns(leaf) {
            return Err(self.not_held(leaf));
        }
        Ok(Place::File(self.open()?.clone(), range.start, pin))
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

    /// Stored length of the leaves in the entry's own file, in bytes: those that it shares with another task are not in it.
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
        match self.try_write(leaf, digest, bytes) {
            Err(error) if self.store.free_up(&error, Some(&self.record)) => {
                self.try_write(leaf, digest, bytes)
            }
            written => written,
        }
    }

    fn try_write(&self, leaf: u32, digest: LeafDigest, bytes: &[u8]) -> Result<bool, StoreError> {
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
        if self.store.adopt(&self.record, leaf) {
            self.record.bump();
            return Ok(true);
        }
        let room = self.store.reserve(got, Some(&self.record))?;
        let file = self.open()?;
        let before = Version::of(file);
        self.store.write(file, &self.record.path, bytes, range.start)?;
        let after = Version::of(file);
        if !self.record.insert(leaf, digest, got, file) {
            // Evicted since; the file may have been made after that.
            delete(&self.record);
            return Err(removed(&self.record));
        }
        room.keep();
        if let (Ok(before), Ok(after)) = (before, after) {
            self.record.checks(|checks| checks.wrote(leaf, self.geometry().leaves(), [before, after]));
        }
        self.store.own(&self.record, leaf);
        self.touch(leaf);
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

    /// Reads a held leaf and checks its digest, unless it was written or checked a short time ago and the file has not been
    /// changed by anybody else since.
    ///
    /// # Errors
    /// [`StoreError::NotHeld`]; [`StoreError::Rotten`] if the disk returned something else than was written (or nothing):
    /// the leaf is dropped and can be written anew.
    pub fn read_leaf(&self, leaf: u32) -> Result<Bytes, StoreError> {
        let place = self.place(leaf)?;
        // Before it is read: what is changed meanwhile has another version afterwards.
        let version = self.record.owns(leaf).then(|| self.version()).transpose()?;
        let trusted = version.is_some_and(|version| self.record.checks(|checks| checks.has(leaf, version)));
        let bytes = self.read(leaf, place, !trusted)?;
        if let Some(version) = version.filter(|_| !trusted) {
            self.record.checks(|checks| checks.note(leaf, self.geometry().leaves(), version));
        }
        Ok(bytes)
    }

    /// Compares a leaf with its digest; what it takes in the entry's own file. Does not count as use.
    ///
    /// # Errors
    /// As [`Self::read_leaf`].
    pub fn verify_leaf(&self, leaf: u32) -> Result<u64, StoreError> {
        if self.record.passing(leaf).is_some() || self.record.is_shared(leaf) {
            return Ok(0);
        }
        let place = self.locate(leaf)?;
        Ok(self.read(leaf, place, true)?.len() as u64)
    }

    /// Reads a leaf, and drops it if it turns out to be damaged.
    fn read(&self, leaf: u32, place: Place, check: bool) -> Result<Bytes, StoreError> {
        let range = self.leaf_range(leaf)?;
        let (file, offset, pin) = match place {
            Place::Memory(bytes) => return Ok(bytes),
            Place::File(file, offset, pin) => (file, offset, pin),
        };
        let digest = self.record.digest(leaf).ok_or_else(|| self.not_held(leaf))?;
        let reason = match read_exact(&file, offset, range.end - range.start) {
            Ok(bytes) if !check || leaf_digest(&bytes) == digest => return Ok(bytes.into()),
            Ok(_) => "its digest is wrong".to_owned(),
            Err(e) if is_damage(&e) => e.to_string(),
            Err(e) => return Err(self.io("read")(e)),
        };
        let file = pin.record.path.display();
        tracing::warn!(task = %self.id(), leaf, reason, %file, "store: damaged on disk, dropped");
        self.store.metrics.damaged.inc();
        // Whoever has the bytes loses the leaf, and with it all who share it.
        match self.store.owners_leaf(&self.record, leaf) {
            Some(own_leaf) => self.store.drop_leaves(&pin.record, [own_leaf]),
            None => self.drop_leaf(leaf),
        }
        Err(StoreError::Rotten { id: self.id().clone(), leaf })
    }

    /// As [`Self::read_leaf`], but reads only what has to be checked. For what is then sent from [`Self::file`]: it must be
    /// on disk.
    ///
    /// # Errors
    /// As [`Self::read_leaf`].
    pub fn check_leaf(&self, leaf: u32) -> Result<(), StoreError> {
        if !self.record.owns(leaf) {
            // Evicted, only in memory, or in another task's file.
            return Err(self.not_held(leaf));
        }
        let version = self.version()?;
        if !self.record.checks(|checks| checks.has(leaf, version)) {
            self.read_leaf(leaf)?;
        }
        Ok(())
    }

    /// Whether [`Self::check_leaf`] would not read any of these leaves. Does not block.
    pub fn is_checked(&self, leaves: Range<u32>) -> bool {
        let version = self.version().ok();
        let Some(version) = version.filter(|_| !self.is_removed()) else { return false };
        let owned = leaves.clone().all(|leaf| self.record.owns(leaf));
        owned && self.record.checks(|checks| leaves.into_iter().all(|leaf| checks.has(leaf, version)))
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

    /// Whether somebody keeps the entry from eviction.
    pub fn is_pinned(&self) -> bool {
        self.record.is_pinned()
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
        let file = self.record.open().map_err(|error| self.store.open_error(&self.record, error))?;
        Ok(self.file.get_or_init(|| file))
    }

    fn version(&self) -> Result<Version, StoreError> {
        Version::of(self.open()?).map_err(self.io("examine"))
    }

    fn touch(&self, leaf: u32) {
        let now = self.store.now();
        self.record.touch_leaf(leaf, now);
        if self.record.is_shared(leaf) {
            self.store.touch_owner(&self.record, leaf, now);
        }
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
        self.store.unpin(&self.record);
    }
}

/// Reads into memory that nobody had to clear.
fn read_exact(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let from = offset + bytes.len() as u64;
        match rustix::io::pread(file, spare_capacity(&mut bytes), from) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// Whether a failed read says that the bytes are gone, not that they cannot be read just now.
fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof || error.raw_os_error() == Some(libc::EIO)
}
