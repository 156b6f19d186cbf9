//! `make bench-lazy`: how long it takes from a pull to a container's first line and to a served request.
//!
//! The same image is started on nodes that have nothing of it: unpacked by containerd (overlayfs), by soci-snapshotter
//! with its index on the node already, and by Darter with its layers ready on a seed peer. What the registry and the seed
//! peer send is limited to the rate of a link, and only one of the two serves a node.

mod darter;
mod overlayfs;
mod soci;
mod start;
mod subject;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use darter_integration::{Lab, machine, table::Table, target};
use serde::Serialize;

use self::{start::Start, subject::Subject};

/// Measures how fast containers start on layers that are not here yet, and writes `target/bench/lazy.json`.
#[derive(Debug, Parser)]
struct Options {
    /// What the registry and each peer may send, in Mbit a second, one run for each.
    #[arg(long, default_values_t = [100, 1000])]
    link_mbit: Vec<u64>,
    /// What to start.
    #[arg(long, value_enum, default_value_t = subject::Kind::Web)]
    subject: subject::Kind,
    /// Only these systems.
    #[arg(long, value_enum, default_values_t = [System::Overlayfs, System::Soci, System::Darter])]
    system: Vec<System>,
    /// The file under `target/bench`.
    #[arg(long, default_value = "lazy")]
    name: String,
}

/// Who brings the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum System {
    Overlayfs,
    Soci,
    Darter,
}

/// What a node had of the image before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// Nothing.
    Cold,
    /// Nothing, but another node's start is known.
    Profile,
    /// All of it.
    Local,
}

/// One measured start, as `target/bench/lazy.json` has it.
#[derive(Debug, Serialize)]
struct Measured {
    system: System,
    link_mbit: u64,
    state: State,
    subject: subject::Kind,
    #[serde(flatten)]
    start: Start,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-lazy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let subject = Subject::make(options.subject)?;
    println!("{}\n{}", machine::describe(), subject.describe());
    let mut all = Vec::new();
    for &link_mbit in &options.link_mbit {
        for &system in &options.system {
            let lab = Lab::open()?;
            let starts = match system {
                System::Overlayfs => overlayfs::measure(&lab, &subject, link_mbit).await,
                System::Soci => soci::measure(&lab, &subject, link_mbit).await,
                System::Darter => darter::measure(&lab, &subject, link_mbit).await,
            };
            let starts = starts.inspect_err(|_| lab.print_logs())?;
            let subject = subject.kind;
            all.extend(starts.into_iter().map(|(state, start)| Measured {
                system,
                link_mbit,
                state,
                subject,
                start,
            }));
        }
    }
    println!("\n{}", table(&all));
    target::write_results(&options.name, &all)
}

/// The ratio is of first lines, to overlayfs on the same link.
fn table(all: &[Measured]) -> Table {
    let mut table =
        Table::new(["", "Mbit/s", "pull", "first line", "first HTTP answer", "fetched", "of overlayfs"]);
    for measured in all {
        let Measured { system, link_mbit, state, start, .. } = measured;
        let overlayfs = all
            .iter()
            .find(|other| other.system == System::Overlayfs && other.link_mbit == *link_mbit)
            .map(|other| format!("{:.3}", start.first_line_s / other.start.first_line_s));
        let seconds = |seconds: f64| format!("{seconds:.2} s");
        table.row([
            format!("{system:?} {state:?}").to_lowercase(),
            link_mbit.to_string(),
            seconds(start.pull_s),
            seconds(start.first_line_s),
            start.first_http_s.map_or("-".to_owned(), seconds),
            format!("{:.1} MB", start.fetched_bytes as f64 / 1e6),
            overlayfs.unwrap_or_default(),
        ]);
    }
    table
}
