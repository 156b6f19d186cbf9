//! The directories of ordinary snapshots: `snapshots/<id>/fs` and, for active ones, `snapshots/<id>/work`; and what is
//! stacked on the layers of lazy ones: `dirs/<id>`. All options of a mount have to fit into a page, and an image of 127 layers
//! may need each of these, so the name is short.

use std::{
    collections::HashSet,
    ffi::OsStr,
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

/// Who owns a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

/// Where the directories are.
#[derive(Debug)]
pub(super) struct Dirs {
    snapshots: PathBuf,
    implied: PathBuf,
    /// What is to be deleted; on the same file system, so that a rename brings it here.
    trash: PathBuf,
    discarded: AtomicU64,
}

impl Owner {
    /// These ids of the host.
    pub(crate) fn new(uid: u32, gid: u32) -> Self {
        Self { uid, gid }
    }

    /// The owner of what is at `path`.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        Ok(Self { uid: meta.uid(), gid: meta.gid() })
    }
}

impl Dirs {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let dirs = Self {
            snapshots: root.join("snapshots"),
            implied: root.join("dirs"),
            trash: root.join("trash"),
            // Names in the trash need only differ from what an earlier run left there.
            discarded: AtomicU64::new(
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs() << 20),
            ),
        };
        for dir in [&dirs.snapshots, &dirs.implied, &dirs.trash] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        Ok(dirs)
    }

    /// The directory that becomes the upper layer, or one of the lower ones.
    pub(super) fn fs(&self, id: u64) -> PathBuf {
        self.dir(id).join("fs")
    }

    /// The attributes of the directories that a lazy snapshot's layer implies; there once somebody needed them.
    pub(super) fn implied(&self, id: u64) -> PathBuf {
        self.implied.join(id.to_string())
    }

    /// Whether this is the directory of an ordinary snapshot.
    pub(super) fn have(&self, dir: &Path) -> bool {
        dir.starts_with(&self.snapshots)
    }

    /// overlayfs' work directory.
    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.dir(id).join("work")
    }

    /// Makes a snapshot's directories, with exactly these modes whatever the umask is.
    pub(super) fn create(&self, id: u64, with_work: bool, owner: Option<Owner>) -> io::Result<()> {
        // Left over from a transaction that a crash undid.
        self.discard(id)?;
        make_dir(&self.dir(id), 0o700)?;
        make_dir(&self.fs(id), 0o755)?;
        if let Some(Owner { uid, gid }) = owner {
            lchown(self.fs(id), Some(uid), Some(gid))?;
        }
        if with_work {
            make_dir(&self.work(id), 0o711)?;
        }
        Ok(())
    }

    /// Puts a snapshot's directories aside to be deleted by [`Self::empty_trash`].
    pub(super) fn discard(&self, id: u64) -> io::Result<()> {
        self.put_aside(&self.dir(id))?;
        self.put_aside(&self.implied(id))
    }

    /// Puts everything aside that belongs to none of `ids`.
    pub(super) fn discard_orphans(&self, ids: &[u64]) -> io::Result<()> {
        let known: HashSet<String> = ids.iter().map(u64::to_string).collect();
        for entry in fs::read_dir(&self.snapshots)?.chain(fs::read_dir(&self.implied)?) {
            let path = entry?.path();
            // Without the ending of a directory that is still being made.
            let id = path.file_stem().and_then(OsStr::to_str);
            if !id.is_some_and(|id| known.contains(id)) {
                self.put_aside(&path)?;
            }
        }
        Ok(())
    }

    /// Deletes what was put aside. Slow; what cannot be deleted now stays for the next time.
    pub(super) fn empty_trash(&self) -> io::Result<()> {
        let mut failure = None;
        for entry in fs::read_dir(&self.trash)? {
            match fs::remove_dir_all(entry?.path()) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => failure = Some(err),
                _ => {}
            }
        }
        failure.map_or(Ok(()), Err)
    }

    fn dir(&self, id: u64) -> PathBuf {
        self.snapshots.join(id.to_string())
    }

    fn put_aside(&self, path: &Path) -> io::Result<()> {
        let aside = self.trash.join(self.discarded.fetch_add(1, Ordering::Relaxed).to_string());
        match fs::rename(path, aside) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        }
    }
}

fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    DirBuilder::new().mode(mode).create(path)?;
    fs::set_permissions(path, Permissions::from_mode(mode))
}
