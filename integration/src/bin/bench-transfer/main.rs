//! `make bench-transfer`: what it costs to move a content from one peer's store to another's, in CPU time, beside nginx
//! and curl.

use std::{
    fs,
    net::SocketAddr,
    path::Path,
    process::{Command, ExitCode},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use darter_integration::{
    Lab, Process, Program,
    darter::{Peer, Scheduler, Surroundings, client},
    image::noise,
    nginx,
    process::free_address,
    target, usage,
};
use darter_proto::peer::GetRequest;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// Measures a transfer on the loopback interface.
#[derive(Debug, Parser)]
struct Options {
    /// Length of the content in MiB.
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Runs of each way; the cheapest counts, since CPU time is only ever added to by what else runs.
    #[arg(long, default_value_t = 3)]
    repeat: usize,
}

/// One way of moving the content.
#[derive(Debug, Serialize)]
struct Row {
    way: &'static str,
    mib: u64,
    /// User and system time of both ends for each GB.
    cpu_s_per_gb: f64,
    sender_cpu_s_per_gb: f64,
    receiver_cpu_s_per_gb: f64,
    mb_per_s: f64,
}

/// CPU seconds of both ends, and the time that passed.
#[derive(Debug, Clone, Copy)]
struct Cost {
    sender: f64,
    receiver: f64,
    seconds: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-transfer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let lab = Lab::open()?;
    let root = lab.subdir("origin")?;
    let len = options.mib << 20;
    let bytes = noise("transfer", usize::try_from(len)?);
    fs::write(root.join("blob"), &bytes)?;
    let sha256 = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
    let blake3 = format!("blake3:{}", blake3::hash(&bytes).to_hex());
    drop(bytes);
    let address = free_address()?;
    let mut nginx = Process::start(&lab, nginx(&lab, &root, address)?)?;
    let url = format!("http://{address}/blob");
    nginx.until("nginx answered", async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;

    let mut rows = Vec::new();
    let mut add = |way, costs: Vec<Cost>| -> Result<()> {
        let sum = |cost: &Cost| cost.sender + cost.receiver;
        let cost = costs.into_iter().min_by(|a, b| sum(a).total_cmp(&sum(b))).context("no run")?;
        let gb = len as f64 / 1e9;
        let row = Row {
            way,
            mib: options.mib,
            cpu_s_per_gb: sum(&cost) / gb,
            sender_cpu_s_per_gb: cost.sender / gb,
            receiver_cpu_s_per_gb: cost.receiver / gb,
            mb_per_s: len as f64 / 1e6 / cost.seconds,
        };
        if rows.is_empty() {
            println!("{:28} {:>10} {:>8} {:>8} {:>8}", "way", "core-s/GB", "sender", "receiver", "MB/s");
        }
        println!(
            "{:28} {:>10.2} {:>8.2} {:>8.2} {:>8.0}",
            row.way, row.cpu_s_per_gb, row.sender_cpu_s_per_gb, row.receiver_cpu_s_per_gb, row.mb_per_s
        );
        rows.push(row);
        Ok(())
    };
    for (way, digest) in [("darter, BLAKE3", &blake3), ("darter, BLAKE3 and SHA-256", &sha256)] {
        let mut costs = Vec::new();
        for _ in 0..options.repeat {
            costs.push(darter(&lab, address, digest, len).await?);
        }
        add(way, costs)?;
    }
    for (way, check) in [("nginx, curl", false), ("nginx, curl, sha256sum", true)] {
        let costs = (0..options.repeat).map(|_| curl(&lab, &nginx, &url, check));
        add(way, costs.collect::<Result<_>>()?)?;
    }
    target::write_results("transfer", &rows)
}

fn nginx(lab: &Lab, root: &Path, address: SocketAddr) -> Result<Program> {
    // Without a master one process does all the work, and its CPU time is all there is.
    let main = "master_process off;\nevents { worker_connections 64; }";
    let http = format!("access_log off;\n  server {{ listen {address}; root {}; }}", root.display());
    Ok(Program::new("nginx", "nginx").args(nginx::args(lab, main, &http)?))
}

/// From the store of one peer, which got the content before, to that of another one.
async fn darter(lab: &Lab, origin: SocketAddr, digest: &str, len: u64) -> Result<Cost> {
    let url = &format!("http://{origin}/blob");
    let scheduler = Scheduler::start(lab, None).await?;
    let around = Surroundings {
        schedulers: vec![scheduler.grpc],
        manager: None,
        // Else a URL must not lead to an address of this machine.
        registries: vec![(origin.to_string(), format!("http://{origin}"))],
        links: false,
        mount: None,
    };
    let mut sender = Peer::start(lab, "sender", &around).await?;
    sender.until_scheduled().await?;
    complete(&sender.control, url, digest, len).await?;
    let mut receiver = Peer::start(lab, "receiver", &around).await?;
    receiver.until_scheduled().await?;
    let ends = [sender.service.process.id(), receiver.service.process.id()];
    let [sender_before, receiver_before] = ends.map(usage::cpu_time);
    let started = Instant::now();
    complete(&receiver.control, url, digest, len).await?;
    let seconds = started.elapsed().as_secs_f64();
    let [sender_after, receiver_after] = ends.map(usage::cpu_time);
    let bytes = receiver.status().await?.bytes.context("no counters")?;
    ensure!(bytes.peer == len, "{} of {len} bytes came from the other peer", bytes.peer);
    let cost = Cost {
        sender: (sender_after? - sender_before?).as_secs_f64(),
        receiver: (receiver_after? - receiver_before?).as_secs_f64(),
        seconds,
    };
    // Each run begins with empty stores.
    drop((sender, receiver, scheduler));
    for name in ["sender", "receiver"] {
        fs::remove_dir_all(lab.dir().join(name).join("store"))?;
    }
    Ok(cost)
}

/// Reads the last byte only, which a peer gives away when everything is there and checked.
async fn complete(control: &Path, url: &str, digest: &str, len: u64) -> Result<()> {
    let request = GetRequest {
        url: url.to_owned(),
        digest: digest.to_owned(),
        offset: len - 1,
        ..GetRequest::default()
    };
    let mut replies = client(control).await?.get(request).await?.into_inner();
    while replies.message().await?.is_some() {}
    Ok(())
}

/// From nginx into a file, and perhaps through `sha256sum`.
fn curl(lab: &Lab, nginx: &Process, url: &str, check: bool) -> Result<Cost> {
    let file = lab.dir().join("fetched");
    let before = (usage::cpu_time(nginx.id())?, usage::of_children()?);
    let started = Instant::now();
    let succeed = |program: &str, args: &[&std::ffi::OsStr]| -> Result<()> {
        let output =
            Command::new(program).args(args).output().with_context(|| format!("running {program}"))?;
        ensure!(output.status.success(), "{program}: {}", output.status);
        Ok(())
    };
    succeed("curl", &["--silent".as_ref(), "--fail".as_ref(), "-o".as_ref(), file.as_ref(), url.as_ref()])?;
    if check {
        succeed("sha256sum", &[file.as_ref()])?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let cost = Cost {
        sender: (usage::cpu_time(nginx.id())? - before.0).as_secs_f64(),
        receiver: (usage::of_children()? - before.1).as_secs_f64(),
        seconds,
    };
    fs::remove_file(&file)?;
    Ok(cost)
}
