//! Identical leaves of several layers.

use std::{collections::BTreeMap, sync::Arc};

use proptest::prelude::*;
use tempfile::TempDir;

use super::fixture::{check_used, config, files, open, store};
use crate::{
    Geometry, LeafTable, TaskId,
    digest::leaf_digest,
    layer::LeafEntry,
    store::{Entry, Place, Store, StoreError},
};

/// A layer made of chunks that are told by their number.
#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub(super) id: TaskId,
    table: Arc<LeafTable>,
    chunks: Vec<u8>,
}

const LEN: usize = 5000;

fn chunk(number: u8) -> Vec<u8> {
    vec![number; LEN]
}

impl Layer {
    pub(super) fn new(chunks: &[u8]) -> Self {
        let entry = |number: &u8| LeafEntry {
            raw_len: LEN as u32,
            stored_len: LEN as u32,
            digest: leaf_digest(&chunk(*number)),
        };
        let table = Arc::new(LeafTable::new(chunks.iter().map(entry).collect()).unwrap());
        Self { id: TaskId::of_leaves(&table.root()), table, chunks: chunks.to_vec() }
    }

    fn create(&self, store: &Store) -> Arc<Entry> {
        store.create(&self.id, Geometry::Table(self.table.clone())).unwrap()
    }

    fn write(&self, entry: &Entry, leaf: u32) -> bool {
        self.try_write(entry, leaf).unwrap()
    }

    fn try_write(&self, entry: &Entry, leaf: u32) -> Result<bool, StoreError> {
        let bytes = chunk(self.chunks[leaf as usize]);
        entry.write_leaf(leaf, leaf_digest(&bytes), &bytes)
    }

    fn fill(&self, store: &Store) -> Arc<Entry> {
        self.try_fill(store).unwrap()
    }

    pub(super) fn try_fill(&self, store: &Store) -> Result<Arc<Entry>, StoreError> {
        let entry = store.create(&self.id, Geometry::Table(self.table.clone()))?;
        for leaf in entry.missing().into_iter().flatten() {
            assert!(self.try_write(&entry, leaf)?);
        }
        entry.mark_verified()?;
        Ok(entry)
    }

    fn stage(&self, store: &Store) -> Arc<Entry> {
        self.try_stage(store).unwrap()
    }

    pub(super) fn try_stage(&self, store: &Store) -> Result<Arc<Entry>, StoreError> {
        let mut stage = store.stage()?;
        self.chunks.iter().try_for_each(|number| stage.append(&chunk(*number)))?;
        stage.commit(&self.id, self.table.clone())
    }

    pub(super) fn check(&self, entry: &Entry) {
        for leaf in entry.have_ranges().into_iter().flatten() {
            assert_eq!(entry.read_leaf(leaf).unwrap(), chunk(self.chunks[leaf as usize]), "leaf {leaf}");
        }
    }
}

/// Bytes of all data files' blocks.
fn on_disk(dir: &TempDir) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let content = dir.path().join("store/content");
    files(&content).into_iter().map(|(path, _)| content.join(path).metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn a_leaf_of_a_sibling_is_here_without_being_fetched_or_stored_again() {
    let (store, dir) = store();
    let (old, new) = (Layer::new(&[1, 2, 3, 4]), Layer::new(&[9, 2, 3, 8]));
    old.fill(&store);
    let entry = new.create(&store);
    assert_eq!(entry.have_ranges(), [1..3]);
    new.check(&entry);
    assert_eq!((store.used(), store.metrics().shared()), (4 * LEN as u64, 2 * LEN as u64));
    new.write(&entry, 0);
    new.write(&entry, 3);
    entry.mark_verified().unwrap();
    assert!(matches!(entry.place(1).unwrap(), Place::File(..)));
    check_used(&store);
    drop((store, entry));

    let store = open(dir.path());
    let entry = store.get(&new.id).unwrap();
    assert!(entry.is_verified());
    new.check(&entry);
    assert_eq!(store.used(), 6 * LEN as u64);
}

#[test]
fn a_layer_that_is_made_here_shares_what_a_sibling_has() {
    let (store, dir) = store();
    let (old, new) = (Layer::new(&[1, 2, 3, 4, 5, 6]), Layer::new(&[0, 2, 3, 4, 5, 7]));
    old.stage(&store);
    let before = on_disk(&dir);
    let entry = new.stage(&store);
    assert!(entry.is_verified());
    new.check(&entry);
    assert_eq!(store.used(), 8 * LEN as u64);
    store.flush().unwrap();
    assert!(on_disk(&dir) < before + 6 * LEN as u64, "its own copies were given back");
    new.check(&entry);
    check_used(&store);
}

#[test]
fn a_removed_layer_leaves_what_others_share() {
    let (store, dir) = store();
    let layers = [Layer::new(&[1, 2, 3]), Layer::new(&[2, 3, 4]), Layer::new(&[3, 2, 5])];
    let [old, _, _] = layers.each_ref().map(|layer| layer.fill(&store));
    store.remove(&layers[0].id).unwrap();
    assert!(old.is_removed());
    for _ in 0..2 {
        let store = Store::clone(&store);
        for layer in &layers[1..] {
            let entry = store.get(&layer.id).unwrap();
            assert!(entry.is_verified());
            layer.check(&entry);
        }
        check_used(&store);
    }
    assert_eq!(store.used(), 4 * LEN as u64);
    drop((store, old));
    let store = open(dir.path());
    layers[1..].iter().for_each(|layer| layer.check(&store.get(&layer.id).unwrap()));
    assert_eq!((store.used(), store.entries().len()), (4 * LEN as u64, 2));
}

#[test]
fn what_is_needed_by_reference_is_not_evicted() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&config(dir.path(), 6 * LEN as u64)).unwrap();
    let (old, new, other) = (Layer::new(&[1, 2, 3]), Layer::new(&[2, 4]), Layer::new(&[5, 6]));
    let first = old.fill(&store);
    let entry = new.fill(&store);
    let pin = entry.pin();
    other.fill(&store);
    assert!(!first.is_removed());
    let full = Layer::new(&[7, 8]);
    other.fill(&store);
    full.fill(&store);
    assert!(store.get(&other.id).is_none(), "this one nobody needs");
    new.check(&entry);
    assert!(entry.is_complete());
    drop(pin);
    let mut losses = store.losses();
    Layer::new(&[10, 11, 12, 13, 14, 15]).fill(&store);
    assert!(first.is_removed() && entry.held() == 0);
    let lost: Vec<_> = std::iter::from_fn(|| losses.try_recv().ok()).collect();
    assert!(lost.contains(&new.id) && lost.contains(&old.id), "{lost:?}");
    check_used(&store);
}

