//! What was measured, as a table and as JSON.

use anyhow::Result;
use darter_integration::target;
use serde::Serialize;

/// All results.
#[derive(Default)]
pub(crate) struct Report(Vec<Row>);

/// One system in one scenario; what was not measured there is `None`.
#[derive(Default, Serialize)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) system: String,
    pub(crate) clients: usize,
    /// What all clients got together, in MB (10^6 bytes) a second.
    pub(crate) mb_per_s: Option<f64>,
    /// CPU-seconds of the server, all its processes, for 10^9 bytes.
    pub(crate) cpu_s_per_gb: Option<f64>,
    /// Darter's throughput divided by nginx's.
    pub(crate) ratio_throughput: Option<f64>,
    /// Darter's CPU time for a byte divided by nginx's.
    pub(crate) ratio_cpu: Option<f64>,
    /// Median time from a request to the first byte of the answer's body.
    pub(crate) first_byte_p50_ms: Option<f64>,
    /// What the proxy adds to the registry's own time.
    pub(crate) added_p50_ms: Option<f64>,
    /// Bytes that the registry sent of the blob, divided by its length.
    pub(crate) origin_fetches: Option<f64>,
}

const HEADINGS: [&str; 10] =
    ["", "", "clients", "MB/s", "CPU s/GB", "of nginx's", "its CPU", "first byte", "added", "fetches"];
const WIDTHS: [usize; 10] = [28, 7, 7, 9, 9, 10, 9, 11, 9, 8];

fn print_row(cells: &[String; 10]) {
    for (column, (cell, width)) in cells.iter().zip(WIDTHS).enumerate() {
        if column < 2 { print!("{cell:<width$} ") } else { print!("{cell:>width$} ") }
    }
    println!();
}

impl Row {
    fn cells(&self) -> [String; 10] {
        let number =
            |value: Option<f64>, unit: &str| value.map_or(String::new(), |v| format!("{v:.2}{unit}"));
        [
            self.scenario.clone(),
            self.system.clone(),
            self.clients.to_string(),
            self.mb_per_s.map_or(String::new(), |v| format!("{v:.0}")),
            number(self.cpu_s_per_gb, ""),
            number(self.ratio_throughput, " x"),
            number(self.ratio_cpu, " x"),
            number(self.first_byte_p50_ms, " ms"),
            number(self.added_p50_ms, " ms"),
            number(self.origin_fetches, ""),
        ]
    }

    pub(crate) fn new(scenario: &str, system: &str, clients: usize) -> Self {
        Self { scenario: scenario.to_owned(), system: system.to_owned(), clients, ..Self::default() }
    }
}

impl Report {
    pub(crate) fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    pub(crate) fn print(&self) {
        println!();
        print_row(&HEADINGS.map(str::to_owned));
        for row in &self.0 {
            print_row(&row.cells());
        }
    }

    /// Writes `target/bench/proxy.json`.
    pub(crate) fn write(&self) -> Result<()> {
        target::write_results("proxy", &self.0)
    }
}

/// The value in the middle.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
