//! The table for people, and the file for whoever draws it.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use darter_integration::target;
use serde::Serialize;

use crate::cell::Cell;

/// What one cell came to.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) arm: &'static str,
    pub(crate) scenario: &'static str,
    pub(crate) content: &'static str,
    pub(crate) n: usize,
    pub(crate) mib: u64,
    /// Payload of one link in Mbit/s, as iperf3 measured it.
    pub(crate) link_mbit: f64,
    pub(crate) bound_s: f64,
    pub(crate) last_over_bound: f64,
    pub(crate) p99_over_bound: f64,
    pub(crate) p50_over_bound: f64,
    /// Bytes that the origin sent, by the content's length.
    pub(crate) origin_copies: f64,
    /// Bytes that the seed sent, by the content's length.
    pub(crate) seed_copies: f64,
    /// Bytes that crossed between the racks in both directions, by the content's length.
    pub(crate) cross_copies: Option<f64>,
    /// From peers to the scheduler.
    pub(crate) messages_per_peer: f64,
    /// Of all peers and the seed, for each GB that the peers got.
    pub(crate) cpu_s_per_gb: f64,
    /// The most that one peer ever had.
    pub(crate) rss_mib: f64,
    /// Leaves that arrived twice, by all that arrived.
    pub(crate) duplicates: f64,
}

/// Rows of this run and of earlier ones.
#[derive(Debug)]
pub(crate) struct Report {
    path: PathBuf,
    rows: Vec<serde_json::Value>,
    begun: bool,
}

impl Row {
    pub(crate) fn of(cell: &Cell) -> Self {
        Self {
            arm: cell.arm.name(),
            scenario: cell.scenario.name(),
            content: cell.content.name(),
            n: cell.n,
            mib: cell.mib,
            ..Self::default()
        }
    }
}

impl Report {
    /// Goes on with what earlier runs have written: a filtered run replaces its own rows only.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = target::bench(name)?;
        let rows = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        Ok(Self { path, rows: rows.unwrap_or_default(), begun: false })
    }

    /// Prints a row and writes the file.
    pub(crate) fn add(&mut self, row: Row) -> Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            println!(
                "{:15} {:8} {:5} {:>3} {:>4} {:>7} | {:>6} {:>6} {:>6} | {:>6} {:>6} {:>6} | {:>8} {:>8} {:>7} {:>6}",
                "arm",
                "scenario",
                "what",
                "N",
                "MiB",
                "bound s",
                "last",
                "p99",
                "p50",
                "origin",
                "seed",
                "cross",
                "messages",
                "cpu s/GB",
                "RSS MiB",
                "dup %",
            );
        }
        let cross = row.cross_copies.map_or_else(|| "-".to_owned(), |copies| format!("{copies:.2}"));
        println!(
            "{:15} {:8} {:5} {:>3} {:>4} {:>7.2} | {:>6.3} {:>6.3} {:>6.3} | {:>6.3} {:>6.3} {:>6} | {:>8.1} {:>8.2} {:>7.1} {:>6.2}",
            row.arm,
            row.scenario,
            row.content,
            row.n,
            row.mib,
            row.bound_s,
            row.last_over_bound,
            row.p99_over_bound,
            row.p50_over_bound,
            row.origin_copies,
            row.seed_copies,
            cross,
            row.messages_per_peer,
            row.cpu_s_per_gb,
            row.rss_mib,
            row.duplicates * 100.0,
        );
        let row = serde_json::to_value(row)?;
        let keys = ["arm", "scenario", "content", "n", "mib"];
        self.rows.retain(|old| keys.iter().any(|key| old.get(key) != row.get(key)));
        self.rows.push(row);
        let text = serde_json::to_string_pretty(&self.rows)?;
        fs::write(&self.path, text + "\n").with_context(|| format!("writing {}", self.path.display()))
    }
}
