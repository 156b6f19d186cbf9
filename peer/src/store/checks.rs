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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
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
        if fresh && self.version > Some(version) {
            // Whoever changed the file meanwhile may have changed this leaf.
            return;
        }
        if !fresh || self.version != Some(version) {
            *self = Self { version: Some(version), since: Some(Instant::now()), leaves: None };
        }
        self.leaves.get_or_insert_with(|| LeafSet::new(of)).insert(leaf);
    }

    /// Notes that a leaf, one of `of`, was written and is right, which made the file's second version of the first. What
    /// was checked in the first still counts.
    pub(super) fn wrote(&mut self, leaf: u32, of: u32, versions: [Version; 2]) {
        let [before, after] = versions;
        if self.version == Some(before) {
            self.version = Some(after);
        }
        self.note(leaf, of, after);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_writes_keep_what_was_checked() {
        let mut checks = Checks::default();
        let [v1, v2, v3, v4] = [1, 2, 3, 4].map(|second| Version(second, 0));
        checks.wrote(5, 9, [v1, v2]);
        checks.wrote(6, 9, [v2, v3]);
        assert!(checks.has(5, v3) && checks.has(6, v3) && !checks.has(7, v3) && !checks.has(5, v2));
        // What was read before the last write may be older than what another one wrote.
        checks.note(7, 9, v2);
        assert!(checks.has(5, v3) && !checks.has(7, v3));
        // Somebody else wrote before this one.
        checks.wrote(8, 9, [Version(3, 1), v4]);
        assert!(checks.has(8, v4) && !checks.has(5, v4) && !checks.has(6, v4));
    }
}
