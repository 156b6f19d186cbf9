//! Disks that are full or fail: real small file systems, mounted by root.

use std::{fs, path::Path};

use tempfile::TempDir;

use super::{
    fixture::{Sample, check_used, config, open},
    mounts::{Mounted, ext4, is_root, make_ext4, tmpfs},
};
use crate::store::{Store, StoreError};

const MIB: u64 = 1 << 20;
const LEAF: u32 = 100_000;

#[test]
fn a_full_disk_refuses_leaves_and_loses_none() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=16m");
    let store = open(dir.path());
    let [a, b] = [1, 2].map(|number| Sample::layer(number, &[LEAF; 100]));
    let (entry_a, entry_b) = (a.create(&store), b.create(&store));
    let pin = entry_a.pin();
    (0..100).for_each(|leaf| assert!(a.write(&entry_a, leaf)));
    let write = |leaf| b.try_write(&entry_b, leaf).err().map(|error| (leaf, error));
    let (failed, error) = (0..100).find_map(write).unwrap();
    assert!(matches!(error, StoreError::Full { needed: 100_000, .. }), "{error}");
    assert_eq!(entry_b.have_ranges(), [0..failed]);
    a.check(&entry_a);
    check_used(&store);

    drop((pin, entry_a));
    store.flush().unwrap();
    assert!(write(failed).is_none(), "it gets its room from the other, which nobody holds any more");
    // Nothing is left of it where the metadata found no room either.
    let left = store.get(&a.id);
    if let Some(left) = &left {
        assert!((1..100).contains(&left.held()));
        a.check(left);
    }
    b.check(&entry_b);
    store.flush().unwrap();
    drop((store, entry_b, left));
    assert_eq!(open(dir.path()).get(&b.id).unwrap().have_ranges(), [0..failed + 1]);
}

#[test]
fn a_file_system_that_is_full_against_its_own_numbers_costs_an_old_task() {
    let dir = TempDir::new().unwrap();
    let store = open(dir.path());
    let [old, new] = [1, 2].map(|number| Sample::layer(number, &[100]).fill(&store));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = store.inner.write(&full, Path::new("/dev/full"), &[0; 10], 0).unwrap_err();
    assert!(matches!(error, StoreError::Full { needed: 10, .. }));
    for entry in [old, new] {
        assert!(!entry.is_removed());
        assert!(store.inner.free_up(&error, None));
        assert!(entry.is_removed());
    }
    assert!(!store.inner.free_up(&error, None));
}

#[test]
fn a_file_system_without_inodes_is_full() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=16m,nr_inodes=30");
    let store = open(dir.path());
    let samples: Vec<_> = (0..20).map(|number| Sample::layer(number, &[100])).collect();
    let written = samples.iter().map(|sample| sample.try_write(&sample.create(&store), 0));
    let error = written.filter_map(Result::err).next().unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    check_used(&store);
    store.flush().unwrap();
}

#[test]
fn a_full_disk_breaks_no_stage() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=16m");
    let store = open(dir.path());
    let mut stage = store.stage().unwrap();
    let error = (0..300).find_map(|_| stage.append(&[1; LEAF as usize]).err()).unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    drop(stage);
    assert_eq!(store.used(), 0);
    Sample::layer(1, &[LEAF; 100]).fill(&store);
}

#[test]
fn metadata_that_cannot_be_written_is_written_once_there_is_room() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=16m");
    let store = open(dir.path());
    let tables: Vec<_> = (1..40).map(|number| Sample::layer(number, &[10; 2000])).collect();
    let filler = dir.path().join("filler");
    let entries: Vec<_> = {
        let _between_batches = store.inner.queue.pause.lock();
        let entries = tables.iter().map(|sample| sample.create(&store)).collect();
        fs::write(&filler, vec![0; 16 * MIB as usize]).unwrap_err();
        entries
    };
    let error = store.flush().unwrap_err();
    assert!(matches!(error, StoreError::Flush(_)), "{error}");
    fs::remove_file(&filler).unwrap();
    tables.iter().zip(&entries).for_each(|(sample, entry)| assert!(sample.write(entry, 7)));
    store.flush().unwrap();
    drop((store, entries));
    let store = open(dir.path());
    assert_eq!(store.entries().len(), tables.len());
    assert!(tables.iter().all(|sample| store.get(&sample.id).unwrap().has(7)));
}

#[test]
fn the_minimum_of_free_space_is_kept() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=32m");
    let mut config = config(dir.path(), 1 << 40);
    config.min_free = 16 * MIB;
    let store = Store::open(&config).unwrap();
    for number in 0..10 {
        Sample::layer(number, &[LEAF; 40]).fill(&store);
        let stat = rustix::fs::statvfs(dir.path()).unwrap();
        assert!(stat.f_bavail * stat.f_frsize >= 16 * MIB);
    }
    assert!(store.get(&Sample::layer(9, &[LEAF; 40]).id).is_some());
    assert!((1..5).contains(&store.entries().len()), "{}", store.entries().len());
    let pins: Vec<_> = store.entries().iter().map(|entry| entry.pin()).collect();
    let error = store.create(&Sample::blob(99, 0).id, crate::Geometry::Fixed { len: 10 * MIB }).unwrap_err();
    assert!(matches!(error, StoreError::Full { min_free, .. } if min_free == 16 * MIB), "{error}");
    drop(pins);
}

