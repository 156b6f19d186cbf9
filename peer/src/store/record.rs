//! What the store knows of one task. Entries are handles on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    StoreError,
    checks::Checks,
    directory::make_private,
    leaves::{BlockRows, Leaves},
    points::{Change, about_to},
};
use crate::{Geometry, LeafDigest, LeafSet, TaskId};

/// How far the stored time of last use may lag behind the true one.
const USE_LAG: Duration = Duration::from_secs(600);

/// What the store knows of one task.
///
/// Locks, in the order in which they may be taken: `write`, `file`, `state`.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) id: TaskId,
    pub(super) geometry: Geometry,
    /// Tells the data files of a task that was removed and created again apart.
    pub(super) generation: u64,
    /// The data file; it is made with the first leaf.
    pub(super) path: PathBuf,
    /// Whether others are evicted for it: not for a content that would never fit.
    pub(super) evicts: bool,
    /// Bumped after each change.
    pub(super) changes: watch::Sender<u64>,
    /// Held while a leaf is written, so that no leaf is written twice.
    pub(super) write: Mutex<()>,
    /// Open as long as somebody uses it.
    file: Mutex<Weak<File>>,
    /// When the task was last asked for. Times are in microseconds since 1970, never twice the same.
    asked: AtomicU64,
    /// When anything of it was last used.
    last_use: AtomicU64,
    saved_use: AtomicU64,
    pub(super) state: Mutex<State>,
    checks: Mutex<Checks>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) leaves: Leaves,
    /// Leaves that are only in memory.
    pub(super) passing: BTreeMap<u32, (LeafDigest, Bytes)>,
    /// A leaf could not be kept since the record was last unpinned.
    pub(super) unkept: bool,
    held_bytes: u64,
    verified: bool,
    pub(super) removed: bool,
    pub(super) pins: usize,
    /// When a piece was last used.
    pub(super) uses: BTreeMap<u32, u64>,
    /// Leaves that are not held any more but whose bytes are still in the file.
    pub(super) holes: BTreeSet<u32>,
    /// The task's own row is not written yet.
    new_row: bool,
    /// The data file's name is not durable yet.
    new_file: bool,
    /// Has bytes that are not durable yet.
    unsynced: Option<Arc<File>>,
}

/// What one commit writes of a record.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) record: Arc<Record>,
    pub(super) new_row: bool,
    pub(super) new_file: bool,
    pub(super) unsynced: Option<Arc<File>>,
    pub(super) verified: bool,
    pub(super) last_use: u64,
    /// Leaves whose bytes can be freed once this is committed.
    pub(super) holes: BTreeSet<u32>,
    pub(super) blocks: Vec<BlockRows>,
}

/// What was given up, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dropped {
    /// How many leaves; the rest is of those that were in the own file.
    pub(super) leaves: u32,
    /// What they took.
    pub(super) held: u64,
    /// Of these, what is still on the disk until their rows are committed.
    pub(super) holes: u64,
}

/// Why a data file could not be opened.
pub(super) enum OpenError {
    /// The record is out of the store.
    Removed,
    /// The file is gone although leaves are held.
    Lost,
    Io(io::Error),
}

impl Record {
    /// A task that is not in the metadata yet.
    pub(super) fn new(id: TaskId, geometry: Geometry, generation: u64, path: PathBuf) -> Self {
        let leaves = Leaves::new(geometry.leaves());
        let mut record = Self::stored(id, geometry, generation, path, leaves, false, 0);
        record.state.get_mut().new_row = true;
        record
    }

    /// The same of a content that would never fit as a whole.
    pub(super) fn modest(mut self) -> Self {
        self.evicts = matches!(self.geometry, Geometry::Table(_));
        self
    }

