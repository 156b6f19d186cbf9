//! `make bench-faults`: what P2P costs a pull when parts of it are dead or frozen, next to a pull from the registry
//! itself over the same link in the same run. Writes `target/bench/faults.json`.

mod fault;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context, Result};
use darter_integration::{
    Cluster, Containerd, Image, ImageRef, Lab, Node,
    image::{self, Compression, Format, ImageBuilder, noise},
    table::Table,
    target,
};
use serde::Serialize;

use self::fault::{FAULTS, Fault, When};

/// What the origin sends, in bytes a second: as much as a link of 160 Mbit/s.
const RATE: u64 = 20_000_000;
const LAYERS: usize = 5;
const LAYER: usize = 8 << 20;
/// What the pulling node has got, or the seed has fetched, when a fault comes in the middle of a pull.
const SOON: u64 = 10_000_000;

/// One fault.
#[derive(Serialize)]
struct Row {
    fault: String,
    when: &'static str,
    /// Seconds of a pull from the registry, and of one through the node's peer.
    direct_s: f64,
    darter_s: f64,
    /// What the second takes longer.
    tax_s: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-faults: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let wanted = std::env::args().nth(1);
    let mut rows = vec![];
    for fault in FAULTS {
        if wanted.as_ref().is_some_and(|wanted| !fault.to_string().contains(wanted.as_str())) {
            continue;
        }
        let lab = Lab::open()?;
        let measured = tokio::select! {
            measured = Box::pin(measure(&lab, fault)) => measured,
            interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into).and_then(|()| anyhow::bail!("interrupted")),
        };
        if measured.is_err() {
            lab.print_logs();
        }
        let row = measured?;
        println!("{} {}: {:+.2} s", row.fault, row.when, row.tax_s);
        rows.push(row);
    }
    let mut table = Table::new(["dead or frozen", "when", "direct", "darter", "tax"]);
    for row in &rows {
        let seconds = |value: f64| format!("{value:.2} s");
        let tax = format!("{:+.2} s", row.tax_s);
        table.row([
            row.fault.clone(),
            row.when.to_owned(),
            seconds(row.direct_s),
            seconds(row.darter_s),
            tax,
        ]);
    }
    println!("\n{table}");
    target::write_results("faults", &rows)
}

async fn measure(lab: &Lab, fault: Fault) -> Result<Row> {
    let mut cluster = fault.cluster().start(lab).await?;
    let image = image(lab)?;
    let name = cluster.push("bench:1", &image).await?;
    let direct = Containerd::start(lab, "direct").await?;
    direct.mirror(&name.registry, &cluster.origin.url())?;
    if fault.has_holder() {
        holder(&cluster)?.containerd.pull(&name).await?;
    }

    cluster.origin.limit(RATE);
    let direct_s = seconds(direct.pull(&name)).await?;
    let darter_s = match fault.when {
        When::Before => {
            fault.strike(&mut cluster)?;
            pull(&puller(&cluster)?.containerd, &name, &image).await?
        }
        When::Amid => amid(fault, &mut cluster, &name, &image).await?,
    };
    fault.relieve(&mut cluster)?;
    Ok(Row {
        fault: fault.to_string(),
        when: fault.when.word(),
        direct_s,
        darter_s,
        tax_s: darter_s - direct_s,
    })
}

/// Pulls while the fault comes.
async fn amid(fault: Fault, cluster: &mut Cluster, name: &ImageRef, image: &Image) -> Result<f64> {
    let node = cluster.nodes.pop().context("no node")?;
    let strikes = async {
        if fault.has_holder() {
            // Its link, so that the pull lasts long enough.
            let link = holder(cluster)?.peer.link()?;
            link.limit(RATE);
            link.until_sent(SOON).await?;
        } else {
            cluster.origin.until_sent(SOON).await?;
        }
        fault.strike(cluster)
    };
    let pulled = tokio::try_join!(pull(&node.containerd, name, image), strikes);
    cluster.nodes.push(node);
    Ok(pulled?.0)
}

/// The node that pulls; the other one may have the image.
fn puller(cluster: &Cluster) -> Result<&Node> {
    cluster.nodes.last().context("no node")
}

fn holder(cluster: &Cluster) -> Result<&Node> {
    cluster.nodes.first().context("no node")
}

async fn pull(containerd: &Containerd, name: &ImageRef, image: &Image) -> Result<f64> {
    let took = seconds(containerd.pull(name)).await?;
    containerd.check_content(image)?;
    Ok(took)
}

async fn seconds<T>(work: impl Future<Output = Result<T>>) -> Result<f64> {
    let begin = Instant::now();
    work.await?;
    Ok(begin.elapsed().as_secs_f64())
}

fn image(lab: &Lab) -> Result<Image> {
    let mut builder = ImageBuilder::new(&lab.subdir("image")?, Format::Oci)?;
    for number in 0..LAYERS {
        let content = noise(number.to_le_bytes(), LAYER);
        let file = image::Node::file(format!("file-{number}"), content);
        builder = builder.layer(Compression::None, |layer| layer.add(&file))?;
    }
    builder.finish()
}
