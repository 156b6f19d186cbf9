//! Snapshots: their metadata, and the directories of the ordinary ones. What a lazy snapshot shows is mounted by
//! [`crate::lazy`]; here it is only a name with a layer.
//!
//! Behaves as containerd's own overlayfs snapshotter does (containerd, `core/snapshots/storage` and
//! `plugins/snapshots/overlay`). Everything here blocks.

mod dirs;
mod error;
mod filter;
pub(crate) mod idmap;
mod mounts;
mod record;
mod store;
mod usage;

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    time::SystemTime,
};

use darter_peer::Digest;

use self::{
    dirs::Dirs,
    store::{Change, Store},
};
pub(crate) use self::{
    dirs::Owner,
    error::SnapshotError,
    filter::Filters,
    mounts::Layout,
    record::{Kind, Labels, Lazy, Record, Usage},
    usage::of_dir as usage_of_dir,
};
use crate::lazy::LayerRef;

type Result<T> = std::result::Result<T, SnapshotError>;

/// The label by which containerd names the snapshot that it wants in the end: a chainID.
pub(crate) const TARGET_LABEL: &str = "containerd.io/snapshot.ref";

/// Says on a snapshot whether it is lazy, and if it could have been but is not, why: `yes`, or `no: ` and the reason.
pub(crate) const LAZY_LABEL: &str = "darter/lazy";

/// Labels with this prefix are ours; they stay when a client replaces the others at commit.
const OWN_LABELS: &str = "darter/";

/// All snapshots.
#[derive(Debug)]
pub(crate) struct Snapshots {
    store: Store,
    dirs: Dirs,
}

/// What a snapshot stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parent {
    /// An ordinary snapshot's directory.
    Dir(PathBuf),
    /// A layer that has to be mounted. Where it implies directories, and so needs their attributes to be stacked on it,
    /// these are in this directory once somebody needed them.
    Layer { layer: LayerRef, implied: Option<PathBuf> },
}

/// Which part of a snapshot's information an update changes.
#[derive(Debug)]
pub(crate) enum LabelUpdate {
    /// All labels.
    All,
    /// These labels only; one without a value is taken away.
    Some(Vec<String>),
}

impl Snapshots {
    /// Opens what is under `root`, and puts the directories aside that a crash left without a snapshot.
    pub(crate) fn open(root: &Path) -> Result<Self> {
        let dirs = Dirs::open(root).map_err(SnapshotError::io(format!("cannot use {}", root.display())))?;
        let snapshots = Self { store: Store::open(&root.join("snapshots.redb"))?, dirs };
        snapshots.discard_orphans()?;
        Ok(snapshots)
    }

