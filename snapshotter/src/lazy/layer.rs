//! One lazy layer: reads of its raw tar, answered from disk or after fetching the leaves that are missing.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    num::ParseIntError,
    ops::Range,
    str::FromStr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use darter_peer::{Class, Digest, LayerDescriptor, LeafTable, TaskError, layer::LeafEntry};
use darter_service::backoff::Backoff;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared, join_all, try_join_all},
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    ahead::Ahead,
    files::LayerDir,
    index::{Index, Nid, Place},
    raw::Raw,
    start::Recording,
};
use crate::{
    engine::{Engine, Leaves, OpenLayer},
    image::Repository,
    layer::decode_leaf,
};

/// How long to wait after a failed fetch before the next one.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Names a layer, and says where it can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRef {
    pub(crate) repository: Repository,
    /// Digest of the layer as the registry has it.
    pub(crate) blob: Digest,
    /// Digest of the raw tar.
    pub(crate) diff_id: Digest,
}

/// Names a layer on this node: 40 bits that begin its inode numbers, and the name of its mount point, which has to be
/// short. They are of what was published: what is published instead of a wrong layer is another layer, though its diffID is
/// the same, so nobody sees some bytes of the one and some of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LayerId(u64);

/// A layer that can be mounted.
pub(super) struct LazyLayer {
    pub(super) id: LayerId,
    pub(super) reference: LayerRef,
    pub(super) descriptor: LayerDescriptor,
    pub(super) dir: LayerDir,
    pub(super) raw: Raw,
    /// Held while the layer is being mounted or unmounted.
    pub(super) mounting: tokio::sync::Mutex<()>,
    pub(super) mounted: AtomicBool,
    /// Clones of it keep the layer from being collected.
    pub(super) hold: Arc<()>,
    /// Cancelled when it was collected.
    pub(super) unwanted: CancellationToken,
    table: Arc<LeafTable>,
    /// Read when the kernel does not read it.
    index: Mutex<Option<Arc<Index>>>,
    engine: Arc<dyn Engine>,
    /// The stored leaves, once they were needed and as long as they are.
    leaves: tokio::sync::Mutex<Option<Arc<dyn Leaves>>>,
    filling: AtomicBool,
    fetches: Mutex<HashMap<(u32, Class), WeakShared<Fetch>>>,
    ahead: Ahead,
    /// What its readers will read is known from a start profile.
    foreseen: AtomicBool,
    last_failure: Mutex<Option<String>>,
    discarded: AtomicBool,
    /// Another layer is published in its place.
    replaced: AtomicBool,
    /// Starts that note what is read, with the layer's number in each.
    recordings: Mutex<Vec<(u16, Weak<Recording>)>>,
}

type Fetch = BoxFuture<'static, Result<Bytes, ReadError>>;

/// Why a layer cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum ReadError {
    #[error("the layer was discarded, because it is not what its image says, or another one took its place")]
    Discarded,
    #[error("leaf {0} does not decode: {1}")]
    Decode(u32, String),
    #[error("the layer has no leaf {0}")]
    NoLeaf(u32),
    #[error("reading the layer's file failed: {0}")]
    Io(String),
    #[error("the snapshotter is shutting down")]
    Stopping,
}

/// Bits of an inode number that name the inode in its layer; an index of [`MAX_INDEX_LEN`] has no more.
const NID_BITS: u32 = 24;
/// A longer index cannot be shown, in bytes.
pub(super) const MAX_INDEX_LEN: u64 = 32 << NID_BITS;

impl LayerId {
    pub(super) fn of(layer: &LayerDescriptor) -> Self {
        let published = [&layer.diff_id, &layer.index, &layer.table].map(Digest::bytes).concat();
        let first = Digest::blake3(&published).bytes().first_chunk::<8>().copied().unwrap_or_default();
        // With 0 the numbers would be those of the file system's own inodes.
        Self((u64::from_be_bytes(first) >> NID_BITS).max(1))
    }

    /// The number of an inode of the layer; 0 names the raw tar. The same after every restart.
    pub(super) fn ino(self, nid: Nid) -> u64 {
        self.0 << NID_BITS | nid
    }

    /// Which inode of which layer has this number.
    pub(super) fn of_ino(ino: u64) -> (Self, Nid) {
        (Self(ino >> NID_BITS), ino & ((1 << NID_BITS) - 1))
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:010x}", self.0)
    }
}

impl FromStr for LayerId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

