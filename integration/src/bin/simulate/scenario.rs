//! What is simulated.

use std::sync::Arc;

use anyhow::{Result, ensure};
use darter_integration::scenario::ScenarioKind;
use darter_peer::{Geometry, LEAF_LEN, LeafTable, layer::LeafEntry};

/// One run.
#[derive(Debug, Clone)]
pub(crate) struct Scenario {
    pub(crate) kind: ScenarioKind,
    /// Peers that want the content; a seed peer comes on top.
    pub(crate) peers: u32,
    /// Whether there is a seed peer.
    pub(crate) with_seed: bool,
    /// Length of the content in bytes.
    pub(crate) bytes: u64,
    /// Length of what the plan decides about, in bytes: a leaf, or with very many peers a whole piece.
    pub(crate) unit: u64,
    /// What a link carries in each direction, in bytes per second. The origin's carries as much.
    pub(crate) rate: u64,
    /// Leaves that a host sends at once.
    pub(crate) uploads: usize,
    /// Racks, with a link of a third of their hosts' rates.
    pub(crate) racks: u32,
    /// The seed peer stands in none of them.
    pub(crate) seed_apart: bool,
    /// Equal numbers give equal runs.
    pub(crate) seed: u64,
}

impl Scenario {
    /// Number of what the plan decides about.
    pub(crate) fn leaves(&self) -> u32 {
        u32::try_from(self.bytes.div_ceil(self.unit)).unwrap_or(u32::MAX)
    }

    /// How the content is cut. Leaves of another length than a blob's are those of a table.
    pub(crate) fn geometry(&self) -> Result<Geometry> {
        ensure!(self.bytes > 0 && self.bytes.is_multiple_of(self.unit), "not a number of whole leaves");
        if self.unit == u64::from(LEAF_LEN) {
            return Ok(Geometry::Fixed { len: self.bytes });
        }
        let len = u32::try_from(self.unit)?;
        let entry = LeafEntry { raw_len: len, stored_len: len, digest: [0; 32] };
        let table = LeafTable::new(vec![entry; self.leaves() as usize])?;
        Ok(Geometry::Table(Arc::new(table)))
    }

    /// The time in seconds that no way of distributing it can beat: the content over one link, or all copies over all
    /// uplinks (Kumar and Ross, 2006).
    pub(crate) fn bound(&self) -> f64 {
        let (bytes, rate, peers) = (self.bytes as f64, self.rate as f64, f64::from(self.peers));
        let slow = if self.kind == ScenarioKind::Slow { peers * SLOW * (1.0 - SLOW_RATE) } else { 0.0 };
        (bytes / rate).max(peers * bytes / (rate * (1.0 + peers - slow)))
    }
}

/// The share of slow peers, and their share of the rate.
pub(crate) const SLOW: f64 = 0.05;
pub(crate) const SLOW_RATE: f64 = 0.2;
/// The share of peers that are killed.
pub(crate) const KILLED: f64 = 0.1;
/// How much less than its hosts together a rack's link carries.
pub(crate) const OVERSUBSCRIBED: f64 = 3.0;
