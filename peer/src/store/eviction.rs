//! Giving up parts of tasks: which piece goes, and how its room comes back.
//!
//! A piece's leaves count as gone at once. Their bytes are freed only when the rows that named them are: a crash in between
//! must not leave rows that speak of holes.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io,
    sync::Arc,
};

use rustix::fs::{FallocateFlags, fallocate};

use super::{
    inner::Inner,
    layers::parts,
    points::{Change, about_to},
    record::{Dropped, Record, leaf_len},
};
use crate::TaskId;

/// A piece of which something is held that may be evicted.
struct Candidate {
    record: Arc<Record>,
    piece: u32,
    last_use: u64,
    bytes: u64,
}

impl Record {
    /// The pieces of which something is held; none while the record is pinned.
    fn candidates(self: &Arc<Self>) -> Vec<Candidate> {
        let state = self.state.lock();
        if state.pins > 0 || state.removed {
            return Vec::new();
        }
        let candidate = |piece: u32| {
            let leaves = self.geometry.piece_leaves(piece).filter(|leaf| state.leaves.owns(*leaf));
            let bytes = leaves.map(|leaf| leaf_len(&self.geometry, leaf)).sum();
            let last_use = state.uses.get(&piece).copied().unwrap_or_default().max(self.asked());
            Candidate { record: self.clone(), piece, last_use, bytes }
        };
        (0..self.geometry.pieces()).map(candidate).filter(|candidate| candidate.bytes > 0).collect()
    }

    /// Drops what is held of a piece; nothing if the record is pinned or removed.
    fn evict(&self, piece: u32) -> Dropped {
        let mut state = self.state.lock();
        if state.pins > 0 || state.removed {
            return Dropped::default();
        }
        let own: Vec<u32> =
            self.geometry.piece_leaves(piece).filter(|leaf| state.leaves.owns(*leaf)).collect();
        state.drop_leaves(&self.geometry, own)
    }

    /// Gives the room of leaves that are not held any more back to the file system. Their rows must be gone.
    pub(super) fn punch(&self, holes: &BTreeSet<u32>) -> io::Result<()> {
        if holes.is_empty() {
            return Ok(());
        }
        // What is written from now on is not in the holes.
        let _no_writer = self.write.lock();
        let file = match File::options().write(true).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            file => file?,
        };
        let gone = self
            .leaves(|leaves| holes.iter().copied().filter(|leaf| !leaves.owns(*leaf)).collect::<Vec<_>>());
        for run in gone.chunk_by(|leaf, next| leaf + 1 == *next) {
            let start = run.first().and_then(|leaf| self.geometry.leaf_range(*leaf));
            let end = run.last().and_then(|leaf| self.geometry.leaf_range(*leaf));
            let (Some(start), Some(end)) = (start, end) else { continue };
            let _point = about_to(Change::Punch, &self.path)?;
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(&file, how, start.start, end.end - start.start)?;
        }
        Ok(())
    }
}

impl Inner {
    /// Evicts the pieces that were used least recently until they are worth `upto` bytes; none if `needed` bytes cannot be
    /// reached. Whether they were.
    pub(super) fn evict_pieces(&self, needed: u64, upto: u64, of: Option<&TaskId>) -> bool {
        let mut candidates = self.candidates(of);
        if candidates.iter().map(|candidate| candidate.bytes).sum::<u64>() < needed {
            return false;
        }
        candidates.sort_unstable_by_key(|candidate| (candidate.last_use, candidate.piece));
        let mut freed = 0;
        let mut losers: HashMap<u64, Arc<Record>> = HashMap::new();
        for Candidate { record, piece, .. } in candidates {
            if freed >= upto {
                break;
            }
            let dropped = record.evict(piece);
            self.room.dropped(dropped);
            self.disown(&record, record.geometry.piece_leaves(piece));
            freed += dropped.held;
            losers.insert(record.generation, record);
        }
        self.metrics.evicted.inc_by(freed);
        for record in losers.into_values() {
            tracing::debug!(task = %record.id, "store: evicted, or a part of it");
            if record.leaves(|leaves| leaves.held().count()) > 0 || self.take_out(&record, true).is_none() {
                self.queue.changed(&record, 0);
                record.bump();
            }
            self.announce(&record.id);
        }
        freed >= needed
    }

    /// Evicts the whole task that was used least recently, and with it its file.
    pub(super) fn evict_oldest(&self, of: Option<&Record>) -> bool {
        let candidates = self.candidates(of.map(|record| &record.id));
        let oldest = candidates.iter().min_by_key(|candidate| candidate.last_use);
        let Some(Candidate { record, .. }) = oldest else { return false };
        let evicted = self.take_out(record, true);
        self.announce(&record.id);
        evicted.is_some()
    }

    fn candidates(&self, of: Option<&TaskId>) -> Vec<Candidate> {
        let layers: Vec<_> = self.layers.lock().values().map(parts).collect();
        let records: HashMap<_, _> = self
            .records(|record| Some(record.clone()))
            .into_iter()
            .map(|record| (record.id.clone(), record))
            .collect();
        // Without index and table a layer's leaves are worth nothing: they are needed as much as these are.
        let mut needed_for: HashMap<&TaskId, Vec<&Arc<Record>>> = HashMap::new();
        for [index, table, leaves] in &layers {
            for meta in [index, table] {
                needed_for.entry(meta).or_default().extend(records.get(leaves));
            }
        }
        let mut candidates = Vec::new();
        for record in records.values().filter(|record| Some(&record.id) != of) {
            let users = needed_for.get(&record.id).map(Vec::as_slice).unwrap_or_default();
            if users.iter().any(|user| user.is_pinned()) {
                continue;
            }
            let mut own = record.candidates();
            own.retain(|candidate| !self.is_lent(record, record.geometry.piece_leaves(candidate.piece)));
            for candidate in &mut own {
                let uses = users.iter().map(|user| user.last_use());
                candidate.last_use = uses.fold(candidate.last_use, u64::max);
            }
            candidates.append(&mut own);
        }
        candidates
    }
}
