//! One entry of a tar, whatever dialect its header was written in.

use std::collections::BTreeMap;

/// Extended attributes by full name, `security.capability` for example.
pub(super) type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// What one entry of a tar says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// The path as the tar gives it.
    pub(super) path: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) attributes: Attributes,
}

/// What kind of file an entry makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    Directory,
    File(Extent),
    /// A file with holes.
    Sparse(Sparse),
    /// Another name for the entry with this path.
    HardLink(Vec<u8>),
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

/// Where a file's bytes lie in the raw tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// Where they start, in bytes; a multiple of 512.
    pub(super) offset: u64,
    /// How many there are.
    pub(super) len: u64,
}

/// Where a file with holes has its bytes in the raw tar: it is cut into chunks of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Length with the holes, in bytes.
    pub(super) len: u64,
    /// The length of a chunk: this power of two of 512 bytes.
    pub(super) chunk_bits: u32,
    /// Where each chunk begins, in blocks of 512 bytes; `None` for a hole.
    pub(super) chunks: Vec<Option<u32>>,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Device {
    /// At most 12 bits.
    pub(super) major: u32,
    /// At most 20 bits.
    pub(super) minor: u32,
}

/// What can be said of every kind of file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Attributes {
    /// Permission bits with setuid, setgid and sticky; no file type.
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Mtime,
    pub(super) xattrs: Xattrs,
}

/// When a file was last changed, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mtime {
    pub(super) seconds: u64,
    pub(super) nanos: u32,
}

impl Mtime {
    /// The time that containerd gives a file: what lies before 1970, or does not fit 64 bits of nanoseconds, is 1970.
    pub(super) fn bounded(seconds: i64, nanos: u32) -> Self {
        let last = i64::MAX as u64;
        let fits =
            |seconds: &u64| u128::from(*seconds) * 1_000_000_000 + u128::from(nanos) <= u128::from(last);
        u64::try_from(seconds).ok().filter(fits).map_or_else(Self::default, |seconds| Self { seconds, nanos })
    }
}
