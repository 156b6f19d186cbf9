//! A crash, or a failure of the disk, at every point at which the store changes something.

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;
use tempfile::TempDir;

use super::{
    crash::copy_dir,
    fixture::{Sample, check_used, files, open},
    sharing::Layer,
};
use crate::{
    LEAF_LEN, TaskId,
    store::{Entry, Store, StoreError, points::Hook},
};

/// Tasks, and how many of their leaves must be there from the first on, whatever happens.
type Promised = Arc<Mutex<BTreeMap<TaskId, u32>>>;

/// A story in which the store does whatever it can.
struct Story {
    /// Changes may fail: then what is handed over to another task may be lost to it.
    fails: bool,
    /// Two layers that share leaves, and one that shares some with the second.
    layers: [Layer; 3],
    blob: Sample,
    promised: Promised,
}

impl Story {
    fn new(fails: bool) -> Self {
        let layers = [&[1, 2, 3, 4, 5][..], &[0, 2, 3, 4, 6], &[6, 7, 3]].map(Layer::new);
        let blob = Sample::blob(1, 2 * u64::from(LEAF_LEN) + 100);
        Self { fails, layers, blob, promised: Promised::default() }
    }

    /// Goes on after failures; the number of them.
    fn run(&self, store: &Store) -> usize {
        let [old, new, last] = &self.layers;
        let steps: [&dyn Fn() -> Result<(), StoreError>; 8] = [
            &|| old.try_fill(store).map(drop),
            &|| self.flush(store, &old.id, 5),
            &|| self.fill_blob(store, 1..3),
            &|| self.fill_blob(store, 0..1).and_then(|()| self.flush(store, &self.blob.id, 3)),
            &|| new.try_stage(store).and_then(|_| self.flush(store, &new.id, 5)),
            &|| {
                let mut promised = self.promised.lock();
                promised.remove(&old.id);
                if self.fails {
                    promised.remove(&new.id);
                }
                drop(promised);
                // What the others need of it goes over to them.
                store.remove(&old.id).map(drop)
            },
            &|| last.try_fill(store).and_then(|_| self.flush(store, &last.id, 3)),
            &|| {
                self.promised.lock().remove(&self.blob.id);
                let pins = [new, last].map(|layer| store.get(&layer.id).map(|entry| entry.pin()));
                store.evict(u64::MAX);
                drop(pins);
                store.flush()
            },
        ];
        steps.iter().filter(|step| step().is_err()).count()
    }

    fn fill_blob(&self, store: &Store, leaves: std::ops::Range<u32>) -> Result<(), StoreError> {
        let entry = store.create(&self.blob.id, self.blob.geometry.clone())?;
        leaves.clone().try_for_each(|leaf| self.blob.try_write(&entry, leaf).map(drop))?;
        if leaves.start == 0 { entry.mark_verified() } else { store.flush() }
    }

    fn flush(&self, store: &Store, id: &TaskId, leaves: u32) -> Result<(), StoreError> {
        store.flush()?;
        // What could not be synced in between is known to be lost.
        if !self.fails || store.get(id).is_some_and(|entry| entry.is_verified()) {
            self.promised.lock().insert(id.clone(), leaves);
        }
        Ok(())
    }

    /// Whatever is claimed is right, and what was promised is there.
    fn check(&self, store: &Store) {
        for (id, leaves) in self.promised.lock().iter() {
            let entry = store.get(id).unwrap_or_else(|| panic!("{id} is gone"));
            assert!((0..*leaves).all(|leaf| entry.has(leaf)), "{id}: {:?}", entry.have_ranges());
            assert!(entry.is_verified(), "{id}");
        }
        store.entries().iter().for_each(|entry| self.check_entry(entry));
        check_used(store);
    }

    fn check_entry(&self, entry: &Arc<Entry>) {
        match self.layers.iter().find(|layer| layer.id == *entry.id()) {
            Some(layer) => layer.check(entry),
            None => self.blob.check(entry),
        }
    }

    /// All of it can be had again.
    fn complete(&self, store: &Store) {
        self.layers.iter().for_each(|layer| assert!(layer.try_fill(store).unwrap().is_verified()));
        self.fill_blob(store, 0..3).unwrap();
        store.flush().unwrap();
        self.check(store);
    }
}

/// What a crash left, and nothing else.
fn check_files(store: &Store, dir: &Path) {
    let full = store.entries().iter().filter(|entry| entry.held_bytes() > 0).count();
    let data = files(&dir.join("store/content")).len();
    assert!((full..=store.entries().len()).contains(&data), "{data} files for {full} entries");
    assert_eq!(files(&dir.join("store/stage")), vec![]);
}

#[test]
fn a_crash_at_any_point_loses_nothing_that_was_flushed() {
    let dir = TempDir::new().unwrap();
    let story = Arc::new(Story::new(false));
    let crashes = Arc::new(AtomicUsize::new(0));
    let hook = {
        let (story, from, crashes) = (story.clone(), dir.path().to_owned(), crashes.clone());
        Hook::new(dir.path(), move |_| {
            crashes.fetch_add(1, Ordering::Relaxed);
            let copy = TempDir::new().unwrap();
            copy_dir(&from, copy.path());
            let store = open(copy.path());
            story.check(&store);
            check_files(&store, copy.path());
            Ok(())
        })
    };
    let store = open(dir.path());
    assert_eq!(story.run(&store), 0);
    store.close().unwrap();
    drop(hook);
    story.check(&open(dir.path()));
    let crashes = crashes.load(Ordering::Relaxed);
    assert!(crashes > 50, "only {crashes} points");
}

/// Runs the story once for each point, with `fails` saying from the point's and the change's number which changes fail.
fn at_every_point(errno: i32, fails: fn(point: usize, number: usize) -> bool) {
    for point in 0.. {
        let dir = TempDir::new().unwrap();
        let store = open(dir.path());
        let story = Story::new(true);
        let changes = Arc::new(AtomicUsize::new(0));
        let hook = {
            let changes = changes.clone();
            Hook::new(dir.path(), move |_| {
                let number = changes.fetch_add(1, Ordering::Relaxed);
                if fails(point, number) { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) }
            })
        };
        story.run(&store);
        drop(hook);
        if changes.load(Ordering::Relaxed) <= point {
            assert!(point > 40, "only {point} points");
            return;
        }
        // What was not durable when the disk failed is had again, what was is still there.
        story.check(&store);
        story.complete(&store);
        store.close().unwrap();
        let store = open(dir.path());
        story.check(&store);
        check_files(&store, dir.path());
    }
}

#[test]
fn a_disk_that_fails_once_at_any_point_costs_no_more_than_that() {
    at_every_point(libc::EIO, |point, number| point == number);
}

#[test]
fn a_disk_that_is_full_from_any_point_on_costs_no_more_than_that() {
    at_every_point(libc::ENOSPC, |point, number| point <= number);
}
