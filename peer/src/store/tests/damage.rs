//! Directories that are not what the store left.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use redb::{Database, ReadableTable, TableDefinition};
use tempfile::TempDir;

use super::fixture::{Sample, check_used, config, files, open, store};
use crate::store::{Store, StoreError};

fn data_file(dir: &Path) -> PathBuf {
    let content = dir.join("store/content");
    let found = files(&content);
    assert_eq!(found.len(), 1);
    content.join(&found[0].0)
}

fn overwrite(file: &Path, offset: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(file).unwrap().write_all_at(bytes, offset).unwrap();
}

#[test]
fn a_rotten_leaf_is_dropped_and_can_be_written_anew() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50, 50, 50]);
    let entry = sample.fill(&store);
    store.flush().unwrap();
    overwrite(&data_file(dir.path()), 60, b"rot");
    let changes = entry.changes();
    assert!(matches!(entry.read_leaf(1), Err(StoreError::Rotten { leaf: 1, .. })));
    assert!(!entry.has(1) && !entry.is_verified() && changes.has_changed().unwrap());
    assert!(matches!(entry.read_leaf(1), Err(StoreError::NotHeld { .. })));
    sample.check(&entry);
    check_used(&store);
    drop((store, entry));

    let store = open(dir.path());
    let entry = store.get(&sample.id).unwrap();
    assert_eq!((entry.missing(), entry.is_verified()), (vec![1..2], false), "that it is bad was remembered");
    assert!(sample.write(&entry, 1));
    entry.mark_verified().unwrap();
    sample.check(&entry);
}

#[test]
fn a_file_cut_short_while_it_is_open_is_rot() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50, 50, 50]);
    let entry = sample.fill(&store);
    OpenOptions::new().write(true).open(data_file(dir.path())).unwrap().set_len(70).unwrap();
    assert!(matches!(entry.read_leaf(1), Err(StoreError::Rotten { leaf: 1, .. })));
    assert_eq!(entry.have_ranges(), [0..1, 2..3]);
    assert!(matches!(entry.read_leaf(2), Err(StoreError::Rotten { leaf: 2, .. })));
    assert_eq!(entry.read_leaf(0).unwrap(), sample.bytes(0));
    check_used(&store);
}

#[test]
fn leaves_beyond_the_end_of_their_file_are_dropped_at_the_start() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50, 50, 50]);
    sample.fill(&store);
    drop(store);
    OpenOptions::new().write(true).open(data_file(dir.path())).unwrap().set_len(149).unwrap();
    for _ in 0..2 {
        let store = open(dir.path());
        let entry = store.get(&sample.id).unwrap();
        assert_eq!((entry.have_ranges(), entry.is_verified(), store.used()), (vec![0..2], false, 100));
        sample.check(&entry);
    }
}

#[test]
fn a_task_whose_file_is_gone_is_gone() {
    let (store, dir) = store();
    let [a, b] = [1, 2].map(|number| Sample::layer(number, &[50]));
    a.fill(&store);
    store.flush().unwrap();
    fs::remove_file(data_file(dir.path())).unwrap();
    // While the store is open, the loss shows when the file is next opened.
    let mut losses = store.losses();
    let entry = store.get(&a.id).unwrap();
    assert!(matches!(entry.read_leaf(0), Err(StoreError::Removed(_))));
    assert_eq!(losses.try_recv().unwrap(), a.id);
    assert!(store.get(&a.id).is_none());

    b.fill(&store);
    drop((store, entry));
    fs::remove_file(data_file(dir.path())).unwrap();
    let store = open(dir.path());
    assert_eq!((store.entries().len(), store.used()), (0, 0));
    b.fill(&store);
}

#[test]
fn a_deleted_content_directory_is_made_again() {
    let (store, dir) = store();
    Sample::layer(1, &[50]).fill(&store);
    fs::remove_dir_all(dir.path().join("store/content")).unwrap();
    fs::remove_dir_all(dir.path().join("store/stage")).unwrap();
    let sample = Sample::layer(2, &[50]);
    sample.fill(&store);
    store.stage().unwrap().append(b"leaf").unwrap();
    store.flush().unwrap();
    drop(store);
    sample.check(&open(dir.path()).get(&sample.id).unwrap());
}

#[test]
fn leftovers_are_deleted() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50]);
    sample.fill(&store);
    let empty = Sample::layer(2, &[50]);
    empty.create(&store);
    drop(store);
    fs::write(dir.path().join("store/stage/half"), b"x").unwrap();
    let orphan = data_file(dir.path()).with_extension("0000000000000000");
    fs::write(orphan, b"x").unwrap();
    let store = open(dir.path());
    assert!(store.get(&empty.id).is_none(), "a task of which nothing is held is not kept");
    assert_eq!(files(&dir.path().join("store/stage")), vec![]);
    data_file(dir.path());
}

