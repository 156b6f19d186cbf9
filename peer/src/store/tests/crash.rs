//! The store against a simple model, through crashes and damage.
//!
//! A crash is a copy of the directory as it is on disk, between two batches (in the middle of one: see `kill`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::fixture::{Sample, check_used, files, open};
use crate::store::{Entry, Store, StoreError};

const TASKS: u8 = 5;

#[derive(Debug, Clone)]
enum Op {
    Create(u8),
    Write(u8, u16),
    WriteAll(u8),
    Verify(u8),
    Stage(u8),
    Remove(u8),
    /// Evicts so many bytes.
    Evict(u64),
    Read(u8, u16),
    Flush,
    /// Goes on in a copy of the directory.
    Crash,
    /// Closes and opens again.
    Restart,
    /// Cuts a data file, or writes rubbish into it, while nobody has the store open.
    Damage {
        task: u8,
        at: f64,
        cut: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let task = 0..TASKS;
    prop_oneof![
        3 => task.clone().prop_map(Op::Create),
        10 => (task.clone(), any::<u16>()).prop_map(|(task, leaf)| Op::Write(task, leaf)),
        2 => task.clone().prop_map(Op::WriteAll),
        3 => task.clone().prop_map(Op::Verify),
        1 => task.clone().prop_map(Op::Stage),
        1 => task.clone().prop_map(Op::Remove),
        2 => (1..3_000_000u64).prop_map(Op::Evict),
        4 => (task.clone(), any::<u16>()).prop_map(|(task, leaf)| Op::Read(task, leaf)),
        3 => Just(Op::Flush),
        3 => Just(Op::Crash),
        1 => Just(Op::Restart),
        1 => (task, 0.0..1.0f64, any::<bool>()).prop_map(|(task, at, cut)| Op::Damage { task, at, cut }),
    ]
}

/// What the model knows of a task that is in the store.
#[derive(Debug, Clone, Default, PartialEq)]
struct Known {
    /// The held leaves: true once they were flushed.
    leaves: BTreeMap<u32, bool>,
    verified: bool,
    verified_flushed: bool,
    /// Leaves that were evicted since the last flush: a crash may bring them back, but whole.
    evicted: BTreeSet<u32>,
}

struct World {
    dir: TempDir,
    store: Store,
    samples: Vec<Sample>,
    known: BTreeMap<u8, Known>,
}

impl World {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let many: Vec<u32> = (1..600).map(|leaf| leaf % 50 + 1).collect();
        let samples = vec![
            Sample::blob(0, 1000),
            Sample::leaves(1, 2),
            Sample::layer(2, &[1, 100, 10]),
            Sample::layer(3, &many),
            // Two pieces.
            Sample::leaves(4, 18),
        ];
        Self { store: open(dir.path()), dir, samples, known: BTreeMap::new() }
    }

    fn sample(&self, task: u8) -> Sample {
        self.samples[usize::from(task)].clone()
    }