    /// A task as the metadata has it.
    pub(super) fn stored(
        id: TaskId,
        geometry: Geometry,
        generation: u64,
        path: PathBuf,
        leaves: Leaves,
        verified: bool,
        last_use: u64,
    ) -> Self {
        let mut state = State {
            leaves,
            passing: BTreeMap::new(),
            unkept: false,
            held_bytes: 0,
            verified,
            removed: false,
            pins: 0,
            uses: BTreeMap::new(),
            holes: BTreeSet::new(),
            new_row: false,
            new_file: false,
            unsynced: None,
        };
        state.count_bytes(&geometry);
        Self {
            id,
            geometry,
            generation,
            path,
            evicts: true,
            changes: watch::Sender::new(0),
            write: Mutex::new(()),
            file: Mutex::new(Weak::new()),
            asked: AtomicU64::new(last_use),
            last_use: AtomicU64::new(last_use),
            saved_use: AtomicU64::new(last_use),
            state: Mutex::new(state),
            checks: Mutex::default(),
        }
    }

    /// The data file, opened if nobody has it open, made if no leaf is held.
    pub(super) fn open(&self) -> Result<Arc<File>, OpenError> {
        let mut shared = self.file.lock();
        if let Some(file) = shared.upgrade() {
            return Ok(file);
        }
        let own = |leaves: &Leaves| leaves.held().count() - leaves.shared().count();
        let (removed, empty) = self.read(|state| (state.removed, own(&state.leaves) == 0));
        if removed {
            return Err(OpenError::Removed);
        }
        let file = match open_data(&self.path, empty) {
            Ok(file) => Arc::new(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound && !empty => return Err(OpenError::Lost),
            Err(e) => return Err(OpenError::Io(e)),
        };
        if empty {
            self.state.lock().new_file = true;
        }
        *shared = Arc::downgrade(&file);
        Ok(file)
    }

    /// Notes that a leaf is in the file; false if the record was removed meanwhile.
    pub(super) fn insert(&self, leaf: u32, digest: LeafDigest, len: u64, file: &Arc<File>) -> bool {
        let mut state = self.state.lock();
        if state.removed {
            return false;
        }
        if state.leaves.insert(leaf, digest) {
            state.held_bytes += len;
            state.unsynced = Some(file.clone());
        }
        true
    }

    /// Whether leaves could not be kept since the record was last unpinned.
    pub(super) fn is_unkept(&self) -> bool {
        self.read(|state| state.unkept)
    }

    /// The leaves that can be read.
    pub(super) fn readable(&self) -> LeafSet {
        self.read(|state| {
            let mut leaves = state.leaves.held().clone();
            state.passing.keys().for_each(|leaf| {
                leaves.insert(*leaf);
            });
            leaves
        })
    }

    /// Whether a leaf can be read.
    pub(super) fn has(&self, leaf: u32) -> bool {
        self.read(|state| state.leaves.held().contains(leaf) || state.passing.contains_key(&leaf))
    }

    /// The digest of a leaf that can be read.
    pub(super) fn digest(&self, leaf: u32) -> Option<LeafDigest> {
        self.read(|state| {
            state.leaves.digest(leaf).or_else(|| state.passing.get(&leaf).map(|(digest, _)| *digest))
        })
    }

    /// Notes that a leaf is held by reference; false if it is held already, or the record was removed.
    pub(super) fn adopt(&self, leaf: u32, digest: LeafDigest) -> bool {
        let mut state = self.state.lock();
        let adopted = !state.removed && state.leaves.insert(leaf, digest);
        if adopted {
            state.leaves.set_shared(leaf, true);
        }
        adopted
    }

    /// A leaf of the own file is held by reference from now on.
    pub(super) fn share(&self, leaf: u32) -> Dropped {
        let mut state = self.state.lock();
        let held = leaf_len(&self.geometry, leaf);
        state.leaves.set_shared(leaf, true);
        state.held_bytes -= held;
        let holes = if state.holes.insert(leaf) { held } else { 0 };
        Dropped { leaves: 0, held, holes }
    }

    /// Notes that a leaf held by reference is in the own file now; false if it is not held any more.
    pub(super) fn inherit(&self, leaf: u32, len: u64, file: &Arc<File>) -> bool {
        let mut state = self.state.lock();
        let inherited = !state.removed && state.leaves.is_shared(leaf);
        if inherited {
            state.leaves.set_shared(leaf, false);
            state.held_bytes += len;
            state.unsynced = Some(file.clone());
        }
        inherited
    }

    /// Forgets leaves whose bytes are bad.
    pub(super) fn drop_leaves(&self, leaves: impl IntoIterator<Item = u32>) -> Dropped {
        self.state.lock().drop_leaves(&self.geometry, leaves)
    }

    /// All leaves of a file that was filled and made durable elsewhere: held and verified.
    pub(super) fn filled(&self, digests: impl Iterator<Item = LeafDigest>) {
        let mut state = self.state.lock();
        for (leaf, digest) in (0..).zip(digests) {
            state.leaves.insert(leaf, digest);
        }
        state.verified = true;
        state.count_bytes(&self.geometry);
    }

    /// Notes that the whole was checked; false if leaves are missing.
    pub(super) fn set_verified(&self) -> bool {
        let mut state = self.state.lock();
        state.verified = state.leaves.held().is_full() && !state.removed;
        state.verified
    }

    /// Takes everything from the record; what it held, and what waited to be freed; `None` if it is pinned (and
    /// `unpinned_only`) or was removed before.
    pub(super) fn retire(&self, unpinned_only: bool) -> Option<Dropped> {
        let mut state = self.state.lock();
        if state.removed || (unpinned_only && state.pins > 0) {
            return None;
        }
        state.removed = true;
        state.verified = false;
        state.unsynced = None;
        state.leaves = Leaves::new(self.geometry.leaves());
        let holes = bytes_of(&self.geometry, &std::mem::take(&mut state.holes));
        Some(Dropped { leaves: 0, held: std::mem::take(&mut state.held_bytes), holes })
    }

    /// Counts one more that keeps the record from eviction.
    pub(super) fn pin(&self) {
        self.state.lock().pins += 1;
    }

    /// The reverse of [`Self::pin`]; true if nobody holds it any more.
    pub(super) fn unpin(&self) -> bool {
        let mut state = self.state.lock();
        state.pins -= 1;
        state.pins == 0
    }

    /// The leaves that were checked a short time ago.
    pub(super) fn checks<T>(&self, ask: impl FnOnce(&mut Checks) -> T) -> T {
        ask(&mut self.checks.lock())
    }

    pub(super) fn leaves<T>(&self, ask: impl FnOnce(&Leaves) -> T) -> T {
        self.read(|state| ask(&state.leaves))
    }

    pub(super) fn held_bytes(&self) -> u64 {
        self.read(|state| state.held_bytes)
    }

    pub(super) fn is_verified(&self) -> bool {
        self.read(|state| state.verified)
    }

    pub(super) fn is_removed(&self) -> bool {
        self.read(|state| state.removed)
    }

    pub(super) fn is_pinned(&self) -> bool {
        self.read(|state| state.pins > 0)
    }

    /// Tells those who wait for changes.
    pub(super) fn bump(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    /// When the task was last asked for: its pieces were used no earlier.
    pub(super) fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    pub(super) fn last_use(&self) -> u64 {
        self.last_use.load(Ordering::Relaxed)
    }

    /// Notes that the task is asked for; true if the stored time is too old by now.
    pub(super) fn touch(&self, now: u64) -> bool {
        self.asked.fetch_max(now, Ordering::Relaxed);
        self.last_use.fetch_max(now, Ordering::Relaxed);
        let lag = Duration::from_micros(now.saturating_sub(self.saved_use.load(Ordering::Relaxed)));
        lag > USE_LAG
    }

    /// Notes that a leaf was used.
    pub(super) fn touch_leaf(&self, leaf: u32, now: u64) {
        self.last_use.fetch_max(now, Ordering::Relaxed);
        if let Some(piece) = self.geometry.piece_of(leaf) {
            self.state.lock().uses.insert(piece, now);
        }
    }

    /// Whether the stored time of last use is not the true one.
    pub(super) fn is_touched(&self) -> bool {
        self.last_use() != self.saved_use.load(Ordering::Relaxed)
    }

    /// What a commit has to write; it counts as written from now on. `None` if the record was removed.
    pub(super) fn snapshot(self: &Arc<Self>) -> Option<Snapshot> {
        let mut state = self.state.lock();
        if state.removed {
            return None;
        }
        let last_use = self.last_use();
        self.saved_use.store(last_use, Ordering::Relaxed);
        Some(Snapshot {
            record: self.clone(),
            new_row: std::mem::take(&mut state.new_row),
            new_file: std::mem::take(&mut state.new_file),
            unsynced: state.unsynced.take(),
            verified: state.verified,
            last_use,
            holes: std::mem::take(&mut state.holes),
            blocks: state.leaves.take_dirty(),
        })
    }

    /// A snapshot's bytes were not made durable: drops all leaves that may be among them.
    ///
    /// The kernel reports a failed write-back once and forgets the pages, so the next sync would succeed. Whatever was
    /// written since the last good sync is in doubt, also what came after the snapshot.
    pub(super) fn not_synced(&self, snapshot: &Snapshot) -> Dropped {
        let _no_writer = self.write.lock();
        self.not_written(snapshot);
        let mut state = self.state.lock();
        let doubtful = state.leaves.held_in_dirty();
        state.drop_leaves(&self.geometry, doubtful)
    }

    /// A snapshot was not committed: the next one has to hold it too.
    pub(super) fn not_written(&self, snapshot: &Snapshot) {
        let mut state = self.state.lock();
        if !state.removed {
            state.holes.extend(&snapshot.holes);
        }
        state.new_row |= snapshot.new_row;
        state.new_file |= snapshot.new_file;
        if state.unsynced.is_none() && !state.removed {
            state.unsynced.clone_from(&snapshot.unsynced);
        }
        state.leaves.not_written(snapshot.blocks.iter().map(|rows| rows.block));
    }

    pub(super) fn read<T>(&self, ask: impl FnOnce(&State) -> T) -> T {
        ask(&self.state.lock())
    }
}

impl State {
    fn count_bytes(&mut self, geometry: &Geometry) {
        self.held_bytes = self.leaves.own().map(|leaf| leaf_len(geometry, leaf)).sum();
    }

    pub(super) fn drop_leaves(
        &mut self,
        geometry: &Geometry,
        leaves: impl IntoIterator<Item = u32>,
    ) -> Dropped {
        let mut dropped = Dropped::default();
        for leaf in leaves {
            let shared = self.leaves.is_shared(leaf);
            if !self.leaves.remove(leaf) {
                continue;
            }
            self.verified = false;
            dropped.leaves += 1;
            if shared {
                continue;
            }
            dropped.held += leaf_len(geometry, leaf);
            if self.holes.insert(leaf) {
                dropped.holes += leaf_len(geometry, leaf);
            }
        }
        self.held_bytes -= dropped.held;
        dropped
    }
}

/// Stored length of leaves, in bytes.
pub(super) fn bytes_of<'a>(geometry: &Geometry, leaves: impl IntoIterator<Item = &'a u32>) -> u64 {
    leaves.into_iter().map(|leaf| leaf_len(geometry, *leaf)).sum()
}

/// A leaf's stored length in bytes.
pub(super) fn leaf_len(geometry: &Geometry, leaf: u32) -> u64 {
    geometry.leaf_range(leaf).map_or(0, |range| range.end - range.start)
}

fn open_data(path: &std::path::Path, make: bool) -> io::Result<File> {
    let _point = make.then(|| about_to(Change::Make, path)).transpose()?;
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(make).mode(0o600);
    match options.open(path) {
        Err(e) if make && e.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(e)?;
            make_private(parent).map_err(StoreError::into_io)?;
            options.open(path)
        }
        opened => opened,
    }
}
