//! The metadata file: a redb database, one transaction per batch.
//!
//! | table | key | value |
//! |---|---|---|
//! | `tasks-1` | task id | generation u64, then kind u8: 0 and the length u64, or 1 and the encoded leaf table; little-endian |
//! | `states-1` | task id | verified; last use in microseconds since 1970 |
//! | `leaves-1` | task id, block | see [`super::leaves`] |
//! | `shared-1` | task id, block | the leaves that are held by reference, see [`super::sharing`] |
//! | `layers-1` | blob digest | layer descriptor as JSON |
//! | `meta-1` | `host_id` | the host id |
//!
//! Whatever is read is checked: a row that makes no sense is dropped, a file that makes no sense is moved aside.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::{
    MAX_LEN, StoreError,
    leaves::Leaves,
    points::{Change, about_to},
    record::Snapshot,
};
use crate::{Digest, Geometry, LayerDescriptor, LeafTable, TaskId};

const TASKS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("tasks-1");
const STATES: TableDefinition<'_, &str, (bool, u64)> = TableDefinition::new("states-1");
const LEAVES: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("leaves-1");
const SHARED: TableDefinition<'_, (&str, u32), &[u8]> = TableDefinition::new("shared-1");
const LAYERS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("layers-1");
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta-1");
const HOST_ID: &str = "host_id";

/// Everything is held in memory anyway; redb's own default is 1 GiB.
const CACHE_BYTES: usize = 8 << 20;

type Result<T> = std::result::Result<T, redb::Error>;

/// The metadata file.
#[derive(Debug)]
pub(super) struct Metadata {
    path: PathBuf,
    /// After a failure redb refuses everything until the file is opened anew.
    database: Option<Database>,
}

/// What the file held.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) host_id: String,
    pub(super) tasks: Vec<LoadedTask>,
    pub(super) layers: Vec<LayerDescriptor>,
}

/// A task's rows.
#[derive(Debug)]
pub(super) struct LoadedTask {
    pub(super) id: TaskId,
    pub(super) geometry: Geometry,
    pub(super) generation: u64,
    pub(super) leaves: Leaves,
    pub(super) verified: bool,
    pub(super) last_use: u64,
}

/// What one transaction writes: removals first, so that a task may be removed and created again in one batch.
#[derive(Debug)]
pub(super) struct Changes<'a> {
    pub(super) removed: &'a HashSet<TaskId>,
    pub(super) tasks: &'a [Snapshot],
    pub(super) layers: &'a HashMap<Digest, Option<LayerDescriptor>>,
}

impl Metadata {
    /// Opens or makes the file and reads it. A damaged one is moved aside and a new one begun: the store loses what it
    /// held, which can be fetched again, but it starts.
    pub(super) fn open(path: &Path) -> std::result::Result<(Self, Loaded), StoreError> {
        match Self::read(path) {
            Err(e) if is_damage(&e) => {
                let aside = path.with_extension("redb.damaged");
                tracing::warn!(
                    error = %e, kept_as = %aside.display(),
                    "store: the metadata is damaged; starting with an empty store"
                );
                fs::rename(path, &aside).map_err(StoreError::io("move aside", path))?;
                Ok(Self::read(path).map_err(Box::new)?)
            }
            read => Ok(read.map_err(Box::new)?),
        }
    }

    fn read(path: &Path) -> Result<(Self, Loaded)> {
        // redb trusts pages whose checksums nobody asked it to verify, and may panic where they make no sense.
        let read = || {
            let mut database = open(path)?;
            database.check_integrity()?;
            let loaded = load(&database)?;
            Ok((Self { path: path.to_owned(), database: Some(database) }, loaded))
        };
        let panicked = |_| Err(redb::Error::Corrupted("reading it panicked".to_owned()));
        catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(panicked)
    }

    /// Writes all changes or none, durably.
    pub(super) fn commit(&mut self, changes: &Changes<'_>) -> Result<()> {
        if changes.removed.is_empty() && changes.tasks.is_empty() && changes.layers.is_empty() {
            return Ok(());
        }
        let _point = about_to(Change::Commit, &self.path)?;
        let database = match self.database.take() {
            Some(database) => database,
            None => open(&self.path)?,
        };
        let transaction = database.begin_write()?;
        changes.write(&transaction)?;
        transaction.commit()?;
        self.database = Some(database);
        Ok(())
    }
}

