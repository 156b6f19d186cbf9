//! First act: two nodes pull the ordinary way, one after the other.

use std::time::Duration;

use anyhow::Result;
use darter_integration::{
    Cluster, Node,
    table::{Table, megabytes, seconds},
};

use crate::{
    progress::{step, transfer},
    subject::Subject,
};

/// How a container started from an ordinary pull.
pub(crate) struct Ordinary {
    /// From the start of the pull to its end.
    pub(crate) pull: Duration,
    /// From the start of the pull to the container's first line.
    pub(crate) first_line: Duration,
}

/// Pulls on each node with overlayfs, and runs a container on the last.
pub(crate) async fn show(cluster: &Cluster, subject: &Subject) -> Result<Ordinary> {
    let mut table =
        Table::new(["", "pull", "from peers", "from the seed", "from the registry", "registry sent"]);
    let mut pull = Duration::ZERO;
    for (number, node) in (1..).zip(&cluster.nodes) {
        let what = format!("node {number} pulls through its proxy (overlayfs)");
        let mark = cluster.registry.mark();
        pull = pull_on(node, &what, subject).await?;
        let metrics = node.peer.service.metrics().await?;
        table.row([
            format!("node {number}"),
            seconds(pull),
            megabytes(metrics.received_from("peer")),
            megabytes(metrics.received_from("seed")),
            megabytes(metrics.received_from("origin")),
            match &subject.made {
                Some(_) => megabytes(cluster.registry.traffic_since(mark).await.bytes()),
                None => "unknown".to_owned(),
            },
        ]);
    }
    let first_line = match cluster.nodes.last() {
        Some(node) => step("node 2 runs a container on overlayfs", run_on(node, subject)).await?,
        None => Duration::ZERO,
    };
    println!("\n{table}");
    Ok(Ordinary { pull, first_line: pull + first_line })
}

async fn pull_on(node: &Node, what: &str, subject: &Subject) -> Result<Duration> {
    let stored = || node.containerd.content_bytes();
    let pulled = transfer(what, subject.bytes(), stored, node.containerd.pull(&subject.image)).await?;
    if let Some(image) = &subject.made {
        node.containerd.check_content(image)?;
    }
    Ok(pulled.elapsed)
}

async fn run_on(node: &Node, subject: &Subject) -> Result<Duration> {
    let output = node.containerd.run(&subject.image, subject.command()).await?;
    Ok(output.first_line.unwrap_or(output.elapsed))
}
