//! Everything that can be seen of a directory tree, to compare two of them.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, Metadata},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::fs::{lgetxattr, llistxattr};

/// Every node of a tree, by its path relative to the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootFs {
    /// The root itself is at the empty path, without its time: images do not say it, it is when they were unpacked.
    pub nodes: BTreeMap<PathBuf, Entry>,
}

/// All that a program can learn of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it is, and what is in it.
    pub content: Content,
    /// Permissions, with set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// User and group id.
    pub owner: (u32, u32),
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, i64),
    /// Names that this node has; 1 for directories, whose number depends on the file system.
    pub links: u64,
    /// The first path, in order, that is this same node; its own path unless it is a hard link.
    pub same_as: PathBuf,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file: its length and BLAKE3.
    File(u64, blake3::Hash),
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(PathBuf),
    /// A character device and its number.
    CharDevice(u64),
    /// A block device and its number.
    BlockDevice(u64),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

// === impl RootFs ===

impl RootFs {
    /// Reads the tree under `root`, with the content of every file.
    pub fn read(root: &Path) -> Result<Self> {
        let mut paths = vec![PathBuf::new()];
        collect_paths(root, Path::new(""), &mut paths)?;
        paths.sort();
        let mut first_paths = HashMap::new();
        let mut nodes = BTreeMap::new();
        for path in paths {
            let full = root.join(&path);
            let entry = fs::symlink_metadata(&full).map_err(anyhow::Error::from).and_then(|metadata| {
                let first =
                    first_paths.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.clone());
                Entry::read(&full, &metadata, first.clone())
            });
            nodes.insert(path, entry.with_context(|| format!("reading {}", full.display()))?);
        }
        if let Some(root) = nodes.get_mut(Path::new("")) {
            root.mtime = (0, 0);
        }
        Ok(Self { nodes })
    }

    /// The node at a path, which must be there.
    pub fn at(&self, path: &str) -> Result<&Entry> {
        self.nodes.get(Path::new(path)).with_context(|| format!("there is no {path}"))
    }

    /// Fails with the differing nodes if `other` is not the same in everything.
    pub fn expect_same(&self, other: &Self) -> Result<()> {
        let paths =
            self.nodes.keys().chain(other.nodes.keys().filter(|path| !self.nodes.contains_key(*path)));
        let mut differences = Vec::new();
        for path in paths {
            let (ours, theirs) = (self.nodes.get(path), other.nodes.get(path));
            if ours != theirs {
                differences.push(format!("/{}:\n  {ours:?}\n  {theirs:?}", path.display()));
            }
        }
        ensure!(differences.is_empty(), "{} nodes differ:\n{}", differences.len(), first_lines(&differences));
        Ok(())
    }
}

fn first_lines(differences: &[String]) -> String {
    differences.iter().take(20).cloned().collect::<Vec<_>>().join("\n")
}

fn collect_paths(root: &Path, dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(dir)).with_context(|| format!("listing /{}", dir.display()))? {
        let entry = entry?;
        let path = dir.join(entry.file_name());
        paths.push(path.clone());
        if entry.file_type()?.is_dir() {
            collect_paths(root, &path, paths)?;
        }
    }
    Ok(())
}

// === impl Entry ===

impl Entry {
    fn read(path: &Path, metadata: &Metadata, same_as: PathBuf) -> Result<Self> {
        Ok(Self {
            content: Content::read(path, metadata)?,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            links: if metadata.is_dir() { 1 } else { metadata.nlink() },
            same_as,
            xattrs: xattrs(path)?,
        })
    }
}

impl Content {
    fn read(path: &Path, metadata: &Metadata) -> Result<Self> {
        let kind = metadata.file_type();
        Ok(if kind.is_dir() {
            Self::Dir
        } else if kind.is_symlink() {
            Self::Symlink(fs::read_link(path)?)
        } else if kind.is_char_device() {
            Self::CharDevice(metadata.rdev())
        } else if kind.is_block_device() {
            Self::BlockDevice(metadata.rdev())
        } else if kind.is_fifo() {
            Self::Fifo
        } else if kind.is_socket() {
            Self::Socket
        } else {
            let mut hasher = blake3::Hasher::new();
            let len = io::copy(&mut File::open(path)?, &mut hasher)?;
            Self::File(len, hasher.finalize())
        })
    }
}

/// The attributes of a node, without those that only the kernel and overlayfs itself use.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 64 * 1024];
    let len = llistxattr(path, &mut names)?;
    let names = names.split_at(len).0.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut xattrs = BTreeMap::new();
    for name in names.filter(|name| !name.starts_with(b"trusted.overlay.")) {
        let mut value = vec![0; 64 * 1024];
        let len = lgetxattr(path, std::ffi::OsStr::from_bytes(name), &mut value)?;
        value.truncate(len);
        xattrs.insert(name.to_owned(), value);
    }
    Ok(xattrs)
}
