//! What is evicted, in which order, and what is not.

use tempfile::TempDir;

use super::fixture::{Sample, check_used, config, descriptor, files, small};
use crate::{
    LEAF_LEN,
    store::{Store, StoreError},
};

fn store(quota: u64) -> (Store, TempDir) {
    let dir = TempDir::new().unwrap();
    (Store::open(&config(dir.path(), quota)).unwrap(), dir)
}

#[test]
fn the_least_recently_used_goes_first() {
    let (store, dir) = store(300);
    let [a, b, c, d] = [1, 2, 3, 4].map(|number| Sample::layer(number, &[60, 40]));
    let mut losses = store.losses();
    for sample in [&a, &b, &c] {
        sample.fill(&store);
    }
    assert_eq!(store.used(), 300);
    store.get(&a.id).unwrap();
    d.fill(&store);
    assert_eq!(losses.try_recv().unwrap(), b.id);
    assert!(losses.try_recv().is_err(), "no more than was necessary");
    assert!(store.get(&b.id).is_none());
    for sample in [&a, &c, &d] {
        sample.check(&store.get(&sample.id).unwrap());
    }
    check_used(&store);
    assert_eq!(files(&dir.path().join("store/content")).len(), 3);
}

#[test]
fn the_order_of_use_survives_a_restart() {
    let (store, dir) = store(300);
    let [a, b, c, d] = [1, 2, 3, 4].map(|number| Sample::layer(number, &[100]));
    for sample in [&a, &b, &c] {
        sample.fill(&store);
    }
    store.get(&a.id).unwrap();
    drop(store);
    let store = Store::open(&config(dir.path(), 300)).unwrap();
    d.fill(&store);
    assert!(store.get(&b.id).is_none() && store.get(&a.id).is_some());
}

#[test]
fn pinned_entries_stay() {
    let (store, _dir) = store(200);
    let [a, b, c] = [1, 2, 3].map(|number| Sample::layer(number, &[100]));
    let (entry_a, _entry_b) = (a.fill(&store), b.fill(&store));
    let (pin, second) = (entry_a.pin(), entry_a.pin());
    c.fill(&store);
    assert!(store.get(&a.id).is_some() && store.get(&b.id).is_none(), "the older one was pinned");
    let pin_c = store.get(&c.id).unwrap().pin();
    drop(pin);
    let full = store.create(&b.id, b.geometry.clone()).unwrap_err();
    assert!(matches!(full, StoreError::Full { needed: 100, used: 200, quota: 200, .. }), "{full}");
    assert!(full.to_string().contains("200 B of 200 B used"), "{full}");
    drop(second);
    b.fill(&store);
    assert!(store.get(&a.id).is_none() && store.get(&c.id).is_some());
    drop(pin_c);
    check_used(&store);
}

#[test]
fn nothing_is_evicted_in_vain() {
    let (store, _dir) = store(300);
    let [a, b] = [1, 2].map(|number| Sample::layer(number, &[100]));
    let pin = a.fill(&store).pin();
    b.fill(&store);
    let large = Sample::layer(3, &[250]);
    assert!(matches!(store.create(&large.id, large.geometry), Err(StoreError::Full { .. })));
    assert!(store.get(&b.id).is_some());
    drop(pin);
}

#[test]
fn a_full_store_refuses_the_leaf_and_stays_as_it_is() {
    let (store, _dir) = store(150);
    let [a, b] = [1, 2].map(|number| Sample::layer(number, &[50, 50]));
    let (entry_a, entry_b) = (a.create(&store), b.create(&store));
    let _pins = (entry_a.pin(), entry_b.pin());
    a.write(&entry_a, 0);
    b.write(&entry_b, 0);
    a.write(&entry_a, 1);
    assert!(matches!(b.try_write(&entry_b, 1), Err(StoreError::Full { needed: 50, .. })));
    assert!(!entry_b.has(1));
    b.check(&entry_b);
    let mut stage = store.stage().unwrap();
    assert!(matches!(stage.append(&[0; 1]), Err(StoreError::Full { .. })));
    store.remove(&a.id).unwrap();
    b.write(&entry_b, 1);
    stage.append(&[0; 1]).unwrap();
    assert_eq!(store.used(), 101);
}

#[test]
fn a_writer_does_not_evict_its_own_task() {
    let (store, _dir) = store(100);
    let [a, b] = [1, 2].map(|number| Sample::layer(number, &[50, 50]));
    let (entry_a, entry_b) = (a.create(&store), b.create(&store));
    a.write(&entry_a, 0);
    b.write(&entry_b, 0);
    a.write(&entry_a, 1);
    assert!(entry_a.is_complete() && entry_b.is_removed());
    check_used(&store);
}

