//! Programs that run in the background: a registry, containerd, dockerd, darter.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rand::RngExt;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{
    Lab, http,
    lab::{DEBIAN_PATH, MARK, log_tail},
    usage,
    wait::{DEADLINE, POLL},
};

/// How long a program may take to end after SIGTERM before it is killed.
const STOP_DEADLINE: Duration = Duration::from_secs(15);

/// How to start a program in the background.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: OsString,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

/// A program running in the background, in a process group of its own. Both its outputs go to `<lab>/<name>.log`.
/// It is stopped when this is dropped.
#[derive(Debug)]
pub struct Process {
    program: Program,
    lab: Lab,
    log: PathBuf,
    /// Where in the log the present run begins.
    log_start: usize,
    child: Child,
}

/// A loopback address that nobody listens on now.
///
/// From below the range that the kernel takes the ports of outgoing connections from, so that it is still free when
/// a program is restarted on it.
pub fn free_address() -> Result<SocketAddr> {
    for _ in 0..1000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, rand::rng().random_range(10_000..30_000)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port between 10000 and 30000 is free on 127.0.0.1")
}

fn read_from(log: &Path, start: usize) -> String {
    let log = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(log.get(start..).unwrap_or_default()).into_owned()
}

// === impl Program ===

impl Program {
    /// `path` is a path or the name of one of Debian's programs; `name` says which process of the lab it is.
    pub fn new(name: impl Into<String>, path: impl Into<OsString>) -> Self {
        Self { name: name.into(), path: path.into(), args: Vec::new(), environment: Vec::new() }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable; nothing but PATH and HOME is set otherwise.
    pub fn env(mut self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.environment.push((key.into(), value.into()));
        self
    }

    fn spawn(&self, lab: &Lab, log: &Path) -> Result<Child> {
        let log = File::options().create(true).append(true).open(log)?;
        Command::new(&self.path)
            .args(&self.args)
            .env_clear()
            .envs([("PATH", DEBIAN_PATH), (MARK, lab.name())])
            .env("HOME", lab.dir())
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .current_dir(lab.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", self.path.display()))
    }
}

// === impl Process ===

impl Process {
    /// Starts a program in a lab, without waiting for it.
    pub fn start(lab: &Lab, program: Program) -> Result<Self> {
        let log = lab.dir().join(format!("{}.log", program.name));
        let child = program.spawn(lab, &log)?;
        Ok(Self { program, lab: lab.clone(), log, log_start: 0, child })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time that it and its children have used so far.
    pub fn cpu_time(&self) -> Result<Duration> {
        let id = self.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children"))?;
        let children = children.split_whitespace().map(|child| usage::cpu_time(child.parse()?));
        children.chain([usage::cpu_time(id)]).sum()
    }

    /// What it has printed since it was last started.
    pub fn log(&self) -> String {
        read_from(&self.log, self.log_start)
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until `ready` says so.
    pub async fn until(&mut self, what: &str, mut ready: impl AsyncFnMut() -> bool) -> Result<()> {
        let deadline = Instant::now() + DEADLINE;
        while !ready().await {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended with {status} before {what}:\n{}", self.program.name, log_tail(&self.log));
            }
            if Instant::now() > deadline {
                bail!("{}: not yet {what} after {DEADLINE:?}:\n{}", self.program.name, log_tail(&self.log));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Waits until a GET of `url` is answered with a success.
    pub async fn until_http(&mut self, url: &str) -> Result<()> {
        let what = format!("{url} answered");
        self.until(&what, async || http::get(url).await.is_ok_and(|answer| answer.status.is_success())).await
    }

    /// Waits until the unix socket at `path` takes connections.
    pub async fn until_socket(&mut self, path: &Path) -> Result<()> {
        let what = format!("{} took connections", path.display());
        self.until(&what, async || tokio::net::UnixStream::connect(path).await.is_ok()).await
    }

    /// Waits until `text` stands in its log.
    pub async fn until_log(&mut self, text: &str) -> Result<()> {
        let (log, start) = (self.log.clone(), self.log_start);
        self.until(&format!("its log said {text:?}"), async || read_from(&log, start).contains(text)).await
    }

    /// Kills it and its process group at once, as a crash would.
    pub fn kill(&mut self) -> Result<()> {
        if self.is_running() {
            kill_process_group(self.pid()?, Signal::KILL)?;
        }
        self.child.wait()?;
        Ok(())
    }

    /// Stops it with SIGSTOP: its connections stay, and nothing is answered.
    pub fn freeze(&mut self) -> Result<()> {
        Ok(kill_process_group(self.pid()?, Signal::STOP)?)
    }

    /// Lets it go on after [`Self::freeze`].
    pub fn thaw(&mut self) -> Result<()> {
        Ok(kill_process_group(self.pid()?, Signal::CONT)?)
    }

    /// Asks it to end with SIGTERM and waits; kills it if it does not.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(status);
        }
        kill_process(self.pid()?, Signal::TERM)?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        self.kill()?;
        bail!("{} did not end within {STOP_DEADLINE:?} of SIGTERM and was killed", self.program.name)
    }

    /// Starts it again after it was killed or stopped, or has ended, without waiting until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        self.kill()?;
        self.log_start = fs::read(&self.log)?.len();
        self.child = self.program.spawn(&self.lab, &self.log)?;
        Ok(())
    }

    fn pid(&self) -> Result<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("no process id")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("stopping {}: {error:#}", self.program.name);
        }
    }
}
