//! The P2P engine of a node: tasks, pieces, store, transfer and sources.
//!
//! Nothing in here knows about registries' HTTP API or about containerd; `proxy` and `snapshotter` stand on top.

mod cluster;
pub mod config;
pub mod content;
pub mod control;
pub mod digest;
mod download;
pub mod error;
pub mod layer;
pub mod layers;
pub mod leaf_set;
pub mod limits;
pub mod metrics;
pub mod origin;
pub mod peer;
pub mod plan;
mod profiles;
mod schedulers;
mod session;
pub mod site;
pub mod store;
mod stored;
pub mod task;
pub mod transfer;
pub mod upkeep;
mod wire;

pub use config::Config;
pub use content::{BySource, Content};
pub use digest::{Digest, LeafDigest};
pub use error::TaskError;
pub use layer::{LayerDescriptor, LayerFormat, LayerMaker, LeafSink, LeafTable, MadeLayer, MakeError};
pub use layers::{Layer, LayerWant};
pub use leaf_set::LeafSet;
pub use limits::{Bucket, Limits, LimitsConfig};
pub use peer::{Peer, StartError, Want};
pub use site::{Border, Site};
pub use stored::StoredFile;
pub use task::{Class, Geometry, LEAF_LEN, PIECE_LEN, TaskId};
