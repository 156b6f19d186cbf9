//! What this peer holds, on disk: the leaves of tasks with their digests, and the descriptors of layers.
//!
//! It guarantees: a leaf that the store says it holds was durable with its digest before that was recorded, so nothing
//! that was once recorded is fetched again after a crash, and nothing torn is ever taken for a leaf. Contents stay below
//! the quota and leave the file system its minimum of free space: the pieces that were least recently used go first, what
//! is pinned stays.
//!
//! It does not guarantee that the newest half second survives a crash ([`Store::flush`] waits), nor that bytes read
//! from a [`Place`] are right: whoever uses them checks the digest.
//!
//! All methods may block on the disk except where they say otherwise: not for a runtime's own threads.

mod checks;
mod config;
mod directory;
mod entry;
mod error;
mod eviction;
mod inner;
mod layers;
mod leaves;
mod metadata;
mod metrics;
mod passing;
mod points;
mod queue;
mod record;
mod recovery;
mod room;
mod sharing;
mod stage;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    thread::{self, JoinHandle},
};

use darter_service::Registry;
use parking_lot::Mutex;
use tokio::sync::{broadcast, watch};

pub use self::{
    config::StoreConfig,
    entry::{Entry, Pin, Place},
    error::StoreError,
    metrics::StoreMetrics,
    stage::Stage,
};
use self::{
    directory::{Directory, Lock},
    inner::Inner,
    metadata::Metadata,
    passing::Passing,
    queue::Queue,
    record::Record,
    recovery::recover,
    room::Room,
};
use crate::{Digest, Geometry, LEAF_LEN, LayerDescriptor, TaskId, digest::leaf_digest};

/// Longest content that is taken, in bytes: 16 TiB. It bounds the memory that a made-up length could cost.
const MAX_LEN: u64 = 1 << 44;

/// A handle on the store. The store closes with the last one.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
    closer: Arc<Closer>,
}

/// Owns the thread that makes changes durable, and the directory's lock.
#[derive(Debug)]
struct Closer {
    inner: Arc<Inner>,
    running: Mutex<Option<(JoinHandle<()>, Lock)>>,
}

