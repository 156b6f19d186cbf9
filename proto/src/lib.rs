//! The wire protocols: Darter's own between its services, and containerd's snapshots service.
//!
//! The `.proto` files beside this crate are the documentation of every message; [`ticket`] is that of tickets.

pub mod ticket;

#[allow(missing_docs, missing_debug_implementations, unreachable_pub, clippy::all, clippy::pedantic)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::large_futures)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

pub use generated::{
    containerd::services::snapshots::v1 as snapshots,
    darter::{manager::v1 as manager, peer::v1 as peer, scheduler::v1 as scheduler},
};

/// Largest gRPC message that Darter's services accept, in bytes; containerd's own limit.
pub const MAX_MESSAGE_LEN: usize = 16 * 1024 * 1024;
