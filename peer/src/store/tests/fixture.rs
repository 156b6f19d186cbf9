//! Contents that can be told by their task's number, and a store in a temporary directory.

use std::{path::Path, sync::Arc};

use tempfile::TempDir;

use crate::{
    Geometry, LEAF_LEN, LayerDescriptor, LayerFormat, LeafTable, TaskId,
    digest::{Digest, leaf_digest},
    layer::LeafEntry,
    store::{Entry, Store, StoreConfig, StoreError},
};

/// A content that is told by its number.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) id: TaskId,
    pub(super) geometry: Geometry,
    number: u64,
}

impl Sample {
    /// A blob of `len` bytes.
    pub(super) fn blob(number: u64, len: u64) -> Self {
        let id = TaskId::parse(&format!("sha256:{number:064x}")).unwrap();
        Self { id, geometry: Geometry::Fixed { len }, number }
    }

    /// A blob of `leaves` full leaves.
    pub(super) fn leaves(number: u64, leaves: u32) -> Self {
        Self::blob(number, u64::from(leaves) * u64::from(LEAF_LEN))
    }

    /// The leaves of a layer.
    pub(super) fn layer(number: u64, lens: &[u32]) -> Self {
        let entries = (0..).zip(lens).map(|(leaf, len)| LeafEntry {
            raw_len: len + 1,
            stored_len: *len,
            digest: leaf_digest(&content(number, leaf, *len as usize)),
        });
        let table = Arc::new(LeafTable::new(entries.collect()).unwrap());
        Self { id: TaskId::of_leaves(&table.root()), geometry: Geometry::Table(table), number }
    }

    pub(super) fn table(&self) -> Arc<LeafTable> {
        match &self.geometry {
            Geometry::Table(table) => table.clone(),
            Geometry::Fixed { .. } => panic!("a blob has no table"),
        }
    }

    pub(super) fn bytes(&self, leaf: u32) -> Vec<u8> {
        let range = self.geometry.leaf_range(leaf).unwrap();
        content(self.number, leaf, (range.end - range.start) as usize)
    }

    pub(super) fn create(&self, store: &Store) -> Arc<Entry> {
        store.create(&self.id, self.geometry.clone()).unwrap()
    }

    pub(super) fn try_write(&self, entry: &Entry, leaf: u32) -> Result<bool, StoreError> {
        let bytes = self.bytes(leaf);
        entry.write_leaf(leaf, leaf_digest(&bytes), &bytes)
    }

    pub(super) fn take(&self, entry: &Entry, leaf: u32) {
        let bytes = self.bytes(leaf);
        entry.take_leaf(leaf, leaf_digest(&bytes), bytes.into()).unwrap();
    }

    pub(super) fn write(&self, entry: &Entry, leaf: u32) -> bool {
        self.try_write(entry, leaf).unwrap()
    }

    /// Stores all of it, verified.
    pub(super) fn fill(&self, store: &Store) -> Arc<Entry> {
        let entry = self.create(store);
        for leaf in 0..self.geometry.leaves() {
            self.write(&entry, leaf);
        }
        entry.mark_verified().unwrap();
        entry
    }

    /// Checks that every leaf that the entry claims is right.
    pub(super) fn check(&self, entry: &Entry) {
        assert_eq!(*entry.geometry(), self.geometry);
        for leaf in entry.have_ranges().into_iter().flatten() {
            assert_eq!(entry.read_leaf(leaf).unwrap(), self.bytes(leaf), "leaf {leaf} of {}", self.id);
            assert_eq!(entry.digest(leaf), Some(leaf_digest(&self.bytes(leaf))));
        }
    }
}

fn content(number: u64, leaf: u32, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(&leaf.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// A small content known by its digest.
pub(super) fn small(bytes: &[u8]) -> TaskId {
    TaskId::of_digest(&Digest::blake3(bytes))
}

/// The descriptor of a layer whose index is `index` and whose leaves are `leaves`.
pub(super) fn descriptor(index: &[u8], leaves: &Sample) -> LayerDescriptor {
    let table = leaves.table().encode();
    LayerDescriptor {
        format: LayerFormat,
        blob: Digest::sha256(index),
        diff_id: Digest::sha256(&table),
        raw_len: leaves.table().raw_len(),
        index: Digest::blake3(index),
        index_len: index.len() as u64,
        table: Digest::blake3(&table),
        table_len: table.len() as u64,
    }
}

pub(super) fn config(dir: &Path, quota: u64) -> StoreConfig {
    StoreConfig { dir: dir.join("store"), quota, min_free: 0, evict_ahead: 0, ..StoreConfig::default() }
}

/// A store with room enough; dropped with its directory.
pub(super) fn store() -> (Store, TempDir) {
    let dir = TempDir::new().unwrap();
    (open(dir.path()), dir)
}

pub(super) fn open(dir: &Path) -> Store {
    Store::open(&config(dir, 1 << 40)).unwrap()
}

/// The invariant of the accounts while nothing is being written.
pub(super) fn check_used(store: &Store) {
    assert_eq!(store.used(), store.entries().iter().map(|entry| entry.held_bytes()).sum::<u64>());
}

/// All files below a directory, as paths relative to it, with their lengths.
pub(super) fn files(dir: &Path) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let below = files(&entry.path()).into_iter();
            found.extend(below.map(|(path, len)| (format!("{name}/{path}"), len)));
        } else {
            found.push((name, entry.metadata().unwrap().len()));
        }
    }
    found
}