#[test]
fn a_smaller_quota_is_kept_from_the_start() {
    let (store, dir) = store(300);
    let samples = [1, 2, 3].map(|number| Sample::layer(number, &[100]));
    for sample in &samples {
        sample.fill(&store);
    }
    drop(store);
    let store = Store::open(&config(dir.path(), 150)).unwrap();
    assert_eq!((store.used(), store.entries().len()), (100, 1));
    assert!(store.get(&samples[2].id).is_some());
}

#[test]
fn many_writers_stay_below_the_quota() {
    let (store, dir) = store(5_000);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for number in 0..50 {
                    let sample = Sample::layer(thread * 1000 + number, &[100; 10]);
                    let Ok(entry) = store.create(&sample.id, sample.geometry.clone()) else { continue };
                    for leaf in 0..10 {
                        match sample.try_write(&entry, leaf) {
                            Ok(_) => assert!(store.used() <= 5_000),
                            Err(StoreError::Removed(_) | StoreError::Full { .. }) => break,
                            Err(e) => panic!("{e}"),
                        }
                    }
                }
            });
        }
    });
    check_used(&store);
    let held = store.entries().iter().filter(|entry| entry.held() > 0).count();
    store.flush().unwrap();
    assert_eq!(files(&dir.path().join("store/content")).len(), held);
}

/// Blocks on the disk that the only data file takes, in bytes.
fn allocated(dir: &TempDir) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let content = dir.path().join("store/content");
    let blocks = files(&content).into_iter().map(|(path, _)| content.join(path).metadata().unwrap().blocks());
    blocks.sum::<u64>() * 512
}

#[test]
fn the_piece_that_was_not_used_for_longest_goes_first() {
    const LEAF: u64 = LEAF_LEN as u64;
    let (store, dir) = store(41 * LEAF);
    let a = Sample::leaves(1, 40);
    let entry = a.fill(&store);
    store.flush().unwrap();
    assert!(allocated(&dir) >= 40 * LEAF);
    entry.read_leaf(3).unwrap();
    let (changes, mut losses) = (entry.changes(), store.losses());
    Sample::layer(2, &[LEAF_LEN; 2]).fill(&store);
    assert_eq!(entry.have_ranges(), [0..16, 32..40], "the second piece went");
    assert!(changes.has_changed().unwrap() && !entry.is_verified());
    assert_eq!(losses.try_recv().unwrap(), a.id);
    assert!(matches!(entry.read_leaf(20), Err(StoreError::NotHeld { .. })));
    check_used(&store);
    store.flush().unwrap();
    assert!(allocated(&dir) <= 27 * LEAF, "its bytes went, too: {}", allocated(&dir));

    a.write(&entry, 20);
    let pin = entry.pin();
    a.check(&entry);
    drop((store, entry, pin));
    let store = Store::open(&config(dir.path(), 41 * LEAF)).unwrap();
    let entry = store.get(&a.id).unwrap();
    assert_eq!(entry.have_ranges(), [0..16, 20..21, 32..40]);
    a.check(&entry);
}

#[test]
fn what_is_written_again_before_its_room_was_freed_stays() {
    let (store, _dir) = store(20 * u64::from(LEAF_LEN));
    let a = Sample::leaves(1, 20);
    let entry = a.fill(&store);
    {
        let _between_batches = store.inner.queue.pause.lock();
        assert!(store.inner.evict_pieces(1, 1, None));
        assert_eq!(entry.have_ranges(), [16..20]);
        a.write(&entry, 3);
    }
    store.flush().unwrap();
    assert_eq!(entry.have_ranges(), [3..4, 16..20]);
    a.check(&entry);
}

#[test]
fn once_room_is_needed_a_little_more_is_made() {
    let dir = TempDir::new().unwrap();
    let mut config = config(dir.path(), 1000);
    config.evict_ahead = 1 << 30;
    let store = Store::open(&config).unwrap();
    (0..10).for_each(|number| drop(Sample::layer(number, &[100]).fill(&store)));
    assert_eq!(store.used(), 1000);
    Sample::layer(10, &[10]).fill(&store);
    assert_eq!(store.used(), 810, "a tenth of the quota below it");
}

#[test]
fn index_and_table_stay_with_the_leaves_that_need_them() {
    let (store, _dir) = store(2000);
    let leaves = Sample::layer(1, &[100, 100]);
    let table = leaves.table().encode();
    let layer = descriptor(b"index", &leaves);
    store.put(&small(b"index"), b"index").unwrap();
    store.put(&small(&table), &table).unwrap();
    store.put_layer(&layer);
    let entry = leaves.fill(&store);
    let pin = entry.pin();
    (10..30).for_each(|number| drop(Sample::layer(number, &[300]).fill(&store)));
    assert_eq!(store.layer(&layer.blob), Some(layer.clone()), "the leaves are pinned");
    entry.read_leaf(0).unwrap();
    drop(pin);
    (30..33).for_each(|number| drop(Sample::layer(number, &[300]).fill(&store)));
    assert_eq!(store.layer(&layer.blob), Some(layer), "the leaves were used since");
}