impl Store {
    /// Opens the store, or makes one; restores what the last run left, however that ended.
    ///
    /// # Errors
    /// [`StoreError::InUse`] if another process has it open; [`StoreError::Unusable`] if the directory is no place for a
    /// store.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let (directory, lock) = Directory::open(&config.dir)?;
        let (metadata, loaded) = match Metadata::open(&directory.metadata()) {
            Err(error) if error.is_disk_full() && directory.use_reserve() => {
                tracing::warn!("store: the disk is full; using the room that was set aside for that");
                Metadata::open(&directory.metadata())?
            }
            opened => opened?,
        };
        let queue = Arc::new(Queue::default());
        let host_id = loaded.host_id.clone();
        let recovered = recover(&directory, loaded, &queue)?;
        let used = recovered.records.iter().map(|record| record.held_bytes()).sum();
        let room = Arc::new(Room::new(config, used));
        let passing = Passing::new(config.memory);
        let inner = Arc::new(Inner::new(directory, room, passing, queue.clone(), host_id, recovered));
        let of = inner.clone();
        let run = move || queue.run(metadata, &of);
        let thread = thread::Builder::new().name("store".to_owned()).spawn(run);
        let thread = thread.map_err(StoreError::io("start", "a thread"))?;
        let closer = Closer { inner: inner.clone(), running: Mutex::new(Some((thread, lock))) };
        let store = Self { inner, closer: Arc::new(closer) };
        store.inner.restore_shared();
        store.keep_limits();
        store.inner.directory.keep_reserve();
        Ok(store)
    }

    /// This peer's id: random, made once, kept. Does not block.
    pub fn host_id(&self) -> &str {
        &self.inner.host_id
    }

    /// A task's entry, which counts as used now. Does not block.
    pub fn get(&self, id: &TaskId) -> Option<Arc<Entry>> {
        self.inner.get(id).map(|record| self.entry(record))
    }

    /// A task's entry, empty if it is new. Evicts what is necessary to hold all of it.
    ///
    /// # Errors
    /// [`StoreError::OtherGeometry`] if it is there with another geometry and verified or pinned; [`StoreError::Full`] if it
    /// could never be held completely as things are.
    pub fn create(&self, id: &TaskId, geometry: Geometry) -> Result<Arc<Entry>, StoreError> {
        self.inner.queue.check_open()?;
        if geometry.len() > MAX_LEN {
            return Err(StoreError::TooLong { id: id.clone(), len: geometry.len(), max: MAX_LEN });
        }
        let record = match self.inner.get(id) {
            Some(there) => there,
            None => {
                self.inner.make_room(geometry.len())?;
                let record = Arc::new(self.inner.new_record(id, geometry.clone()));
                self.inner.put_in(record.clone()).map_or_else(|first| first, |()| record)
            }
        };
        if record.geometry == geometry {
            self.inner.adopt_all(&record);
            return Ok(self.entry(record));
        }
        // Whoever said how long it is was wrong then, or is now; what was never checked is no reason to refuse.
        if record.is_verified() || self.inner.take_out(&record, true).is_none() {
            return Err(StoreError::OtherGeometry(id.clone()));
        }
        self.create(id, geometry)
    }

    /// As [`Self::create`], but also takes a content for which there is no room: its leaves are kept as far as there is,
    /// without evicting others for it, and the rest is passed on from memory ([`Entry::take_leaf`]). Others do give way to
    /// the leaves of a layer, of which few may be wanted.
    ///
    /// # Errors
    /// [`StoreError::OtherGeometry`], [`StoreError::TooLong`].
    pub fn admit(&self, id: &TaskId, geometry: Geometry) -> Result<Arc<Entry>, StoreError> {
        match self.create(id, geometry.clone()) {
            Err(error @ StoreError::Full { .. }) => {
                tracing::warn!(task = %id, %error, "store: the content will not be kept as a whole");
                let record = Arc::new(self.inner.new_record(id, geometry.clone()).modest());
                match self.inner.put_in(record.clone()) {
                    Ok(()) => {
                        self.inner.adopt_all(&record);
                        Ok(self.entry(record))
                    }
                    Err(_) => self.create(id, geometry),
                }
            }
            created => created,
        }
    }

    /// Takes a task out, also a pinned one; the bytes that it took. Nothing happens if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn remove(&self, id: &TaskId) -> Result<u64, StoreError> {
        self.inner.queue.check_open()?;
        let Some(record) = self.inner.get(id) else { return Ok(0) };
        self.inner.bequeath(&record);
        Ok(self.inner.take_out(&record, false).unwrap_or(0))
    }

    /// A task's entry; does not count as use. Does not block.
    pub fn peek(&self, id: &TaskId) -> Option<Arc<Entry>> {
        let record = self.inner.tasks.lock().get(id).cloned()?;
        Some(self.entry(record))
    }

    /// All entries; does not count as use. Does not block.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        let records = self.inner.records(|record| Some(record.clone()));
        records.into_iter().map(|record| self.entry(record)).collect()
    }

    /// Bytes that contents take, with those that are being written. Does not block.
    pub fn used(&self) -> u64 {
        self.inner.room.used()
    }

    /// Most bytes that contents may take. Does not block.
    pub fn quota(&self) -> u64 {
        self.inner.room.quota()
    }

    /// Evicts what is over the limits, for which others than this process may have cared: they share the file system.
    pub fn keep_limits(&self) {
        self.inner.keep_limits();
    }

    /// Evicts what was used least recently, as much as `bytes` if that much is not pinned; what it was.
    pub fn evict(&self, bytes: u64) -> u64 {
        self.inner.evict_now(bytes)
    }

    /// Bytes free on the store's file system.
    pub fn free(&self) -> u64 {
        self.inner.free()
    }

    /// Bytes of leaves that are only in memory. Does not block.
    pub fn passing(&self) -> u64 {
        self.inner.passing.bytes()
    }

    /// What the store counts. Does not block.
    pub fn metrics(&self) -> &StoreMetrics {
        &self.inner.metrics
    }

    /// Has the store's counters exported. Does not block.
    pub fn register(&self, registry: &mut Registry) {
        self.inner.metrics.register(registry);
    }

    /// Brings the gauges up to date. Does not block.
    pub fn measure(&self) {
        self.inner.metrics.used.set(self.used());
        self.inner.metrics.passing.set(self.inner.passing.bytes());
    }

    /// Begins the leaves of a layer that is being made.
    ///
    /// # Errors
    /// [`StoreError::Io`] if no file can be made for it.
    pub fn stage(&self) -> Result<Stage, StoreError> {
        Stage::new(self.inner.clone())
    }

    /// Stores a whole small content; its entry is verified at once.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`] unless the id is the digest of `bytes`; [`StoreError::Full`].
    pub fn put(&self, id: &TaskId, bytes: &[u8]) -> Result<Arc<Entry>, StoreError> {
        let digest = id.digest().map(|digest| digest.algorithm().hasher()).map(|mut hasher| {
            hasher.update(bytes);
            hasher.finish()
        });
        if digest != id.digest() || digest.is_none() {
            return Err(StoreError::WrongDigest(id.clone()));
        }
        let entry = self.create(id, Geometry::Fixed { len: bytes.len() as u64 })?;
        if entry.is_verified() {
            return Ok(entry);
        }
        let _pin = entry.pin();
        for (leaf, bytes) in (0..).zip(bytes.chunks(LEAF_LEN as usize)) {
            let digest = leaf_digest(bytes);
            if entry.digest(leaf).is_some_and(|there| there != digest) {
                entry.drop_leaf(leaf);
            }
            entry.write_leaf(leaf, digest, bytes)?;
        }
        entry.mark_verified()?;
        Ok(entry)
    }

    /// The layers of which index, table and leaves are all here and verified. Does not block.
    pub fn layers(&self) -> Vec<LayerDescriptor> {
        self.inner.layers()
    }

    /// Remembers a layer's descriptor as long as any of its parts is here. One that was known by another table gives way:
    /// what only it needs is dropped unless it is pinned.
    pub fn put_layer(&self, descriptor: &LayerDescriptor) {
        self.inner.put_layer(descriptor);
    }

    /// Takes a layer out: its descriptor, and index, table and leaves unless another layer has them too; also pinned
    /// ones. Returns the bytes that they took. Nothing happens if it is not known.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub fn remove_layer(&self, blob: &Digest) -> Result<u64, StoreError> {
        self.inner.queue.check_open()?;
        Ok(self.inner.remove_layer(blob))
    }

    /// A layer's descriptor, if index, table and leaves are all here and verified. Does not block.
    pub fn layer(&self, blob: &Digest) -> Option<LayerDescriptor> {
        self.inner.layer(blob)
    }

    /// A layer's descriptor, if index and table are here and verified: what is held of its leaves can be used without
    /// anybody. Does not block.
    pub fn known_layer(&self, blob: &Digest) -> Option<LayerDescriptor> {
        self.inner.known_layer(blob)
    }

    /// Tells of tasks that have lost leaves, or are gone without [`Self::remove`]: evicted, or damaged. By the time that it
    /// is read, a task may have them again. Does not block; one who lags behind by 1024 is told so.
    pub fn losses(&self) -> broadcast::Receiver<TaskId> {
        self.inner.losses.subscribe()
    }

    /// Changes with every new task. Does not block.
    pub fn creations(&self) -> watch::Receiver<u64> {
        self.inner.creations.subscribe()
    }

    /// Waits until everything that was done before is durable.
    ///
    /// # Errors
    /// [`StoreError::Flush`] if it could not be made so; it goes on being tried.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.inner.queue.flush()
    }

    /// Makes everything durable and gives the directory free. From then on nothing can be written; what is open can be
    /// read. The drop of the last handle does the same.
    ///
    /// # Errors
    /// [`StoreError::Flush`] if not everything could be made durable; the store is closed all the same.
    pub fn close(&self) -> Result<(), StoreError> {
        self.closer.close()
    }

    fn entry(&self, record: Arc<Record>) -> Arc<Entry> {
        Arc::new(Entry::new(self.inner.clone(), record))
    }
}

impl Closer {
    fn close(&self) -> Result<(), StoreError> {
        let Some((thread, lock)) = self.running.lock().take() else { return Ok(()) };
        for record in self.inner.records(|record| record.is_touched().then(|| record.clone())) {
            self.inner.queue.changed(&record, 0);
        }
        let flushed = self.inner.queue.flush();
        self.inner.queue.close();
        let ended = thread.join();
        drop(lock);
        flushed?;
        ended.map_err(|_| StoreError::Flush("the store's thread panicked".to_owned()))
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::warn!(error = %e, "store: closed with changes that are not durable");
        }
    }
}
