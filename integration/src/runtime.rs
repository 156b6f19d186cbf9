//! Container runtimes of other versions than this Debian has, and the configuration that users get for each.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
};

use anyhow::{Context, Result};

use crate::{Lab, command::Command, lab::DEBIAN_PATH, target};

/// What brings them here.
const FETCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/runtimes.sh");

/// The programs of one Debian release: containerd, runc, docker.
#[derive(Debug, Clone)]
pub struct Runtime {
    bin: Option<PathBuf>,
}

impl Runtime {
    /// Those of this machine.
    pub fn installed() -> Self {
        Self { bin: None }
    }

    /// Those of another release, `trixie` or `sid`, fetched if they are not here yet.
    pub async fn of_debian(lab: &Lab, release: &str) -> Result<Self> {
        let cache = target::cache("runtimes")?;
        Command::new(lab, FETCH).arg(&cache).arg(release).run().await?;
        Ok(Self { bin: Some(cache.join(release).join("bin")) })
    }

    /// The value of `PATH` with which its programs find each other.
    pub(crate) fn path(&self) -> OsString {
        let debian = OsString::from(DEBIAN_PATH);
        self.bin.iter().fold(debian, |path, bin| [bin.as_os_str(), &path].join(OsStr::new(":")))
    }

    /// One of its programs, to be run to its end.
    pub fn command(&self, lab: &Lab, program: &str) -> Command {
        Command::new(lab, program).env("PATH", self.path())
    }

    /// What a program says to `--version`, in short: `1.7.24`.
    pub async fn version(&self, lab: &Lab, program: &str) -> Result<String> {
        let printed = self.command(lab, program).arg("--version").run().await?.stdout;
        let mut words = printed.split_whitespace().map(|word| word.trim_start_matches('v'));
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let digits = |c: char| c.is_ascii_digit() || c == '.';
        let version = version.with_context(|| format!("{program} tells no version: {printed}"))?;
        Ok(version.split(|c| !digits(c)).next().unwrap_or_default().to_owned())
    }
}
