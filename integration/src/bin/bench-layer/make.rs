//! Makes layers as a seed peer does, apart from the network: the blob is hashed leaf by leaf, the leaves are written to
//! a file that is made durable.

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    thread,
};

use anyhow::{Result, ensure};
use darter_integration::usage;
use darter_peer::{
    LayerMaker, LeafSink, MadeLayer,
    digest::{Algorithm, Hasher, leaf_digest},
};
use darter_snapshotter::layer::Maker;
use rustix::fs::{Mode, OFlags};
use serde_json::json;

/// Makes a layer of each blob, all at once; prints the sum of what came out as JSON.
pub(crate) fn all(blobs: &[PathBuf]) -> Result<()> {
    let maker = Maker::new();
    let stored = thread::scope(|scope| {
        let making: Vec<_> = blobs.iter().map(|blob| scope.spawn(|| make(&maker, blob))).collect();
        let made = making
            .into_iter()
            .map(|made| made.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        made.sum::<Result<u64>>()
    })?;
    println!("{}", json!({ "stored": stored, "peak_rss": usage::peak_memory(std::process::id())? }));
    Ok(())
}

/// Makes one layer; says how long its leaves are as they are stored.
fn make(maker: &Maker, blob: &Path) -> Result<u64> {
    let mut blob = Blob { file: File::open(blob)?, hasher: Algorithm::Sha256.hasher() };
    let mut leaves = Leaves(unnamed_file()?);
    let MadeLayer { raw_len, table, .. } = maker.make(&mut blob, &mut leaves)?;
    leaves.0.sync_data()?;
    ensure!(table.raw_len() == raw_len, "the table is of another layer");
    std::hint::black_box(blob.hasher.finish());
    Ok(table.stored_len())
}

/// A blob that is checked while it is read.
struct Blob {
    file: File,
    hasher: Hasher,
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.file.read(buffer)?;
        if let Some(bytes) = buffer.get(..len) {
            self.hasher.update(bytes);
            std::hint::black_box(leaf_digest(bytes));
        }
        Ok(len)
    }
}

struct Leaves(File);

impl LeafSink for Leaves {
    fn leaf(&mut self, stored: &[u8]) -> io::Result<()> {
        self.0.write_all(stored)
    }
}

/// A file that goes with its last handle.
fn unnamed_file() -> Result<File> {
    Ok(File::from(rustix::fs::open(
        &super::subject::dir()?,
        OFlags::TMPFILE | OFlags::WRONLY,
        Mode::RUSR | Mode::WUSR,
    )?))
}
