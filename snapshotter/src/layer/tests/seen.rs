//! What a walk over a mounted tree sees.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::fs::{lgetxattr, llistxattr};

/// Everything about one file but its inode number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) owner: (u32, u32),
    pub(super) mtime: (i64, i64),
    /// Other names of the same inode.
    pub(super) also: Vec<PathBuf>,
    pub(super) links: u64,
    pub(super) xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File { len: u64, digest: String },
    Symlink(PathBuf),
    CharDevice(u64),
    BlockDevice(u64),
    Fifo,
}

/// Walks a tree; the root's path is empty.
pub(super) fn walk(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut seen = BTreeMap::new();
    let mut inodes: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let meta = fs::symlink_metadata(&full).unwrap();
        inodes.entry(meta.ino()).or_default().push(path.clone());
        if meta.is_dir() {
            let entries = fs::read_dir(&full).unwrap();
            todo.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
        }
        seen.insert(path, look(&full, &meta));
    }
    for paths in inodes.into_values() {
        for path in &paths {
            let mut also: Vec<_> = paths.iter().filter(|other| *other != path).cloned().collect();
            also.sort();
            seen.get_mut(path).unwrap().also = also;
        }
    }
    seen
}

fn look(path: &Path, meta: &fs::Metadata) -> Seen {
    let kind = match meta.file_type() {
        kind if kind.is_dir() => Kind::Directory,
        kind if kind.is_symlink() => Kind::Symlink(fs::read_link(path).unwrap()),
        kind if kind.is_char_device() => Kind::CharDevice(meta.rdev()),
        kind if kind.is_block_device() => Kind::BlockDevice(meta.rdev()),
        kind if kind.is_fifo() => Kind::Fifo,
        _ => {
            let data = fs::read(path).unwrap();
            assert_eq!(data.len() as u64, meta.len(), "{path:?}");
            Kind::File { len: meta.len(), digest: blake3::hash(&data).to_string() }
        }
    };
    Seen {
        kind,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        also: Vec::new(),
        links: meta.nlink(),
        xattrs: xattrs(path),
    }
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 65536];
    let len = llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let len = lgetxattr(path, name, value.as_mut_slice()).unwrap();
        value[..len].to_vec()
    };
    names.map(|name| (String::from_utf8(name.to_vec()).unwrap(), value(name))).collect()
}

/// Compares two walks; says which paths differ, and how.
pub(super) fn assert_same(found: &BTreeMap<PathBuf, Seen>, expected: &BTreeMap<PathBuf, Seen>) {
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, expected.keys().collect::<Vec<_>>());
    for (path, seen) in found {
        assert_eq!(seen, &expected[path], "{path:?}");
    }
}
