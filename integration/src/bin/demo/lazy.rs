//! Second act: a container starts before its layers are there.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use anyhow::{Result, bail};
use darter_integration::{
    Cluster, Node,
    containerd::DARTER,
    darter::Peer,
    table::{Table, seconds},
};
use tokio::time::Instant;

use crate::{progress::transfer, pull::Ordinary, subject::Subject};

/// The layers of a node that are not complete after this time will not be.
const COMPLETE_DEADLINE: Duration = Duration::from_secs(600);
const SAMPLE: Duration = Duration::from_millis(20);

/// How a container started on layers that were still arriving. Times count from the start of the pull.
struct Lazy {
    pull: Duration,
    first_line: Duration,
    complete: Duration,
    /// Share of the raw bytes that had been fetched at the first line.
    share: f64,
}

/// How much of its layers a peer had at a time.
struct Sample {
    at: Instant,
    share: f64,
}

/// Pulls and runs with Darter's snapshotter, first on the last node, and compares.
pub(crate) async fn show(cluster: &Cluster, subject: &Subject, ordinary: &Ordinary) -> Result<()> {
    let mut table =
        Table::new(["", "pull returned", "first line", "layers complete", "fetched at first line"]);
    table.row([
        "overlayfs".into(),
        seconds(ordinary.pull),
        seconds(ordinary.first_line),
        seconds(ordinary.pull),
        "100 %".into(),
    ]);
    // The seed peer makes the layers when the first node wants them.
    let kinds = ["darter, layers made now", "darter, layers made before"];
    for ((number, node), kind) in (1..).zip(&cluster.nodes).collect::<Vec<_>>().into_iter().rev().zip(kinds) {
        let held = AtomicU64::new(0);
        let what = format!("node {number} pulls with --snapshotter darter, and runs");
        let held_now = || held.load(Ordering::Relaxed);
        let work = start_lazily(node, subject, &held);
        let lazy = transfer(&what, subject.raw_bytes(), held_now, work).await?;
        table.row([
            kind.into(),
            seconds(lazy.pull),
            seconds(lazy.first_line),
            seconds(lazy.complete),
            format!("{:.0} %", lazy.share * 100.0),
        ]);
    }
    println!("\n{table}");
    Ok(())
}

async fn start_lazily(node: &Node, subject: &Subject, held: &AtomicU64) -> Result<Lazy> {
    let started = Instant::now();
    node.pull_lazily(&subject.image).await?;
    let pull = started.elapsed();
    let running = node.containerd.run_with(DARTER, &subject.image, subject.command());
    let (output, samples) = tokio::try_join!(running, sample_until_complete(&node.peer, held))?;
    let first_line = pull + output.first_line.unwrap_or(output.elapsed);
    let complete = samples.last().map_or(first_line, |sample| sample.at - started);
    let at_first_line = samples.iter().take_while(|sample| sample.at - started <= first_line).last();
    Ok(Lazy { pull, first_line, complete, share: at_first_line.map_or(0.0, |sample| sample.share) })
}

async fn sample_until_complete(peer: &Peer, held: &AtomicU64) -> Result<Vec<Sample>> {
    let deadline = Instant::now() + COMPLETE_DEADLINE;
    let mut samples = Vec::new();
    while Instant::now() < deadline {
        let layers = peer.status().await?.layers;
        let (here, total) =
            layers.iter().fold((0, 0), |(here, total), layer| (here + layer.raw_held, total + layer.raw_len));
        held.store(here, Ordering::Relaxed);
        samples.push(Sample { at: Instant::now(), share: here as f64 / total.max(1) as f64 });
        if total > 0 && here >= total {
            return Ok(samples);
        }
        tokio::time::sleep(SAMPLE).await;
    }
    bail!("the layers are not complete after {COMPLETE_DEADLINE:?}")
}