#[test]
fn rot_is_found_by_whoever_reads_and_lost_to_all() {
    use std::os::unix::fs::FileExt;
    let (store, dir) = store();
    let (old, new) = (Layer::new(&[1, 2]), Layer::new(&[2, 3]));
    let first = old.fill(&store);
    let content = dir.path().join("store/content");
    let file = content.join(&files(&content)[0].0);
    let second = new.fill(&store);
    store.flush().unwrap();
    std::fs::File::options().write(true).open(file).unwrap().write_all_at(b"rot", LEN as u64 + 5).unwrap();
    assert!(matches!(second.read_leaf(0), Err(StoreError::Rotten { leaf: 0, .. })));
    assert_eq!((first.have_ranges(), second.have_ranges()), (vec![0..1], vec![1..2]));
    assert!(new.write(&second, 0));
    assert!(old.create(&store).has(1), "now the other way round");
    old.check(&first);
    check_used(&store);
}

#[derive(Debug, Clone)]
enum Op {
    Write(u8, u8),
    Stage(u8),
    Remove(u8),
    Evict(u64),
    Flush,
    Restart,
    /// Goes on in a copy of the directory, taken between two batches.
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    let layer = 0..5u8;
    prop_oneof![
        8 => (layer.clone(), 0..6u8).prop_map(|(layer, leaf)| Op::Write(layer, leaf)),
        2 => layer.clone().prop_map(Op::Stage),
        2 => layer.prop_map(Op::Remove),
        1 => (1..20_000u64).prop_map(Op::Evict),
        2 => Just(Op::Flush),
        1 => Just(Op::Restart),
        2 => Just(Op::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    /// Whatever happens: each leaf that an entry claims can be read and is right, no bytes are stored twice but those that
    /// were shared and handed over, and what was flushed and never removed or evicted stays.
    #[test]
    fn every_claimed_leaf_is_right(
        layers in proptest::collection::vec(proptest::collection::vec(0..8u8, 6), 5),
        ops in proptest::collection::vec(op(), 1..50),
    ) {
        let layers: Vec<Layer> = layers.iter().map(|chunks| Layer::new(chunks)).collect();
        let mut dir = TempDir::new().unwrap();
        let mut store = open(dir.path());
        // The leaves that must be there, of those that were flushed.
        let mut kept: BTreeMap<TaskId, Vec<u32>> = BTreeMap::new();
        for op in ops {
            match op {
                Op::Write(layer, leaf) => {
                    let layer = &layers[usize::from(layer)];
                    let entry = layer.create(&store);
                    layer.write(&entry, u32::from(leaf));
                    prop_assert!(entry.has(u32::from(leaf)));
                }
                Op::Stage(layer) => {
                    let layer = &layers[usize::from(layer)];
                    prop_assert!(layer.stage(&store).is_complete());
                }
                Op::Remove(layer) => {
                    store.remove(&layers[usize::from(layer)].id).unwrap();
                    kept.remove(&layers[usize::from(layer)].id);
                }
                Op::Evict(bytes) => {
                    store.inner.evict_pieces(0, bytes, None);
                    kept.clear();
                }
                Op::Flush => {
                    store.flush().unwrap();
                    let held = |entry: &Arc<Entry>| (entry.id().clone(), entry.have_ranges().into_iter().flatten().collect());
                    kept = store.entries().iter().map(held).collect();
                }
                Op::Restart => {
                    store.close().unwrap();
                    store = open(dir.path());
                }
                Op::Crash => {
                    let copy = TempDir::new().unwrap();
                    {
                        let _between_batches = store.inner.queue.pause.lock();
                        super::crash::copy_dir(&dir.path().join("store"), &copy.path().join("store"));
                    }
                    store = open(copy.path());
                    dir = copy;
                }
            }
            check_used(&store);
            for entry in store.entries() {
                let layer = layers.iter().find(|layer| layer.id == *entry.id()).unwrap();
                layer.check(&entry);
                prop_assert!(!entry.is_verified() || entry.is_complete());
            }
            for (id, leaves) in &kept {
                let entry = store.get(id).filter(|_| !leaves.is_empty());
                prop_assert!(leaves.iter().all(|leaf| entry.as_ref().is_some_and(|entry| entry.has(*leaf))));
            }
        }
    }
}
