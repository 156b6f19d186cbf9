//! What a start makes of what the last run left, however that ended.
//!
//! A leaf that the metadata names was durable before the metadata said so; so it is there unless somebody tampered with
//! the file, and then the digest tells when it is read. Everything else is deleted: files that no row names, leaves
//! that lie beyond the end of their file, rows whose file is gone, what was staged.

use std::{collections::HashSet, fs, io, path::Path, sync::Arc};

use super::{
    StoreError,
    directory::Directory,
    layers::parts,
    metadata::{Loaded, LoadedTask},
    points::{Change, about_to},
    queue::Queue,
    record::Record,
};
use crate::LayerDescriptor;

/// What the store starts with.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) records: Vec<Arc<Record>>,
    pub(super) layers: Vec<LayerDescriptor>,
}

/// Makes the directory and what was loaded agree; corrections of rows go to the queue.
pub(super) fn recover(directory: &Directory, loaded: Loaded, queue: &Queue) -> Result<Recovered, StoreError> {
    let mut records = Vec::with_capacity(loaded.tasks.len());
    for task in loaded.tasks {
        let id = task.id.clone();
        match recover_task(directory, task)? {
            Some((record, corrected)) => {
                let record = Arc::new(record);
                if corrected {
                    queue.changed(&record, 0);
                }
                records.push(record);
            }
            None => queue.removed(&id),
        }
    }
    delete_others(directory, &records)?;
    let layers = recover_layers(loaded.layers, &records, queue);
    Ok(Recovered { records, layers })
}

/// The task's record and whether it differs from its rows; `None` if nothing is left of it.
fn recover_task(directory: &Directory, mut task: LoadedTask) -> Result<Option<(Record, bool)>, StoreError> {
    let path = directory.data_file(&task.id, task.generation);
    let file_len = match fs::metadata(&path) {
        Ok(found) => found.len(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => 0,
        Err(e) => return Err(StoreError::io("look at", path)(e)),
    };
    let own: Vec<u32> = task.leaves.own().collect();
    let mut corrected = false;
    for leaf in own {
        if task.geometry.leaf_range(leaf).is_none_or(|range| range.end > file_len) {
            corrected |= task.leaves.remove(leaf);
        }
    }
    if corrected {
        tracing::warn!(task = %task.id, file = %path.display(), "store: a data file is shorter than it was");
    }
    if task.leaves.held().count() == 0 && !task.geometry.is_empty() {
        return Ok(None);
    }
    let verified = task.verified && task.leaves.held().is_full();
    corrected |= verified != task.verified;
    let (id, geometry) = (task.id, task.geometry);
    let record = Record::stored(id, geometry, task.generation, path, task.leaves, verified, task.last_use);
    Ok(Some((record, corrected)))
}

/// Deletes the data files that belong to no record, and what was staged.
fn delete_others(directory: &Directory, records: &[Arc<Record>]) -> Result<(), StoreError> {
    let known: HashSet<&Path> = records.iter().map(|record| record.path.as_path()).collect();
    for shard in list(&directory.content())? {
        if !shard.is_dir() {
            continue;
        }
        for file in list(&shard)?.iter().filter(|file| !known.contains(file.as_path())) {
            let deleted = about_to(Change::Delete, file).and_then(|_point| fs::remove_file(file));
            deleted.map_err(StoreError::io("delete", file))?;
        }
    }
    for file in list(&directory.stage())? {
        fs::remove_file(&file).map_err(StoreError::io("delete", &file))?;
    }
    Ok(())
}

fn list(directory: &Path) -> Result<Vec<std::path::PathBuf>, StoreError> {
    let entries = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>();
    entries().map_err(StoreError::io("list", directory))
}

/// Keeps the layers of which at least one part is here.
fn recover_layers(
    mut layers: Vec<LayerDescriptor>,
    records: &[Arc<Record>],
    queue: &Queue,
) -> Vec<LayerDescriptor> {
    let ids: HashSet<_> = records.iter().map(|record| &record.id).collect();
    layers.retain(|layer| {
        let keep = parts(layer).iter().any(|part| ids.contains(part));
        if !keep {
            queue.layer(&layer.blob, None);
        }
        keep
    });
    layers
}