#[test]
fn rows_that_make_no_sense_are_dropped() {
    const TASKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tasks-1");
    const STATES: TableDefinition<'_, &str, (bool, u64)> = TableDefinition::new("states-1");
    const LEAVES: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("leaves-1");
    const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers-1");
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50]);
    sample.fill(&store);
    drop(store);
    let endless = [[0; 9].as_slice(), &u64::MAX.to_le_bytes()].concat();
    let database = Database::open(dir.path().join("store/store.redb")).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut tasks = transaction.open_table(TASKS).unwrap();
        let mut states = transaction.open_table(STATES).unwrap();
        let mut leaves = transaction.open_table(LEAVES).unwrap();
        let id = Sample::blob(7, 0).id;
        tasks.insert("../../etc/passwd", [0; 17].as_slice()).unwrap();
        tasks.insert(id.as_str(), endless.as_slice()).unwrap();
        for (id, row) in (8..).zip([vec![], vec![0; 8], vec![0; 16], vec![1; 60], vec![2; 17]]) {
            tasks.insert(Sample::blob(id, 0).id.as_str(), row.as_slice()).unwrap();
        }
        for id in [id.as_str(), sample.id.as_str(), "nobody"] {
            states.insert(id, (true, u64::MAX)).unwrap();
            leaves.insert((id, 9), [255; 9000].as_slice()).unwrap();
            leaves.insert((id, u32::MAX), [255; 32].as_slice()).unwrap();
        }
        transaction.open_table(LAYERS).unwrap().insert("sha256:", b"{}".as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);

    let store = open(dir.path());
    assert_eq!(store.entries().len(), 1);
    let entry = store.get(&sample.id).unwrap();
    assert!(entry.is_verified());
    sample.check(&entry);
    drop((store, entry));
    let database = Database::open(dir.path().join("store/store.redb")).unwrap();
    let leaves = database.begin_write().unwrap().open_table(LEAVES).unwrap().iter().unwrap().count();
    assert_eq!(leaves, 1, "they are deleted, too");
}

#[test]
fn a_second_user_is_refused() {
    let (store, dir) = store();
    let second = Store::open(&config(dir.path(), 1));
    assert!(matches!(second, Err(StoreError::InUse { .. })));
    store.close().unwrap();
    Store::open(&config(dir.path(), 1)).unwrap();
}

#[test]
fn other_versions_and_other_peoples_directories_are_refused() {
    let dir = TempDir::new().unwrap();
    let refused = |expected: &str| {
        let error = Store::open(&config(dir.path(), 1)).unwrap_err();
        assert!(
            matches!(error, StoreError::Unusable { .. }) && error.to_string().contains(expected),
            "{error}"
        );
    };
    let path = dir.path().join("store");
    fs::create_dir(&path).unwrap();
    fs::create_dir(path.join("content")).unwrap();
    fs::write(path.join("content/thesis.tex"), b"x").unwrap();
    refused("it is no store and holds \"content\"");
    fs::write(path.join("VERSION"), "darter store 2\n").unwrap();
    refused("its VERSION says \"darter store 2\"");
    assert!(path.join("content/thesis.tex").exists());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    refused("others may write to it (mode 777)");
}

#[test]
fn a_directory_that_others_may_read_is_made_private() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("store");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    open(dir.path());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
}

/// Opens, uses and opens again: whatever the metadata file holds, the store works.
fn check_works(dir: &Path, sample: &Sample) {
    let store = open(dir);
    for entry in store.entries() {
        assert_eq!(entry.id(), &sample.id);
        for leaf in entry.have_ranges().into_iter().flatten() {
            match entry.read_leaf(leaf) {
                Ok(bytes) => assert_eq!(bytes, sample.bytes(leaf)),
                Err(StoreError::Rotten { .. }) => assert!(!entry.has(leaf)),
                Err(e) => panic!("{e}"),
            }
        }
    }
    let entry = sample.fill(&store);
    sample.check(&entry);
    store.flush().unwrap();
    drop((store, entry));
    assert!(open(dir).get(&sample.id).unwrap().is_verified());
}

#[test]
fn a_damaged_metadata_file_is_moved_aside() {
    let (store, dir) = store();
    let sample = Sample::layer(1, &[50; 10]);
    sample.fill(&store);
    drop(store);
    let metadata = dir.path().join("store/store.redb");
    for garbage in [b"x".to_vec(), vec![7; 100_000], fs::read(&metadata).unwrap()[..5000].to_vec()] {
        fs::write(&metadata, &garbage).unwrap();
        check_works(dir.path(), &sample);
        assert_eq!(fs::read(dir.path().join("store/store.redb.damaged")).unwrap(), garbage);
    }
    fs::write(&metadata, b"").unwrap();
    check_works(dir.path(), &sample);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn any_damage_to_the_metadata_is_survived(
        damage in proptest::collection::vec((0.0..1.0f64, proptest::collection::vec(any::<u8>(), 1..600)), 1..4),
        cut in proptest::option::weighted(0.2, 0.0..1.0f64),
    ) {
        let (store, dir) = store();
        let sample = Sample::layer(1, &[50; 300]);
        sample.fill(&store);
        store.put(&super::fixture::small(b"small"), b"small").unwrap();
        store.remove(&super::fixture::small(b"small")).unwrap();
        drop(store);
        let metadata = dir.path().join("store/store.redb");
        let len = fs::metadata(&metadata).unwrap().len() as f64;
        for (at, bytes) in damage {
            overwrite(&metadata, (at * len) as u64, &bytes);
        }
        if let Some(cut) = cut {
            OpenOptions::new().write(true).open(&metadata).unwrap().set_len((cut * len) as u64).unwrap();
        }
        check_works(dir.path(), &sample);
    }
}
