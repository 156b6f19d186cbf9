//! What processes have used so far: proc_pid_stat(5), proc_pid_status(5).

use std::fs;

use anyhow::{Context, Result};

/// Seconds of one tick of the kernel's accounting (`USER_HZ`).
const TICK: f64 = 0.01;

/// User and system time of a process in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the name in parentheses, and may itself contain anything.
    let rest = stat.rfind(')').and_then(|end| stat.get(end + 1..)).context("no name in stat")?;
    let ticks = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<f64>().unwrap_or(0.0));
    Ok(ticks.sum::<f64>() * TICK)
}

/// The most memory that a process ever had resident, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).context("no peak memory in status")
}

/// User and system time of the children of this process that have ended and were waited for, in seconds.
pub fn of_children() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let rest = stat.rfind(')').and_then(|end| stat.get(end + 1..)).context("no name in stat")?;
    let ticks = rest.split_whitespace().skip(13).take(2).map(|field| field.parse::<f64>().unwrap_or(0.0));
    Ok(ticks.sum::<f64>() * TICK)
}
