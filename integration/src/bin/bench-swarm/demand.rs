//! How long a container's read of one leaf takes, with an idle link and with one that background work fills.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use darter_integration::{Lab, darter, network::Network, scenario::ScenarioKind, target};
use darter_peer::{Class, Config, Content as Contents, Peer, TaskId, Want};
use darter_proto::peer::{GetRequest, LimitsRequest};
use darter_service::Registry;
use rand::{SeedableRng, rngs::SmallRng, seq::SliceRandom};
use rustix::mount::{MountFlags, mount};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    cell::{Arm, Cell, Content},
    swarm::Around,
};

/// Length of the content in MiB: more than the link carries meanwhile.
const MIB: u64 = 1024;
/// Reads of each kind.
const READS: usize = 80;
/// A read comes so long after the last.
const IDLE_PAUSE: Duration = Duration::from_millis(200);
/// The same beside background work, which begins again half a second after a read.
const PAUSE: Duration = Duration::from_millis(1000);
/// Everything that is waited for is there by then.
const PATIENCE: Duration = Duration::from_secs(30);

/// The configuration file of a peer, of which the rest does not matter here.
#[derive(Deserialize)]
struct Role {
    peer: Config,
}

/// What the reads came to.
#[derive(Debug, Serialize, Deserialize)]
struct Row {
    link: String,
    reads: usize,
    p50_ms: f64,
    p99_ms: f64,
    /// What came for nobody in particular meanwhile, in Mbit/s.
    background_mbit: f64,
    /// p99, by that of the idle link.
    of_idle: f64,
}

/// A seed peer that has everything, and a node with a link of 100 Mbit/s that reads from it.
pub(crate) async fn measure() -> Result<()> {
    let lab = &Lab::open()?;
    let memory = lab.subdir("memory")?;
    mount("bench", &memory, "tmpfs", MountFlags::empty(), Some(c"size=80%"))?;
    let mut network = Network::new(lab)?;
    let rack = network.rack()?;
    let cell =
        Cell { arm: Arm::Ours, scenario: ScenarioKind::AtOnce, content: Content::Blob, n: 1, mib: MIB };
    let [origin, scheduler] = [network.host(rack, None)?, network.host(rack, None)?];
    let [seed, node] = [network.host(rack, Some(1000))?, network.host(rack, Some(cell.rate()))?];
    let around = Around { lab, cell: &cell, memory: &memory, transfer: &[], origin, scheduler };
    let _nginx = around.nginx().await?;
    let blob = around.blobs()?.pop().context("no blob")?;
    let _scheduler = around.scheduler().await?;
    let mut seed = around.peer("seed", &seed, "near", true)?;
    seed.until_scheduled().await?;
    let url = format!("http://{}/{}", around.origin.address, blob.path());
    let request =
        GetRequest { url, digest: blob.digest.clone(), offset: blob.len - 1, ..GetRequest::default() };
    let mut replies = darter::client(&seed.control).await?.get(request).await?.into_inner();
    while replies.message().await?.is_some() {}

    let config = around.config("node", &node, "near", false)?;
    let reader = node.command(lab, std::env::current_exe()?).arg("--reader").arg(config);
    let rows = reader.args(["--digest", &blob.digest]).run().await?.stdout;
    let rows: Vec<Row> = serde_json::from_str(&rows)?;
    println!(
        "{:18} {:>6} {:>8} {:>8} {:>8} {:>16}",
        "link", "reads", "p50 ms", "p99 ms", "of idle", "background Mbit"
    );
    for row in &rows {
        let Row { link, reads, p50_ms, p99_ms, background_mbit, of_idle } = row;
        println!("{link:18} {reads:>6} {p50_ms:>8.1} {p99_ms:>8.1} {of_idle:>8.2} {background_mbit:>16.0}");
    }
    target::write_results("demand", &rows)
}

/// Reads leaves as a container does, and prints what came of it. Runs on the host whose link is measured.
pub(crate) async fn read(config: &Path, digest: &str) -> Result<()> {
    let Role { peer: config } = darter_service::config::parse(&fs::read_to_string(config)?, "peer")?;
    let control = config.control_socket.clone();
    let stop = CancellationToken::new();
    let peer = Peer::start(config, None, &mut Registry::default(), stop.clone()).await?;
    timeout(PATIENCE, async {
        while peer.schedulers().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .context("the scheduler does not answer")?;
    let limit = async |prefetch| {
        let request = LimitsRequest { prefetch: Some(prefetch), ..LimitsRequest::default() };
        anyhow::Ok(darter::client(&control).await?.limits(request).await?)
    };
    // So little that nothing comes but what is read.
    limit(1).await?;
    let id = TaskId::of_digest(&digest.parse()?);
    let content = peer.open(Want { id, source: None, class: Class::Background }).await?;
    let leaves = timeout(PATIENCE, content.geometry()).await??.leaves();
    let mut order: Vec<u32> = (0..leaves).collect();
    order.shuffle(&mut SmallRng::seed_from_u64(1));
    let mut order = order.into_iter();
    // Connections are made with the first one.
    content.leaf(order.next().context("no leaf")?, Class::Demand).await?;
    let idle = reads(&content, "idle", IDLE_PAUSE, &mut order).await?;
    limit(0).await?;
    let mut busy = reads(&content, "full", PAUSE, &mut order).await?;
    busy.of_idle = busy.p99_ms / idle.p99_ms;
    println!("{}", serde_json::to_string(&[idle, busy])?);
    stop.cancel();
    peer.stopped().await;
    Ok(())
}

async fn reads(
    content: &Contents,
    link: &str,
    pause: Duration,
    order: &mut impl Iterator<Item = u32>,
) -> Result<Row> {
    let (started, held) = (Instant::now(), content.held_bytes());
    let mut times = Vec::new();
    let mut read = 0;
    while times.len() < READS {
        sleep(pause).await;
        let leaf =
            order.find(|leaf| !content.has(*leaf)).context("everything has come before it was read")?;
        let begun = Instant::now();
        read += content.leaf(leaf, Class::Demand).await?.len() as u64;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| times.get((share * times.len() as f64).ceil() as usize - 1).copied();
    let (p50, p99) = at(0.5).zip(at(0.99)).context("nothing was read")?;
    ensure!(content.held_bytes() >= held + read, "leaves are lost");
    let background = content.held_bytes() - held - read;
    let background_mbit = background as f64 * 8e-6 / started.elapsed().as_secs_f64();
    Ok(Row { link: link.into(), reads: READS, p50_ms: p50, p99_ms: p99, background_mbit, of_idle: 1.0 })
}
