//! The directory: what lies where, who may use it, and that only one process does.
//!
//! ```text
//! VERSION            the layout's version
//! lock               locked with flock(2) while a process uses the store
//! store.redb         metadata
//! content/ab/cdef…   one data file per task, written at each leaf's own offset
//! stage/             layers being made
//! reserve            room for the metadata of a store on a full disk
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, statvfs};

use super::{
    StoreError,
    points::{Change, about_to},
};
use crate::TaskId;

/// Length of the reserve in bytes: more than the metadata needs to be opened and written once.
const RESERVE: u64 = 2 << 20;
const VERSION: &str = "darter store 1\n";
/// What a directory may hold that becomes a store: what a first start leaves that was interrupted, and what mkfs makes.
const HARMLESS: [&str; 3] = ["lock", "VERSION.new", "lost+found"];

/// The paths inside a store's directory.
#[derive(Debug, Clone)]
pub(super) struct Directory {
    root: PathBuf,
}

/// The lock on a directory, held while this lives.
#[derive(Debug)]
pub(super) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // To close the file is not enough: a child process that is just being started still has it until its exec.
        if let Err(e) = flock(&self.0, FlockOperation::Unlock) {
            tracing::warn!(error = %e, "store: cannot unlock the directory");
        }
    }
}

impl Directory {
    /// Makes or checks the directory and locks it.
    pub(super) fn open(root: &Path) -> Result<(Self, Lock), StoreError> {
        make_private(root)?;
        check_owner(root)?;
        let lock = lock(root)?;
        let directory = Self { root: root.to_owned() };
        directory.check_version()?;
        for path in [directory.content(), directory.stage()] {
            make_private(&path)?;
        }
        sync_dir(root).map_err(StoreError::io("sync", root))?;
        Ok((directory, lock))
    }

    /// The metadata file.
    pub(super) fn metadata(&self) -> PathBuf {
        self.root.join("store.redb")
    }

    /// Where the data files are.
    pub(super) fn content(&self) -> PathBuf {
        self.root.join("content")
    }

    /// Where layers are made.
    pub(super) fn stage(&self) -> PathBuf {
        self.root.join("stage")
    }

    /// A task's data file. The generation makes it another file after the task was removed and created again, so that
    /// metadata from before a crash can never speak of bytes from after the removal.
    pub(super) fn data_file(&self, id: &TaskId, generation: u64) -> PathBuf {
        let hash = blake3::hash(id.as_str().as_bytes()).to_hex();
        let (first, rest) = hash.split_at(2);
        self.content().join(first).join(format!("{rest}.{generation:016x}"))
    }

    /// Bytes that an unprivileged process could still write to the file system.
    pub(super) fn free(&self) -> io::Result<u64> {
        let stat = statvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Sets room aside, if there is some: on a full disk not even the metadata could be opened.
    pub(super) fn keep_reserve(&self) {
        let path = self.root.join("reserve");
        if path.exists() {
            return;
        }
        let file = File::create(&path);
        let kept = file.and_then(|file| Ok(fallocate(&file, FallocateFlags::empty(), 0, RESERVE)?));
        if let Err(error) = kept {
            tracing::debug!(%error, "store: no room can be set aside");
            self.use_reserve();
        }
    }

    /// Gives the room free that was set aside; false if there was none.
    pub(super) fn use_reserve(&self) -> bool {
        fs::remove_file(self.root.join("reserve")).is_ok()
    }

    fn check_version(&self) -> Result<(), StoreError> {
        let path = self.root.join("VERSION");
        match fs::read_to_string(&path) {
            Ok(found) if found == VERSION => Ok(()),
            Ok(found) => Err(self.unusable(format!(
                "its VERSION says {:?}, this program knows {:?}; use the program that made it, or another `dir`",
                found.trim_end(),
                VERSION.trim_end()
            ))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.claim(&path),
            Err(e) => Err(StoreError::io("read", path)(e)),
        }
    }

    /// Makes an empty directory a store; one that holds other things is refused, since a store deletes what it does
    /// not know.
    fn claim(&self, version: &Path) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.root).map_err(StoreError::io("list", &self.root))? {
            let name = entry.map_err(StoreError::io("list", &self.root))?.file_name();
            if !HARMLESS.iter().any(|harmless| name == *harmless) {
                return Err(self.unusable(format!(
                    "it is no store and holds {name:?}; set `dir` to an empty directory"
                )));
            }
        }
        let new = self.root.join("VERSION.new");
        let write = || {
            let point = about_to(Change::Make, &new)?;
            let mut file = File::create(&new)?;
            file.write_all(VERSION.as_bytes())?;
            file.sync_all()?;
            drop(point);
            let _point = about_to(Change::Rename, version)?;
            fs::rename(&new, version)
        };
        write().map_err(StoreError::io("write", version))
    }

    fn unusable(&self, reason: String) -> StoreError {
        StoreError::Unusable { dir: self.root.clone(), reason }
    }
}

/// Makes a directory that only its owner may enter, with its parents.
pub(super) fn make_private(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(StoreError::io("make", path))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    let _point = about_to(Change::Sync, path)?;
    File::open(path)?.sync_all()
}

/// Whoever may write into the directory could plant files, so it must be this user's alone.
fn check_owner(root: &Path) -> Result<(), StoreError> {
    let unusable = |reason| StoreError::Unusable { dir: root.to_owned(), reason };
    let found = fs::metadata(root).map_err(StoreError::io("look at", root))?;
    let me = rustix::process::geteuid().as_raw();
    if found.uid() != me {
        return Err(unusable(format!(
            "it belongs to user {}, this program runs as {me}; chown it",
            found.uid()
        )));
    }
    if found.mode() & 0o022 != 0 {
        return Err(unusable(format!(
            "others may write to it (mode {:03o}); chmod 0700 it",
            found.mode() & 0o777
        )));
    }
    if found.mode() & 0o077 != 0 {
        fs::set_permissions(root, fs::Permissions::from_mode(0o700))
            .map_err(StoreError::io("chmod", root))?;
    }
    Ok(())
}

fn lock(root: &Path) -> Result<Lock, StoreError> {
    let path = root.join("lock");
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let file = file.map_err(StoreError::io("open", &path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(StoreError::InUse { dir: root.to_owned() }),
        Err(e) => Err(StoreError::io("lock", path)(e.into())),
    }
}
