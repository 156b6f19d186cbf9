//! What is known of one snapshot.

use std::{collections::BTreeMap, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::lazy::LayerRef;

/// A snapshot's labels.
pub(crate) type Labels = BTreeMap<String, String>;

/// What a snapshot is, in containerd's sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// Read-only, not a parent.
    View,
    /// Writable, not a parent.
    Active,
    /// Fixed; the only kind that has children.
    Committed,
}

/// Space on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Usage {
    /// Bytes.
    pub(crate) size: u64,
    /// Files, directories and the rest, each inode once.
    pub(crate) inodes: u64,
}

/// One snapshot, without its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Never used twice; names the snapshot's directory.
    pub(crate) id: u64,
    /// Name of the parent, empty for none.
    pub(crate) parent: String,
    pub(crate) kind: Kind,
    pub(crate) labels: Labels,
    pub(crate) created: SystemTime,
    pub(crate) updated: SystemTime,
    /// Of a committed snapshot, taken when it was committed.
    pub(crate) usage: Usage,
    /// Set for a lazy snapshot, which has no directory of its own but for what its layer lacks.
    pub(crate) lazy: Option<Lazy>,
}

/// What a lazy snapshot stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lazy {
    /// The chainID that containerd asked for.
    pub(crate) target: String,
    /// The layer that is mounted for it.
    pub(crate) layer: LayerRef,
    /// Whether the layer lacks entries for directories that it puts files into.
    #[serde(default)]
    pub(crate) implies: bool,
}

impl Kind {
    /// As in containerd's filters.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}
