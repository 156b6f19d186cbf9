//! What processes have used so far: proc_pid_stat(5), proc_pid_status(5).

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// User and system time of a process.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    times(pid, 14)
}

/// User and system time of the children of this process that have ended and were waited for.
pub fn of_children() -> Result<Duration> {
    times(std::process::id(), 16)
}

/// The most memory that a process ever had resident, in bytes.
pub fn peak_memory(pid: u32) -> Result<u64> {
    memory(pid, "VmHWM:")
}

/// The memory that a process has resident, in bytes.
pub fn resident_memory(pid: u32) -> Result<u64> {
    memory(pid, "VmRSS:")
}

/// The sum of two fields of `/proc/pid/stat`, numbered from 1 as there; they count ticks, of 10 ms on Linux.
fn times(pid: u32, first: usize) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name, in parentheses, may hold anything. The state follows as the third field.
    let (_, fields) = stat.rsplit_once(')').context("no command in stat")?;
    let ticks = fields.split_whitespace().skip(first - 3).take(2).map(str::parse::<u64>);
    Ok(Duration::from_millis(ticks.sum::<Result<u64, _>>()? * 10))
}

fn memory(pid: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("status does not say {name}"))? * 1024)
}
