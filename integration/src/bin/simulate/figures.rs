//! What came of a run, as people and programs read it.

use std::time::Duration;

use serde::Serialize;

use super::{memory::Memory, scenario::Scenario, sim::Counts};

/// One line of the table; the first keys are those of `target/bench/swarm.json`.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) arm: &'static str,
    pub(crate) scenario: &'static str,
    pub(crate) n: u32,
    pub(crate) mib: f64,
    pub(crate) last_over_bound: f64,
    pub(crate) p99_over_bound: f64,
    pub(crate) p50_over_bound: f64,
    /// Bytes from the origin over those of the content.
    pub(crate) origin_copies: f64,
    /// Bytes into racks over those of the content and the racks without a seed.
    pub(crate) cross_copies: f64,
    /// Messages from and to a peer.
    pub(crate) messages_per_peer: f64,
    /// The scheduler's time per GB that the peers received.
    pub(crate) cpu_s_per_gb: f64,
    /// The whole simulation's memory.
    pub(crate) rss_mib: f64,
    /// Leaves that came twice, as a share of all.
    pub(crate) duplicates: f64,
    /// What the plan decides about.
    pub(crate) unit_mib: f64,
    /// Bytes that the source sent over those of the content.
    pub(crate) source_copies: f64,
    /// The scheduler's time, on the clock.
    pub(crate) scheduler_s: f64,
    pub(crate) scheduler_us_per_message: f64,
    /// The scheduler's memory for a host, and on top of that for its part in one task.
    pub(crate) bytes_per_host: f64,
    pub(crate) bytes_per_peer_task: f64,
    pub(crate) simulated_s: f64,
    pub(crate) wall_s: f64,
    pub(crate) seed: u64,
}

const MIB: f64 = 1024.0 * 1024.0;

impl Figures {
    pub(crate) fn new(
        scenario: &Scenario,
        counts: &Counts,
        wall: Duration,
        memory: Memory,
        rss: u64,
    ) -> Self {
        let mut times = counts.times.clone();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = (times.len().saturating_sub(1) as f64 * share).round() as usize;
            times.get(place).copied().unwrap_or(f64::NAN) / scenario.bound()
        };
        let copies = |leaves: u64| leaves as f64 / f64::from(scenario.leaves());
        let messages = counts.messages_up + counts.messages_down;
        let moved = counts.leaves as f64 * scenario.unit as f64 / 1e9;
        let far = if scenario.seed_apart { scenario.racks } else { scenario.racks.saturating_sub(1).max(1) };
        Self {
            arm: "simulated",
            scenario: scenario.kind.name(),
            n: scenario.peers,
            mib: scenario.bytes as f64 / MIB,
            last_over_bound: at(1.0),
            p99_over_bound: at(0.99),
            p50_over_bound: at(0.5),
            origin_copies: copies(counts.origin_leaves),
            cross_copies: copies(counts.cross_leaves) / f64::from(far),
            messages_per_peer: messages as f64 / f64::from(scenario.peers),
            cpu_s_per_gb: counts.scheduler.as_secs_f64() / moved,
            rss_mib: rss as f64 / MIB,
            duplicates: counts.duplicates as f64 / counts.leaves.max(1) as f64,
            unit_mib: scenario.unit as f64 / MIB,
            source_copies: copies(counts.seed_leaves),
            scheduler_s: counts.scheduler.as_secs_f64(),
            scheduler_us_per_message: counts.scheduler.as_secs_f64() * 1e6 / messages as f64,
            bytes_per_host: memory.host,
            bytes_per_peer_task: memory.peer_task,
            simulated_s: counts.simulated,
            wall_s: wall.as_secs_f64(),
            seed: scenario.seed,
        }
    }

    pub(crate) fn print_head() {
        println!(
            "{:>8} {:>7} {:>6} {:>5} | {:>5} {:>5} {:>5} | {:>6} {:>6} {:>6} {:>5} | {:>5} {:>7} {:>6} {:>6} | {:>7} {:>6}",
            "scenario",
            "peers",
            "MiB",
            "unit",
            "last",
            "p99",
            "p50",
            "origin",
            "source",
            "cross",
            "dup %",
            "msgs",
            "sched s",
            "us/msg",
            "B/task",
            "simul s",
            "wall s"
        );
    }

    pub(crate) fn print(&self) {
        println!(
            "{:>8} {:>7} {:>6} {:>5} | {:>5.3} {:>5.3} {:>5.3} | {:>6.2} {:>6.2} {:>6.2} {:>5.2} | {:>5.1} {:>7.2} {:>6.2} {:>6.0} | {:>7.1} {:>6.1}",
            self.scenario,
            self.n,
            self.mib,
            self.unit_mib,
            self.last_over_bound,
            self.p99_over_bound,
            self.p50_over_bound,
            self.origin_copies,
            self.source_copies,
            self.cross_copies,
            self.duplicates * 100.0,
            self.messages_per_peer,
            self.scheduler_s,
            self.scheduler_us_per_message,
            self.bytes_per_peer_task,
            self.simulated_s,
            self.wall_s
        );
    }
}
