//! Peers that are killed again and again while containers read from the layers that they serve.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use darter_integration::{Cluster, Image, ImageRef, Node, containerd::DARTER, run_test, wait::until};
use rustix::fs::{Advice, fadvise};
use tokio::time::sleep;

/// Says how often each peer is killed.
const VARIABLE: &str = "DARTER_KILLS";
const KILLS: u32 = 10;
/// So slow that the layers are still arriving while the first kills happen, in bytes per second.
const SLOW: u64 = 2_000_000;
/// The data of the tiny image, which fill most of its layers.
const READ: &str = "sha256sum /data/* /bin/busybox";
const READER: &str = "reader";

/// A container that reads its image's files over and over, on a node whose peer is killed.
struct Reader<'a> {
    node: &'a mut Node,
    /// Its files, and those below them, whose pages the kernel is to forget.
    cached: Vec<File>,
    /// What it has read. Not looked at through the container's root, where a dead peer keeps everybody waiting.
    log: PathBuf,
}

impl<'a> Reader<'a> {
    async fn start(node: &'a mut Node, image: &ImageRef) -> Result<Self> {
        let forever = format!("while true; do {READ} >> /log 2>&1 || echo FAILED >> /log; done");
        node.containerd.run_detached(DARTER, image, READER, &["sh", "-c", &forever]).await?;
        let snapshotter = node.peer.snapshotter.with_file_name("snapshotter");
        let log = async || log_below(&snapshotter.join("snapshots")).is_ok_and(|log| log.is_some());
        until("begun by a container: reading", log).await?;
        let log = log_below(&snapshotter.join("snapshots"))?.context("there is no log")?;
        let root = node.containerd.root_of(READER);
        let cached = tokio::task::spawn_blocking(move || -> Result<_> {
            let below = snapshotter.join("fuse");
            // The first file that is closed waits for the peer, which says that it need not be told. From then on no one
            // waits who closes one, and so this process can start others while a peer is dead.
            drop(files_in(&below)?);
            let mut cached = files_in(&root.join("data"))?;
            cached.extend(files_in(&below)?);
            Ok(cached)
        });
        Ok(Self { cached: cached.await??, node, log })
    }

    /// What it has read so far: a line for each file, or for each failure.
    fn lines(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(&self.log)?;
        let end = log.rfind('\n').map_or(0, |end| end + 1);
        Ok(log.split_at(end).0.lines().map(str::to_owned).collect())
    }

    /// Waits until it has read all files once more, out of what the peer serves and not out of memory.
    async fn reads_on(&self) -> Result<()> {
        let enough = self.lines()?.len() + 2 * self.cached.len();
        let more = async || {
            let forgotten = self.cached.iter().all(|file| fadvise(file, 0, None, Advice::DontNeed).is_ok());
            forgotten && self.lines().is_ok_and(|lines| lines.len() >= enough)
        };
        until("read by a container after a kill: as much", more).await
    }

    async fn survive(&mut self, kills: u32) -> Result<()> {
        for kill in 0..kills {
            // Not always at the same point of a read.
            sleep(Duration::from_millis(u64::from(kill * 37 % 200))).await;
            self.node.peer.service.process.start_again()?;
            // Now and then it dies once more before it is ready.
            if kill % 4 != 3 {
                self.node.peer.service.until_ready().await?;
                self.reads_on().await?;
            }
        }
        self.node.peer.service.until_ready().await?;
        self.reads_on().await
    }
}

/// The log in the upper directory of the container, once it is there.
fn log_below(snapshots: &Path) -> Result<Option<PathBuf>> {
    let dirs =
        fs::read_dir(snapshots)?.map(|dir| Ok(dir?.path().join("fs/log"))).collect::<Result<Vec<_>>>()?;
    Ok(dirs.into_iter().find(|log| log.exists()))
}

/// The regular files in a directory, opened.
fn files_in(dir: &Path) -> Result<Vec<File>> {
    let entries = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.into_iter().filter(|path| path.is_file()).map(|path| Ok(File::open(path)?)).collect()
}

fn kills() -> Result<u32> {
    match std::env::var(VARIABLE) {
        Ok(text) => text.parse().with_context(|| format!("{VARIABLE}={text} is no number")),
        Err(_) => Ok(KILLS),
    }
}

#[test]
fn no_container_ever_sees_that_a_peer_was_killed() -> Result<()> {
    run_test(async |lab| {
        let kills = kills()?;
        let mounts = ["erofs", "fuse"];
        let mut cluster = Cluster::with_nodes(2).mounting(&mounts).with_links().start(&lab).await?;
        let image = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        for node in &cluster.nodes {
            node.pull_lazily(&image).await?;
        }
        cluster.seed()?.link()?.limit(SLOW);
        cluster.origin.limit(SLOW);

        let Cluster { nodes, .. } = &mut cluster;
        let [erofs, fuse] = nodes.as_mut_slice() else { bail!("two nodes") };
        let (mut erofs, mut fuse) =
            tokio::try_join!(Reader::start(erofs, &image), Reader::start(fuse, &image))?;
        tokio::try_join!(erofs.survive(kills), fuse.survive(kills))?;

        let read = [erofs.lines()?, fuse.lines()?];
        let counts: Vec<usize> = read.iter().map(Vec::len).collect();
        drop((erofs, fuse));
        cluster.seed()?.link()?.unlimited();
        cluster.origin.unlimited();
        let node = &cluster.nodes[0].containerd;
        node.pull(&image).await?;
        let expected = node.run(&image, ["sh", "-c", READ]).await?.stdout;
        let expected: BTreeSet<&str> = expected.lines().collect();
        let wrong: Vec<&String> =
            read.iter().flatten().filter(|line| !expected.contains(line.as_str())).collect();
        ensure!(wrong.is_empty(), "{} of {counts:?} lines are wrong: {:?}", wrong.len(), wrong.first());
        println!(
            "{kills} kills of each peer, {counts:?} files read with EROFS and with FUSE alone, all of them right"
        );
        Ok(())
    })
}
