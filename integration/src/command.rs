//! Programs that run to their end: what they print, and when.

use std::{
    ffi::{OsStr, OsString},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::Child,
    time::timeout,
};

use crate::{
    Lab,
    lab::{DEBIAN_PATH, MARK},
};

/// A program still running after this time hangs.
const DEADLINE: Duration = Duration::from_secs(300);

/// A program about to be run to its end in a lab.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    args: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    lab: Lab,
}

/// What a program printed, and when.
#[derive(Debug, Clone)]
pub struct Output {
    /// Everything it printed to its standard output.
    pub stdout: String,
    /// Everything it printed to its standard error.
    pub stderr: String,
    /// From its start to its first line on the standard output; `None` if it printed none.
    pub first_line: Option<Duration>,
    /// From its start to its end.
    pub elapsed: Duration,
}

// === impl Command ===

impl Command {
    /// `program` is one of Debian's, or a path.
    pub fn new(lab: &Lab, program: impl Into<OsString>) -> Self {
        Self { program: program.into(), args: Vec::new(), environment: Vec::new(), lab: lab.clone() }
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

    /// Runs it; an exit status other than 0 is an error that quotes what it printed.
    pub async fn run(self) -> Result<Output> {
        let started = Instant::now();
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.args)
            .env_clear()
            .envs([("PATH", DEBIAN_PATH), (MARK, self.lab.name())])
            .env("HOME", self.lab.dir())
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {self}"))?;
        let ended = timeout(DEADLINE, collect(&mut child, started)).await;
        let (status, output) = ended.with_context(|| format!("{self} runs longer than {DEADLINE:?}"))??;
        ensure!(status.success(), "{self}: {status}\n{}{}", output.stdout, output.stderr);
        Ok(output)
    }
}

impl std::fmt::Display for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.program.display())?;
        self.args.iter().try_for_each(|arg| write!(f, " {}", arg.display()))
    }
}

async fn collect(child: &mut Child, started: Instant) -> Result<(std::process::ExitStatus, Output)> {
    let mut stdout = BufReader::new(child.stdout.take().context("no standard output")?);
    let mut stderr = child.stderr.take().context("no standard error")?;
    let mut output =
        Output { stdout: String::new(), stderr: String::new(), first_line: None, elapsed: Duration::ZERO };
    let lines = async {
        while stdout.read_line(&mut output.stdout).await? > 0 {
            output.first_line.get_or_insert_with(|| started.elapsed());
        }
        anyhow::Ok(())
    };
    let errors = async { anyhow::Ok(stderr.read_to_string(&mut output.stderr).await?) };
    tokio::try_join!(lines, errors)?;
    let status = child.wait().await?;
    output.elapsed = started.elapsed();
    Ok((status, output))
}
