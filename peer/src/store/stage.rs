//! A layer's leaves while the layer is being made: their table is not known before the end.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Entry, StoreError,
    directory::{make_private, sync_dir},
    inner::Inner,
    points::{Change, about_to},
    record::Record,
};
use crate::{Geometry, LeafDigest, LeafTable, TaskId, digest::leaf_digest};

/// The leaves of a layer that is being made, in order. Dropped before it is committed, it leaves nothing behind.
#[derive(Debug)]
pub struct Stage {
    store: Arc<Inner>,
    /// Where the file is; deleted with the stage unless it became an entry's.
    path: PathBuf,
    file: File,
    leaves: Vec<StagedLeaf>,
    len: u64,
    became_entry: bool,
}

#[derive(Debug)]
struct StagedLeaf {
    len: usize,
    digest: LeafDigest,
}

impl Stage {
    pub(super) fn new(store: Arc<Inner>) -> Result<Self, StoreError> {
        store.queue.check_open()?;
        let path = store.directory.stage().join(hex::encode(rand::random::<[u8; 16]>()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let open = || match about_to(Change::Make, &path).and_then(|_point| options.open(&path)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                make_private(&store.directory.stage())?;
                options.open(&path).map_err(StoreError::io("make", &path))
            }
            opened => opened.map_err(StoreError::io("make", &path)),
        };
        let file = open()?;
        Ok(Self { store, path, file, leaves: Vec::new(), len: 0, became_entry: false })
    }

    /// Adds the next leaf as it will be stored and sent.
    ///
    /// # Errors
    /// [`StoreError::Full`] if there is no room for it; the stage is as it was.
    pub fn append(&mut self, leaf: &[u8]) -> Result<(), StoreError> {
        self.store.queue.check_open()?;
        match self.write(leaf) {
            Err(error) if self.store.free_up(&error, None) => self.write(leaf)?,
            written => written?,
        }
        self.len += leaf.len() as u64;
        self.leaves.push(StagedLeaf { len: leaf.len(), digest: leaf_digest(leaf) });
        Ok(())
    }

    fn write(&self, leaf: &[u8]) -> Result<(), StoreError> {
        let room = self.store.reserve(leaf.len() as u64, None)?;
        self.store.write(&self.file, &self.path, leaf, self.len)?;
        room.keep();
        Ok(())
    }

    /// Makes the leaves a verified entry, which is durable when this returns. If the task is in the store already, that
    /// entry is completed and returned.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`] if the table is not of the leaves that were appended.
    pub fn commit(mut self, id: &TaskId, table: Arc<LeafTable>) -> Result<Arc<Entry>, StoreError> {
        let of_table = table.entries().iter().map(|entry| (entry.stored_len as usize, entry.digest));
        if !of_table.eq(self.leaves.iter().map(|leaf| (leaf.len, leaf.digest))) {
            return Err(StoreError::WrongDigest(id.clone()));
        }
        let synced = about_to(Change::Sync, &self.path).and_then(|_point| self.file.sync_data());
        synced.map_err(StoreError::io("sync", &self.path))?;
        let geometry = Geometry::Table(table);
        let record = match self.store.get(id) {
            Some(there) => there,
            None => self.publish(id, geometry.clone())?,
        };
        if record.geometry != geometry {
            return Err(StoreError::OtherGeometry(id.clone()));
        }
        let entry = Arc::new(Entry::new(self.store.clone(), record));
        let _pin = entry.pin();
        self.complete(&entry)?;
        self.store.queue.flush()?;
        Ok(entry)
    }

    /// Puts the file in its place and a record for it into the store; or returns the record that came first.
    fn publish(&mut self, id: &TaskId, geometry: Geometry) -> Result<Arc<Record>, StoreError> {
        let record = Arc::new(self.store.new_record(id, geometry));
        place(&self.path, &record.path).map_err(StoreError::io("write", &record.path))?;
        self.path.clone_from(&record.path);
        record.filled(self.leaves.iter().map(|leaf| leaf.digest));
        let shared = self.store.share_all(&record);
        self.len -= shared.held;
        match self.store.put_in(record.clone()) {
            Ok(()) => {
                self.became_entry = true;
                self.store.own_all(&record);
                Ok(record)
            }
            Err(first) => {
                self.store.room.freed(shared.holes);
                Ok(first)
            }
        }
    }

    /// Copies the leaves that the entry lacks.
    fn complete(&self, entry: &Entry) -> Result<(), StoreError> {
        let mut offset = 0;
        for (leaf, staged) in (0..).zip(&self.leaves) {
            if !entry.has(leaf) {
                let mut bytes = vec![0; staged.len];
                self.file.read_exact_at(&mut bytes, offset).map_err(StoreError::io("read", &self.path))?;
                entry.write_leaf(leaf, staged.digest, &bytes)?;
            }
            offset += staged.len as u64;
        }
        entry.mark_verified()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.became_entry {
            return;
        }
        self.store.room.give_back(self.len);
        if let Err(e) = fs::remove_file(&self.path) {
            tracing::warn!(error = %e, file = %self.path.display(), "store: cannot delete what was staged");
        }
    }
}

/// Moves a durable file; its new name is durable too when this returns.
fn place(from: &Path, to: &Path) -> io::Result<()> {
    let rename = || about_to(Change::Rename, to).and_then(|_point| fs::rename(from, to));
    if let Err(e) = rename() {
        let parent = to.parent().filter(|_| e.kind() == io::ErrorKind::NotFound).ok_or(e)?;
        make_private(parent).map_err(StoreError::into_io)?;
        rename()?;
    }
    to.ancestors().skip(1).take(2).try_for_each(sync_dir)
}
