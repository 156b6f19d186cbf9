//! The FUSE file system of the node: for every lazy layer a flat read-only file, the layer's raw tar, named by its id and
//! `.raw`; and a directory with the layer's tree ([`tree`]), named by its id.
//!
//! Nothing here ever changes, so the kernel may keep whatever it has read. A read whose bytes are here is answered at once
//! by the thread that got it; any other one is answered by a task of the runtime, within a deadline.
//!
//! Inode numbers are made from a layer's id and its index, and file handles are not used: the next daemon knows them
//! too. So the tree's files and directories are never opened (ENOSYS): the kernel opens them by itself from then on.

mod mount;
mod tree;

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::error;

pub(super) use self::mount::{FuseMount, is_connected};
use self::tree::TreeNode;
use super::{
    index::Place,
    known::Known,
    layer::{LayerId, LayerRef, LazyLayer, ReadError},
};
use crate::metrics::{Metrics, ReadResult};

/// How long the kernel may keep names and attributes.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Read-ahead and other background requests at a time.
const MAX_BACKGROUND: u16 = 64;

/// What the name of a raw tar ends with.
const RAW_SUFFIX: &str = ".raw";

/// What answers the kernel.
pub(super) struct LayersFs {
    pub(super) known: Arc<Known>,
    /// Layers whose files are open, with how often. They stay readable after they were collected.
    pub(super) open: Mutex<HashMap<LayerId, (Arc<LazyLayer>, u32)>>,
    pub(super) runtime: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) read_timeout: Duration,
    pub(super) metrics: Metrics,
}

/// Has the kernel forget what it read of a layer. Blocks until the kernel's reads that are under way have ended.
pub(super) fn invalidate(notifier: &Notifier, layer: &LazyLayer) -> io::Result<()> {
    notifier.inval_inode(INodeNo(layer.id.ino(0)), 0, 0)?;
    tree::files(layer)?.into_iter().try_for_each(|file| notifier.inval_inode(file, 0, 0))
}

/// What an inode number stands for.
enum Node {
    /// The top directory of the file system.
    Root,
    /// The raw tar of a layer.
    Raw(Arc<LazyLayer>),
    /// Something in a layer's tree.
    Tree(TreeNode),
}

impl LayersFs {
    fn layer(&self, id: LayerId) -> Option<Arc<LazyLayer>> {
        let open = self.open.lock().get(&id).map(|(layer, _)| layer.clone());
        open.or_else(|| self.known.by_id(id))
    }

    fn node(&self, ino: INodeNo) -> Result<Node, Errno> {
        if ino == INodeNo::ROOT {
            return Ok(Node::Root);
        }
        let (id, nid) = LayerId::of_ino(ino.0);
        // Whoever still sees one that is not known any more sees a discarded one.
        let layer = self.layer(id).ok_or(Errno::EIO)?;
        if nid == 0 {
            Ok(Node::Raw(layer))
        } else {
            Ok(Node::Tree(TreeNode::open(layer, nid).map_err(failed)?))
        }
    }

    fn tree_node(&self, ino: INodeNo, otherwise: Errno) -> Result<TreeNode, Errno> {
        match self.node(ino)? {
            Node::Tree(node) => Ok(node),
            Node::Root | Node::Raw(_) => Err(otherwise),
        }
    }

    /// What a name leads to; `None` if to nothing, now and ever.
    fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Option<FileAttr>, Errno> {
        match self.node(parent)? {
            // There may be more layers later.
            Node::Root => self.named(name).ok_or(Errno::ENOENT)?.map(Some).map_err(failed),
            Node::Raw(_) => Err(Errno::ENOTDIR),
            Node::Tree(node) => node.lookup(name).map_err(failed),
        }
    }

    fn named(&self, name: &OsStr) -> Option<io::Result<FileAttr>> {
        let name = name.to_str()?;
        let raw_of = name.strip_suffix(RAW_SUFFIX);
        let layer = self.known.by_id(raw_of.unwrap_or(name).parse().ok()?)?;
        match raw_of {
            Some(_) => Some(Ok(raw_attr(&layer))),
            None => Some(TreeNode::top(layer).map(|top| top.attr())),
        }
    }

