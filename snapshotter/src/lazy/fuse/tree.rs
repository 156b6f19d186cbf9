//! The layers' trees, as the FUSE file system shows them to kernels that do not mount the index themselves.
//!
//! What a layer holds never changes, so the kernel may keep everything that it was told, also that a name does not exist.

use std::{
    ffi::OsStr,
    io,
    os::unix::ffi::OsStrExt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fuser::{FileAttr, FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use super::{TTL, attr};
use crate::lazy::{
    index::{Index, Inode, Nid, Place},
    layer::LazyLayer,
};

/// An inode of a layer's tree.
pub(super) struct TreeNode {
    pub(super) layer: Arc<LazyLayer>,
    index: Arc<Index>,
    inode: Inode,
    nid: Nid,
}

impl TreeNode {
    /// The inode with this number; the first one of a layer blocks until its index is read.
    pub(super) fn open(layer: Arc<LazyLayer>, nid: Nid) -> io::Result<Self> {
        let index = layer.index()?;
        Ok(Self { inode: index.inode(nid)?, layer, index, nid })
    }

    /// A layer's top directory.
    pub(super) fn top(layer: Arc<LazyLayer>) -> io::Result<Self> {
        let nid = layer.index()?.root()?;
        Self::open(layer, nid)
    }

    pub(super) fn attr(&self) -> FileAttr {
        self.attr_of(self.nid, &self.inode)
    }

    pub(super) fn lookup(&self, name: &OsStr) -> io::Result<Option<FileAttr>> {
        let Some(nid) = self.index.lookup(&self.inode, name.as_bytes())? else { return Ok(None) };
        Ok(Some(self.attr_of(nid, &self.index.inode(nid)?)))
    }

    pub(super) fn target(&self) -> io::Result<Vec<u8>> {
        self.index.target(&self.inode)
    }

    /// Where the bytes of a file lie.
    pub(super) fn places(&self, offset: u64, len: usize) -> io::Result<Vec<Place>> {
        self.index.places(&self.inode, offset, len)
    }

    /// The value of an extended attribute.
    pub(super) fn xattr(&self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let xattrs = self.index.xattrs(&self.inode)?;
        let found = xattrs.into_iter().find(|(known, _)| known == name.as_bytes());
        Ok(found.map(|(_, value)| value.to_vec()))
    }

    /// The names of all extended attributes, each ended by a zero.
    pub(super) fn xattr_names(&self) -> io::Result<Vec<u8>> {
        let xattrs = self.index.xattrs(&self.inode)?;
        Ok(xattrs.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect())
    }

    /// Lists names from the `skip`th on, until the answer is full.
    pub(super) fn list(&self, skip: u64, reply: &mut ReplyDirectory) -> io::Result<()> {
        let entries = self.index.entries(&self.inode, usize::try_from(skip).unwrap_or(usize::MAX))?;
        for (next, entry) in (skip + 1..).zip(entries) {
            let entry = entry?;
            let kind = kind_of(self.index.inode(entry.nid)?.mode);
            let ino = self.layer.id.ino(entry.nid);
            if reply.add(INodeNo(ino), next, kind, OsStr::from_bytes(entry.name)) {
                break;
            }
        }
        Ok(())
    }

    /// The same with the attributes of what the names lead to.
    pub(super) fn list_plus(&self, skip: u64, reply: &mut ReplyDirectoryPlus) -> io::Result<()> {
        let entries = self.index.entries(&self.inode, usize::try_from(skip).unwrap_or(usize::MAX))?;
        for (next, entry) in (skip + 1..).zip(entries) {
            let entry = entry?;
            let attr = self.attr_of(entry.nid, &self.index.inode(entry.nid)?);
            let name = OsStr::from_bytes(entry.name);
            if reply.add(attr.ino, next, name, &TTL, &attr, Generation(0)) {
                break;
            }
        }
        Ok(())
    }

    fn attr_of(&self, nid: Nid, inode: &Inode) -> FileAttr {
        let time = time(inode.mtime);
        FileAttr {
            atime: time,
            mtime: time,
            ctime: time,
            nlink: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            // Both the index and FUSE write device numbers as the kernel does.
            rdev: inode.device,
            ..attr(
                INodeNo(self.layer.id.ino(nid)),
                kind_of(inode.mode),
                (inode.mode & 0o7777) as u16,
                inode.size,
            )
        }
    }
}

/// The numbers of all files in a layer's tree.
pub(super) fn files(layer: &LazyLayer) -> io::Result<Vec<INodeNo>> {
    let index = layer.index()?;
    let mut files = Vec::new();
    let mut directories = vec![index.root()?];
    while let Some(directory) = directories.pop() {
        let directory = index.inode(directory)?;
        for entry in index.entries(&directory, 0)? {
            let entry = entry?;
            match kind_of(index.inode(entry.nid)?.mode) {
                FileType::RegularFile => files.push(INodeNo(layer.id.ino(entry.nid))),
                FileType::Directory if !matches!(entry.name, b"." | b"..") => directories.push(entry.nid),
                _ => {}
            }
        }
    }
    Ok(files)
}

fn kind_of(mode: u32) -> FileType {
    match mode & 0o170_000 {
        0o010_000 => FileType::NamedPipe,
        0o020_000 => FileType::CharDevice,
        0o040_000 => FileType::Directory,
        0o060_000 => FileType::BlockDevice,
        0o120_000 => FileType::Symlink,
        0o140_000 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

fn time((seconds, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let second = if seconds < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
    second.and_then(|second| second.checked_add(Duration::new(0, nanos))).unwrap_or(UNIX_EPOCH)
}
