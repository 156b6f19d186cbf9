//! What is done on a root file system.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::FileExt},
    path::Path,
    ptr, thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rand::{RngExt, SeedableRng, rngs::SmallRng};
use rustix::{
    fs::sync,
    mm::{MapFlags, ProtFlags, mmap, munmap},
};
use serde::Serialize;

use crate::{
    mounts::Root,
    subject::{BINARY, LONG, TREE},
};

/// Length of a page, and of a random read, in bytes.
const PAGE: usize = 4096;
const RANDOM_READS: usize = 4000;
/// A warm workload is repeated for so long.
const WARM_TIME: Duration = Duration::from_millis(400);
/// What the disk still does when caches are dropped may end meanwhile.
const PAUSE: Duration = Duration::from_millis(300);

/// One way of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Workload {
    /// The long file from the beginning to the end, 1 MiB at a time.
    Sequential,
    /// 4 KiB at random places of the long file, one after the other.
    Random,
    /// A stat of every name in the tree.
    FindStat,
    /// A tar of the tree, which goes nowhere.
    SmallFiles,
    /// One byte of every page of the mapped binary, in their order.
    Mmap,
}

impl Workload {
    pub(crate) const ALL: [Self; 5] =
        [Self::Sequential, Self::Random, Self::FindStat, Self::SmallFiles, Self::Mmap];

    /// For people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential read",
            Self::Random => "random 4 KiB reads",
            Self::FindStat => "find + stat",
            Self::SmallFiles => "tar of small files",
            Self::Mmap => "mmap of a binary",
        }
    }

    /// Seconds with nothing in the page cache.
    pub(crate) fn run_cold(self, root: &Root, round: usize) -> Result<f64> {
        sync();
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        thread::sleep(PAUSE);
        let started = Instant::now();
        self.run(&root.0, round)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Seconds with everything in the page cache.
    pub(crate) fn run_warm(self, root: &Root, round: usize) -> Result<f64> {
        self.run(&root.0, round)?;
        let (started, mut runs) = (Instant::now(), 0);
        while started.elapsed() < WARM_TIME {
            self.run(&root.0, round)?;
            runs += 1;
        }
        Ok(started.elapsed().as_secs_f64() / f64::from(runs))
    }

    fn run(self, root: &Path, round: usize) -> Result<()> {
        match self {
            Self::Sequential => sequential(&root.join(LONG)),
            Self::Random => random(&root.join(LONG), round),
            Self::FindStat => {
                ensure!(find(&root.join(TREE))? > 0, "the tree is empty");
                Ok(())
            }
            Self::SmallFiles => {
                let mut tar = tar::Builder::new(io::sink());
                tar.append_dir_all("tree", root.join(TREE))?;
                Ok(tar.finish()?)
            }
            Self::Mmap => map(&root.join(BINARY)),
        }
    }
}

fn sequential(path: &Path) -> Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer)? > 0 {}
    Ok(())
}

fn random(path: &Path, round: usize) -> Result<()> {
    let file = File::open(path)?;
    let pages = file.metadata()?.len() / PAGE as u64;
    let mut rng = SmallRng::seed_from_u64(round as u64);
    let mut buffer = [0; PAGE];
    for _ in 0..RANDOM_READS {
        file.read_exact_at(&mut buffer, rng.random_range(0..pages) * PAGE as u64)?;
    }
    Ok(())
}

fn find(dir: &Path) -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        found += 1;
        if fs::symlink_metadata(&path)?.is_dir() {
            found += find(&path)?;
        }
    }
    Ok(found)
}

#[expect(unsafe_code, reason = "mapping a file is what is measured")]
fn map(path: &Path) -> Result<()> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len())?;
    // SAFETY: a new mapping at a place that the kernel chooses; nobody changes or cuts the file while it lives.
    let start = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file.as_fd(), 0)? };
    let mut sum = 0u64;
    for offset in (0..len).step_by(PAGE) {
        // SAFETY: within the mapping.
        sum += u64::from(unsafe { ptr::read_volatile(start.cast::<u8>().add(offset)) });
    }
    // SAFETY: nothing refers to the mapping any more.
    unsafe { munmap(start, len)? };
    ensure!(sum > 0, "{} is all zeros", path.display());
    Ok(())
}
