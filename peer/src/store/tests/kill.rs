//! Other processes: one that is killed, or whose disk loses power, while it writes; one that wants the same directory.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rand::RngExt;
use tempfile::TempDir;

use super::{
    fixture::{Sample, check_used, config, files, open},
    mounts::{ext4, is_root, make_ext4},
};
use crate::{
    LEAF_LEN, TaskId,
    store::{Store, StoreError},
};

/// Where the child works, where it notes what it did, and the number of its first task.
const DIR: &str = "DARTER_TEST_STORE_DIR";
const LOG: &str = "DARTER_TEST_STORE_LOG";
const FIRST: &str = "DARTER_TEST_STORE_FIRST";
const KILLS: u64 = 20;

/// A process that lives until the guard is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn child(test: &str, dir: &Path) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([&format!("store::tests::kill::{test}"), "--exact", "--nocapture"]).env(DIR, dir);
    command
}

/// The child's tasks: blobs, leaves of layers, staged layers.
fn sample(number: u64) -> Sample {
    match number % 3 {
        0 => Sample::blob(number, 2 * u64::from(LEAF_LEN) + number % 1000),
        _ => Sample::layer(number, &[2_000; 600]),
    }
}

/// Not a test of its own: what the killed process does. It notes in a file what must survive.
#[test]
fn killed_writer() {
    let Ok(dir) = env::var(DIR) else { return };
    let dir = Path::new(&dir);
    let first: u64 = env::var(FIRST).unwrap().parse().unwrap();
    let mut log = OpenOptions::new().create(true).append(true).open(env::var(LOG).unwrap()).unwrap();
    let mut note = |what: &str, number: u64, leaves: u32| {
        log.write_all(format!("{what} {number} {leaves} {}\n", sample(number).id).as_bytes()).unwrap();
    };
    let store = open(dir);
    for number in first.. {
        let sample = sample(number);
        let leaves = sample.geometry.leaves();
        note("begun", number, 0);
        if number % 3 == 2 {
            let mut stage = store.stage().unwrap();
            (0..leaves).for_each(|leaf| stage.append(&sample.bytes(leaf)).unwrap());
            stage.commit(&sample.id, sample.table()).unwrap();
        } else {
            let entry = sample.create(&store);
            for leaf in 0..leaves {
                sample.write(&entry, leaf);
                if leaf % 101 == 100 {
                    store.flush().unwrap();
                    note("held", number, leaf + 1);
                }
            }
            entry.mark_verified().unwrap();
            store.flush().unwrap();
        }
        note("verified", number, leaves);
        if number >= first + 7 {
            note("removing", number - 7, 0);
            store.remove(&self::sample(number - 7).id).unwrap();
        }
    }
}

/// What the log promises of a task.
#[derive(Default)]
struct Promise {
    number: u64,
    /// So many leaves from the first on.
    leaves: u32,
    verified: bool,
}

fn promises(log: &Path) -> BTreeMap<TaskId, Promise> {
    let mut promises: BTreeMap<_, Promise> = BTreeMap::new();
    for line in fs::read_to_string(log).unwrap().lines() {
        let [what, number, leaves, id] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let promise = promises.entry(TaskId::parse(id).unwrap()).or_default();
        promise.number = number.parse().unwrap();
        promise.leaves = leaves.parse().unwrap();
        promise.verified = what == "verified";
    }
    promises
}

/// Lets a child write for a moment, kills it and does `then` before it is all gone.
fn interrupt(run: u64, dir: &Path, log: &Path, then: impl FnOnce()) {
    let log_len = || fs::metadata(log).map_or(0, |log| log.len());
    let before = log_len();
    let mut command = child("killed_writer", dir);
    // What it says when its disk fails is of no interest.
    command
        .env(LOG, log)
        .env(FIRST, (run * 1_000_000).to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut writer = Killed(command.spawn().unwrap());
    while log_len() == before {
        assert!(writer.0.try_wait().unwrap().is_none(), "the writer failed");
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(Duration::from_micros(rand::rng().random_range(0..300_000)));
    // The kill comes first: after a power cut nobody is there to note what came of the last flush.
    writer.0.kill().unwrap();
    then();
}

#[test]
fn what_was_flushed_survives_kill_9() {
    let dir = TempDir::new().unwrap();
    let log = dir.path().join("log");
    for run in 0..KILLS {
        interrupt(run, dir.path(), &log, || ());
        check(dir.path(), &log);
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut() {
    if !is_root() {
        return;
    }
    let (dir, at) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (image, log) = (dir.path().join("image"), dir.path().join("log"));
    // Large enough that nothing is evicted.
    make_ext4(&image, 1 << 30, &[]);
    for run in 0..KILLS {
        let disk = ext4(&image, at.path());
        interrupt(run, at.path(), &log, || disk.cut_power());
        drop(disk);
        let _disk = ext4(&image, at.path());
        check(at.path(), &log);
    }
}

fn check(dir: &Path, log: &Path) {
    let store = open(dir);
    let promises = promises(log);
    for (id, promise) in promises.iter().filter(|(_, promise)| promise.leaves > 0) {
        let entry = store.get(id).unwrap_or_else(|| panic!("{} is gone", promise.number));
        assert!(
            (0..promise.leaves).all(|leaf| entry.has(leaf)),
            "{}: {:?}",
            promise.leaves,
            entry.have_ranges()
        );
        assert!(entry.is_verified() || !promise.verified);
    }
    for entry in store.entries() {
        sample(promises[entry.id()].number).check(&entry);
    }
    check_used(&store);
    let data = files(&dir.join("store/content")).len();
    assert_eq!((data, files(&dir.join("store/stage"))), (store.entries().len(), vec![]));
}

/// Not a test of its own: a second process that wants the directory.
#[test]
fn second_process() {
    let Ok(dir) = env::var(DIR) else { return };
    match Store::open(&config(Path::new(&dir), 1)) {
        Err(e @ StoreError::InUse { .. }) => {
            assert!(e.to_string().contains("in use by another process"), "{e}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_directory_has_one_process() {
    let dir = TempDir::new().unwrap();
    let _store = open(dir.path());
    assert!(child("second_process", dir.path()).status().unwrap().success());
}
