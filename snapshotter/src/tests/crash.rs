//! What a killed snapshotter leaves behind, and how the next one goes on from it.

use std::{
    env,
    fs::{self, File},
    io::Read,
    os::unix::fs::FileExt,
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use super::{
    harness::{Client, Daemon, FakePeer, Home},
    image::{Image, layer, mounted, noise, read},
};
use crate::{Config, MountKind, lazy::keeper};

/// Where a process that is started here, to be killed, finds its directory.
const HOME: &str = "DARTER_TEST_HOME";
/// Set if the snapshotter is to fetch nothing.
const AWAY: &str = "DARTER_TEST_AWAY";

/// Set if the snapshotter is to mount by FUSE alone.
const FUSE_ALONE: &str = "DARTER_TEST_FUSE_ALONE";

/// A process, which is killed when this is dropped, also when the test fails.
struct Victim(Child);

impl Victim {
    /// Runs one of the ignored tests below.
    fn start(home: &Home, test: &str, away: bool) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &format!("tests::crash::{test}"), "--ignored"]).env(HOME, home.path());
        if away {
            command.env(AWAY, "1");
        }
        if home.mount() == MountKind::Fuse {
            command.env(FUSE_ALONE, "1");
        }
        Self(command.spawn().unwrap())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn given_home() -> Home {
    let mount = if env::var_os(FUSE_ALONE).is_some() { MountKind::Fuse } else { MountKind::Auto };
    Home::at(PathBuf::from(env::var_os(HOME).unwrap()), mount)
}

fn content() -> Vec<u8> {
    noise(6_000_000)
}

fn image(peer: &FakePeer) -> Image {
    Image::publish(peer, vec![layer(&[("file", &content())])])
}

fn config(home: &Home) -> Config {
    Config { fill: false, ..home.config() }
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_mounts_again_and_keeps_what_was_saved() {
    let home = Home::new();
    // Its keeper is a part of it, and dies with it.
    let victim = Victim::start(&home, "a_snapshotter_in_use", false);
    let top = home.path().join("top");
    until(|| top.exists()).await;
    drop(victim);

    let peer = Arc::new(FakePeer::default());
    image(&peer);
    let daemon = Daemon::start(&config(&home), peer.clone()).await;
    let [status] = daemon.snapshotter.status().try_into().unwrap();
    assert!(status.raw_held > 0 && status.raw_held < status.raw_len && !status.mounted, "{status:?}");
    let view = mounted(&home, daemon.view("view", &fs::read_to_string(top).unwrap()).await).await;
    let container = mounted(&home, daemon.mounts("container").await).await;
    assert!(peer.asked.lock().is_empty(), "mounting asks nobody");
    for dir in [view.path(), container.path()] {
        assert!(read(dir.join("file")).await.unwrap() == content());
    }
    assert_eq!(fs::read(container.path().join("written")).unwrap(), b"by the container");
    drop((view, container));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_had_begun_are_finished_by_the_next_one() {
    reads_are_finished(Home::with(MountKind::Erofs)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_that_had_begun_are_finished_by_the_next_one_with_fuse_alone() {
    reads_are_finished(Home::with(MountKind::Fuse)).await;
}

async fn reads_are_finished(home: Home) {
    fs::create_dir_all(home.config().root).unwrap();
    // Not in this process: it could not be killed while it reads and only itself holds what the kernel waits for.
    let _keeper = Victim::start(&home, "a_keeper", false);
    let mut victim = Victim::start(&home, "a_snapshotter", true);
    let client = Client::connect(&config(&home)).await;
    let peer = FakePeer::default();
    let top = image(&peer).pull(&client).await;
    let container = mounted(&home, client.prepare("container", &top).await).await;
    let before = File::open(container.path().join("file")).unwrap();
    let reader = tokio::spawn(read(container.path().join("file")));
    for _ in 0..3 {
        // Killed before, while or after it takes over.
        tokio::time::sleep(Duration::from_millis(150)).await;
        drop(victim);
        victim = Victim::start(&home, "a_snapshotter", true);
    }
    drop((victim, client));
    assert!(!reader.is_finished(), "nobody could have answered");
    let victim = Victim::start(&home, "a_snapshotter", false);
    assert!(reader.await.unwrap().unwrap() == content());
    let client = Client::connect(&config(&home)).await;
    let mut end = vec![0; 4096];
    before.read_exact_at(&mut end, 6_000_000 - 4096).unwrap();
    assert!(end == content()[6_000_000 - 4096..], "what was open stays open");
    let view = mounted(&home, client.view("view", &top).await).await;
    assert!(read(view.path().join("file")).await.unwrap() == content());
    drop((before, view, container, victim));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run, and killed, by a test above"]
async fn a_keeper() {
    let root = given_home().config().root;
    tokio::task::spawn_blocking(move || keeper::keep(&root, true)).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run, and killed, by a test above"]
async fn a_snapshotter() {
    let home = given_home();
    let peer = Arc::new(FakePeer::default());
    let image = image(&peer);
    let gate = peer.gate(&image.layers[0].descriptor.blob);
    gate.send_replace(env::var_os(AWAY).is_none());
    let _daemon = Daemon::start(&config(&home), peer).await;
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "run, and killed, by a test above"]
async fn a_snapshotter_in_use() {
    let home = given_home();
    let peer = Arc::new(FakePeer::default());
    let image = image(&peer);
    let daemon = Daemon::start(&config(&home), peer).await;
    let top = image.pull(&daemon).await;
    let container = mounted(&home, daemon.prepare("container", &top).await).await;
    let file = container.path().join("file");
    let start = tokio::task::spawn_blocking(move || {
        let mut start = vec![0; 4096];
        File::open(file).unwrap().read_exact(&mut start).map(|()| start)
    });
    assert_eq!(start.await.unwrap().unwrap(), content()[..4096]);
    fs::write(container.path().join("written"), "by the container").unwrap();
    let saved =
        home.config().root.join("layers").join(image.layers[0].descriptor.diff_id.hex()).join("raw.bits");
    until(|| saved.exists()).await;
    fs::write(home.path().join("new top"), top).unwrap();
    fs::rename(home.path().join("new top"), home.path().join("top")).unwrap();
    std::future::pending::<()>().await;
}
