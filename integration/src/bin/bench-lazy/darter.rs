//! Darter: with the layers ready on the seed peer, which is the only one that serves a node.

use anyhow::{Context, Result};
use darter_integration::{Cluster, Lab, Node, containerd::DARTER, wait::until};

use crate::{
    State,
    start::{Start, Starter},
    subject::Subject,
};

pub(crate) async fn measure(lab: &Lab, subject: &Subject, link_mbit: u64) -> Result<Vec<(State, Start)>> {
    let mut cluster = Cluster::with_nodes(3).with_links().start(lab).await?;
    let image = cluster.push("bench/subject:1", &subject.image).await?;
    // The first node that wants the layers has the seed peer make them. It is gone before anybody measures.
    let first = cluster.nodes.pop().context("no node")?;
    first.pull_lazily(&image).await?;
    drop(first);

    let links = [cluster.seed.as_ref().context("no seed peer")?.link()?, &cluster.origin];
    let limit = || links.iter().for_each(|link| link.limit(link_mbit * 125_000));
    let start = async |node: &Node| {
        let starter =
            Starter { containerd: &node.containerd, snapshotter: DARTER, image: &image, links: &links };
        starter.start(subject, async { node.pull_lazily(&image).await.map(drop) }).await
    };
    let mut node = cluster.nodes.pop().context("no node")?;
    limit();
    let cold = start(&node).await?;
    links.iter().for_each(|link| link.unlimited());
    node.peer.until_layers_complete().await?;
    let local = start(&node).await?;
    let scheduler = &cluster.scheduler.as_ref().context("no scheduler")?.service;
    let profiles =
        async || scheduler.metrics().await.map(|metrics| metrics.sum("darter_scheduler_profiles", &[]));
    until("known to the scheduler: a start profile", async || {
        profiles().await.is_ok_and(|known| known > 0.0)
    })
    .await?;
    drop(node);

    let node = cluster.nodes.pop().context("no node")?;
    limit();
    let profile = start(&node).await?;
    Ok(vec![(State::Cold, cold), (State::Profile, profile), (State::Local, local)])
}
