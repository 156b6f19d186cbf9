//! The snapshots' metadata: one redb database, a transaction for every change.

use std::path::Path;

use redb::{
    Database, MultimapTable, MultimapTableDefinition, ReadableDatabase, ReadableMultimapTable, ReadableTable,
    Table, TableDefinition, WriteTransaction,
};

use super::{Record, SnapshotError};

type Result<T> = std::result::Result<T, SnapshotError>;

/// Name -> record as JSON.
const SNAPSHOTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("snapshots");
/// Parent's name -> names of its children.
const CHILDREN: MultimapTableDefinition<'_, &str, &str> = MultimapTableDefinition::new("children");
/// (`containerd.io/snapshot.ref`, parent's name) of a lazy snapshot -> its name.
const TARGETS: TableDefinition<'_, (&str, &str), &str> = TableDefinition::new("targets");
/// The next id, under the only key `()`.
const NEXT_ID: TableDefinition<'_, (), u64> = TableDefinition::new("next id");

/// The database. Methods block.
#[derive(Debug)]
pub(super) struct Store {
    database: Database,
}

/// A change in the making; dropped without [`Store::write`]'s commit it never was.
pub(super) struct Change<'txn> {
    snapshots: Table<'txn, &'static str, &'static [u8]>,
    children: MultimapTable<'txn, &'static str, &'static str>,
    targets: Table<'txn, (&'static str, &'static str), &'static str>,
    next_id: Table<'txn, (), u64>,
}

impl Store {
    /// Opens the database, or makes it.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let database = Database::create(path).map_err(redb::Error::from)?;
        let store = Self { database };
        store.write(|_| Ok(()))?;
        Ok(store)
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Record>> {
        let txn = self.database.begin_read().map_err(redb::Error::from)?;
        let snapshots = txn.open_table(SNAPSHOTS).map_err(redb::Error::from)?;
        decode(snapshots.get(name).map_err(redb::Error::from)?.map(|guard| guard.value().to_vec()))
    }

    /// All snapshots in the order of their names, as of one moment.
    pub(super) fn all(&self) -> Result<Vec<(String, Record)>> {
        let txn = self.database.begin_read().map_err(redb::Error::from)?;
        let snapshots = txn.open_table(SNAPSHOTS).map_err(redb::Error::from)?;
        let mut all = Vec::new();
        for entry in snapshots.iter().map_err(redb::Error::from)? {
            let (name, value) = entry.map_err(redb::Error::from)?;
            if let Some(record) = decode(Some(value.value().to_vec()))? {
                all.push((name.value().to_owned(), record));
            }
        }
        Ok(all)
    }

    /// The name of the lazy snapshot for a target on a parent.
    pub(super) fn target(&self, target: &str, parent: &str) -> Result<Option<String>> {
        let txn = self.database.begin_read().map_err(redb::Error::from)?;
        let targets = txn.open_table(TARGETS).map_err(redb::Error::from)?;
        let name = targets.get((target, parent)).map_err(redb::Error::from)?;
        Ok(name.map(|name| name.value().to_owned()))
    }

    /// Runs `change` and commits it durably if it succeeds. One change runs at a time.
    pub(super) fn write<T>(&self, change: impl FnOnce(&mut Change<'_>) -> Result<T>) -> Result<T> {
        let txn = self.database.begin_write().map_err(redb::Error::from)?;
        let result = change(&mut Change::begin(&txn)?);
        match result {
            Ok(value) => txn.commit().map_err(redb::Error::from).map(|()| value).map_err(Into::into),
            Err(error) => {
                txn.abort().map_err(redb::Error::from)?;
                Err(error)
            }
        }
    }
}

impl<'txn> Change<'txn> {
    fn begin(txn: &'txn WriteTransaction) -> Result<Self> {
        Ok(Self {
            snapshots: txn.open_table(SNAPSHOTS).map_err(redb::Error::from)?,
            children: txn.open_multimap_table(CHILDREN).map_err(redb::Error::from)?,
            targets: txn.open_table(TARGETS).map_err(redb::Error::from)?,
            next_id: txn.open_table(NEXT_ID).map_err(redb::Error::from)?,
        })
    }

    /// A new id.
    pub(super) fn next_id(&mut self) -> Result<u64> {
        let last = self.next_id.get(()).map_err(redb::Error::from)?.map_or(0, |guard| guard.value());
        self.next_id.insert((), last + 1).map_err(redb::Error::from)?;
        Ok(last + 1)
    }

    pub(super) fn get(&self, name: &str) -> Result<Option<Record>> {
        decode(self.snapshots.get(name).map_err(redb::Error::from)?.map(|guard| guard.value().to_vec()))
    }

    pub(super) fn insert(&mut self, name: &str, record: &Record) -> Result<()> {
        let json = serde_json::to_vec(record).map_err(|err| SnapshotError::Database(err.to_string()))?;
        self.snapshots.insert(name, json.as_slice()).map_err(redb::Error::from)?;
        self.children.insert(record.parent.as_str(), name).map_err(redb::Error::from)?;
        if let Some(lazy) = &record.lazy {
            let key = (lazy.target.as_str(), record.parent.as_str());
            self.targets.insert(key, name).map_err(redb::Error::from)?;
        }
        Ok(())
    }

    /// The name of the lazy snapshot for a target on a parent.
    pub(super) fn target(&self, target: &str, parent: &str) -> Result<Option<String>> {
        let name = self.targets.get((target, parent)).map_err(redb::Error::from)?;
        Ok(name.map(|name| name.value().to_owned()))
    }

    pub(super) fn remove(&mut self, name: &str, record: &Record) -> Result<()> {
        self.snapshots.remove(name).map_err(redb::Error::from)?;
        self.children.remove(record.parent.as_str(), name).map_err(redb::Error::from)?;
        if let Some(lazy) = &record.lazy {
            let key = (lazy.target.as_str(), record.parent.as_str());
            self.targets.remove(key).map_err(redb::Error::from)?;
        }
        Ok(())
    }

    pub(super) fn has_children(&self, name: &str) -> Result<bool> {
        Ok(!self.children.get(name).map_err(redb::Error::from)?.is_empty())
    }

    /// The ids of all snapshots.
    pub(super) fn ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in self.snapshots.iter().map_err(redb::Error::from)? {
            let (_, value) = entry.map_err(redb::Error::from)?;
            ids.extend(decode(Some(value.value().to_vec()))?.map(|record| record.id));
        }
        Ok(ids)
    }
}

fn decode(json: Option<Vec<u8>>) -> Result<Option<Record>> {
    let decode = |json: Vec<u8>| serde_json::from_slice(&json);
    json.map(decode).transpose().map_err(|err| SnapshotError::Database(format!("a damaged record: {err}")))
}
