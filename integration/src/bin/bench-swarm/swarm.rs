//! One run: a network, an origin, a scheduler, a seed and its peers, and what they came to.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use darter_integration::{
    Lab, Process,
    darter::{self, Metrics},
    image::noise,
    network::{Host, Network},
    nginx,
    scenario::ScenarioKind,
    target, usage,
};
use futures_util::future::try_join_all;
use rustix::mount::{MountFlags, mount};
use sha2::{Digest, Sha256};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::{
    cell::{Arm, Cell},
    pull::{self, Blob},
    report::Row,
    warm::Warm,
};

/// A pull that takes so many times the bound has failed.
const PATIENCE: f64 = 20.0;
/// Where a host's runtime finds its peer.
const PROXY: &str = "127.0.0.1:7400";

/// What stands around the peers.
pub(crate) struct Around<'a> {
    pub(crate) lab: &'a Lab,
    pub(crate) cell: &'a Cell,
    /// A tmpfs for contents and stores.
    pub(crate) memory: &'a Path,
    /// Further lines of the peers' `[peer.transfer]`.
    pub(crate) transfer: &'a [String],
    pub(crate) origin: Host,
    pub(crate) scheduler: Host,
}

/// A peer of the swarm.
pub(crate) struct Peer {
    host: Host,
    pub(crate) control: PathBuf,
    process: Process,
}

/// Runs a cell, with further lines for the peers' `[peer.transfer]`.
pub(crate) async fn run(lab: &Lab, cell: &Cell, transfer: &[String]) -> Result<Row> {
    let memory = lab.subdir("memory")?;
    mount("bench", &memory, "tmpfs", MountFlags::empty(), Some(c"size=80%"))?;
    let mut network = Network::new(lab)?;
    let near = network.rack()?;
    let far = match cell.scenario {
        ScenarioKind::Racks => {
            let far = network.rack()?;
            let mbit = u32::try_from(cell.n / 2)? * cell.rate() / 3;
            network.join(near, far, mbit)?;
            far
        }
        _ => near,
    };
    let origin = network.host(near, Some(cell.rate()))?;
    let scheduler = network.host(near, None)?;
    let seed = network.host(near, Some(cell.rate()))?;
    let mut hosts = Vec::new();
    for number in 0..cell.n {
        let rack = if number < cell.n / 2 { near } else { far };
        let slow = number >= cell.n - cell.slow();
        let mbit = if slow { cell.rate() / 5 } else { cell.rate() };
        hosts.push(network.host(rack, Some(mbit))?);
    }
    let link = calibrate(lab, &seed, hosts.first().context("no peers")?).await?;
    let around = Around { lab, cell, memory: &memory, transfer, origin, scheduler };
    let _nginx = around.nginx().await?;
    let blobs = around.blobs()?;
    let len: u64 = blobs.iter().map(|blob| blob.len).sum();
    let mut row = Row { link_mbit: link * 8e-6, bound_s: len as f64 / link, ..Row::of(cell) };

    if cell.arm == Arm::Direct {
        let pulls = hosts
            .into_iter()
            .map(|host| pull::pull(lab.clone(), host, around.origin.address.to_string(), "", blobs.clone()));
        row.times(try_join_all(pulls).await?);
        row.origin_copies = around.origin_sent()? as f64 / len as f64;
        return Ok(row);
    }
    let mut scheduler = around.scheduler().await?;
    let mut seed = around.peer("seed", &seed, "near", true)?;
    let mut peers = Vec::new();
    for (number, host) in hosts.iter().enumerate() {
        let rack = if number < cell.n / 2 { "near" } else { "far" };
        peers.push(around.peer(&format!("peer{number}"), host, rack, false)?);
    }
    for peer in peers.iter_mut().chain([&mut seed]) {
        peer.until_scheduled().await?;
    }
    let crossed = if cell.scenario == ScenarioKind::Racks { Some(network.crossed().await?) } else { None };
    let alive = cell.n - cell.killed();
    let cpu_before = cpu(peers.iter().take(alive).chain([&seed]))?;
    let messages_before = around.messages().await?;

    let warm = Warm::new(&memory, len * (cell.n as u64 + 1)).await?;
    let times = tokio::select! {
        times = around.pull(&mut peers, &blobs, row.bound_s) => times?,
        failed = warm.hand_over() => match failed? {},
    };
    row.times(times);

    let alive = peers.get(..alive).unwrap_or_default();
    row.cpu_s_per_gb =
        (cpu(alive.iter().chain([&seed]))? - cpu_before) / (len as f64 * alive.len() as f64 / 1e9);
    row.messages_per_peer = (around.messages().await? - messages_before) / cell.n as f64;
    row.origin_copies = around.origin_sent()? as f64 / len as f64;
    if let Some(before) = crossed {
        row.cross_copies = Some((network.crossed().await? - before) as f64 / len as f64);
    }
    let (mut stored, mut sent) = (0, 0);
    for peer in alive.iter().chain([&seed]) {
        let bytes = darter::status(&peer.control).await?.bytes.unwrap_or_default();
        stored += bytes.peer + bytes.seed;
        sent += bytes.uploaded;
        row.rss_mib = row.rss_mib.max(usage::peak_memory(peer.process.id())? as f64 / f64::from(1 << 20));
    }
    let seed_sent = darter::status(&seed.control).await?.bytes.unwrap_or_default().uploaded;
    row.seed_copies = seed_sent as f64 / len as f64;
    if cell.killed() == 0 {
        row.duplicates = sent.saturating_sub(stored) as f64 / stored.max(1) as f64;
    }
    for peer in peers.iter_mut().chain([&mut seed]) {
        peer.process.kill()?;
    }
    scheduler.kill()?;
    Ok(row)
}

