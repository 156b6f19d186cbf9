//! What the length of leaves and the zstd level are worth.

use std::{collections::HashSet, fs, thread, time::Instant};

use anyhow::Result;
use darter_integration::table::Table;
use fastcdc::v2020::FastCDC;

use super::subject::Subject;

/// Average lengths of leaves to try, in KiB; the shortest is a quarter, the longest twice as long.
const AVERAGES: [usize; 5] = [64, 128, 256, 512, 1024];
const LEVELS: [i32; 4] = [1, 2, 3, 5];

/// Prints a table with a row for each average length and level.
pub(crate) fn print(subject: &Subject) -> Result<()> {
    let raw = fs::read(&subject.raw)?;
    let gzip = fs::metadata(subject.raw.with_added_extension("gz"))?.len();
    println!("Raw {:.0} MB, gzip -6 {:.0} MB.\n", raw.len() as f64 / 1e6, gzip as f64 / 1e6);
    let rows = thread::scope(|scope| {
        let rows = AVERAGES.map(|average| {
            let raw = &raw;
            scope.spawn(move || LEVELS.map(|level| Row::of(raw, average * 1024, level)))
        });
        rows.map(|row| row.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let mut table = Table::new([
        "average KiB, level",
        "leaves",
        "different MB",
        "stored MB",
        "to gzip",
        "compress MB/s",
        "decompress MB/s",
    ]);
    for row in rows.into_iter().flatten() {
        let row = row?;
        table.row([
            format!("{:>4}, {}", row.average / 1024, row.level),
            row.leaves.to_string(),
            format!("{:.1}", row.different as f64 / 1e6),
            format!("{:.1}", row.stored as f64 / 1e6),
            format!("{:.3}", row.stored as f64 / gzip as f64),
            format!("{:.0}", raw.len() as f64 / 1e6 / row.compressing),
            format!("{:.0}", raw.len() as f64 / 1e6 / row.decompressing),
        ]);
    }
    println!("{table}");
    Ok(())
}

struct Row {
    average: usize,
    level: i32,
    leaves: usize,
    /// Stored bytes without leaves that are there twice.
    different: u64,
    stored: u64,
    /// In seconds of a thread.
    compressing: f64,
    decompressing: f64,
}

impl Row {
    fn of(raw: &[u8], average: usize, level: i32) -> Result<Self> {
        let mut zstd = zstd::bulk::Compressor::new(level)?;
        let mut back = zstd::bulk::Decompressor::new()?;
        let mut row =
            Self { average, level, leaves: 0, different: 0, stored: 0, compressing: 0.0, decompressing: 0.0 };
        let mut seen = HashSet::new();
        for chunk in FastCDC::new(raw, average / 4, average, average * 2) {
            let leaf = raw.get(chunk.offset..chunk.offset + chunk.length).unwrap_or_default();
            let start = Instant::now();
            let frame = zstd.compress(leaf)?;
            row.compressing += start.elapsed().as_secs_f64();
            let start = Instant::now();
            std::hint::black_box(back.decompress(&frame, leaf.len())?);
            row.decompressing += start.elapsed().as_secs_f64();
            let stored = frame.len().min(leaf.len()) as u64;
            row.stored += stored;
            row.leaves += 1;
            if seen.insert(blake3::hash(leaf)) {
                row.different += stored;
            }
        }
        Ok(row)
    }
}
