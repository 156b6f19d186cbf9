//! What is evicted, in which order, and what is not.

use tempfile::TempDir;

use super::fixture::{Sample, check_used, config, files};
use crate::store::{Store, StoreError};

fn store(quota: u64) -> (Store, TempDir) {
    let dir = TempDir::new().unwrap();
    (Store::open(&config(dir.path(), quota)).unwrap(), dir)
}

#[test]
fn the_least_recently_used_goes_first() {
    let (store, dir) = store(300);
    let [a, b, c, d] = [1, 2, 3, 4].map(|number| Sample::layer(number, &[60, 40]));
    let mut evictions = store.evictions();
    for sample in [&a, &b, &c] {
        sample.fill(&store);
    }
    assert_eq!(store.used(), 300);
    store.get(&a.id).unwrap();
    d.fill(&store);
    assert_eq!(evictions.try_recv().unwrap(), b.id);
    assert!(evictions.try_recv().is_err(), "no more than was necessary");
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