    /// Which bytes of which layer a read is for.
    fn places(&self, ino: INodeNo, offset: u64, len: u32) -> Result<(Arc<LazyLayer>, Vec<Place>), Errno> {
        match self.node(ino)? {
            Node::Root => Err(Errno::EISDIR),
            Node::Raw(layer) => Ok((layer, vec![Place::raw(offset, len)])),
            Node::Tree(node) => {
                let places = node.places(offset, len as usize).map_err(failed)?;
                Ok((node.layer, places))
            }
        }
    }

    /// Has fetched what the reader of these places will read next.
    fn read_on(&self, layer: &Arc<LazyLayer>, places: &[Place]) {
        let next = layer.read_next(places);
        if !next.is_empty() {
            let (deadline, layer) = (self.read_timeout, layer.clone());
            let fetch = async move { drop(timeout(deadline, layer.fetch_ahead(next)).await) };
            self.tasks.spawn_on(fetch, &self.runtime);
        }
    }

    /// Answers a read whose bytes are not all here, from a task.
    fn read_later(&self, layer: Arc<LazyLayer>, places: Vec<Place>, reply: ReplyData) {
        let (deadline, metrics) = (self.read_timeout, self.metrics.clone());
        let reply = Answer(Some(reply));
        let answer = async move {
            let reason = match timeout(deadline, layer.read(&places)).await {
                Ok(Ok(bytes)) => {
                    metrics.read_bytes.inc_by(bytes.len() as u64);
                    return reply.data(&bytes);
                }
                Ok(Err(ReadError::Stopping)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not there after {deadline:?}: {}", layer.last_failure()),
            };
            read_failed(&metrics, &layer, &places, &reason);
            reply.failed();
        };
        self.tasks.spawn_on(answer, &self.runtime);
    }
}

/// The answer to a read that waits. One that is dropped without an answer, because the daemon is stopping, is left to the
/// next daemon: the kernel asks it again.
struct Answer(Option<ReplyData>);

impl Answer {
    fn data(mut self, bytes: &[u8]) {
        if let Some(reply) = self.0.take() {
            reply.data(bytes);
        }
    }

