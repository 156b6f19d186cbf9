//! What the numbers were measured on.

use std::{fs, thread};

use rustix::system::uname;

/// One line: processors, memory, kernel.
pub fn describe() -> String {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let processor = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned());
    let memory =
        field("/proc/meminfo", "MemTotal").and_then(|text| text.split(' ').next()?.parse::<f64>().ok());
    let gigabytes = memory.unwrap_or_default() * 1024.0 / 1e9;
    let kernel = uname();
    let release = kernel.release().to_string_lossy();
    format!("This machine: {cores} cores ({processor}), {gigabytes:.0} GB of memory, Linux {release}.")
}

/// The first value of a `name: value` line.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1;
    Some(value.trim().to_owned())
}
