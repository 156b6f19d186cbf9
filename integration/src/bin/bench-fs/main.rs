//! `make bench-fs`: how fast containers read what is all here, on Darter's mounts next to overlayfs on ext4.
//!
//! The same image is on one machine three times: unpacked by containerd, mounted by Darter as EROFS, and mounted by Darter
//! with FUSE alone. The three are measured in turns, with nothing and with everything in the page cache. Needs a quiet
//! machine, whose page cache it drops again and again.

mod mounts;
mod subject;
mod workload;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use darter_integration::{Lab, machine, table::Table, target};
use serde::Serialize;

use self::{
    mounts::{Mounts, Root},
    workload::Workload,
};

/// Measures reads of complete layers, and writes `target/bench/fs.json`.
#[derive(Debug, Parser)]
struct Options {
    /// How often everything is measured; the middle one counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only with this in the page cache.
    #[arg(long, value_enum, default_values_t = [Cache::Cold, Cache::Warm])]
    cache: Vec<Cache>,
}

/// How Darter mounts layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Mount {
    Erofs,
    Fuse,
}

/// What the page cache has when it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum Cache {
    /// Nothing.
    Cold,
    /// Everything.
    Warm,
}

/// One workload on one mount, as `target/bench/fs.json` has it.
#[derive(Debug, Serialize)]
struct Measured {
    mount: Mount,
    cache: Cache,
    workload: Workload,
    seconds: f64,
    overlayfs_seconds: f64,
    /// How much faster it is than overlayfs: of the rounds, the one in the middle.
    ratio_to_overlayfs: f64,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-fs: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let lab = Lab::open()?;
    println!("{}", machine::describe());
    let mounts = Mounts::make(&lab).await.inspect_err(|_| lab.print_logs())?;
    let mut all = Vec::new();
    for &cache in &options.cache {
        for workload in Workload::ALL {
            let (overlayfs, ours) = mounts.roots();
            all.extend(measure(overlayfs, ours, cache, workload, options.rounds)?);
        }
    }
    println!("\n{}", table(&all));
    println!("How much faster than overlayfs on ext4; more than 1 is faster.");
    target::write_results("fs", &all)
}

fn measure(
    overlayfs: &Root,
    ours: [(Mount, &Root); 2],
    cache: Cache,
    workload: Workload,
    rounds: usize,
) -> Result<Vec<Measured>> {
    let mut reference = Vec::new();
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        let run = |root: &Root| match cache {
            Cache::Cold => workload.run_cold(root, round),
            Cache::Warm => workload.run_warm(root, round),
        };
        let first = round % 2 == 0;
        if first {
            reference.push(run(overlayfs)?);
        }
        for ((_, root), times) in ours.iter().zip(&mut times) {
            times.push(run(root)?);
        }
        if !first {
            reference.push(run(overlayfs)?);
        }
    }
    let measured = ours.iter().zip(times).map(|((mount, _), times)| {
        let ratios = reference.iter().zip(&times).map(|(reference, time)| reference / time).collect();
        Ok(Measured {
            mount: *mount,
            cache,
            workload,
            seconds: middle(times)?,
            overlayfs_seconds: middle(reference.clone())?,
            ratio_to_overlayfs: middle(ratios)?,
        })
    });
    measured.collect()
}

fn middle(mut values: Vec<f64>) -> Result<f64> {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("no round was run")
}

fn table(all: &[Measured]) -> Table {
    let mut table = Table::new(["", "cache", "overlayfs", "EROFS", "FUSE", "EROFS, ratio", "FUSE, ratio"]);
    for rows in all.chunks(2) {
        let [erofs, fuse] = rows else { continue };
        table.row([
            erofs.workload.name().to_owned(),
            format!("{:?}", erofs.cache).to_lowercase(),
            format!("{:.3} s", erofs.overlayfs_seconds),
            format!("{:.3} s", erofs.seconds),
            format!("{:.3} s", fuse.seconds),
            format!("{:.2}", erofs.ratio_to_overlayfs),
            format!("{:.2}", fuse.ratio_to_overlayfs),
        ]);
    }
    table
}
