//! Containers on lazy layers while the peer below them is killed, stopped and started.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use darter_integration::{Cluster, Image, ImageRef, Lab, containerd::DARTER, darter::Peer, run_test};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::sleep;

/// Slow enough that a kill finds reads under way, in bytes per second.
const SLOW: u64 = 1_500_000;
/// How long the container reads before something happens to the peer. All there is takes many times as long.
const SOON: Duration = Duration::from_millis(400);
/// Prints the digest of every large file, and says when it could not read one.
const READ_ALL: [&str; 3] = [
    "sh",
    "-c",
    "for f in $(find /data /nodes /bin -type f -size +500k); do sha256sum $f || echo FAILED; done",
];
const READER: &str = "reader";

/// A node whose container runs from layers that arrive slowly.
struct Reading {
    cluster: Cluster,
    name: ImageRef,
}

impl Reading {
    async fn start(lab: &Lab) -> Result<Self> {
        let mut cluster = Cluster::with_nodes(1).with_links().start(lab).await?;
        let name = cluster.push("tiny:1", &Image::tiny(lab)?).await?;
        cluster.seed()?.link()?.limit(SLOW);
        let [node] = cluster.nodes.as_slice() else { bail!("a node") };
        node.pull_lazily(&name).await?;
        node.containerd.run_detached(DARTER, &name, READER, &["sleep", "3600"]).await?;
        // Who finds no seed goes to the origin.
        cluster.origin.limit(SLOW);
        Ok(Self { cluster, name })
    }

    /// Has the container read everything while something happens to the peer, and compares what it read.
    async fn read_while(&mut self, happening: impl AsyncFnOnce(&mut Peer) -> Result<()>) -> Result<()> {
        let Cluster { nodes, seed, origin, .. } = &mut self.cluster;
        let ([node], Some(seed)) = (nodes.as_mut_slice(), seed) else { bail!("a node and a seed") };
        let happens = async {
            sleep(SOON).await;
            happening(&mut node.peer).await?;
            node.peer.service.until_ready().await?;
            seed.link()?.unlimited();
            origin.unlimited();
            anyhow::Ok(())
        };
        let (read, ()) = tokio::try_join!(node.containerd.exec(READER, &READ_ALL), happens)?;
        let node = &node.containerd;
        node.until_snapshotter_answers().await?;
        let (again, anew) =
            (node.exec(READER, &READ_ALL).await?, node.run_with(DARTER, &self.name, READ_ALL).await?);
        node.pull(&self.name).await?;
        let expected = node.run(&self.name, READ_ALL).await?.stdout;
        ensure!(expected.lines().count() > 5 && !expected.contains("FAILED"), "{expected}");
        for read in [read, again, anew] {
            ensure!(read.stdout == expected, "{}", read.stdout);
        }
        Ok(())
    }
}

/// The lab's only keeper.
fn keeper(lab: &Lab) -> Result<Pid> {
    let processes = lab.leftovers()?.processes;
    let keeper = processes.iter().find(|(_, command)| command.starts_with("darter keeper"));
    keeper.and_then(|(pid, _)| Pid::from_raw(*pid)).context("there is no keeper")
}

/// Whether the process has the descriptor of a FUSE file system.
fn holds_fuse(process: Pid) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", process.as_raw_nonzero())) else {
        return false;
    };
    let targets = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    targets.into_iter().any(|target| target == Path::new("/dev/fuse"))
}

#[test]
fn a_container_reads_on_while_its_peer_is_killed_again_and_again() -> Result<()> {
    run_test(async |lab| {
        let kills = async |peer: &mut Peer| {
            for _ in 0..5 {
                peer.service.crash_and_restart().await?;
                sleep(SOON).await;
            }
            // Twice before it is ready.
            peer.service.process.start_again()?;
            peer.service.process.start_again()
        };
        Reading::start(&lab).await?.read_while(kills).await
    })
}

#[test]
fn a_container_reads_on_while_its_peer_is_upgraded() -> Result<()> {
    run_test(async |lab| {
        let upgrade = async |peer: &mut Peer| peer.service.stop_and_restart().await;
        Reading::start(&lab).await?.read_while(upgrade).await
    })
}

#[test]
fn a_keeper_that_is_killed_is_replaced() -> Result<()> {
    run_test(async |lab| {
        let kill = async |peer: &mut Peer| {
            let killed = keeper(&lab)?;
            kill_process(killed, Signal::KILL)?;
            let replaced = async || keeper(&lab).is_ok_and(|keeper| keeper != killed && holds_fuse(keeper));
            peer.service.process.until("a new keeper held the file system", replaced).await?;
            peer.service.process.start_again()
        };
        Reading::start(&lab).await?.read_while(kill).await
    })
}