impl Around<'_> {
    /// The origin: nginx, with one worker.
    pub(crate) async fn nginx(&self) -> Result<Process> {
        let (dir, root) = (self.lab.subdir("nginx")?, self.memory.join("origin"));
        fs::create_dir_all(&root)?;
        let http = format!(
            "log_format sent '$body_bytes_sent';
  access_log {dir}/access.log sent;
  server {{ listen {address}:80; root {root}; }}",
            dir = dir.display(),
            address = self.origin.address,
            root = root.display()
        );
        let main = "worker_processes 1;\nevents { worker_connections 1024; }";
        let program = self.origin.program("nginx", "nginx").args(nginx::args(self.lab, main, &http)?);
        let mut nginx = Process::start(self.lab, program)?;
        let pid = dir.join("pid");
        nginx.until("nginx ran", async || fs::read(&pid).is_ok_and(|pid| !pid.is_empty())).await?;
        Ok(nginx)
    }

    /// Bytes of contents that the origin has sent.
    fn origin_sent(&self) -> Result<u64> {
        let log = fs::read_to_string(self.lab.dir().join("nginx/access.log"))?;
        Ok(log.lines().filter_map(|line| line.parse::<u64>().ok()).sum())
    }

    pub(crate) fn blobs(&self) -> Result<Vec<Blob>> {
        let mut blobs = Vec::new();
        for (number, len) in self.cell.blobs().into_iter().enumerate() {
            let bytes = noise(number.to_le_bytes(), usize::try_from(len)?);
            let blob = Blob { digest: format!("sha256:{}", hex::encode(Sha256::digest(&bytes))), len };
            let path = self.memory.join("origin").join(blob.path());
            fs::create_dir_all(path.parent().context("a path has a parent")?)?;
            fs::write(path, &bytes)?;
            blobs.push(blob);
        }
        Ok(blobs)
    }

    pub(crate) async fn scheduler(&self) -> Result<Process> {
        let policy = match self.cell.arm {
            Arm::ThreeParents => "parents_per_child = 3\nrotate = false\n",
            Arm::NoRotation => "rotate = false\n",
            _ => "",
        };
        let log = log();
        let config = format!(
            "listen = \"0.0.0.0:7410\"\nsettle_time = \"0s\"\n{policy}log.level = \"{log}\"\n\
             admin.listen = \"127.0.0.1:7411\"\n"
        );
        let config = self.lab.write("scheduler.toml", &config)?;
        let program = self.scheduler.program("scheduler", target::darter()?).arg("scheduler");
        let mut process = Process::start(self.lab, program.arg("--config").arg(config))?;
        let (lab, host) = (self.lab, &self.scheduler);
        let ready = async || {
            let curl = host.command(lab, "curl").args(["-sf", "http://127.0.0.1:7411/readyz"]);
            curl.run().await.is_ok()
        };
        process.until("the scheduler was ready", ready).await?;
        Ok(process)
    }

    /// Messages from peers that the scheduler has heard.
    async fn messages(&self) -> Result<f64> {
        let curl = self.scheduler.command(self.lab, "curl");
        let metrics = curl.args(["-sf", "http://127.0.0.1:7411/metrics"]).run().await?.stdout;
        Ok(Metrics::parse(&metrics).sum("darter_scheduler_messages_total", &[]))
    }

    pub(crate) fn peer(&self, name: &str, host: &Host, rack: &str, seed: bool) -> Result<Peer> {
        let config = self.config(name, host, rack, seed)?;
        let program = host.program(name, target::darter()?).arg("peer").arg("--config").arg(config);
        let control = self.lab.dir().join(name).join("peer.sock");
        Ok(Peer { host: host.clone(), control, process: Process::start(self.lab, program)? })
    }

    /// Writes a peer's configuration.
    pub(crate) fn config(&self, name: &str, host: &Host, rack: &str, seed: bool) -> Result<PathBuf> {
        let dir = self.lab.subdir(name)?;
        let control = dir.join("peer.sock");
        let policy = match self.cell.arm {
            Arm::ThreeParents => "relay = \"pieces\"\ncoordinate = false\n",
            Arm::NoLeafRelay => "relay = \"pieces\"\n",
            Arm::NoCoordination => "coordinate = false\n",
            _ => "",
        };
        let config = format!(
            "admin.listen = \"127.0.0.1:7402\"\nlog.level = \"{log}\"\n\
             [peer]\nname = \"{name}\"\nseed = {seed}\ncontrol_socket = {control:?}\n\
             scheduler.addresses = [\"http://{scheduler}:7410\"]\n\
             place.zone = \"zone\"\nplace.rack = \"{rack}\"\n\
             store.dir = {store:?}\nstore.min_free = \"1MiB\"\n\
             registries.bench.upstream = \"http://{origin}\"\n\
             [proxy]\nlisten = \"{PROXY}\"\n\
             [peer.transfer]\nlisten = \"0.0.0.0:7401\"\nadvertise = \"{address}:7401\"\n{policy}{transfer}\n",
            log = log(),
            scheduler = self.scheduler.address,
            origin = self.origin.address,
            store = self.memory.join(name),
            address = host.address,
            transfer = self.transfer.join("\n"),
        );
        self.lab.write(&format!("{name}/darter.toml"), &config)
    }

    /// Lets all peers pull, and says how long each took that counts: those that live and are not slow.
    async fn pull(&self, peers: &mut [Peer], blobs: &[Blob], bound: f64) -> Result<Vec<Duration>> {
        let cell = self.cell;
        let mut pulls = JoinSet::new();
        let counted = cell.n - cell.killed() - cell.slow();
        for (number, peer) in peers.iter().enumerate() {
            let delay = match cell.scenario {
                ScenarioKind::Spread => bound / 2.0 * number as f64 / cell.n as f64,
                _ => 0.0,
            };
            let pull =
                pull::pull(self.lab.clone(), peer.host.clone(), PROXY.into(), "?ns=bench", blobs.to_vec());
            pulls.spawn(async move {
                sleep(Duration::from_secs_f64(delay)).await;
                (number, pull.await)
            });
        }
        if cell.killed() > 0 {
            sleep(Duration::from_secs_f64(bound / 2.0)).await;
            for peer in peers.iter_mut().rev().take(cell.killed()) {
                peer.process.kill()?;
            }
        }
        let all = async {
            let mut times = Vec::new();
            while let Some(pulled) = pulls.join_next().await {
                match pulled? {
                    (number, Ok(time)) if number < counted => times.push(time),
                    (number, Err(error)) if number < counted => return Err(error),
                    _ => {}
                }
                if times.len() == counted {
                    break;
                }
            }
            anyhow::Ok(times)
        };
        timeout(Duration::from_secs_f64(bound * PATIENCE), all).await.context("the pulls do not end")?
    }
}

