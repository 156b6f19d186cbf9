//! What the snapshotter needs of the peer.

mod peer;

pub(crate) use peer::MANIFEST_TYPES;

use std::sync::Arc;

use bytes::Bytes;
use darter_peer::{Class, Digest, LayerDescriptor, LeafTable, TaskError};
use futures_util::future::BoxFuture;

use crate::{image::Repository, lazy::LayerRef};

/// The peer as the snapshotter sees it.
pub(crate) trait Engine: Send + Sync + 'static {
    /// The manifest or index with this digest, checked.
    fn manifest<'a>(
        &'a self,
        of: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Bytes, TaskError>>;
    /// The manifest or index that a tag names now.
    fn tagged<'a>(&'a self, of: &'a Repository, tag: &'a str) -> BoxFuture<'a, Result<Bytes, TaskError>>;
    /// A small blob, checked.
    fn blob<'a>(&'a self, of: &'a Repository, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, TaskError>>;
    /// Whether the registry lets this node read a layer in its repository.
    fn allows<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<(), NotAllowed>>;
    /// A layer, as soon as it can be mounted; whether the registry allows it is another question.
    fn layer<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<OpenLayer, TaskError>>;
    /// A layer that this peer knows, without asking anybody.
    fn local_layer<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Option<OpenLayer>>;
    /// Nothing on this node needs a layer any more: its bytes may go.
    fn remove<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, ()>;
    /// What another node's start of the image with this chainID read, if somebody knows.
    fn start_profile<'a>(&'a self, image: &'a Digest) -> BoxFuture<'a, Option<Bytes>>;
    /// Tells the others what a start of the image with this chainID read.
    fn share_start_profile<'a>(&'a self, image: &'a Digest, profile: Bytes) -> BoxFuture<'a, ()>;
    /// A published layer is not what its image says: nothing of it may be used again, and its maker is to be blamed.
    fn blame<'a>(&'a self, layer: &'a LayerDescriptor) -> BoxFuture<'a, Result<(), TaskError>>;
}

/// Why a layer is not to be read in its repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAllowed {
    /// The registry said so.
    #[error("the registry does not let this node read it: {0}")]
    Refused(String),
    /// The registry said nothing.
    #[error("the registry does not say whether this node may read it: {0}")]
    NoAnswer(String),
}

/// A layer whose index and leaf table are here, and whose leaves can be had.
#[derive(Clone)]
pub(crate) struct OpenLayer {
    pub(crate) descriptor: LayerDescriptor,
    pub(crate) table: Arc<LeafTable>,
    /// The EROFS metadata image.
    pub(crate) index: Bytes,
    /// While it lives, the leaves that are held are not evicted.
    pub(crate) leaves: Arc<dyn Leaves>,
}

/// The stored leaves of one layer.
pub(crate) trait Leaves: Send + Sync + 'static {
    /// One leaf's stored bytes, checked; waits for them.
    fn leaf(&self, leaf: u32, class: Class) -> BoxFuture<'_, Result<Bytes, TaskError>>;
    /// Has all leaves fetched at background priority.
    fn fill(&self);
}