/// An ext4 whose image lies on a tmpfs that is smaller than it: writing back fails with EIO, long after write(2) said
/// that all is well.
fn failing_disk(image_dir: &Path, at: &Path) -> (Mounted, Mounted) {
    let tmpfs = tmpfs(image_dir, "size=6m");
    let image = image_dir.join("image");
    make_ext4(&image, 64 * MIB, &["-O", "^has_journal", "-E", "lazy_itable_init=1"]);
    (ext4(&image, at), tmpfs)
}

#[test]
fn what_the_disk_lost_is_not_claimed() {
    if !is_root() {
        return;
    }
    let (dir, image) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    drop(open(dir.path()));
    let _disk = failing_disk(image.path(), &dir.path().join("store/content"));
    let store = open(dir.path());
    let good = Sample::layer(1, &[LEAF; 10]);
    let durable = good.fill(&store);
    store.flush().unwrap();
    let sample = Sample::layer(2, &[LEAF; 200]);
    let entry = sample.create(&store);
    (0..200).for_each(|leaf| assert!(sample.write(&entry, leaf)));
    let error = store.flush().unwrap_err();
    assert!(error.to_string().contains("cannot sync"), "{error}");
    assert!(!entry.is_complete(), "leaves were lost");
    check_used(&store);
    good.check(&durable);
    assert!(durable.is_verified());
}

#[test]
fn what_the_disk_does_not_take_is_kept_in_memory_for_a_while() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=16m");
    let mut config = config(dir.path(), 1 << 40);
    config.memory = 10 * u64::from(LEAF);
    let store = Store::open(&config).unwrap();
    let sample = Sample::layer(1, &[LEAF; 300]);
    let entry = store.admit(&sample.id, sample.geometry.clone()).unwrap();
    let pin = entry.pin();
    for leaf in 0..300 {
        sample.take(&entry, leaf);
        assert_eq!(entry.read_leaf(leaf).unwrap(), sample.bytes(leaf));
    }
    let kept = entry.held_bytes() / u64::from(LEAF);
    assert!(entry.is_unkept() && kept < 200, "{kept}");
    assert_eq!(u64::from(entry.held()), kept + 10, "memory is bounded");
    assert!(entry.has(299) && !entry.has(280));
    sample.check(&entry);
    check_used(&store);

    // The oldest gave way, and can be had again; then there is room again.
    sample.take(&entry, 280);
    drop(pin);
    assert!(!entry.has(280) && !entry.is_unkept(), "nobody reads it any more");
    assert_eq!(u64::from(entry.held()), kept);
    sample.check(&entry);
    drop((store, entry));
    let store = Store::open(&config).unwrap();
    let entry = store.get(&sample.id).unwrap();
    assert_eq!(u64::from(entry.held()), kept, "it starts on a full disk, too");
    sample.check(&entry);
}

#[test]
fn a_content_that_does_not_fit_evicts_nobody() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&config(dir.path(), 300_000)).unwrap();
    let old = Sample::layer(1, &[1000]).fill(&store);
    let large = Sample::leaves(2, 4);
    let entry = store.admit(&large.id, large.geometry.clone()).unwrap();
    let _pin = entry.pin();
    (0..4).for_each(|leaf| large.take(&entry, leaf));
    assert_eq!((entry.held(), entry.held_bytes()), (4, u64::from(crate::LEAF_LEN)));
    large.check(&entry);
    assert!(!old.is_removed());
    check_used(&store);
}

#[test]
fn when_others_fill_the_disk_the_store_gives_way() {
    if !is_root() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let _mounted = tmpfs(dir.path(), "size=32m");
    let mut config = config(dir.path(), 1 << 40);
    config.min_free = 8 * MIB;
    let store = Store::open(&config).unwrap();
    let samples = [1, 2].map(|number| Sample::layer(number, &[LEAF; 100]));
    let [old, new] = samples.each_ref().map(|sample| sample.fill(&store));
    let pin = new.pin();
    fs::write(dir.path().join("filler"), vec![0; 8 * MIB as usize]).unwrap();
    let mut losses = store.losses();
    store.keep_limits();
    store.flush().unwrap();
    assert!((1..100).contains(&old.held()), "a part of it: {}", old.held());
    assert_eq!((new.held(), losses.try_recv().unwrap()), (100, old.id().clone()));
    let stat = rustix::fs::statvfs(dir.path()).unwrap();
    assert!(stat.f_bavail * stat.f_frsize >= 8 * MIB);
    samples.iter().zip([&old, &new]).for_each(|(sample, entry)| sample.check(entry));
    drop(pin);
}