impl LazyLayer {
    /// Opens a layer from its directory. Blocks.
    pub(super) fn load(dir: LayerDir, engine: Arc<dyn Engine>) -> std::io::Result<Self> {
        let (described, table) = dir.load()?;
        Ok(Self {
            id: LayerId::of(&described.layer),
            reference: described.reference,
            descriptor: described.layer,
            raw: Raw::open(dir.path(), table.clone())?,
            dir,
            mounting: tokio::sync::Mutex::default(),
            mounted: AtomicBool::new(false),
            hold: Arc::default(),
            unwanted: CancellationToken::new(),
            table,
            index: Mutex::default(),
            engine,
            leaves: tokio::sync::Mutex::default(),
            filling: AtomicBool::new(false),
            fetches: Mutex::default(),
            ahead: Ahead::default(),
            foreseen: AtomicBool::new(false),
            last_failure: Mutex::default(),
            discarded: AtomicBool::new(false),
            replaced: AtomicBool::new(false),
            recordings: Mutex::default(),
        })
    }

    /// The index in memory. Blocks when it is first needed.
    pub(super) fn index(&self) -> std::io::Result<Arc<Index>> {
        let mut index = self.index.lock();
        if let Some(index) = &*index {
            return Ok(index.clone());
        }
        let read = Arc::new(Index::new(self.dir.read_index(&self.descriptor)?)?);
        Ok(index.insert(read).clone())
    }

    /// Lets go of the index in memory.
    pub(super) fn drop_index(&self) {
        *self.index.lock() = None;
    }

