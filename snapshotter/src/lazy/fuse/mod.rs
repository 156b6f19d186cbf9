//! The FUSE file system of the node: one flat read-only file per lazy layer, the layer's raw tar, named by the hex
//! digits of its diffID.
//!
//! The files never change, so the kernel may keep whatever it has read. A read whose bytes are here is answered at once
//! by the thread that got it; any other one is answered by a task of the runtime, within a deadline.

mod mount;

use std::{
    collections::HashMap,
    ffi::OsStr,
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use darter_peer::Digest;
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, Notifier, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use parking_lot::Mutex;
use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use tracing::error;

pub(super) use self::mount::{FuseMount, is_connected};
use super::{
    known::Known,
    layer::{LayerId, LayerRef, LazyLayer, ReadError},
};
use crate::metrics::{Metrics, ReadResult};

/// How long the kernel may keep names and attributes.
const TTL: Duration = Duration::from_secs(24 * 3600);
/// Read-ahead and other background requests at a time.
const MAX_BACKGROUND: u16 = 64;

/// What answers the kernel.
pub(super) struct LayersFs {
    pub(super) known: Arc<Known>,
    /// Layers whose files are open, with how often. They stay readable after they were collected.
    pub(super) open: Mutex<HashMap<u64, (Arc<LazyLayer>, u32)>>,
    pub(super) runtime: Handle,
    pub(super) tasks: TaskTracker,
    pub(super) read_timeout: Duration,
    pub(super) metrics: Metrics,
}

/// Has the kernel forget what it read of a layer. Blocks until the kernel's reads that are under way have ended.
pub(super) fn invalidate(notifier: &Notifier, id: LayerId) -> io::Result<()> {
    notifier.inval_inode(INodeNo(id.0), 0, 0)
}

impl LayersFs {
    fn layer(&self, ino: INodeNo) -> Option<Arc<LazyLayer>> {
        let open = self.open.lock().get(&ino.0).map(|(layer, _)| layer.clone());
        open.or_else(|| self.known.by_id(LayerId(ino.0)))
    }

    fn named(&self, name: &OsStr) -> Option<Arc<LazyLayer>> {
        let diff_id: Digest = format!("sha256:{}", name.to_str()?).parse().ok()?;
        self.known.get(&diff_id)
    }

    /// Answers a read whose bytes are not all here, from a task.
    fn read_later(&self, layer: Arc<LazyLayer>, offset: u64, len: usize, reply: ReplyData) {
        let (deadline, metrics) = (self.read_timeout, self.metrics.clone());
        let reply = Answer(Some(reply));
        let answer = async move {
            let reason = match timeout(deadline, layer.read(offset, len)).await {
                Ok(Ok(bytes)) => {
                    metrics.read_bytes.inc_by(bytes.len() as u64);
                    return reply.data(&bytes);
                }
                Ok(Err(ReadError::Stopping)) => return,
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("not there after {deadline:?}: {}", layer.last_failure()),
            };
            metrics.read_errors.inc();
            let LayerRef { repository, diff_id, .. } = &layer.reference;
            error!(image = %repository, layer = %diff_id, offset, len, %reason, "a read of a layer failed");
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
        for wanted in [InitFlags::FUSE_MAX_PAGES, InitFlags::FUSE_PARALLEL_DIROPS] {
            config.add_capabilities(wanted).ok();
        }
        config.set_max_background(MAX_BACKGROUND).ok();
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.named(name).filter(|_| parent == INodeNo::ROOT) {
            Some(layer) => reply.entry(&TTL, &file_attr(&layer), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if ino == INodeNo::ROOT {
            return reply.attr(&TTL, &attr(ino, FileType::Directory, 0o500, 0));
        }
        match self.layer(ino) {
            Some(layer) => reply.attr(&TTL, &file_attr(&layer)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let Some(layer) = self.layer(ino) else { return reply.error(Errno::ENOENT) };
        self.open.lock().entry(ino.0).or_insert((layer, 0)).1 += 1;
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
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
        if let Some((_, count)) = open.get_mut(&ino.0) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&ino.0);
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
        let Some(layer) = self.layer(ino) else { return reply.error(Errno::ENOENT) };
        match layer.read_held(offset, size as usize) {
            Some(Ok(bytes)) => {
                self.metrics.read(ReadResult::Hit);
                self.metrics.read_bytes.inc_by(bytes.len() as u64);
                reply.data(&bytes);
            }
            Some(Err(error)) => {
                self.metrics.read_errors.inc();
                let LayerRef { repository, diff_id, .. } = &layer.reference;
                error!(image = %repository, layer = %diff_id, offset, size, %error, "a read of a layer failed");
                reply.error(Errno::EIO);
            }
            None => {
                self.metrics.read(ReadResult::Miss);
                self.read_later(layer, offset, size as usize, reply);
            }
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if ino != INodeNo::ROOT {
            return reply.error(Errno::ENOTDIR);
        }
        let mut layers = self.known.all();
        layers.sort_by_key(|layer| layer.id.0);
        let files =
            layers.iter().map(|layer| (layer.id.0, FileType::RegularFile, layer.reference.diff_id.hex()));
        let dots = [".", ".."].map(|name| (INodeNo::ROOT.0, FileType::Directory, name.to_owned()));
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        for (next, (ino, kind, name)) in (1u64..).zip(dots.into_iter().chain(files)).skip(skip) {
            if reply.add(INodeNo(ino), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        // The kernel never asks again.
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }
}

fn file_attr(layer: &LazyLayer) -> FileAttr {
    attr(INodeNo(layer.id.0), FileType::RegularFile, 0o400, layer.raw.len())
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
