//! What is kept of a layer on disk, so that it can be mounted again without any network: `layers/<diffID>/` with
//! `descriptor.json`, `table`, `index.erofs` and the raw tar ([`super::raw`]).

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use darter_peer::{Digest, LayerDescriptor, LeafTable};
use serde::{Deserialize, Serialize};

use super::LayerRef;
use crate::engine::OpenLayer;

/// The directory of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LayerDir(PathBuf);

/// `descriptor.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Described {
    /// Where the layer can be asked for.
    #[serde(flatten)]
    pub(super) reference: LayerRef,
    /// What was published of it.
    pub(super) layer: LayerDescriptor,
}

impl LayerDir {
    /// Where a layer's directory is, or would be.
    pub(super) fn of(layers: &Path, diff_id: &Digest) -> Self {
        Self(layers.join(diff_id.hex()))
    }

    /// All there are.
    pub(super) fn all(layers: &Path) -> io::Result<Vec<Self>> {
        fs::read_dir(layers)?.map(|entry| Ok(Self(entry?.path()))).collect()
    }

    /// Writes a layer's directory, complete or not at all.
    pub(super) fn create(layers: &Path, reference: &LayerRef, layer: &OpenLayer) -> io::Result<Self> {
        let dir = Self::of(layers, &reference.diff_id);
        let new = Self(dir.0.with_extension("new"));
        new.remove()?;
        dir.remove()?;
        DirBuilder::new().mode(0o700).create(&new.0)?;
        let described = Described { reference: reference.clone(), layer: layer.descriptor.clone() };
        write(&new.descriptor(), &serde_json::to_vec_pretty(&described)?)?;
        write(&new.table(), &layer.table.encode())?;
        write(&new.index(), &layer.index)?;
        File::open(&new.0)?.sync_all()?;
        fs::rename(&new.0, &dir.0)?;
        File::open(layers)?.sync_all()?;
        Ok(dir)
    }

    /// Reads back what [`Self::create`] wrote; anything that is not exactly that is an error.
    pub(super) fn load(&self) -> io::Result<(Described, Arc<LeafTable>)> {
        let described: Described = serde_json::from_slice(&fs::read(self.descriptor())?)?;
        let table = LeafTable::decode(&fs::read(self.table())?).map_err(io::Error::other)?;
        let layer = &described.layer;
        let expected = *self == Self::of(self.0.parent().unwrap_or(&self.0), &layer.diff_id)
            && described.reference.diff_id == layer.diff_id
            && table.root() == layer.table
            && table.raw_len() == layer.raw_len;
        if !expected {
            return Err(io::Error::other("its files do not belong together"));
        }
        Ok((described, Arc::new(table)))
    }

    /// The index, if it still is the one that was published; nothing else is used.
    pub(super) fn read_index(&self, layer: &LayerDescriptor) -> io::Result<Vec<u8>> {
        let index = fs::read(self.index())?;
        if index.len() as u64 != layer.index_len || Digest::blake3(&index) != layer.index {
            return Err(io::Error::other("its index on disk is damaged"));
        }
        Ok(index)
    }

    /// Removes everything.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn index(&self) -> PathBuf {
        self.0.join("index.erofs")
    }

    /// The raw tar, which [`super::raw`] fills.
    pub(super) fn raw(&self) -> PathBuf {
        self.0.join("raw")
    }

    fn descriptor(&self) -> PathBuf {
        self.0.join("descriptor.json")
    }

    fn table(&self) -> PathBuf {
        self.0.join("table")
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_data()
}
