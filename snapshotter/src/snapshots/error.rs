//! What can go wrong with a snapshot, and the gRPC code by which containerd tells it apart.

use tonic::{Code, Status};

/// Why a request about a snapshot failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("snapshot {0:?} does not exist: not found")]
    NotFound(String),
    #[error("parent snapshot {0:?} does not exist: not found")]
    ParentNotFound(String),
    #[error("snapshot {0:?} already exists")]
    AlreadyExists(String),
    #[error("snapshot {0:?} is not committed, so it cannot be a parent")]
    ParentNotCommitted(String),
    #[error("snapshot {0:?} is not active")]
    NotActive(String),
    #[error("snapshot {0:?} is neither active nor a view, so it has no mounts")]
    NoMounts(String),
    #[error("cannot remove snapshot {0:?}: it has children")]
    HasChildren(String),
    #[error("{0}")]
    Invalid(String),
    #[error("layer {layer} cannot be mounted: {reason}")]
    Unmountable { layer: String, reason: String },
    #[error("{what}: {source}")]
    Io { what: String, source: std::io::Error },
    #[error("the snapshot database failed: {0}")]
    Database(String),
    #[error("the snapshotter is shutting down")]
    Stopping,
}

impl SnapshotError {
    /// Wraps an I/O error with what was being done.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) | Self::ParentNotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::ParentNotCommitted(_) | Self::Invalid(_) => Code::InvalidArgument,
            Self::NotActive(_) | Self::NoMounts(_) | Self::HasChildren(_) => Code::FailedPrecondition,
            Self::Unmountable { .. } | Self::Stopping => Code::Unavailable,
            Self::Io { .. } | Self::Database(_) => Code::Internal,
        }
    }
}

impl From<SnapshotError> for Status {
    fn from(error: SnapshotError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<redb::Error> for SnapshotError {
    fn from(error: redb::Error) -> Self {
        Self::Database(error.to_string())
    }
}
