//! Staged leaves and layer descriptors.

use super::fixture::{Sample, check_used, descriptor, files, open, small, store};
use crate::store::StoreError;

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
