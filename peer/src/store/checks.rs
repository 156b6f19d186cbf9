//! Which leaves of a file were read and compared with their digests a short time ago.

use std::{
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    time::{Duration, Instant},
};

use crate::LeafSet;

/// How long a check is trusted. What changes a file without the kernel's knowledge is a failing disk, and only where the
/// page cache has let go of the bytes meanwhile.
const LIFE: Duration = Duration::from_secs(600);

/// The leaves of one file that were checked, as long as nobody has changed the file since.
#[derive(Debug, Default)]
pub(super) struct Checks {
    version: Option<Version>,
    since: Option<Instant>,
    leaves: Option<LeafSet>,
}

/// Changes whenever the file is written to: its change time, which nobody can set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(i64, i64);

impl Version {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self(metadata.ctime(), metadata.ctime_nsec()))
    }
}

impl Checks {
    /// Whether a leaf was checked in this version of the file.
    pub(super) fn has(&self, leaf: u32, version: Version) -> bool {
        let fresh = self.since.is_some_and(|since| since.elapsed() < LIFE);
        fresh
            && self.version == Some(version)
            && self.leaves.as_ref().is_some_and(|leaves| leaves.contains(leaf))
    }

    /// Notes that a leaf, one of `of`, was right in this version of the file.
    pub(super) fn note(&mut self, leaf: u32, of: u32, version: Version) {
        let fresh = self.since.is_some_and(|since| since.elapsed() < LIFE);
        if !fresh || self.version != Some(version) {
            *self = Self { version: Some(version), since: Some(Instant::now()), leaves: None };
        }
        self.leaves.get_or_insert_with(|| LeafSet::new(of)).insert(leaf);
    }
}