    /// The bytes that lie in these places, fewer only at the end of the raw tar, if all of them are here.
    pub(super) fn read_held(&self, places: &[Place]) -> Option<Result<Vec<u8>, ReadError>> {
        let is_held = |place: &Place| {
            place.raw.is_none_or(|raw| self.raw.missing(self.leaves_of(raw, place.len())).is_empty())
        };
        self.note(places);
        if self.check().is_err() || !places.iter().all(is_held) {
            return None;
        }
        let read = |place: &Place| {
            place.raw.map_or_else(|| Ok(vec![0; place.len()]), |raw| self.read_raw(raw, place.len()))
        };
        // Nearly always there is one place.
        match places {
            [place] => Some(read(place)),
            places => {
                Some(places.iter().map(read).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat()))
            }
        }
    }

    /// The bytes that lie in these places; waits for those that are missing, without a deadline.
    pub(super) async fn read(self: &Arc<Self>, places: &[Place]) -> Result<Vec<u8>, ReadError> {
        self.check()?;
        let read = async |place: &Place| match place.raw {
            Some(raw) => self.read_at(raw, place.len()).await,
            None => Ok(vec![0; place.len()]),
        };
        Ok(try_join_all(places.iter().map(read)).await?.concat())
    }

    /// The bytes at `offset` of the raw tar.
    async fn read_at(self: &Arc<Self>, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        self.check()?;
        let leaves = self.leaves_of(offset, len);
        let missing = self.raw.missing(leaves.clone());
        let fetch = async |leaf| Ok((leaf, self.leaf(leaf, Class::Demand).await?));
        let fetched: BTreeMap<u32, Bytes> =
            try_join_all(missing.into_iter().map(fetch)).await?.into_iter().collect();
        self.check()?;
        let mut bytes = if fetched.len() == leaves.len() {
            // All of it is in memory; behind the tar the file has zeros.
            vec![0; self.raw.len_at(offset, len)]
        } else {
            let layer = self.clone();
            let read = tokio::task::spawn_blocking(move || layer.read_raw(offset, len));
            read.await.map_err(|_| ReadError::Stopping)??
        };
        for (leaf, raw) in fetched {
            // On a full disk the leaf is not in the file.
            self.overlay(&mut bytes, offset, leaf, &raw);
        }
        Ok(bytes)
    }

    /// One leaf's raw bytes, which are in the file afterwards if the disk is not full. Tries until it succeeds.
    pub(super) async fn leaf(self: &Arc<Self>, leaf: u32, class: Class) -> Result<Bytes, ReadError> {
        let shared = self.fetch_once(leaf, class);
        shared.await
    }

    /// The leaves that whoever reads these places now will read next, and that nobody asked for yet.
    pub(super) fn read_next(&self, places: &[Place]) -> Range<u32> {
        let raw = places.iter().filter_map(|place| Some((place.raw?, place.len()))).next_back();
        let leaves = raw.map(|(raw, len)| self.leaves_of(raw, len)).filter(|leaves| !leaves.is_empty());
        let needed = !self.foreseen.load(Ordering::Relaxed) && !self.raw.is_complete();
        let Some(leaves) = leaves.filter(|_| needed) else { return 0..0 };
        let next = self.ahead.after(&leaves);
        next.start..next.end.min(self.table.leaves())
    }

    /// What is read of it will be fetched by a start profile.
    pub(super) fn foresee(&self) {
        self.foreseen.store(true, Ordering::Relaxed);
    }

    /// Fetches leaves that nobody waits for yet.
    pub(super) async fn fetch_ahead(self: &Arc<Self>, leaves: Range<u32>) {
        let fetch = async |leaf| {
            let Ok(_permit) = self.ahead.at_once.acquire().await else { return };
            if !self.raw.has(leaf)
                && let Err(error) = self.leaf(leaf, Class::Profile).await
            {
                debug!(layer = %self.reference.diff_id, leaf, %error, "not fetched ahead");
            }
        };
        join_all(leaves.map(fetch)).await;
    }

    /// Notes what is read from here on in a recording, in which the layer has this number.
    pub(super) fn record(&self, number: u16, recording: &Arc<Recording>) {
        self.recordings.lock().push((number, Arc::downgrade(recording)));
    }

    fn note(&self, places: &[Place]) {
        self.recordings.lock().retain(|(number, recording)| {
            let recording = recording.upgrade();
            for (raw, place) in places.iter().filter_map(|place| Some((place.raw?, place))) {
                if let Some(recording) = &recording {
                    recording.note(*number, self.leaves_of(raw, place.len()));
                }
            }
            recording.is_some()
        });
    }

    /// Length of a leaf as it is fetched, in bytes.
    pub(super) fn stored_len(&self, leaf: u32) -> Option<u64> {
        self.table.get(leaf).map(|entry| u64::from(entry.stored_len))
    }

    /// How many leaves it has.
    pub(super) fn leaf_count(&self) -> u32 {
        self.table.leaves()
    }

    /// Has all leaves fetched at background priority, now and whenever the leaves are opened again.
    pub(super) async fn start_filling(&self) -> Result<(), TaskError> {
        self.filling.store(true, Ordering::Relaxed);
        self.open_leaves().await?.fill();
        Ok(())
    }

    /// Takes the leaves as the peer gave them.
    pub(super) async fn set_leaves(&self, leaves: Arc<dyn Leaves>) {
        *self.leaves.lock().await = Some(leaves);
    }

    /// Opens the leaves if this peer has them, so that what it holds of them is not evicted.
    pub(super) async fn pin_leaves(&self) {
        let mut slot = self.leaves.lock().await;
        if slot.is_none() && !self.raw.is_verified() {
            *slot = self
                .engine
                .local_layer(&self.reference)
                .await
                .filter(|open| self.fits(open))
                .map(|open| open.leaves);
        }
    }

    /// The file has everything: the stored leaves are not needed any more.
    pub(super) async fn drop_leaves(&self) {
        *self.leaves.lock().await = None;
    }

    /// Nothing of the layer is served any more.
    pub(super) fn discard(&self) {
        self.discarded.store(true, Ordering::Relaxed);
    }

    /// Whether the layer may be served.
    pub(super) fn check(&self) -> Result<(), ReadError> {
        if self.discarded.load(Ordering::Relaxed) { Err(ReadError::Discarded) } else { Ok(()) }
    }

    /// Whether its leaves cannot be had any more, because another layer with its diffID is published now.
    pub(super) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Relaxed)
    }

    /// Why the last fetch failed, for the log.
    pub(super) fn last_failure(&self) -> String {
        self.last_failure.lock().clone().unwrap_or_else(|| "nothing arrived".into())
    }

    fn read_raw(&self, offset: u64, len: usize) -> Result<Vec<u8>, ReadError> {
        self.raw.read(offset, len).map_err(|err| ReadError::Io(err.to_string()))
    }

    /// The leaves that hold these bytes of the file.
    fn leaves_of(&self, offset: u64, len: usize) -> Range<u32> {
        let end = offset.saturating_add(len as u64).min(self.table.raw_len());
        let last =
            end.checked_sub(1).filter(|last| *last >= offset).and_then(|last| self.table.leaf_at_raw(last));
        match (self.table.leaf_at_raw(offset), last) {
            (Some(first), Some(last)) => first..last + 1,
            _ => 0..0,
        }
    }

    /// Copies the part of a leaf that belongs into the bytes of the file from `offset` on.
    fn overlay(&self, bytes: &mut [u8], offset: u64, leaf: u32, raw: &[u8]) {
        let Some(range) = self.table.raw_range(leaf) else { return };
        let skip = usize::try_from(offset.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let at = usize::try_from(range.start.saturating_sub(offset)).unwrap_or(usize::MAX);
        let (Some(from), Some(to)) = (raw.get(skip..), bytes.get_mut(at..)) else { return };
        for (to, from) in to.iter_mut().zip(from) {
            *to = *from;
        }
    }

    /// All who want a leaf for the same reason wait for one fetch; it ends when the last of them goes away.
    fn fetch_once(self: &Arc<Self>, leaf: u32, class: Class) -> Shared<Fetch> {
        let mut fetches = self.fetches.lock();
        if let Some(running) = fetches.get(&(leaf, class)).and_then(WeakShared::upgrade) {
            return running;
        }
        fetches.retain(|_, fetch| fetch.upgrade().is_some());
        let fetch = self.clone().fetch(leaf, class).boxed().shared();
        fetches.extend(fetch.downgrade().map(|weak| ((leaf, class), weak)));
        fetch
    }

    async fn fetch(self: Arc<Self>, leaf: u32, class: Class) -> Result<Bytes, ReadError> {
        let entry = *self.table.get(leaf).ok_or(ReadError::NoLeaf(leaf))?;
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        loop {
            self.check()?;
            match self.stored_leaf(leaf, class).await {
                Ok(stored) => return self.keep(leaf, entry, stored).await,
                Err(error) => {
                    debug!(layer = %self.reference.diff_id, leaf, %error, "a leaf could not be fetched, trying again");
                    *self.last_failure.lock() = Some(error.to_string());
                    sleep(backoff.wait()).await;
                }
            }
        }
    }

    async fn stored_leaf(&self, leaf: u32, class: Class) -> Result<Bytes, TaskError> {
        let leaves = self.open_leaves().await?;
        let stored = leaves.leaf(leaf, class).await;
        let Err(error) = stored else { return stored };
        // A failed task stays failed: the next attempt opens a new one.
        self.leaves.lock().await.take_if(|current| Arc::ptr_eq(current, &leaves));
        match error {
            // This peer knows the layer, but nobody has the leaf: the layer has to be made once more.
            TaskError::NotFound(_) => {
                let open = self.checked(self.engine.layer(&self.reference).await?)?;
                open.leaves.leaf(leaf, class).await
            }
            error => Err(error),
        }
    }

    async fn open_leaves(&self) -> Result<Arc<dyn Leaves>, TaskError> {
        let mut slot = self.leaves.lock().await;
        if let Some(leaves) = &*slot {
            return Ok(leaves.clone());
        }
        let open = match self.engine.local_layer(&self.reference).await {
            Some(open) => open,
            None => self.engine.layer(&self.reference).await?,
        };
        let open = self.checked(open)?;
        if self.filling.load(Ordering::Relaxed) {
            open.leaves.fill();
        }
        *slot = Some(open.leaves.clone());
        Ok(open.leaves)
    }

    fn checked(&self, open: OpenLayer) -> Result<OpenLayer, TaskError> {
        if !self.fits(&open) {
            self.replaced.store(true, Ordering::Relaxed);
            return Err(TaskError::Local(
                "the layer is published with other leaves than the mounted ones".into(),
            ));
        }
        Ok(open)
    }

    fn fits(&self, open: &OpenLayer) -> bool {
        open.descriptor.table == self.descriptor.table
    }

    /// Decodes a leaf and puts it into the file.
    async fn keep(self: &Arc<Self>, leaf: u32, entry: LeafEntry, stored: Bytes) -> Result<Bytes, ReadError> {
        let layer = self.clone();
        let keep = move || {
            // It may have been fetched for another reason meanwhile.
            if layer.raw.has(leaf)
                && let Some(Range { start, end }) = layer.table.raw_range(leaf)
                && let Ok(raw) = layer.read_raw(start, usize::try_from(end - start).unwrap_or(usize::MAX))
            {
                return Ok(Bytes::from(raw));
            }
            let raw = decode_leaf(&entry, &stored).map_err(|err| ReadError::Decode(leaf, err.to_string()))?;
            if let Err(error) = layer.raw.write(leaf, &raw) {
                warn!(layer = %layer.reference.diff_id, leaf, %error, "a leaf cannot be kept on disk");
            }
            Ok(Bytes::from(raw))
        };
        tokio::task::spawn_blocking(keep).await.map_err(|_| ReadError::Stopping)?
    }
}

impl fmt::Debug for LazyLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LazyLayer").field(&self.reference.diff_id).finish()
    }
}
