//! Finds and removes what belongs to a lab: processes, mounts, cgroups, shim sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::{Pid, Signal, kill_process},
};

use super::MARK;
use crate::network;

/// How long killed processes may take to be gone, and mounts to be unmounted.
const PATIENCE: Duration = Duration::from_secs(20);

/// What there is of a lab on this machine.
#[derive(Debug)]
pub struct Leftovers {
    /// Processes started in the lab, their descendants and the containers they started, with their command lines.
    pub processes: BTreeMap<i32, String>,
    /// Mount points under the lab's directory, the deepest last.
    pub mounts: Vec<PathBuf>,
    /// Cgroups of the lab.
    pub cgroups: Vec<PathBuf>,
    /// Loop devices that have a file of the lab behind them.
    pub loop_devices: Vec<PathBuf>,
    /// Network namespaces of the lab.
    pub namespaces: Vec<String>,
}

// === impl Leftovers ===

impl Leftovers {
    /// Looks for everything that belongs to the lab of this name and directory.
    pub(crate) fn of(name: &str, dir: &Path) -> Result<Self> {
        Ok(Self {
            processes: processes(name)?,
            mounts: mounts_under(dir)?,
            cgroups: cgroups(name),
            loop_devices: loop_devices(dir),
            namespaces: network::namespaces(name),
        })
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
            && self.mounts.is_empty()
            && self.cgroups.is_empty()
            && self.loop_devices.is_empty()
            && self.namespaces.is_empty()
    }
}

/// Removes everything that belongs to the lab of this name and directory.
pub(super) fn remove(name: &str, dir: &Path) -> Result<()> {
    kill_processes(name)?;
    network::remove(&network::namespaces(name))?;
    remove_shim_sockets(dir);
    unmount_all(dir)?;
    for cgroup in cgroups(name) {
        fs::remove_dir(&cgroup).with_context(|| format!("removing {}", cgroup.display()))?;
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).context("removing the directory"),
        _ => Ok(()),
    }
}

// === processes ===

/// Processes that carry the lab's mark in their environment or run in one of its cgroups, and their descendants.
fn processes(name: &str) -> Result<BTreeMap<i32, String>> {
    let mark = format!("{MARK}={name}");
    let mut found = BTreeSet::new();
    let mut children = BTreeMap::<i32, Vec<i32>>::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        if parent_of(pid).map(|parent| children.entry(parent).or_default().push(pid)).is_none() {
            continue;
        }
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let in_cgroup = cgroups.lines().any(|line| line.split('/').any(|part| part == name));
        if in_cgroup || environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes()) {
            found.insert(pid);
        }
    }
    let mut to_visit: Vec<_> = found.iter().copied().collect();
    while let Some(pid) = to_visit.pop() {
        let new = children.get(&pid).into_iter().flatten().copied().filter(|child| found.insert(*child));
        to_visit.extend(new.collect::<Vec<_>>());
    }
    Ok(found.into_iter().map(|pid| (pid, command_line(pid))).collect())
}

/// The parent of a living process; `None` for a zombie, of which only its parent can rid us.
fn parent_of(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, and may itself contain anything: proc_pid_stat(5).
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_whitespace();
    (fields.next()? != "Z").then(|| fields.next()?.parse().ok())?
}

fn command_line(pid: i32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).replace('\0', " ")
}

fn kill_processes(name: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let processes = processes(name)?;
        if processes.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "these processes do not die: {processes:?}");
        for pid in processes.into_keys().filter_map(Pid::from_raw) {
            match kill_process(pid, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("killing process {pid:?}")),
            }
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// A shim listens below /run/containerd, wherever its containerd has its state; only the shim's bundle says where.
fn remove_shim_sockets(dir: &Path) {
    for bundle in shim_bundles(dir, 4) {
        let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
        if let Some(socket) = address.trim().strip_prefix("unix://") {
            // Gone already if the shim ended in peace.
            fs::remove_file(socket).ok();
        }
    }
}

/// The directories `io.containerd.runtime.v2.task/<namespace>/<container>` at most `depth` directories below `dir`.
fn shim_bundles(dir: &Path, depth: usize) -> Vec<PathBuf> {
    if dir.ends_with("io.containerd.runtime.v2.task") {
        return subdirs(dir).iter().flat_map(|namespace| subdirs(namespace)).collect();
    }
    if depth == 0 {
        return Vec::new();
    }
    subdirs(dir).iter().flat_map(|subdir| shim_bundles(subdir, depth - 1)).collect()
}

fn subdirs(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

// === mounts ===

fn mounts_under(dir: &Path) -> Result<Vec<PathBuf>> {
    let mountinfo = fs::read("/proc/self/mountinfo")?;
    let points =
        mountinfo.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(unescape).filter(|point| point.starts_with(dir)).collect())
}

/// A path as in mountinfo, where space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match (byte, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = after;
            }
            _ => path.push(byte),
        }
    }
    PathBuf::from(OsString::from_vec(path))
}

fn unmount_all(dir: &Path) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mounts = mounts_under(dir)?;
        if mounts.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "these cannot be unmounted: {mounts:?}");
        // What was mounted later may lie on top of what was mounted before.
        for point in mounts.iter().rev() {
            unmount(point.as_os_str().as_bytes(), UnmountFlags::DETACH)
                .with_context(|| format!("unmounting {}", point.display()))?;
        }
    }
}

fn loop_devices(dir: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let backed_by_us = |device: &PathBuf| {
        let file = fs::read(device.join("loop/backing_file")).unwrap_or_default();
        file.starts_with(dir.as_os_str().as_bytes())
    };
    devices.map(|entry| entry.path()).filter(backed_by_us).collect()
}

// === cgroups ===

/// The lab's cgroups, the innermost first: in the unified hierarchy and in each controller's of version 1.
fn cgroups(name: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut found = Vec::new();
    for hierarchy in hierarchies.chain([root.to_owned()]) {
        add_cgroups(&hierarchy.join(name), &mut found);
    }
    found
}

fn add_cgroups(cgroup: &Path, found: &mut Vec<PathBuf>) {
    if !cgroup.is_dir() {
        return;
    }
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        add_cgroups(&entry.path(), found);
    }
    found.push(cgroup.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_spaces_are_read() {
        assert_eq!(unescape(br"/a\040b\134c"), Path::new(r"/a b\c"));
        assert_eq!(unescape(br"/a\04"), Path::new(r"/a\04"));
    }

    #[test]
    fn a_parent_is_found_and_a_zombie_has_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while let Some(parent) = parent_of(pid) {
            assert_eq!(parent, i32::try_from(std::process::id()).unwrap());
            thread::yield_now();
        }
        child.wait().unwrap();
    }
}
