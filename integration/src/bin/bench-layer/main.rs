//! `make bench-layer`: how fast a layer is made out of a blob, next to what every runtime does with it anyway.
//!
//! The subject is one layer of a few hundred MB: everything that the demo's image installs. Each measured program is a
//! process of its own, so that its processor time and its memory are its own too.

mod cuts;
mod make;
mod measure;
mod subject;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use darter_integration::{table::Table, target};
use serde_json::{Value, json};

use self::{
    measure::{Measured, median, run},
    subject::Subject,
};

/// How often everything is run; the middle one counts.
const ROUNDS: usize = 3;

/// Measures the making of layers, and writes `target/bench/layer.json`.
#[derive(Debug, Parser)]
struct Options {
    #[command(subcommand)]
    part: Option<Part>,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// Makes a layer of each blob, all at once, and prints what came out: what the other parts measure.
    Make {
        /// The blobs.
        blobs: Vec<PathBuf>,
    },
    /// Prints how long all leaves together are for several average lengths and zstd levels.
    Cuts,
}

fn main() -> Result<()> {
    match Options::parse().part {
        Some(Part::Make { blobs }) => make::all(&blobs),
        Some(Part::Cuts) => cuts::print(&Subject::get()?),
        None => bench(&Subject::get()?),
    }
}

fn bench(subject: &Subject) -> Result<()> {
    let raw_mb = subject.raw_len as f64 / 1e6;
    println!("One layer of {raw_mb:.0} MB; all its layers at once are {}.\n", subject.layers.len());
    let kinds = subject.kinds()?;
    let mut rounds: Vec<Vec<Measured>> = vec![Vec::new(); kinds.len()];
    for _ in 0..ROUNDS {
        for (kind, measured) in kinds.iter().zip(&mut rounds) {
            measured.push(run(&kind.command)?);
        }
    }
    let measured: Vec<Measured> = rounds.iter().map(|rounds| median(rounds)).collect();
    let of = |name: &str| {
        let found = kinds.iter().zip(&measured).find(|(kind, _)| kind.name == name);
        found.map(|(_, measured)| *measured).with_context(|| format!("{name} was not measured"))
    };
    let (gzip, tar) = (of("gzip -dc")?, of("gzip -dc | tar x")?);

    let mut table =
        Table::new(["", "MB/s a core", "MB/s in all", "to gzip -dc", "to tar x", "peak MB", "stored MB"]);
    let mut objects = Vec::<Value>::new();
    for (kind, measured) in kinds.iter().zip(&measured) {
        let (core, wall) = (raw_mb / measured.cpu, raw_mb / measured.wall);
        let (to_gzip, to_tar) = (gzip.cpu / measured.cpu, tar.wall / measured.wall);
        let stored = measured.stored.map(|bytes| bytes as f64 / 1e6);
        table.row([
            kind.name.to_owned(),
            format!("{core:.0}"),
            format!("{wall:.0}"),
            format!("{to_gzip:.2}"),
            format!("{to_tar:.2}"),
            format!("{:.0}", measured.peak_rss as f64 / 1e6),
            stored.map_or_else(String::new, |stored| format!("{stored:.0}")),
        ]);
        objects.push(json!({
            "kind": kind.name,
            "raw_mb": raw_mb,
            "mb_per_s_core": core,
            "mb_per_s_wall": wall,
            "ratio_to_gzip_dc": to_gzip,
            "ratio_to_tar_x": to_tar,
            "peak_rss_mb": measured.peak_rss as f64 / 1e6,
            "stored_mb": stored,
        }));
    }
    println!("{table}");
    println!(
        "To gzip -dc: in processor time. To tar x: gzip -dc | tar x, in elapsed time. Larger is faster."
    );
    target::write_results("layer", &objects)
}