    /// One snapshot.
    pub(crate) fn stat(&self, name: &str) -> Result<Record> {
        self.store.get(name)?.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    /// All snapshots that pass, parents and children alike, as of one moment.
    pub(crate) fn list(&self, filters: &Filters) -> Result<Vec<(String, Record)>> {
        let mut all = self.store.all()?;
        all.retain(|(name, record)| filters.pass(name, record));
        Ok(all)
    }

    /// What a snapshot with this parent stands on, nearest first.
    pub(crate) fn parents(&self, parent: &str) -> Result<Vec<Parent>> {
        let mut parents = Vec::new();
        let mut name = parent.to_owned();
        while !name.is_empty() {
            let record = self.store.get(&name)?.ok_or(SnapshotError::ParentNotFound(name))?;
            parents.push(match record.lazy {
                Some(lazy) => {
                    let has_below = !record.parent.is_empty();
                    let implied = (lazy.implies && has_below).then(|| self.dirs.implied(record.id));
                    Parent::Layer { layer: lazy.layer, implied }
                }
                None => Parent::Dir(self.dirs.fs(record.id)),
            });
            name = record.parent;
        }
        Ok(parents)
    }

    /// Makes an active snapshot or a view; its top directory belongs to `owner`.
    pub(crate) fn create(
        &self,
        kind: Kind,
        key: &str,
        parent: &str,
        labels: Labels,
        owner: Option<Owner>,
    ) -> Result<Record> {
        self.store.write(|change| {
            check_new(change, key, parent)?;
            let now = SystemTime::now();
            let id = change.next_id()?;
            let usage = Usage::default();
            let parent = parent.to_owned();
            let record = Record { id, parent, kind, labels, created: now, updated: now, usage, lazy: None };
            change.insert(key, &record)?;
            let created = self.dirs.create(id, kind == Kind::Active, owner);
            created.map_err(SnapshotError::io(format!("cannot make the directories of snapshot {key:?}")))?;
            Ok(record)
        })
    }

    /// Makes a committed snapshot for a layer that can be mounted, unless there is one for the same target and
    /// parent already.
    pub(crate) fn create_lazy(
        &self,
        parent: &str,
        mut labels: Labels,
        lazy: Lazy,
        usage: Usage,
    ) -> Result<()> {
        self.store.write(|change| {
            if change.target(&lazy.target, parent)?.is_some() {
                return Ok(());
            }
            let id = change.next_id()?;
            let name = format!("darter/{id}/{}", lazy.target);
            check_new(change, &name, parent)?;
            labels.insert(TARGET_LABEL.to_owned(), lazy.target.clone());
            let now = SystemTime::now();
            let (parent, kind) = (parent.to_owned(), Kind::Committed);
            let record =
                Record { id, parent, kind, labels, created: now, updated: now, usage, lazy: Some(lazy) };
            change.insert(&name, &record)
        })
    }

    /// Whether there is a lazy snapshot for a target on a parent.
    pub(crate) fn has_lazy(&self, target: &str, parent: &str) -> Result<bool> {
        Ok(self.store.target(target, parent)?.is_some())
    }

    /// Which target a snapshot says it is; `None` if it does not, or there is none.
    pub(crate) fn target_of(&self, name: &str) -> Result<Option<String>> {
        Ok(self.store.get(name)?.and_then(|mut record| record.labels.remove(TARGET_LABEL)))
    }

    /// The directories that an active snapshot's or a view's mounts are made of; `lower` are its parents' directories.
    pub(crate) fn layout(&self, record: &Record, mut lower: Vec<PathBuf>) -> Layout {
        let (upper, work) = (self.dirs.fs(record.id), self.dirs.work(record.id));
        if let (Kind::View, [layer]) = (record.kind, lower.as_slice())
            && !self.dirs.have(layer)
        {
            // A mounted layer is no root file system by itself: it shows whiteouts, and EROFS refuses fsync. overlayfs
            // needs a second lower directory, and the view's own is empty.
            lower.push(upper.clone());
        }
        let options = idmap::options(&record.labels);
        Layout { kind: record.kind, upper, work, lower, options }
    }

    /// Turns an active snapshot into a committed one.
    pub(crate) fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<()> {
        if name.is_empty() {
            return Err(SnapshotError::Invalid("the name of the snapshot to commit is empty".into()));
        }
        // Walking is slow, so it is done before the transaction; nothing writes to a snapshot that is committed.
        let usage = self.usage(key)?;
        self.store.write(|change| {
            let active = change.get(key)?.ok_or_else(|| SnapshotError::NotFound(key.to_owned()))?;
            if change.get(name)?.is_some() {
                return Err(SnapshotError::AlreadyExists(name.to_owned()));
            }
            if active.kind != Kind::Active {
                return Err(SnapshotError::NotActive(key.to_owned()));
            }
            change.remove(key, &active)?;
            let own = active.labels.into_iter().filter(|(key, _)| key.starts_with(OWN_LABELS));
            let labels = own.chain(labels).collect();
            let now = SystemTime::now();
            let kind = Kind::Committed;
            change.insert(name, &Record { kind, labels, created: now, updated: now, usage, ..active })
        })
    }

    /// Forgets a snapshot and puts its directories aside; [`Self::empty_trash`] deletes them. Returns what it was.
    pub(crate) fn remove(&self, name: &str) -> Result<Record> {
        let removed = self.store.write(|change| {
            let record = change.get(name)?.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))?;
            if change.has_children(name)? {
                return Err(SnapshotError::HasChildren(name.to_owned()));
            }
            change.remove(name, &record)?;
            Ok(record)
        })?;
        let discarded = self.dirs.discard(removed.id);
        discarded
            .map_err(SnapshotError::io(format!("cannot put the directories of snapshot {name:?} aside")))?;
        Ok(removed)
    }

    /// Changes labels.
    pub(crate) fn update(&self, name: &str, labels: Labels, which: &LabelUpdate) -> Result<Record> {
        self.store.write(|change| {
            let mut record = change.get(name)?.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))?;
            match which {
                LabelUpdate::All => record.labels = labels,
                LabelUpdate::Some(keys) => {
                    for key in keys {
                        match labels.get(key) {
                            Some(value) => record.labels.insert(key.clone(), value.clone()),
                            None => record.labels.remove(key),
                        };
                    }
                }
            }
            if let Some(lazy) = &record.lazy {
                // containerd finds a lazy snapshot by this label alone.
                record.labels.insert(TARGET_LABEL.to_owned(), lazy.target.clone());
            }
            record.updated = SystemTime::now();
            change.insert(name, &record)?;
            Ok(record)
        })
    }

    /// The disk space of a snapshot without its parents: counted now if it is active, at its commit otherwise.
    pub(crate) fn usage(&self, name: &str) -> Result<Usage> {
        let record = self.stat(name)?;
        if record.kind != Kind::Active {
            return Ok(record.usage);
        }
        let dir = self.dirs.fs(record.id);
        usage_of_dir(&dir)
            .map_err(SnapshotError::io(format!("cannot count the disk space of snapshot {name:?}")))
    }

    /// The diffIDs of all layers that snapshots need.
    pub(crate) fn layers(&self) -> Result<HashSet<Digest>> {
        Ok(self.store.all()?.into_iter().filter_map(|(_, record)| Some(record.lazy?.layer.diff_id)).collect())
    }

    /// The diffIDs of the layers that containers may be using: those below active snapshots and views.
    pub(crate) fn layers_in_use(&self) -> Result<HashSet<Digest>> {
        let mut in_use = HashSet::new();
        for (_, record) in self.store.all()? {
            if record.kind != Kind::Committed {
                let parents = self.parents(&record.parent)?.into_iter();
                in_use.extend(parents.filter_map(|parent| match parent {
                    Parent::Layer { layer, .. } => Some(layer.diff_id),
                    Parent::Dir(_) => None,
                }));
            }
        }
        Ok(in_use)
    }

    /// Puts all directories aside that belong to no snapshot.
    pub(crate) fn discard_orphans(&self) -> Result<()> {
        // Inside a write transaction, because directories are made in one.
        self.store.write(|change| {
            let discarded = self.dirs.discard_orphans(&change.ids()?);
            discarded.map_err(SnapshotError::io("cannot put directories without a snapshot aside"))
        })
    }

    /// Deletes what was put aside; slow.
    pub(crate) fn empty_trash(&self) -> Result<()> {
        self.dirs.empty_trash().map_err(SnapshotError::io("cannot delete removed snapshots"))
    }
}

/// Whether a snapshot can be made under this name and on this parent.
fn check_new(change: &Change<'_>, name: &str, parent: &str) -> Result<()> {
    if name.is_empty() {
        return Err(SnapshotError::Invalid("the key of the snapshot is empty".into()));
    }
    if change.get(name)?.is_some() {
        return Err(SnapshotError::AlreadyExists(name.to_owned()));
    }
    if parent.is_empty() {
        return Ok(());
    }
    match change.get(parent)? {
        None => Err(SnapshotError::ParentNotFound(parent.to_owned())),
        Some(record) if record.kind != Kind::Committed => {
            Err(SnapshotError::ParentNotCommitted(parent.to_owned()))
        }
        Some(_) => Ok(()),
    }
}
