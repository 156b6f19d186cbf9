//! What a killed snapshotter leaves behind, and how the next one goes on from it.

use std::{
    env, fs,
    io::Read,
    path::PathBuf,
    process::{Child, Command},
    sync::Arc,
    time::Duration,
};

use super::{
    harness::{Daemon, FakePeer, Home},
    image::{Image, layer, mounted, noise, read},
};
use crate::Config;

/// Where the snapshotter to be killed finds its directory.
const HOME: &str = "DARTER_TEST_HOME";

/// Kills the process also when the test fails.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
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

#[tokio::test(flavor = "multi_thread")]
async fn the_next_one_mounts_again_and_keeps_what_was_saved() {
    let home = Home::new();
    let mut victim = Command::new(env::current_exe().unwrap());
    victim.args(["--exact", "tests::crash::a_snapshotter_to_be_killed", "--ignored"]).env(HOME, home.path());
    let victim = Victim(victim.spawn().unwrap());
    let top = home.path().join("top");
    while !top.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
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
#[ignore = "run, and killed, by the test above"]
async fn a_snapshotter_to_be_killed() {
    let home = Home::at(PathBuf::from(env::var_os(HOME).unwrap()));
    let peer = Arc::new(FakePeer::default());
    let image = image(&peer);
    let daemon = Daemon::start(&config(&home), peer).await;
    let top = image.pull(&daemon).await;
    let container = mounted(&home, daemon.prepare("container", &top).await).await;
    let file = container.path().join("file");
    let start = tokio::task::spawn_blocking(move || {
        let mut start = vec![0; 4096];
        fs::File::open(file).unwrap().read_exact(&mut start).map(|()| start)
    });
    assert_eq!(start.await.unwrap().unwrap(), content()[..4096]);
    fs::write(container.path().join("written"), "by the container").unwrap();
    let saved =
        home.config().root.join("layers").join(image.layers[0].descriptor.diff_id.hex()).join("raw.bits");
    while !saved.exists() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    fs::write(home.path().join("new top"), top).unwrap();
    fs::rename(home.path().join("new top"), home.path().join("top")).unwrap();
    std::future::pending::<()>().await;
}
