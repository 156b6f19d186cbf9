//! Staged leaves and layer descriptors.

use super::fixture::{Sample, check_used, descriptor, files, open, small, store};
use crate::{LayerDescriptor, store::StoreError};

#[test]
fn a_committed_stage_is_a_verified_entry_at_once_and_after_a_restart() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[30, 4, 70]);
    let mut stage = store.stage().unwrap();
    (0..3).for_each(|leaf| stage.append(&sample.bytes(leaf)).unwrap());
    let entry = stage.commit(&sample.id, sample.table()).unwrap();
    assert!(entry.is_verified());
    sample.check(&entry);
    check_used(&store);
    drop((store, entry));
    let store = open(dir.path());
    let entry = store.get(&sample.id).unwrap();
    assert!(entry.is_verified());
    sample.check(&entry);
}

#[test]
fn a_dropped_stage_leaves_nothing() {
    let (store, dir) = store();
    let mut stage = store.stage().unwrap();
    stage.append(&[1; 1000]).unwrap();
    assert_eq!(store.used(), 1000);
    drop(stage);
    assert_eq!((store.used(), files(&dir.path().join("store/stage"))), (0, vec![]));
}

#[test]
fn a_table_of_other_leaves_is_refused() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[30, 4]);
    for leaves in [vec![sample.bytes(0)], vec![sample.bytes(0), vec![0; 4]]] {
        let mut stage = store.stage().unwrap();
        leaves.iter().for_each(|leaf| stage.append(leaf).unwrap());
        let refused = stage.commit(&sample.id, sample.table());
        assert!(matches!(refused, Err(StoreError::WrongDigest(_))));
    }
    assert!(store.get(&sample.id).is_none());
    assert_eq!((store.used(), files(&dir.path().join("store/stage"))), (0, vec![]));
}

#[test]
fn a_stage_completes_what_is_there() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[30, 4, 70]);
    let there = sample.create(&store);
    sample.write(&there, 1);
    let mut stage = store.stage().unwrap();
    (0..3).for_each(|leaf| stage.append(&sample.bytes(leaf)).unwrap());
    stage.commit(&sample.id, sample.table()).unwrap();
    assert!(there.is_verified());
    sample.check(&there);
    check_used(&store);
    assert_eq!(files(&dir.path().join("store/stage")), vec![]);
}

#[test]
fn a_layer_is_known_only_while_all_its_parts_are_verified() {
    let (store, dir) = store();
    let leaves = Sample::layer(1, &[5, 6]);
    let layer = descriptor(b"index", &leaves);
    let table = leaves.table().encode();
    store.put_layer(&layer);
    assert_eq!(store.layer(&layer.blob), None);
    store.put(&small(b"index"), b"index").unwrap();
    store.put(&small(&table), &table).unwrap();
    let entry = leaves.create(&store);
    leaves.write(&entry, 0);
    leaves.write(&entry, 1);
    assert_eq!(store.layer(&layer.blob), None, "the leaves are not verified yet");
    entry.mark_verified().unwrap();
    assert_eq!(store.layer(&layer.blob).as_ref(), Some(&layer));
    drop((store, entry));

    let store = open(dir.path());
    assert_eq!(store.layers(), std::slice::from_ref(&layer));
    store.remove(&small(&table)).unwrap();
    assert_eq!((store.layers(), store.layer(&layer.blob)), (vec![], None));
    store.put(&small(&table), &table).unwrap();
    assert_eq!(store.layers(), [layer], "it is known again with its parts");

    for id in [small(&table), small(b"index"), leaves.id.clone()] {
        store.remove(&id).unwrap();
    }
    drop(store);
    let store = open(dir.path());
    store.put(&small(&table), &table).unwrap();
    store.put(&small(b"index"), b"index").unwrap();
    leaves.fill(&store);
    assert_eq!(store.layers(), [], "it was forgotten with the last of its parts");
}

#[test]
fn a_partly_filled_layer_is_known_after_a_restart() {
    let (store, dir) = store();
    let leaves = Sample::layer(1, &[5, 6, 7]);
    let layer = descriptor(b"index", &leaves);
    let table = leaves.table().encode();
    store.put_layer(&layer);
    store.put(&small(b"index"), b"index").unwrap();
    assert_eq!(store.known_layer(&layer.blob), None, "its table is missing");
    store.put(&small(&table), &table).unwrap();
    leaves.write(&leaves.create(&store), 1);
    drop(store);
    let store = open(dir.path());
    assert_eq!((store.layer(&layer.blob), store.known_layer(&layer.blob)), (None, Some(layer)));
    leaves.check(&store.get(&leaves.id).unwrap());
}

#[test]
fn a_removed_layer_gives_its_bytes_back_but_not_those_of_another() {
    let (store, dir) = store();
    let [one, other] = [1, 2].map(|number| Sample::layer(number, &[50, 60]));
    let layers = [descriptor(b"index", &one), descriptor(b"other", &other)];
    // The same index in both.
    let layers = [layers[0].clone(), LayerDescriptor { index: layers[0].index.clone(), ..layers[1].clone() }];
    store.put(&small(b"index"), b"index").unwrap();
    for (sample, layer) in [&one, &other].into_iter().zip(&layers) {
        store.put(&small(&sample.table().encode()), &sample.table().encode()).unwrap();
        sample.fill(&store);
        store.put_layer(layer);
    }
    let used = store.used();
    let pin = store.get(&one.id).unwrap().pin();
    let mut gone = store.losses();
    let freed = store.remove_layer(&layers[0].blob).unwrap();
    assert_eq!((freed, store.used()), (110 + layers[0].table_len, used - freed));
    assert_eq!(store.remove_layer(&layers[0].blob).unwrap(), 0);
    drop(pin);
    let gone: Vec<_> = std::iter::from_fn(|| gone.try_recv().ok()).collect();
    assert_eq!(gone, [small(&one.table().encode()), one.id.clone()]);
    check_used(&store);
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.layers(), [layers[1].clone()]);
    assert!(store.get(&one.id).is_none());
    store.remove_layer(&layers[1].blob).unwrap();
    assert_eq!((store.used(), store.entries().len()), (0, 0));
}

#[test]
fn a_layer_that_is_published_with_another_table_takes_the_place_of_the_unpinned_one() {
    let (store, _dir) = store();
    let [old, new] = [1, 2].map(|number| Sample::layer(number, &[50, 60]));
    let before = descriptor(b"index", &old);
    let after = LayerDescriptor { blob: before.blob.clone(), ..descriptor(b"index", &new) };
    store.put_layer(&before);
    let entry = old.create(&store);
    old.write(&entry, 0);
    let pin = entry.pin();
    store.put_layer(&after);
    old.check(&store.get(&old.id).unwrap());
    store.put_layer(&before);
    drop(pin);
    store.put_layer(&after);
    assert!(entry.is_removed());
    new.fill(&store);
    check_used(&store);
}

#[test]
fn what_was_never_checked_does_not_stand_against_another_length() {
    let (store, _dir) = store();
    let [short, long] = [1000, 300_000].map(|len| Sample::blob(1, len));
    let entry = short.create(&store);
    short.write(&entry, 0);
    let pin = entry.pin();
    let refused = store.create(&long.id, long.geometry.clone());
    assert!(matches!(refused, Err(StoreError::OtherGeometry(_))), "it is in use");
    drop(pin);
    long.fill(&store);
    let refused = store.create(&short.id, short.geometry.clone());
    assert!(matches!(refused, Err(StoreError::OtherGeometry(_))), "it was checked");
    check_used(&store);
}