impl Peer {
    pub(crate) async fn until_scheduled(&mut self) -> Result<()> {
        let control = self.control.clone();
        let scheduled =
            async || darter::status(&control).await.is_ok_and(|status| !status.schedulers.is_empty());
        self.process.until("the scheduler knew it", scheduled).await
    }
}

impl Row {
    fn times(&mut self, mut times: Vec<Duration>) {
        times.sort();
        let at = |share: f64| {
            let rank = (share * times.len() as f64).ceil().max(1.0) as usize - 1;
            times.get(rank).map_or(f64::NAN, Duration::as_secs_f64) / self.bound_s
        };
        (self.last_over_bound, self.p99_over_bound, self.p50_over_bound) = (at(1.0), at(0.99), at(0.5));
    }
}

/// What a link carries in bytes a second, by iperf3.
async fn calibrate(lab: &Lab, from: &Host, to: &Host) -> Result<f64> {
    let server = to.program("iperf3", "iperf3").args(["--server", "--one-off", "--forceflush"]);
    let mut server = Process::start(lab, server)?;
    server.until_log("Server listening").await?;
    let client = from.command(lab, "iperf3").args(["--client", &to.address.to_string()]);
    let output = client.args(["--congestion", "cubic", "--time", "2", "--omit", "1", "--json"]).run().await?;
    let output: serde_json::Value = serde_json::from_str(&output.stdout)?;
    let bits = output.pointer("/end/sum_received/bits_per_second").and_then(|bits| bits.as_f64());
    Ok(bits.context("iperf3 tells no rate")? / 8.0)
}

fn cpu<'a>(peers: impl Iterator<Item = &'a Peer>) -> Result<f64> {
    let times = peers.map(|peer| usage::cpu_time(peer.process.id()));
    Ok(times.sum::<Result<Duration>>()?.as_secs_f64())
}

/// What the peers and the scheduler log.
fn log() -> String {
    std::env::var("DARTER_LOG").unwrap_or_else(|_| "warn".to_owned())
}
