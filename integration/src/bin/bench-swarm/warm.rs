//! Memory that the kernel has used before, for the stores of the peers.
//!
//! A virtual machine may give memory that it does not use back to its host, and then pays for each page with the first
//! byte that is written to it: so much that it would decide how fast 16 peers on one machine are.

use std::{
    convert::Infallible,
    fs::{self, File},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use rustix::fs::statvfs;
use tokio::{io::AsyncWriteExt as _, time::sleep};

/// How often memory is handed over.
const TICK: Duration = Duration::from_millis(100);
/// What the stores find ready, in bytes.
const AHEAD: u64 = 192 << 20;

/// A file in a tmpfs that makes room for the stores as they grow.
pub(crate) struct Warm {
    path: PathBuf,
    file: File,
    len: u64,
    /// What of the file system is used, this file included.
    used: u64,
}

impl Warm {
    /// Takes `len` bytes of the tmpfs at `memory`.
    pub(crate) async fn new(memory: &Path, len: u64) -> Result<Self> {
        let path = memory.join("warm");
        let mut file = tokio::fs::File::create(&path).await?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..len >> 20 {
            file.write_all(&zeros).await?;
        }
        file.flush().await?;
        let mut warm = Self { path, file: file.into_std().await, len, used: 0 };
        warm.used = warm.used_now()?;
        warm.shrink(AHEAD)?;
        Ok(warm)
    }

    /// Hands memory over until it is dropped.
    pub(crate) async fn hand_over(mut self) -> Result<Infallible> {
        loop {
            sleep(TICK).await;
            // What the stores took since, they took out of what was ready.
            let grown = (self.used_now()? + AHEAD).saturating_sub(self.used);
            self.shrink(grown)?;
        }
    }

    fn used_now(&self) -> Result<u64> {
        let stat = statvfs(&self.path)?;
        Ok((stat.f_blocks - stat.f_bfree) * stat.f_frsize)
    }

    fn shrink(&mut self, by: u64) -> Result<()> {
        self.len = self.len.saturating_sub(by);
        Ok(self.file.set_len(self.len)?)
    }
}

impl Drop for Warm {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}
