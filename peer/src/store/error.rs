//! Why the store could not do something.

use std::{io, path::PathBuf};

use bytesize::ByteSize;

use crate::TaskId;

/// Why the store could not do something. No variant leaves an entry inconsistent.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process (or this one) has the directory open.
    #[error("the store {} is in use by another process: stop it, or set another `dir`", dir.display())]
    InUse {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The directory must not be used as a store.
    #[error("{} cannot be used as a store: {reason}", dir.display())]
    Unusable {
        /// The store's directory.
        dir: PathBuf,
        /// What is wrong with it, and what to do.
        reason: String,
    },
    /// A system call failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata could not be read or written.
    #[error("the store's metadata failed: {0}")]
    Metadata(#[from] Box<redb::Error>),
    /// There is no room, and nothing that may be evicted to make some.
    #[error(
        "no room in the store for {}: {} of {} used, {} free on the file system of which {} must stay free, \
         and nothing else can be evicted; raise `quota`, lower `min_free`, or free disk space",
        ByteSize(*needed), ByteSize(*used), ByteSize(*quota), ByteSize(*free), ByteSize(*min_free)
    )]
    Full {
        /// Bytes that were to be stored.
        needed: u64,
        /// Bytes that contents take.
        used: u64,
        /// Most bytes that they may take.
        quota: u64,
        /// Bytes free on the file system.
        free: u64,
        /// Bytes that must stay free.
        min_free: u64,
    },
    /// The task is there with another geometry.
    #[error("{0} is stored with another geometry: remove it first")]
    OtherGeometry(TaskId),
    /// The content is longer than any the store takes.
    #[error("{id} is refused: {len} bytes are more than the {max} that the store takes")]
    TooLong {
        /// The task.
        id: TaskId,
        /// Its length in bytes.
        len: u64,
        /// The most that is taken.
        max: u64,
    },
    /// The task has no such leaf, or no such byte.
    #[error("{id} has no leaf {leaf}")]
    NoLeaf {
        /// The task.
        id: TaskId,
        /// The leaf.
        leaf: u32,
    },
    /// The bytes are not as long as the leaf.
    #[error("leaf {leaf} of {id} has {expected} bytes, got {got}")]
    WrongLength {
        /// The task.
        id: TaskId,
        /// The leaf.
        leaf: u32,
        /// The leaf's length in bytes.
        expected: u64,
        /// Length of what was given.
        got: u64,
    },
    /// The bytes do not have the digest that the id or the leaf table says.
    #[error("the bytes for {0} do not have the digest that it is named by")]
    WrongDigest(TaskId),
    /// The leaf is not here.
    #[error("leaf {leaf} of {id} is not in the store")]
    NotHeld {
        /// The task.
        id: TaskId,
        /// The leaf.
        leaf: u32,
    },
    /// The disk returned something else than was written. The leaf has been dropped: fetch it again.
    #[error("leaf {leaf} of {id} was damaged on disk and has been dropped")]
    Rotten {
        /// The task.
        id: TaskId,
        /// The leaf.
        leaf: u32,
    },
    /// The entry was evicted or removed: get or create it anew.
    #[error("{0} is no longer in the store")]
    Removed(TaskId),
    /// Leaves are missing.
    #[error("{0} is not complete")]
    Incomplete(TaskId),
    /// The last writing of metadata failed; it is tried again.
    #[error("the store could not be flushed: {0}")]
    Flush(String),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether the leaf that was to be read is not here, or not any more: it can be fetched again.
    pub fn is_loss(&self) -> bool {
        matches!(self, Self::NotHeld { .. } | Self::Rotten { .. } | Self::Removed(_))
    }

    /// Whether the metadata could not be read or written because the file system is full.
    pub(super) fn is_disk_full(&self) -> bool {
        match self {
            Self::Metadata(error) => matches!(&**error, redb::Error::Io(error) if is_disk_full(error)),
            _ => false,
        }
    }

    /// What the system said, if it did.
    pub(super) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            other => io::Error::other(other),
        }
    }

    /// For `map_err`: what was tried, on which file.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }
}

/// Whether the file system said that it is full (`ENOSPC`, `EDQUOT`).
pub(super) fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