    fn failed(mut self) {
        if let Some(reply) = self.0.take() {
            reply.error(Errno::EIO);
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // `fuser` answers what is dropped with EIO, which is right only after a panic.
        if !std::thread::panicking() {
            std::mem::forget(self.0.take());
        }
    }
}

impl Filesystem for LayersFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Where the kernel lacks one of these, it works all the same, only slower.
        let wanted = [
            InitFlags::FUSE_MAX_PAGES,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // For pods with a user namespace of their own (Linux 6.12).
            InitFlags::FUSE_ALLOW_IDMAP,
        ];
        for wanted in wanted {
            config.add_capabilities(wanted).ok();
        }
        config.set_max_background(MAX_BACKGROUND).ok();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.find(parent, name) {
            Ok(Some(attr)) => reply.entry(&TTL, &attr, Generation(0)),
            // Number 0 stands for nothing, and may be remembered like something.
            Ok(None) => {
                reply.entry(&TTL, &attr(INodeNo(0), FileType::RegularFile, 0, 0), Generation(0));
            }
            Err(error) => reply.error(error),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino) {
            Ok(Node::Root) => reply.attr(&TTL, &root_attr()),
            Ok(Node::Raw(layer)) => reply.attr(&TTL, &raw_attr(&layer)),
            Ok(Node::Tree(node)) => reply.attr(&TTL, &node.attr()),
            Err(error) => reply.error(error),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.tree_node(ino, Errno::EINVAL).and_then(|node| node.target().map_err(failed)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(error),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.node(ino) {
            Ok(Node::Raw(layer)) => {
                let mut open = self.open.lock();
                let (opened, count) = open.entry(layer.id).or_insert((layer.clone(), 0));
                (*opened, *count) = (layer, *count + 1);
                drop(open);
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
            }
            Ok(Node::Root | Node::Tree(_)) => reply.error(Errno::ENOSYS),
            Err(error) => reply.error(error),
        }
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match ino {
            INodeNo::ROOT => reply.opened(FileHandle(0), FopenFlags::empty()),
            _ => reply.error(Errno::ENOSYS),
        }
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let mut open = self.open.lock();
        let (id, _) = LayerId::of_ino(ino.0);
        if let Some((_, count)) = open.get_mut(&id) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&id);
            }
        }
        drop(open);
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let (layer, places) = match self.places(ino, offset, size) {
            Ok(places) => places,
            Err(error) => return reply.error(error),
        };
        self.read_on(&layer, &places);
        match layer.read_held(&places) {
            Some(Ok(bytes)) => {
                self.metrics.read(ReadResult::Hit);
                self.metrics.read_bytes.inc_by(bytes.len() as u64);
                reply.data(&bytes);
            }
            Some(Err(error)) => {
                read_failed(&self.metrics, &layer, &places, &error.to_string());
                reply.error(Errno::EIO);
            }
            None => {
                self.metrics.read(ReadResult::Miss);
                self.read_later(layer, places, reply);
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = match self.node(ino) {
            Ok(Node::Root) => {
                let full =
                    |(next, attr, name): (u64, FileAttr, String)| reply.add(attr.ino, next, attr.kind, name);
                self.names(offset).any(full);
                Ok(())
            }
            Ok(Node::Raw(_)) => Err(Errno::ENOTDIR),
            Ok(Node::Tree(node)) => node.list(offset, &mut reply).map_err(failed),
            Err(error) => Err(error),
        };
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = match self.node(ino) {
            Ok(Node::Root) => {
                let full = |(next, attr, name): (u64, FileAttr, String)| {
                    reply.add(attr.ino, next, name, &TTL, &attr, Generation(0))
                };
                self.names(offset).any(full);
                Ok(())
            }
            Ok(Node::Raw(_)) => Err(Errno::ENOTDIR),
            Ok(Node::Tree(node)) => node.list_plus(offset, &mut reply).map_err(failed),
            Err(error) => Err(error),
        };
        match listed {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // Never ENOSYS: the kernel would take it for an answer about all layers.
        let found = self.tree_node(ino, Errno::ENODATA);
        let value = found.and_then(|node| node.xattr(name).map_err(failed)?.ok_or(Errno::ENODATA));
        answer_xattr(value, size, reply);
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = match self.node(ino) {
            Ok(Node::Tree(node)) => node.xattr_names().map_err(failed),
            Ok(Node::Root | Node::Raw(_)) => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        answer_xattr(names, size, reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

impl LayersFs {
    /// The names in the top directory; nothing but who looks around needs them.
    fn names(&self, skip: u64) -> impl Iterator<Item = (u64, FileAttr, String)> {
        let mut layers = self.known.all();
        layers.sort_by_key(|layer| layer.id);
        let of_layer = |layer: Arc<LazyLayer>| {
            let raw = (raw_attr(&layer), raw_name(layer.id));
            let name = layer.id.to_string();
            let tree = TreeNode::top(layer).ok().map(|top| (top.attr(), name));
            [raw].into_iter().chain(tree)
        };
        let dots = [".", ".."].map(|name| (root_attr(), name.to_owned()));
        let all = dots.into_iter().chain(layers.into_iter().flat_map(of_layer));
        let numbered = (1u64..).zip(all).map(|(next, (attr, name))| (next, attr, name));
        numbered.skip(usize::try_from(skip).unwrap_or(usize::MAX))
    }
}

/// The name of a layer's raw tar.
fn raw_name(id: LayerId) -> String {
    format!("{id}{RAW_SUFFIX}")
}

/// Counts and logs a read that fails.
fn read_failed(metrics: &Metrics, layer: &LazyLayer, places: &[Place], reason: &str) {
    metrics.read_errors.inc();
    let LayerRef { repository, diff_id, .. } = &layer.reference;
    error!(image = %repository, layer = %diff_id, ?places, reason, "a read of a layer failed");
}

/// An index that was checked when it was made says something that it cannot: its disk is failing.
fn failed(error: io::Error) -> Errno {
    error!(%error, "an index cannot be read");
    Errno::EIO
}

/// Answers with a value, or only with its length where a length of 0 asks for that (`getxattr(2)`).
fn answer_xattr(value: Result<Vec<u8>, Errno>, size: u32, reply: ReplyXattr) {
    match value {
        Ok(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX)),
        Ok(value) if value.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(value) => reply.data(&value),
        Err(error) => reply.error(error),
    }
}

fn root_attr() -> FileAttr {
    attr(INodeNo::ROOT, FileType::Directory, 0o500, 0)
}

fn raw_attr(layer: &LazyLayer) -> FileAttr {
    attr(INodeNo(layer.id.ino(0)), FileType::RegularFile, 0o400, layer.raw.len())
}

fn attr(ino: INodeNo, kind: FileType, perm: u16, size: u64) -> FileAttr {
    let time = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino,
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
