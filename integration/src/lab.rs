//! One test's own piece of the machine, and the promise that nothing of it is left behind.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

pub use self::leftovers::Leftovers;

mod leftovers;

/// Where labs are: on disk also where `/tmp` is a tmpfs, and short, since the path of a unix socket has at most
/// 107 bytes.
const LABS: &str = "/var/tmp";
/// Begins the name of every lab; the process id of its owner follows.
const PREFIX: &str = "dtr-";
/// The environment variable that carries the lab's name into every process started in it.
pub(crate) const MARK: &str = "DARTER_LAB";
/// Where the programs are that the harness runs: Debian's only, whatever else is on this machine.
pub(crate) const DEBIAN_PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
/// A test that is still running after this time hangs.
const TEST_DEADLINE: Duration = Duration::from_secs(480);

/// A directory with a short path in which programs run. When the last clone is dropped, every process started in it
/// (also shims and containers), every mount under it, its cgroups and the directory itself are removed.
///
/// A lab whose owner was killed before it could do so is removed when the next one is opened.
#[derive(Debug, Clone)]
pub struct Lab(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    dir: PathBuf,
}

/// Runs `test` in a lab of its own. Prints the end of every log if it fails, and fails if anything is left afterwards.
pub fn run_test(test: impl AsyncFnOnce(Lab) -> Result<()>) -> Result<()> {
    let lab = Lab::open()?;
    let (name, dir) = (lab.name().to_owned(), lab.dir().to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(async { tokio::time::timeout(TEST_DEADLINE, test(lab.clone())).await });
    let outcome = outcome.unwrap_or_else(|_| bail!("the test still runs after {TEST_DEADLINE:?}"));
    if outcome.is_err() {
        lab.print_logs();
    }
    runtime.shutdown_timeout(Duration::from_secs(10));
    drop(lab);
    let leftovers = Leftovers::of(&name, &dir)?;
    outcome?;
    ensure!(leftovers.is_empty() && !dir.exists(), "left behind: {leftovers:?}");
    Ok(())
}

// === impl Lab ===

impl Lab {
    /// Opens a new lab, after removing those whose owners are dead.
    pub fn open() -> Result<Self> {
        static OPENED: AtomicU32 = AtomicU32::new(0);
        remove_orphans()?;
        let name = format!("{PREFIX}{}-{}", std::process::id(), OPENED.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(LABS).join(&name);
        if dir.exists() {
            // Of a dead process that had our id.
            leftovers::remove(&name, &dir)?;
        }
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self(Arc::new(Inner { name, dir })))
    }

    /// Unique on this machine; also the name of the lab's cgroups and containerd namespaces.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The lab's directory.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Makes a directory in the lab, with those that lead to it.
    pub fn subdir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.0.dir.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(dir)
    }

    /// Writes a file in the lab, with the directories that lead to it.
    pub fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.0.dir.join(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }

    /// What there is of the lab on this machine right now.
    pub fn leftovers(&self) -> Result<Leftovers> {
        Leftovers::of(&self.0.name, &self.0.dir)
    }

    /// Prints the end of every log.
    pub fn print_logs(&self) {
        print_logs(&self.0.dir);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_logs(&self.dir);
        }
        if let Err(error) = leftovers::remove(&self.name, &self.dir) {
            eprintln!("{} could not be removed: {error:#}", self.dir.display());
        }
    }
}

fn print_logs(dir: &Path) {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut logs: Vec<_> = entries.map(|entry| entry.path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    logs.sort();
    for log in logs {
        eprintln!("--- the end of {}\n{}", log.display(), log_tail(&log));
    }
}

/// The last lines of a log, each cut to what a person may want to read of it.
pub(crate) fn log_tail(log: &Path) -> String {
    const LINES: usize = 30;
    const LINE_LEN: usize = 400;
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<String> = text.lines().map(|line| line.chars().take(LINE_LEN).collect()).collect();
    lines.split_at(lines.len().saturating_sub(LINES)).1.join("\n")
}

/// Removes the labs whose owners are dead.
pub fn remove_orphans() -> Result<()> {
    for entry in fs::read_dir(LABS)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Whoever else keeps something here does not name it after a process.
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            leftovers::remove(&name, &entry.path()).with_context(|| format!("removing the orphan {name}"))?;
        }
    }
    Ok(())
}
