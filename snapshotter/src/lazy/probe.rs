//! Finds out whether this machine can mount lazy layers at all, by mounting one that holds a single file.

use std::{fs, io, sync::Arc};

use bytes::Bytes;
use darter_peer::{Class, Digest, LayerDescriptor, LayerFormat, LayerMaker, LeafSink, MadeLayer, TaskError};
use futures_util::future::{BoxFuture, ready};

use super::{LayerRef, Layers};
use crate::{
    engine::{Leaves, OpenLayer},
    image::Repository,
    layer::Maker,
};

const NAME: &str = "probe";
const CONTENT: &[u8] = b"a file whose bytes come through FUSE";

/// Leaves that are in memory.
#[derive(Default)]
pub(super) struct MemoryLeaves(pub(super) Vec<Bytes>);

impl LeafSink for MemoryLeaves {
    fn leaf(&mut self, stored: &[u8]) -> io::Result<()> {
        self.0.push(Bytes::copy_from_slice(stored));
        Ok(())
    }
}

impl Leaves for MemoryLeaves {
    fn leaf(&self, leaf: u32, _: Class) -> BoxFuture<'_, Result<Bytes, TaskError>> {
        let stored = self.0.get(leaf as usize).cloned();
        Box::pin(ready(stored.ok_or_else(|| TaskError::Local(format!("there is no leaf {leaf}")))))
    }

    fn fill(&self) {}
}

/// Mounts a small layer, reads its file and removes it again.
pub(super) async fn probe(layers: &Arc<Layers>) -> Result<(), String> {
    let (reference, layer) = tokio::task::spawn_blocking(small_layer)
        .await
        .map_err(|err| err.to_string())?
        .map_err(|err| format!("a test layer cannot be made: {err}"))?;
    drop(layers.add(&reference, layer).await.map_err(|err| err.to_string())?);
    let read = match layers.mount_only(&reference).await {
        Ok(dir) => tokio::task::spawn_blocking(move || fs::read(dir.join(NAME))).await,
        Err(error) => Ok(Err(io::Error::other(error))),
    };
    layers.collect([&reference.diff_id]).await;
    match read {
        Ok(Ok(content)) if content == CONTENT => Ok(()),
        Ok(Ok(_)) => Err("a test layer shows other bytes than it should".into()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn small_layer() -> io::Result<(LayerRef, OpenLayer)> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(CONTENT.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, NAME, CONTENT)?;
    open_layer(&tar.into_inner()?)
}

/// Makes a layer out of an uncompressed tar, with its leaves in memory.
pub(crate) fn open_layer(tar: &[u8]) -> io::Result<(LayerRef, OpenLayer)> {
    let mut leaves = MemoryLeaves::default();
    let made = Maker::new().make(&mut &*tar, &mut leaves).map_err(io::Error::other)?;
    let MadeLayer { diff_id, raw_len, index, table } = made;
    let blob = Digest::sha256(tar);
    let descriptor = LayerDescriptor {
        format: LayerFormat,
        blob: blob.clone(),
        diff_id: diff_id.clone(),
        raw_len,
        index: Digest::blake3(&index),
        index_len: index.len() as u64,
        table: table.root(),
        table_len: table.encode().len() as u64,
    };
    let repository = Repository { registry: "localhost".into(), name: "probe".into() };
    let reference = LayerRef { repository, blob, diff_id };
    let open =
        OpenLayer { descriptor, table: Arc::new(table), index: Bytes::from(index), leaves: Arc::new(leaves) };
    Ok((reference, open))
}
