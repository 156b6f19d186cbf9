//! Identical leaves are stored once: a layer's leaf whose bytes another layer has is held by reference to these.
//!
//! Which leaf refers to which bytes is not stored: a row only says that a leaf is held by reference, and the leaf table
//! says its digest. Whoever has bytes with that digest is the owner; without an owner there is no such leaf. So nothing has
//! to be counted, and no crash can leave a wrong count.

use std::{
    collections::HashMap,
    os::unix::fs::FileExt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;

use super::{
    StoreError,
    inner::Inner,
    record::{Dropped, Record, leaf_len},
};
use crate::{Geometry, LeafDigest, digest::leaf_digest};

/// Where the bytes of layers' leaves are, by digest.
#[derive(Debug, Default)]
pub(super) struct Owners {
    by_digest: Mutex<HashMap<LeafDigest, Owned>>,
}

#[derive(Debug)]
struct Owned {
    owner: Weak<Record>,
    leaf: u32,
    /// Who holds the leaf by reference, and as which of its own.
    sharers: Vec<(Weak<Record>, u32)>,
}

impl Owned {
    /// The record that has the bytes, if it still has them.
    fn owner(&self) -> Option<Arc<Record>> {
        self.owner.upgrade().filter(|owner| owner.owns(self.leaf))
    }

    /// A record refers to the bytes with a leaf of its own. Forgets those that are gone.
    fn lend(&mut self, sharer: &Arc<Record>, leaf: u32) {
        let sharer = Arc::downgrade(sharer);
        self.sharers.retain(|(other, its_leaf)| {
            other.strong_count() > 0 && (*its_leaf != leaf || !other.ptr_eq(&sharer))
        });
        self.sharers.push((sharer, leaf));
    }
}

impl Owners {
    /// The record that is known as the owner of a leaf with this digest, and as which of its leaves. It may have dropped it
    /// just now.
    fn find(&self, digest: &LeafDigest) -> Option<(Arc<Record>, u32)> {
        let owners = self.by_digest.lock();
        let owned = owners.get(digest)?;
        Some((owned.owner.upgrade()?, owned.leaf))
    }
}

impl Record {
    /// Whether the leaf's bytes are in the record's own file.
    pub(super) fn owns(&self, leaf: u32) -> bool {
        self.leaves(|leaves| leaves.owns(leaf))
    }

    /// The leaves whose bytes are in the record's own file.
    fn own_leaves(&self) -> Vec<u32> {
        self.leaves(|leaves| leaves.own().collect())
    }

    /// Whether the leaf is held by reference.
    pub(super) fn is_shared(&self, leaf: u32) -> bool {
        self.leaves(|leaves| leaves.is_shared(leaf))
    }

    /// The digest that the table says a leaf has; only layers' leaves are shared.
    fn table_digest(&self, leaf: u32) -> Option<LeafDigest> {
        match &self.geometry {
            Geometry::Table(table) => table.get(leaf).map(|entry| entry.digest),
            Geometry::Fixed { .. } => None,
        }
    }
}

impl Inner {
    /// The record's file has the bytes of a leaf: others may refer to them.
    pub(super) fn own(&self, record: &Arc<Record>, leaf: u32) {
        let Some(digest) = record.table_digest(leaf) else { return };
        let mut owners = self.owners.by_digest.lock();
        let owned = owners.entry(digest).or_insert_with(|| Owned {
            owner: Arc::downgrade(record),
            leaf,
            sharers: Vec::new(),
        });
        if owned.owner().is_none() {
            (owned.owner, owned.leaf) = (Arc::downgrade(record), leaf);
        }
    }

    /// Holds a leaf by reference if another record has its bytes; whether it does.
    pub(super) fn adopt(&self, record: &Arc<Record>, leaf: u32) -> bool {
        let Some(digest) = record.table_digest(leaf) else { return false };
        // What is pinned is not evicted in between.
        let Some((owner, _)) = self.pinned_owner(&digest) else { return false };
        let adopted = record.adopt(leaf, digest) && {
            let mut owners = self.owners.by_digest.lock();
            let owned = owners.get_mut(&digest).filter(|owned| owned.owner().is_some());
            let registered = owned.map(|owned| owned.lend(record, leaf)).is_some();
            drop(owners);
            if !registered {
                record.drop_leaves([leaf]);
            }
            registered
        };
        self.unpin(&owner);
        if adopted {
            self.metrics.shared.inc_by(leaf_len(&record.geometry, leaf));
            self.queue.changed(record, 0);
        }
        adopted
    }

    /// A new file has all its leaves: others may refer to them.
    pub(super) fn own_all(&self, record: &Arc<Record>) {
        for leaf in record.own_leaves() {
            self.own(record, leaf);
        }
    }

    /// Gives up the bytes of leaves that others have, of a record that nobody knows yet: nobody reads them just now.
    pub(super) fn share_all(&self, record: &Arc<Record>) -> Dropped {
        let mut all = Dropped::default();
        for leaf in 0..record.geometry.leaves() {
            let Some(digest) = record.table_digest(leaf) else { continue };
            let Some((owner, _)) = self.pinned_owner(&digest) else { continue };
            if let Some(owned) = self.owners.by_digest.lock().get_mut(&digest) {
                owned.lend(record, leaf);
                let dropped = record.share(leaf);
                self.room.dropped(dropped);
                self.metrics.shared.inc_by(dropped.held);
                all.held += dropped.held;
                all.holes += dropped.holes;
            }
            self.unpin(&owner);
        }
        all
    }

    /// Holds by reference whatever is missing of a record and other records have.
    pub(super) fn adopt_all(&self, record: &Arc<Record>) {
        if !matches!(record.geometry, Geometry::Table(_)) {
            return;
        }
        let missing = record.readable();
        let adopted = (0..record.geometry.leaves())
            .filter(|leaf| !missing.contains(*leaf) && self.adopt(record, *leaf))
            .count();
        if adopted > 0 {
            tracing::debug!(task = %record.id, adopted, "store: leaves are here as another layer's");
            record.bump();
        }
    }

    /// After a start: finds the owner of each leaf that is held by reference, and drops those without.
    pub(super) fn restore_shared(&self) {
        let records = self.records(|record| Some(record.clone()));
        records.iter().for_each(|record| self.own_all(record));
        for record in &records {
            let shared = record.leaves(|leaves| leaves.shared().ranges());
            let mut owners = self.owners.by_digest.lock();
            let orphans: Vec<u32> = shared
                .into_iter()
                .flatten()
                .filter(|leaf| {
                    let digest = record.table_digest(*leaf);
                    let owned = digest.and_then(|digest| owners.get_mut(&digest));
                    owned.map(|owned| owned.lend(record, *leaf)).is_none()
                })
                .collect();
            drop(owners);
            if !orphans.is_empty() {
                tracing::warn!(task = %record.id, leaves = orphans.len(), "store: leaves lost their bytes");
                record.drop_leaves(orphans);
                self.queue.changed(record, 0);
            }
            if record.leaves(|leaves| leaves.held().count()) == 0 && !record.geometry.is_empty() {
                self.take_out(record, false);
            }
        }
    }

    /// Who has the bytes of a leaf that a record holds by reference, and as which leaf; pinned. `None` if nobody does any
    /// more: then the record has lost the leaf.
    pub(super) fn owner(&self, record: &Arc<Record>, leaf: u32) -> Option<(Arc<Record>, u32)> {
        let found = record.table_digest(leaf).and_then(|digest| self.pinned_owner(&digest));
        if found.is_none() {
            self.drop_leaves(record, [leaf]);
        }
        found
    }

    fn pinned_owner(&self, digest: &LeafDigest) -> Option<(Arc<Record>, u32)> {
        let (owner, leaf) = self.owners.find(digest)?;
        owner.pin();
        if owner.owns(leaf) {
            return Some((owner, leaf));
        }
        self.unpin(&owner);
        None
    }

    /// The bytes of a leaf that a record holds by reference were used.
    pub(super) fn touch_owner(&self, record: &Record, leaf: u32, now: u64) {
        let owner = record.table_digest(leaf).and_then(|digest| self.owners.find(&digest));
        if let Some((owner, leaf)) = owner {
            owner.touch_leaf(leaf, now);
        }
    }

    /// As which leaf its owner has the bytes of a leaf that a record holds by reference; `None` if it has them itself.
    pub(super) fn owners_leaf(&self, record: &Record, leaf: u32) -> Option<u32> {
        if !record.is_shared(leaf) {
            return None;
        }
        let digest = record.table_digest(leaf)?;
        self.owners.by_digest.lock().get(&digest).map(|owned| owned.leaf)
    }

    /// A record does not have the bytes of these leaves any more: those who referred to them lose theirs.
    pub(super) fn disown(&self, record: &Arc<Record>, leaves: impl IntoIterator<Item = u32>) {
        let mut losers: HashMap<u64, (Arc<Record>, Vec<u32>)> = HashMap::new();
        {
            let mut owners = self.owners.by_digest.lock();
            for digest in leaves.into_iter().filter_map(|leaf| record.table_digest(leaf)) {
                let gone = owners.get(&digest).is_some_and(|owned| owned.owner().is_none());
                let Some(owned) = gone.then(|| owners.remove(&digest)).flatten() else { continue };
                for (sharer, leaf) in owned.sharers {
                    let Some(sharer) = sharer.upgrade().filter(|sharer| sharer.is_shared(leaf)) else {
                        continue;
                    };
                    losers.entry(sharer.generation).or_insert_with(|| (sharer, Vec::new())).1.push(leaf);
                }
            }
        }
        for (record, leaves) in losers.into_values() {
            self.drop_leaves(&record, leaves);
        }
    }

    /// Whether somebody needs the bytes of one of these leaves right now, by reference.
    pub(super) fn is_lent(&self, record: &Record, leaves: impl IntoIterator<Item = u32>) -> bool {
        let owners = self.owners.by_digest.lock();
        leaves.into_iter().filter_map(|leaf| record.table_digest(leaf)).any(|digest| {
            let sharers = owners.get(&digest).map(|owned| owned.sharers.as_slice()).unwrap_or_default();
            let pinned = |(sharer, leaf): &(Weak<Record>, u32)| {
                sharer.upgrade().is_some_and(|sharer| sharer.is_pinned() && sharer.is_shared(*leaf))
            };
            sharers.iter().any(pinned)
        })
    }

    /// Before a record is removed: hands its bytes to those who refer to them. What cannot be handed over is lost to them.
    pub(super) fn bequeath(&self, record: &Arc<Record>) {
        let handed = record.own_leaves().into_iter().filter(|leaf| match self.hand_over(record, *leaf) {
            Ok(handed) => handed,
            Err(error) => {
                tracing::warn!(task = %record.id, leaf, %error, "store: a leaf that others share is lost");
                false
            }
        });
        // Until this is durable, a crash must find the bytes where they were.
        if handed.count() > 0
            && let Err(error) = self.queue.flush()
        {
            tracing::warn!(%error, "store: shared leaves are not durable yet");
        }
    }

    /// Writes a leaf into the file of the first who refers to it; false if nobody does.
    fn hand_over(&self, record: &Arc<Record>, leaf: u32) -> Result<bool, StoreError> {
        let Some(digest) = record.table_digest(leaf) else { return Ok(false) };
        let (heir, own_leaf) = {
            let owners = self.owners.by_digest.lock();
            let sharers = owners.get(&digest).map(|owned| owned.sharers.as_slice()).unwrap_or_default();
            let alive = |(sharer, leaf): &(Weak<Record>, u32)| {
                let sharer = sharer.upgrade().filter(|sharer| sharer.is_shared(*leaf));
                Some((sharer.filter(|sharer| !Arc::ptr_eq(sharer, record))?, *leaf))
            };
            let Some(heir) = sharers.iter().find_map(alive) else { return Ok(false) };
            heir
        };
        let (from, to) = (record.geometry.leaf_range(leaf), heir.geometry.leaf_range(own_leaf));
        let (Some(from), Some(to)) = (from, to) else { return Ok(false) };
        let len = from.end - from.start;
        let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
        let read = record.open().map_err(|error| self.open_error(record, error))?;
        read.read_exact_at(&mut bytes, from.start).map_err(StoreError::io("read", &record.path))?;
        if leaf_digest(&bytes) != digest {
            return Err(StoreError::Rotten { id: record.id.clone(), leaf });
        }
        let _writing = heir.write.lock();
        let room = self.reserve(len, Some(&heir))?;
        let file = heir.open().map_err(|error| self.open_error(&heir, error))?;
        self.write(&file, &heir.path, &bytes, to.start)?;
        if heir.inherit(own_leaf, len, &file) {
            room.keep();
            self.queue.changed(&heir, len);
            if let Some(owned) = self.owners.by_digest.lock().get_mut(&digest) {
                (owned.owner, owned.leaf) = (Arc::downgrade(&heir), own_leaf);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TaskId;

    #[test]
    fn sharers_that_are_gone_are_forgotten_and_others_count_once() {
        let record = || {
            let id = TaskId::parse("url:1").unwrap();
            Arc::new(Record::new(id, Geometry::Fixed { len: 1 }, 0, "content".into()))
        };
        let mut owned = Owned { owner: Weak::new(), leaf: 0, sharers: Vec::new() };
        let stays = record();
        for _ in 0..3 {
            owned.lend(&stays, 0);
            owned.lend(&record(), 0);
        }
        owned.lend(&stays, 1);
        let leaves: Vec<u32> = owned.sharers.iter().map(|(_, leaf)| *leaf).collect();
        assert_eq!(leaves, [0, 1]);
    }
}