impl Changes<'_> {
    fn write(&self, transaction: &WriteTransaction) -> Result<()> {
        let mut tasks = transaction.open_table(TASKS)?;
        let mut states = transaction.open_table(STATES)?;
        let mut leaves = transaction.open_table(LEAVES)?;
        let mut shared = transaction.open_table(SHARED)?;
        for id in self.removed {
            tasks.remove(id.as_str())?;
            states.remove(id.as_str())?;
            let blocks = (id.as_str(), 0)..=(id.as_str(), u32::MAX);
            leaves.retain_in(blocks.clone(), |_, _| false)?;
            shared.retain_in(blocks, |_, _| false)?;
        }
        for task in self.tasks {
            let id = task.record.id.as_str();
            if task.new_row {
                tasks.insert(id, encode(task.record.generation, &task.record.geometry).as_slice())?;
            }
            states.insert(id, (task.verified, task.last_use))?;
            for rows in &task.blocks {
                for (table, row) in [(&mut leaves, &rows.own), (&mut shared, &rows.shared)] {
                    if row.is_empty() {
                        table.remove((id, rows.block))?;
                    } else {
                        table.insert((id, rows.block), row.as_slice())?;
                    }
                }
            }
        }
        self.write_layers(&mut transaction.open_table(LAYERS)?)
    }

    fn write_layers(&self, table: &mut Table<'_, &str, &[u8]>) -> Result<()> {
        for (blob, descriptor) in self.layers {
            let key = blob.to_string();
            match descriptor {
                None => {
                    table.remove(key.as_str())?;
                }
                Some(descriptor) => {
                    let json = serde_json::to_vec(descriptor).map_err(io::Error::from)?;
                    table.insert(key.as_str(), json.as_slice())?;
                }
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Database> {
    Ok(Database::builder().set_cache_size(CACHE_BYTES).create(path)?)
}

/// Reads everything and deletes the rows that make no sense.
fn load(database: &Database) -> Result<Loaded> {
    let transaction = database.begin_write()?;
    let loaded = Loaded {
        host_id: load_host_id(&mut transaction.open_table(META)?)?,
        tasks: load_tasks(&transaction)?,
        layers: load_layers(&mut transaction.open_table(LAYERS)?)?,
    };
    transaction.commit()?;
    Ok(loaded)
}

fn load_host_id(table: &mut Table<'_, &str, &str>) -> Result<String> {
    let known = table.get(HOST_ID)?.map(|id| id.value().to_owned());
    if let Some(id) = known {
        return Ok(id);
    }
    let id = hex::encode(rand::random::<[u8; 16]>());
    table.insert(HOST_ID, id.as_str())?;
    Ok(id)
}

fn load_tasks(transaction: &WriteTransaction) -> Result<Vec<LoadedTask>> {
    let mut tasks = HashMap::new();
    transaction.open_table(TASKS)?.retain(|id, row| {
        let task = decode(id, row);
        let good = task.is_some();
        tasks.extend(task.map(|task| (Arc::<str>::from(id), task)));
        good
    })?;
    transaction.open_table(STATES)?.retain(|id, (verified, last_use)| match tasks.get_mut(id) {
        Some(task) => {
            (task.verified, task.last_use) = (verified, last_use);
            true
        }
        None => false,
    })?;
    transaction.open_table(LEAVES)?.retain(|(id, block), row| match tasks.get_mut(id) {
        Some(task) => task.leaves.load(block, row),
        None => false,
    })?;
    transaction.open_table(SHARED)?.retain(|(id, block), row| match tasks.get_mut(id) {
        Some(LoadedTask { leaves, geometry: Geometry::Table(table), .. }) => {
            leaves.load_shared(block, row, |leaf| table.get(leaf).map(|entry| entry.digest))
        }
        _ => false,
    })?;
    Ok(tasks.into_values().collect())
}

fn load_layers(table: &mut Table<'_, &str, &[u8]>) -> Result<Vec<LayerDescriptor>> {
    let mut layers = Vec::new();
    table.retain(|blob, json| {
        let descriptor = serde_json::from_slice(json).ok();
        let good = descriptor.filter(|descriptor: &LayerDescriptor| descriptor.blob.to_string() == blob);
        layers.extend(good.clone());
        good.is_some()
    })?;
    Ok(layers)
}

fn encode(generation: u64, geometry: &Geometry) -> Vec<u8> {
    let (kind, rest) = match geometry {
        Geometry::Fixed { len } => (0, len.to_le_bytes().to_vec()),
        Geometry::Table(table) => (1, table.encode()),
    };
    [generation.to_le_bytes().as_slice(), &[kind], &rest].concat()
}

fn decode(id: &str, row: &[u8]) -> Option<LoadedTask> {
    let (generation, rest) = row.split_first_chunk()?;
    let (kind, rest) = rest.split_first()?;
    let geometry = match kind {
        0 => Geometry::Fixed { len: u64::from_le_bytes(rest.try_into().ok()?) },
        1 => Geometry::Table(Arc::new(LeafTable::decode(rest).ok()?)),
        _ => return None,
    };
    (geometry.len() <= MAX_LEN).then_some(())?;
    Some(LoadedTask {
        id: TaskId::parse(id).ok()?,
        leaves: Leaves::new(geometry.leaves()),
        geometry,
        generation: u64::from_le_bytes(*generation),
        verified: false,
        last_use: 0,
    })
}

/// Whether the file itself is bad, so that trying again could never help. A disk that cannot be read right now, or a
/// process without rights, is another matter.
fn is_damage(error: &redb::Error) -> bool {
    match error {
        redb::Error::Io(e) => matches!(e.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof),
        redb::Error::Corrupted(_)
        | redb::Error::RepairAborted
        | redb::Error::UpgradeRequired(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. } => true,
        _ => false,
    }
}
