//! Runs a program and says what it took.

use std::{
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use darter_integration::usage;

/// What one run took.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    /// Elapsed time in seconds.
    pub(crate) wall: f64,
    /// Processor time of the program and its children in seconds.
    pub(crate) cpu: f64,
    /// Most memory of the program at any time, in bytes; as it says itself.
    pub(crate) peak_rss: u64,
    /// Bytes of all leaves as they are stored, if it makes some.
    pub(crate) stored: Option<u64>,
}

/// Runs a command to its end.
pub(crate) fn run(command: &[String]) -> Result<Measured> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let before = usage::of_children()?;
    let start = Instant::now();
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {program}"))?;
    let wall = start.elapsed().as_secs_f64();
    ensure!(output.status.success(), "{}: {}", command.join(" "), output.status);
    let cpu = (usage::of_children()? - before).as_secs_f64();
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let number = |name: &str| said.get(name).and_then(serde_json::Value::as_u64);
    Ok(Measured { wall, cpu, peak_rss: number("peak_rss").unwrap_or_default(), stored: number("stored") })
}

/// The run in the middle by elapsed time, with the processor time in the middle.
pub(crate) fn median(runs: &[Measured]) -> Measured {
    let middle = |of: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_unstable_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    let peak_rss = runs.iter().map(|run| run.peak_rss).max().unwrap_or_default();
    let stored = runs.first().and_then(|run| run.stored);
    Measured { wall: middle(|run| run.wall), cpu: middle(|run| run.cpu), peak_rss, stored }
}
