//! `make bench-swarm`: how long a swarm takes to bring a content to all of its hosts, against the physical bound.
//!
//! Every host is a network namespace with a shaped link; see `docs/benchmarks.md` for what is measured and how.

mod cell;
mod demand;
mod pull;
mod report;
mod swarm;
mod warm;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Result;
use clap::Parser;
use darter_integration::{Lab, scenario::ScenarioKind};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    cell::{Arm, Cell, Content},
    report::Report,
};

/// Measures a swarm of real peers. Without filters it runs the whole table.
#[derive(Debug, Parser)]
struct Options {
    /// Only cells with so many peers.
    #[arg(long)]
    n: Option<usize>,
    /// Only cells of this size in MiB; the five-layer image has 64 too.
    #[arg(long)]
    mib: Option<u64>,
    /// Only this scenario.
    #[arg(long, value_enum)]
    scenario: Option<ScenarioKind>,
    /// Only this arm.
    #[arg(long, value_enum)]
    arm: Option<Arm>,
    /// Only this content.
    #[arg(long, value_enum)]
    content: Option<Content>,
    /// Runs each cell so often and keeps the median run.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// A line for the peers' `[peer.transfer]`, to compare settings; may be given several times.
    #[arg(long)]
    transfer: Vec<String>,
    /// Leaves logs of the peers in this directory.
    #[arg(long)]
    logs: Option<PathBuf>,
    /// Measures how long a container's read takes while the link is full instead.
    #[arg(long)]
    demand: bool,
    /// What that runs on the host whose reads are measured: a peer with this configuration.
    #[arg(long, hide = true, requires = "digest")]
    reader: Option<PathBuf>,
    /// What it reads.
    #[arg(long, hide = true)]
    digest: Option<String>,
}

impl Options {
    fn wants(&self, cell: &Cell) -> bool {
        self.n.is_none_or(|n| n == cell.n)
            && self.mib.is_none_or(|mib| mib == cell.mib)
            && self.scenario.is_none_or(|scenario| scenario == cell.scenario)
            && self.arm.is_none_or(|arm| arm == cell.arm)
            && self.content.is_none_or(|content| content == cell.content)
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-swarm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    if let (Some(config), Some(digest)) = (&options.reader, &options.digest) {
        return demand::read(config, digest).await;
    }
    // Whichever comes first, dropping what it leaves cleans up.
    tokio::select! {
        measured = Box::pin(measure(options)), if !options.demand => measured,
        measured = Box::pin(demand::measure()), if options.demand => measured,
        interrupted = interrupted() => interrupted,
    }
}

async fn measure(options: &Options) -> Result<()> {
    let mut report = Report::open("swarm")?;
    let cells = cell::all().into_iter().filter(|cell| options.wants(cell));
    for cell in cells {
        let mut runs = Vec::new();
        for _ in 0..options.repeat.max(1) {
            let lab = Lab::open()?;
            let run = swarm::run(&lab, &cell, &options.transfer).await;
            if let Some(logs) = &options.logs {
                copy_logs(&lab, logs)?;
            } else if run.is_err() {
                lab.print_logs();
            }
            runs.push(run?);
        }
        runs.sort_by(|a, b| a.last_over_bound.total_cmp(&b.last_over_bound));
        let median = runs.swap_remove(runs.len() / 2);
        report.add(median)?;
    }
    Ok(())
}

fn copy_logs(lab: &Lab, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in fs::read_dir(lab.dir())? {
        let file = file?;
        if file.path().extension().is_some_and(|extension| extension == "log") {
            fs::copy(file.path(), to.join(file.file_name()))?;
        }
    }
    Ok(())
}

/// Waits for Ctrl-C, or for somebody else who wants it to end.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}
