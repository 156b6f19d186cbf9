//! Why a task could not be finished.

use crate::{Digest, TaskId, origin::OriginError, store::StoreError};
use darter_proto::scheduler::{Failure, failure::Kind};

/// Why a content cannot be had. Cloned to everybody who waits for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// The origin answered with a status that ends the matter (401, 404, …).
    #[error("the origin answered {status}: {reason}")]
    Origin {
        /// The HTTP status.
        status: u16,
        /// The origin's `WWW-Authenticate`, if it sent one.
        challenge: Option<String>,
        /// For people.
        reason: String,
    },
    /// Nobody who has the content, and not the origin either, could be reached.
    #[error("no source could be reached: {0}")]
    Unreachable(String),
    /// The whole content does not have the digest that it is named by.
    #[error("the content does not have the digest {expected}: what was fetched has been discarded")]
    WrongDigest {
        /// The digest that was asked for.
        expected: Digest,
    },
    /// Nobody has the content and it has no origin.
    #[error("nobody has {0}, and it has no origin")]
    NotFound(TaskId),
    /// The layer's diffID is not the one in the image's config.
    #[error("the layer's diffID is {found}, the image's config says {expected}")]
    WrongDiffId {
        /// From the image's config.
        expected: Digest,
        /// What the layer has.
        found: Digest,
    },
    /// The blob does not become a layer.
    #[error("{0}")]
    LayerRefused(String),
    /// No progress within the deadline.
    #[error("no progress for {seconds} s while waiting for {what}")]
    Deadline {
        /// What was waited for.
        what: String,
        /// The deadline in seconds.
        seconds: u64,
    },
    /// There is no room in the store, and the content cannot be passed on without being kept.
    #[error("the local store is full: {0}")]
    Full(String),
    /// The store failed otherwise: I/O error, damage.
    #[error("the local store failed: {0}")]
    Local(String),
    /// The peer is shutting down, or everybody who wanted the content went away.
    #[error("cancelled")]
    Cancelled,
}

impl TaskError {
    /// As it is told to the scheduler.
    pub(crate) fn to_failure(&self) -> Failure {
        let (kind, status) = match self {
            Self::Origin { status, .. } => (Kind::OriginStatus, u32::from(*status)),
            Self::Unreachable(_) | Self::Deadline { .. } => (Kind::OriginUnreachable, 0),
            Self::WrongDigest { .. } | Self::WrongDiffId { .. } => (Kind::WrongDigest, 0),
            Self::NotFound(_) => (Kind::NotFound, 0),
            Self::LayerRefused(_) => (Kind::LayerRefused, 0),
            Self::Full(_) | Self::Local(_) => (Kind::Local, 0),
            Self::Cancelled => (Kind::Cancelled, 0),
        };
        Failure { kind: kind.into(), status, reason: self.to_string() }
    }

    /// What the scheduler says of a task, as the task's own error.
    pub(crate) fn from_failure(id: &TaskId, failure: &Failure) -> Self {
        match failure.kind() {
            Kind::OriginStatus => Self::Origin {
                status: u16::try_from(failure.status).unwrap_or(502),
                challenge: None,
                reason: failure.reason.clone(),
            },
            Kind::NotFound => Self::NotFound(id.clone()),
            Kind::LayerRefused => Self::LayerRefused(failure.reason.clone()),
            Kind::WrongDigest => match id.digest() {
                Some(expected) => Self::WrongDigest { expected },
                None => Self::Unreachable(failure.reason.clone()),
            },
            Kind::Unknown | Kind::OriginUnreachable | Kind::Local | Kind::Cancelled => {
                Self::Unreachable(failure.reason.clone())
            }
        }
    }
}

impl From<StoreError> for TaskError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Full { .. } => Self::Full(error.to_string()),
            error => Self::Local(error.to_string()),
        }
    }
}

impl From<OriginError> for TaskError {
    fn from(error: OriginError) -> Self {
        match error {
            OriginError::Status { status, ref challenge, .. } => {
                Self::Origin { status, challenge: challenge.clone(), reason: error.to_string() }
            }
            other => Self::Unreachable(other.to_string()),
        }
    }
}

/// For readers that speak [`std::io`].
impl From<TaskError> for std::io::Error {
    fn from(error: TaskError) -> Self {
        Self::other(error)
    }
}
