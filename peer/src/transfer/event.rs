//! What a task hears of its parents, and why a parent could not be used.

use std::{io, ops::Range, time::Duration};

use bytes::Bytes;

/// Names a parent in the events that its task receives; chosen by the task.
pub type ParentKey = u64;

/// News of one parent of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParentEvent {
    /// Which parent.
    pub parent: ParentKey,
    /// What it did.
    pub kind: ParentEventKind,
}

/// What a parent did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParentEventKind {
    /// The parent holds these leaves: first all that it holds (maybe none; a very fragmented set comes in several
    /// events), later what came in addition.
    Have(Vec<Range<u32>>),
    /// A requested leaf. Nothing was checked yet but that it was asked for and is no longer than 16 MiB.
    Leaf {
        /// Its number.
        leaf: u32,
        /// Its bytes as the parent has them.
        bytes: Bytes,
        /// Time from the request until the last byte.
        waited: Duration,
    },
    /// The parent does not send these requested leaves.
    Refused {
        /// Which ones.
        leaves: Range<u32>,
        /// Why.
        reason: Refusal,
    },
    /// The subscription is over, and nothing more comes of it; the reason is for people.
    Gone(String),
    /// As `Gone`, because the ticket that was shown is not good: with a newer one the parent may be asked again.
    Denied(String),
}

/// Why a requested leaf is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Refusal {
    /// Too much is queued already; ask another parent, or this one later.
    Busy = 1,
    /// The parent does not hold the leaf.
    NotHeld = 2,
    /// The answer to a cancelled request; a task never hears of it.
    Cancelled = 3,
}

/// Why a parent could not be subscribed to.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// No connection.
    #[error("cannot connect to parent {address}: {source}")]
    Connect {
        /// The parent's address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No connection or no handshake in time.
    #[error("parent {address} did not answer within {timeout:?}")]
    Timeout {
        /// The parent's address.
        address: String,
        /// The dial time-out.
        timeout: Duration,
    },
    /// Something answers there, but it is not a peer that this one can talk to, or one that takes no more children.
    #[error("parent {address} refused the handshake: {reason}")]
    Handshake {
        /// The parent's address.
        address: String,
        /// What was wrong.
        reason: String,
    },
    /// The connection ended while the subscription was being made.
    #[error("the connection to parent {address} ended: {reason}")]
    Ended {
        /// The parent's address.
        address: String,
        /// Why it ended.
        reason: String,
    },
    /// The pool was closed.
    #[error("this peer is shutting down")]
    Closed,
}
