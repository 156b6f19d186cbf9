//! Entries while the store is open, and after an orderly close.

use super::fixture::{Sample, check_used, files, open, small, store};
use crate::{
    Geometry, LEAF_LEN,
    digest::leaf_digest,
    store::{MAX_LEN, StoreError},
};

#[test]
fn leaves_are_there_at_once_and_after_a_restart() {
    let (store, dir) = store();
    let blob = Sample::blob(1, 2 * u64::from(LEAF_LEN) + 17);
    let layer = Sample::layer(2, &[10, 20, 30, 40]);
    for (sample, leaf) in [(&blob, 2), (&layer, 1)] {
        let entry = sample.create(&store);
        let changes = entry.changes();
        assert!(sample.write(&entry, leaf));
        assert!(changes.has_changed().unwrap());
        assert!(!sample.write(&entry, leaf), "the second write of a leaf does nothing");
        assert!(entry.has(leaf) && !entry.is_complete());
        sample.check(&entry);
    }
    assert_eq!(store.used(), 17 + 20);
    let host = store.host_id().to_owned();
    drop(store);

    let store = open(dir.path());
    assert_eq!((store.host_id(), store.used()), (host.as_str(), 37));
    let entry = store.get(&blob.id).unwrap();
    assert_eq!((entry.have_ranges(), entry.missing()), (vec![2..3], vec![0..2]));
    let entry = store.get(&layer.id).unwrap();
    assert_eq!((entry.have_ranges(), entry.missing()), (vec![1..2], vec![0..1, 2..4]));
    layer.check(&entry);
}

#[test]
fn verified_needs_all_leaves_and_is_kept() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[5, 6]);
    let entry = sample.create(&store);
    sample.write(&entry, 0);
    assert!(matches!(entry.mark_verified(), Err(StoreError::Incomplete(_))));
    sample.write(&entry, 1);
    assert!(entry.is_complete() && !entry.is_verified());
    entry.mark_verified().unwrap();
    store.close().unwrap();
    drop((store, entry));
    assert!(open(dir.path()).get(&sample.id).unwrap().is_verified());
}

#[test]
fn a_content_without_bytes_is_complete() {
    let (store, dir) = store();
    let sample = Sample::blob(1, 0);
    sample.create(&store).mark_verified().unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(store.get(&sample.id).unwrap().is_verified());
}

#[test]
fn wrong_leaves_are_refused() {
    let (store, _dir) = store();
    let layer = Sample::layer(1, &[5, 6]);
    let entry = layer.create(&store);
    let write = |leaf, bytes: &[u8]| entry.write_leaf(leaf, leaf_digest(bytes), bytes);
    assert!(matches!(write(0, b"four"), Err(StoreError::WrongLength { expected: 5, got: 4, .. })));
    assert!(matches!(write(0, b"wrong"), Err(StoreError::WrongDigest(_))));
    assert!(matches!(write(2, b"none"), Err(StoreError::NoLeaf { leaf: 2, .. })));
    assert_eq!((entry.held(), store.used()), (0, 0));
    assert!(matches!(entry.read_leaf(0), Err(StoreError::NotHeld { leaf: 0, .. })));
    assert!(matches!(entry.read_leaf(7), Err(StoreError::NoLeaf { leaf: 7, .. })));
}

#[test]
fn digests_come_from_the_table_or_from_held_leaves() {
    let (store, _dir) = store();
    let layer = Sample::layer(1, &[5, 6]);
    assert_eq!(layer.create(&store).digests(0..2).unwrap().len(), 64);
    let blob = Sample::leaves(2, 3);
    let entry = blob.create(&store);
    blob.write(&entry, 1);
    assert_eq!(entry.digests(1..2).unwrap(), leaf_digest(&blob.bytes(1)));
    assert_eq!(entry.digests(1..3), None);
}

#[test]
fn a_task_has_one_geometry() {
    let (store, _dir) = store();
    let sample = Sample::blob(1, 100);
    let entry = sample.create(&store);
    sample.write(&entry, 0);
    assert!(sample.create(&store).has(0), "create returns what is there");
    entry.mark_verified().unwrap();
    let other = store.create(&sample.id, Geometry::Fixed { len: 101 });
    assert!(matches!(other, Err(StoreError::OtherGeometry(_))));
    let endless = store.create(&Sample::blob(2, 1).id, Geometry::Fixed { len: u64::MAX });
    assert!(matches!(endless, Err(StoreError::TooLong { max: MAX_LEN, .. })));
}

