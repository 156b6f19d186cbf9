//! `make simulate`: the real scheduler and the real plan of a peer, with up to 100,000 peers, in a discrete-event
//! simulation.
//!
//! Simulated are time, links and the peers' programs around the plan; see `docs/benchmarks.md` for what is left out.
//! Equal arguments give equal runs.

mod figures;
mod memory;
mod peer;
mod scenario;
mod sim;
#[cfg(test)]
mod tests;
mod uplink;

use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use darter_integration::{scenario::ScenarioKind, target};
use darter_peer::LEAF_LEN;

use self::{figures::Figures, scenario::Scenario};

/// With so many peers or more the plan decides about units of 1 MiB, four leaves, so that a run takes minutes.
const MANY: u32 = 5_000;
const UNIT: u64 = 1 << 20;

#[derive(Debug, Parser)]
struct Arguments {
    /// Number of peers.
    #[arg(long, default_value_t = 100_000)]
    peers: u32,
    /// What happens; may be given several times.
    #[arg(long, value_enum, default_values_t = [ScenarioKind::AtOnce])]
    scenario: Vec<ScenarioKind>,
    /// Length of the content in MiB.
    #[arg(long, default_value_t = 256)]
    mib: u64,
    /// Length of what the plan decides about, in KiB; by default a leaf's 256, and 1024 with very many peers.
    #[arg(long)]
    unit: Option<u64>,
    /// Rate of each link in Mbit/s.
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Leaves that a host sends at once.
    #[arg(long, default_value_t = 2)]
    uploads: usize,
    /// Racks in the scenario of that name.
    #[arg(long, default_value_t = 2)]
    racks: u32,
    /// The seed peer stands in none of the racks.
    #[arg(long)]
    seed_apart: bool,
    /// No seed peer: one of them reads the origin.
    #[arg(long)]
    no_seed: bool,
    /// Another number makes another run.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let scenarios: Vec<_> = arguments.scenario.iter().map(|kind| arguments.scenario(*kind)).collect();
    // Before anything else has used and given back memory.
    let memory = scenarios.first().map(memory::measure).transpose()?.unwrap_or_default();
    Figures::print_head();
    let mut figures = Vec::new();
    for scenario in &scenarios {
        let began = Instant::now();
        let counts = sim::run(scenario)?;
        let line = Figures::new(scenario, &counts, began.elapsed(), memory, memory::resident()?);
        line.print();
        figures.push(line);
    }
    target::write_results("simulate", &figures)
}

impl Arguments {
    fn scenario(&self, kind: ScenarioKind) -> Scenario {
        let many = self.peers >= MANY;
        let unit = self.unit.map(|kib| kib << 10);
        Scenario {
            kind,
            peers: self.peers,
            with_seed: !self.no_seed,
            bytes: self.mib << 20,
            unit: unit.unwrap_or(if many { UNIT } else { u64::from(LEAF_LEN) }),
            rate: self.rate * 1_000_000 / 8,
            uploads: self.uploads,
            racks: if kind == ScenarioKind::Racks { self.racks } else { 1 },
            seed_apart: self.seed_apart && kind == ScenarioKind::Racks,
            seed: self.seed,
        }
    }
}
