//! Containers on lazy layers while the peer below them is killed, stopped and started.

use anyhow::{Context, Result, bail, ensure};
use darter_integration::{
    Cluster, Image, ImageRef, Lab, Throttle, containerd::DARTER, darter::Peer, run_test,
};
use rustix::process::{Pid, Signal, kill_process};

/// Slow enough that a kill finds reads under way, in bytes per second.
const SLOW: u64 = 1_500_000;
/// Sent when something happens; the image has more than twenty times as many bytes.
const SOON: u64 = 300_000;
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
    /// What [`READ_ALL`] prints.
    expected: String,
}

impl Reading {
    async fn start(lab: &Lab) -> Result<Self> {
        let mut cluster = Cluster::with_nodes(1).with_links().start(lab).await?;
        let name = cluster.push("tiny:1", &Image::tiny(lab)?).await?;
        let node = &cluster.nodes[0].containerd;
        node.pull(&name).await?;
        let expected = node.run(&name, READ_ALL).await?.stdout;
        ensure!(expected.lines().count() > 5 && !expected.contains("FAILED"), "{expected}");
        cluster.seed()?.link()?.limit(SLOW);
        cluster.nodes[0].pull_lazily(&name).await?;
        let node = &cluster.nodes[0].containerd;
        node.run_detached(DARTER, &name, READER, &["sleep", "3600"]).await?;
        Ok(Self { cluster, name, expected })
    }

    /// Has the container read everything while something happens to the peer.
    async fn read_while(
        &mut self,
        happening: impl AsyncFnOnce(&Throttle, &mut Peer) -> Result<()>,
    ) -> Result<()> {
        let Cluster { nodes, seed, .. } = &mut self.cluster;
        let ([node], Some(seed)) = (nodes.as_mut_slice(), seed) else { bail!("a node and a seed") };
        let happens = async {
            happening(seed.link()?, &mut node.peer).await?;
            node.peer.service.until_ready().await?;
            seed.link()?.unlimited();
            anyhow::Ok(())
        };
        let (read, ()) = tokio::try_join!(node.containerd.exec(READER, &READ_ALL), happens)?;
        ensure!(read.stdout == self.expected, "{}", read.stdout);
        Ok(())
    }

    /// Reads once more what was read, and in a new container.
    async fn read_again(&self) -> Result<()> {
        let node = &self.cluster.nodes[0].containerd;
        node.until_snapshotter_answers().await?;
        for read in [node.exec(READER, &READ_ALL).await?, node.run_with(DARTER, &self.name, READ_ALL).await?]
        {
            ensure!(read.stdout == self.expected, "{}", read.stdout);
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

#[test]
fn a_container_reads_on_while_its_peer_is_killed_again_and_again() -> Result<()> {
    run_test(async |lab| {
        let mut reading = Reading::start(&lab).await?;
        let kills = async |link: &Throttle, peer: &mut Peer| {
            for _ in 0..5 {
                link.until_sent(SOON).await?;
                peer.service.process.start_again()?;
            }
            Ok(())
        };
        reading.read_while(kills).await?;
        reading.read_again().await
    })
}

#[test]
fn a_container_reads_on_while_its_peer_is_upgraded() -> Result<()> {
    run_test(async |lab| {
        let mut reading = Reading::start(&lab).await?;
        let upgrade = async |link: &Throttle, peer: &mut Peer| {
            link.until_sent(SOON).await?;
            peer.service.stop_and_restart().await
        };
        reading.read_while(upgrade).await?;
        reading.read_again().await
    })
}

#[test]
fn a_keeper_that_is_killed_is_replaced() -> Result<()> {
    run_test(async |lab| {
        let mut reading = Reading::start(&lab).await?;
        let kill = async |link: &Throttle, peer: &mut Peer| {
            link.until_sent(SOON).await?;
            let killed = keeper(&lab)?;
            kill_process(killed, Signal::KILL)?;
            let replaced = async || keeper(&lab).is_ok_and(|keeper| keeper != killed);
            peer.service.process.until("a new keeper ran", replaced).await?;
            peer.service.process.start_again()
        };
        reading.read_while(kill).await?;
        reading.read_again().await
    })
}