#[test]
fn removed_is_gone_for_handles_too() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[5, 6]);
    let entry = sample.fill(&store);
    let _pin = entry.pin();
    let mut changes = entry.changes();
    changes.mark_unchanged();
    store.remove(&sample.id).unwrap();
    store.remove(&sample.id).unwrap();
    assert!(changes.has_changed().unwrap() && entry.is_removed());
    assert!(!entry.has(0) && !entry.is_verified() && store.get(&sample.id).is_none());
    assert!(matches!(sample.try_write(&entry, 0), Err(StoreError::Removed(_))));
    assert!(matches!(entry.read_leaf(0), Err(StoreError::Removed(_))));
    assert!(matches!(entry.mark_verified(), Err(StoreError::Removed(_))));
    assert_eq!((store.used(), files(&dir.path().join("store/content"))), (0, vec![]));

    // The same id again is another content for all the store knows.
    let again = sample.create(&store);
    sample.write(&again, 1);
    drop(store);
    drop((entry, again));
    let store = open(dir.path());
    assert_eq!(store.get(&sample.id).unwrap().have_ranges(), [1..2]);
    check_used(&store);
}

#[test]
fn put_checks_the_digest() {
    let (store, _dir) = store();
    let long = vec![7; LEAF_LEN as usize + 1];
    for bytes in [b"".as_slice(), b"hello", &long] {
        let entry = store.put(&small(bytes), bytes).unwrap();
        assert!(entry.is_verified());
        let read = (0..entry.held()).map(|leaf| entry.read_leaf(leaf).unwrap());
        assert_eq!(read.collect::<Vec<_>>().concat(), bytes);
        assert!(store.put(&small(bytes), bytes).unwrap().is_verified());
    }
    assert!(matches!(store.put(&small(b"a"), b"b"), Err(StoreError::WrongDigest(_))));
    let nameless = Sample::layer(1, &[1]);
    assert!(matches!(store.put(&nameless.id, b"b"), Err(StoreError::WrongDigest(_))));
}

#[test]
fn put_replaces_leaves_that_turned_out_wrong() {
    let (store, _dir) = store();
    let id = small(b"hello");
    let entry = store.create(&id, Geometry::Fixed { len: 5 }).unwrap();
    entry.write_leaf(0, leaf_digest(b"jello"), b"jello").unwrap();
    let entry = store.put(&id, b"hello").unwrap();
    assert_eq!(entry.read_leaf(0).unwrap(), b"hello"[..]);
    check_used(&store);
}

#[test]
fn files_are_open_only_while_somebody_uses_them() {
    let (store, dir) = store();
    let open_files = || {
        let below = dir.path().join("store/content");
        let links =
            std::fs::read_dir("/proc/self/fd").unwrap().map(|fd| std::fs::read_link(fd.unwrap().path()));
        links.filter(|link| link.as_ref().is_ok_and(|path| path.starts_with(&below))).count()
    };
    let entries: Vec<_> = (0..20).map(|number| Sample::layer(number, &[3]).fill(&store)).collect();
    store.flush().unwrap();
    assert_eq!(open_files(), 20);
    let second: Vec<_> = store.entries();
    second.iter().for_each(|entry| assert!(entry.place(0).is_ok()));
    assert_eq!(open_files(), 20, "handles on one task share its file");
    drop((entries, second));
    store.flush().unwrap();
    assert_eq!(open_files(), 0);
    assert_eq!(store.entries().len(), 20);
}

#[test]
fn a_closed_store_can_be_read_but_not_written() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[5, 6]);
    let entry = sample.create(&store);
    sample.write(&entry, 0);
    store.close().unwrap();
    store.close().unwrap();
    sample.check(&entry);
    assert!(matches!(sample.try_write(&entry, 1), Err(StoreError::Closed)));
    assert!(matches!(store.flush(), Err(StoreError::Closed)));
    assert!(matches!(store.stage(), Err(StoreError::Closed)));
    assert!(matches!(store.remove(&sample.id), Err(StoreError::Closed)));
    let next = open(dir.path());
    assert_eq!(next.get(&sample.id).unwrap().held(), 1);
}

#[test]
fn writers_of_one_entry_do_not_disturb_each_other() {
    let (store, _dir) = store();
    let sample = Sample::layer(1, &[100; 400]);
    let entry = sample.create(&store);
    let written: usize = std::thread::scope(|scope| {
        let write = || (0..400).filter(|leaf| sample.write(&entry, *leaf)).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(write)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(written, 400, "each leaf is written once");
    sample.check(&entry);
    assert!(entry.is_complete());
    check_used(&store);
}
