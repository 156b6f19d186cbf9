//! What the cluster's operator decides about scheduling.

use std::time::Duration;

use darter_proto::scheduler as proto;

/// The settings of a [`super::State`]; may change while it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Names this scheduler to peers and people.
    pub scheduler_id: String,
    /// Aimed-at number of parents of a child in one task.
    pub parents_per_child: usize,
    /// Whether parents are replaced as a child gets on or starves; without it only those that are gone.
    pub rotate: bool,
    /// Children that a host serves at once, over all its tasks, before others are preferred; a seed peer serves four
    /// times as many. A host may ask for another number.
    pub children_per_parent: u32,
    /// A lease holder that shows no progress for so long loses its lease.
    pub lease_progress_timeout: Duration,
    /// For so long after its start a scheduler gives no lease and says no "not found": its peers, who
    /// know better, are still coming back.
    pub settle_time: Duration,
    /// Rate limits that hold for all peers of the cluster.
    pub rates: proto::Config,
}

impl Settings {
    /// Children that a peer has if all have equally many.
    pub(super) fn usual_children(&self) -> u32 {
        u32::try_from(self.parents_per_child).unwrap_or(u32::MAX)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            scheduler_id: "scheduler".to_owned(),
            parents_per_child: 16,
            rotate: true,
            children_per_parent: 128,
            lease_progress_timeout: Duration::from_secs(5),
            settle_time: Duration::from_secs(2),
            rates: proto::Config::default(),
        }
    }
}
