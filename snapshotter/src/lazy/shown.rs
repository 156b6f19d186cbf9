//! One layer, all of it here, as the FUSE file system shows it: for tests of what layers look like.

use std::{path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use darter_peer::{Digest, LayerDescriptor, LayerFormat, MadeLayer, TaskError};
use futures_util::future::{BoxFuture, pending, ready};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::{
    LayerRef,
    files::LayerDir,
    fuse::{FuseMount, LayersFs},
    known::Known,
    layer::LazyLayer,
    probe::MemoryLeaves,
};
use crate::{
    engine::{Engine, NotAllowed, OpenLayer},
    image::Repository,
};

/// A mounted layer; unmounted when it is dropped.
pub(crate) struct Shown {
    path: PathBuf,
    fuse: Option<FuseMount>,
    _runtime: Runtime,
    _dir: TempDir,
}

/// Nobody has anything.
struct Nobody;

impl Shown {
    /// Mounts a layer that was made, with its raw tar.
    pub(crate) fn new(made: &MadeLayer, raw: &[u8]) -> Self {
        let dir = TempDir::new().unwrap();
        let descriptor = LayerDescriptor {
            format: LayerFormat,
            blob: made.diff_id.clone(),
            diff_id: made.diff_id.clone(),
            raw_len: made.raw_len,
            index: Digest::blake3(&made.index),
            index_len: made.index.len() as u64,
            table: made.table.root(),
            table_len: made.table.encode().len() as u64,
        };
        let open = OpenLayer {
            descriptor,
            table: Arc::new(made.table.clone()),
            index: Bytes::copy_from_slice(&made.index),
            leaves: Arc::new(MemoryLeaves::default()),
        };
        let repository = Repository { registry: "localhost".into(), name: "shown".into() };
        let (blob, diff_id) = (made.diff_id.clone(), made.diff_id.clone());
        let reference = LayerRef { repository, blob, diff_id };
        let layer = LayerDir::create(dir.path(), &reference, &open).unwrap();
        let layer = Arc::new(LazyLayer::load(layer, Arc::new(Nobody)).unwrap());
        for leaf in 0..layer.leaf_count() {
            let range = made.table.raw_range(leaf).unwrap();
            layer.raw.write(leaf, &raw[range.start as usize..range.end as usize]).unwrap();
        }
        let known = Arc::new(Known::default());
        known.insert(layer.clone());
        let runtime = Runtime::new().unwrap();
        let fs = LayersFs {
            known,
            open: Default::default(),
            runtime: runtime.handle().clone(),
            tasks: Default::default(),
            read_timeout: Duration::from_secs(10),
            metrics: Default::default(),
        };
        let fuse = FuseMount::mount(&dir.path().join("fuse"), fs).unwrap();
        Self { path: fuse.tree(layer.id), fuse: Some(fuse), _runtime: runtime, _dir: dir }
    }

    /// Where its tree is.
    pub(crate) fn path(&self) -> &std::path::Path {
        &self.path
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(fuse) = self.fuse.take() {
            fuse.unmount().unwrap();
        }
    }
}

impl Engine for Nobody {
    fn manifest<'a>(&'a self, _: &'a Repository, _: &'a Digest) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(pending())
    }

    fn tagged<'a>(&'a self, _: &'a Repository, _: &'a str) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(pending())
    }

    fn blob<'a>(&'a self, _: &'a Repository, _: &'a Digest) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(pending())
    }

    fn allows<'a>(&'a self, _: &'a LayerRef) -> BoxFuture<'a, Result<(), NotAllowed>> {
        Box::pin(pending())
    }

    fn layer<'a>(&'a self, _: &'a LayerRef) -> BoxFuture<'a, Result<OpenLayer, TaskError>> {
        Box::pin(pending())
    }

    fn local_layer<'a>(&'a self, _: &'a LayerRef) -> BoxFuture<'a, Option<OpenLayer>> {
        Box::pin(ready(None))
    }

    fn remove<'a>(&'a self, _: &'a LayerRef) -> BoxFuture<'a, ()> {
        Box::pin(ready(()))
    }

    fn start_profile<'a>(&'a self, _: &'a Digest) -> BoxFuture<'a, Option<Bytes>> {
        Box::pin(async { None })
    }

    fn share_start_profile<'a>(&'a self, _: &'a Digest, _: Bytes) -> BoxFuture<'a, ()> {
        Box::pin(async {})
    }

    fn blame<'a>(&'a self, _: &'a LayerDescriptor) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(ready(Ok(())))
    }
}