    fn entry(&self, task: u8) -> Option<Arc<Entry>> {
        self.store.get(&self.sample(task).id)
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Create(task) => {
                self.sample(task).create(&self.store);
                self.known.entry(task).or_default();
            }
            Op::Write(task, leaf) => self.write(task, u32::from(leaf) % self.sample(task).geometry.leaves()),
            Op::WriteAll(task) => {
                (0..self.sample(task).geometry.leaves()).for_each(|leaf| self.write(task, leaf))
            }
            Op::Verify(task) => self.verify(task),
            Op::Stage(task) => self.stage(task),
            Op::Remove(task) => {
                self.store.remove(&self.sample(task).id).unwrap();
                self.known.remove(&task);
            }
            Op::Evict(bytes) => self.evict(bytes),
            Op::Read(task, leaf) => self.read(task, u32::from(leaf) % self.sample(task).geometry.leaves()),
            Op::Flush => self.flush(),
            Op::Crash => self.crash(),
            Op::Restart => self.restart(|_| ()),
            Op::Damage { task, at, cut } => self.damage(task, at, cut),
        }
        self.check();
    }

    fn write(&mut self, task: u8, leaf: u32) {
        let Some(known) = self.known.get_mut(&task) else { return };
        let entry = self.store.get(&self.samples[usize::from(task)].id).unwrap();
        let new = !known.leaves.contains_key(&leaf);
        assert_eq!(self.samples[usize::from(task)].write(&entry, leaf), new);
        known.leaves.entry(leaf).or_default();
    }

    fn verify(&mut self, task: u8) {
        let Some(entry) = self.entry(task) else { return };
        let complete = entry.is_complete();
        assert_eq!(entry.mark_verified().is_ok(), complete);
        if let Some(known) = self.known.get_mut(&task) {
            known.verified = complete;
        }
    }

    fn stage(&mut self, task: u8) {
        let sample = self.sample(task);
        if !matches!(sample.geometry, crate::Geometry::Table(_)) {
            return;
        }
        let mut stage = self.store.stage().unwrap();
        let leaves = sample.geometry.leaves();
        (0..leaves).for_each(|leaf| stage.append(&sample.bytes(leaf)).unwrap());
        stage.commit(&sample.id, sample.table()).unwrap();
        let known = Known { leaves: (0..leaves).map(|leaf| (leaf, false)).collect(), ..Known::default() };
        self.known.insert(task, Known { verified: true, ..known });
        self.flushed();
    }

    fn evict(&mut self, bytes: u64) {
        self.store.inner.evict_pieces(0, bytes, None);
        let (samples, store) = (&self.samples, &self.store);
        self.known.retain(|task, known| {
            let Some(entry) = store.get(&samples[usize::from(*task)].id) else { return false };
            let gone: Vec<u32> = known.leaves.keys().copied().filter(|leaf| !entry.has(*leaf)).collect();
            known.leaves.retain(|leaf, _| entry.has(*leaf));
            known.verified &= gone.is_empty();
            known.verified_flushed &= gone.is_empty();
            known.evicted.extend(gone);
            true
        });
    }

    fn read(&self, task: u8, leaf: u32) {
        let Some(entry) = self.entry(task) else { return };
        match entry.read_leaf(leaf) {
            Ok(bytes) => assert_eq!(bytes, self.sample(task).bytes(leaf)),
            Err(e) => assert!(matches!(e, StoreError::NotHeld { .. }), "{e}"),
        }
    }

    fn flush(&mut self) {
        self.store.flush().unwrap();
        self.flushed();
    }

    fn flushed(&mut self) {
        for known in self.known.values_mut() {
            known.leaves.values_mut().for_each(|flushed| *flushed = true);
            known.verified_flushed = known.verified;
            known.evicted.clear();
        }
    }

    fn crash(&mut self) {
        let copy = TempDir::new().unwrap();
        {
            let _between_batches = self.store.inner.queue.pause.lock();
            copy_dir(&self.dir.path().join("store"), &copy.path().join("store"));
        }
        self.store = open(copy.path());
        self.dir = copy;
        let (samples, store) = (&self.samples, &self.store);
        self.known.retain(|task, known| {
            let sample = &samples[usize::from(*task)];
            survived(known, sample, store.get(&sample.id))
        });
        self.flush();
    }

    fn restart(&mut self, meanwhile: impl FnOnce(&Path)) {
        self.store.close().unwrap();
        meanwhile(self.dir.path());
        self.store = open(self.dir.path());
        self.known.retain(|_, known| !known.leaves.is_empty());
        self.flushed();
    }

    /// What the damage hit is found when it is read, or at the start; the rest is as it was.
    fn damage(&mut self, task: u8, at: f64, cut: bool) {
        let sample = self.sample(task);
        let Some(path) = self.entry(task).map(|entry| entry.record.path.clone()) else { return };
        let at = (at * sample.geometry.len() as f64) as u64;
        self.restart(|_| {
            let Ok(file) = OpenOptions::new().write(true).open(path) else { return };
            let end = file.metadata().unwrap().len();
            match cut {
                true => file.set_len(at.min(end)).unwrap(),
                false => file.write_all_at(b"rubbish", at.min(end)).unwrap(),
            }
        });
        let Some(entry) = self.entry(task) else {
            self.known.remove(&task);
            return;
        };
        let Some(known) = self.known.get_mut(&task) else { return };
        for leaf in entry.have_ranges().into_iter().flatten() {
            match entry.read_leaf(leaf) {
                Ok(bytes) => assert_eq!(bytes, sample.bytes(leaf)),
                Err(e) => assert!(matches!(e, StoreError::Rotten { .. }), "{e}"),
            }
        }
        let before = known.leaves.len();
        known.leaves.retain(|leaf, _| entry.has(*leaf));
        known.verified &= known.leaves.len() == before;
        // Until then a crash would bring the bad leaves back, to be found again.
        self.flush();
    }

    fn check(&self) {
        check_used(&self.store);
        assert_eq!(self.store.entries().len(), self.known.len());
        for (task, known) in &self.known {
            let entry = self.entry(*task).unwrap();
            let held: Vec<u32> = entry.have_ranges().into_iter().flatten().collect();
            assert!(held.iter().eq(known.leaves.keys()), "{task}: {held:?}");
            assert_eq!(entry.is_verified(), known.verified, "{task}");
        }
        let content = files(&self.dir.path().join("store/content")).len();
        // A task all of whose leaves were damaged keeps its file until the next start.
        let full = self.known.values().filter(|known| !known.leaves.is_empty()).count();
        assert!((full..=self.known.len()).contains(&content), "{full} {content}");
        assert_eq!(files(&self.dir.path().join("store/stage")), vec![]);
    }
}

/// Checks what is left of a task after a crash, and takes it as the truth from then on.
fn survived(known: &mut Known, sample: &Sample, entry: Option<Arc<Entry>>) -> bool {
    let Some(entry) = entry else {
        assert!(known.leaves.values().all(|flushed| !flushed), "flushed leaves were lost");
        return false;
    };
    for (leaf, flushed) in &known.leaves {
        assert!(!flushed || entry.has(*leaf), "flushed leaf {leaf} was lost");
    }
    let claimed: Vec<u32> = entry.have_ranges().into_iter().flatten().collect();
    let may = |leaf: &u32| known.leaves.contains_key(leaf) || known.evicted.contains(leaf);
    assert!(claimed.iter().all(may), "never written: {claimed:?}");
    sample.check(&entry);
    assert!(entry.is_verified() || !known.verified_flushed, "a flushed verification was lost");
    assert!(!entry.is_verified() || known.verified || !known.evicted.is_empty(), "never verified");
    known.leaves = claimed.into_iter().map(|leaf| (leaf, true)).collect();
    known.verified = entry.is_verified();
    true
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn behaves_like_the_model(ops in proptest::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.apply(op);
        }
        // Whatever is claimed in the end is right.
        for (task, _) in world.known.clone() {
            world.sample(task).check(&world.entry(task).unwrap());
        }
    }
}
