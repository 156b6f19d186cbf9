//! Checks a complete layer: its raw tar has the diffID that the image's config names, and its index is the one that this
//! raw tar makes. Until then the node has to trust whoever made the layer.

use std::io;

use darter_peer::Digest;
use tracing::debug;

use super::layer::LazyLayer;
use crate::layer::Indexer;

/// What is wrong with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Wrong {
    #[error("its content does not have its diffID")]
    Content,
    #[error("its index is not the one that its content makes")]
    Index,
}

/// Reads the whole raw tar and notes that it is right, or says what is wrong. Blocks.
pub(super) fn verify(layer: &LazyLayer) -> io::Result<Result<(), Wrong>> {
    let diff_id = &layer.reference.diff_id;
    let mut hasher = diff_id.algorithm().hasher();
    let mut indexer = Ok(Indexer::default());
    layer.raw.read_all(&mut |bytes| {
        hasher.update(bytes);
        if let Ok(indexing) = &mut indexer
            && let Err(refused) = indexing.feed(bytes)
        {
            indexer = Err(refused);
        }
    })?;
    if hasher.finish() != *diff_id {
        return Ok(Err(Wrong::Content));
    }
    match indexer.and_then(Indexer::finish) {
        Ok((index, _)) if Digest::blake3(&index) == layer.descriptor.index => {
            layer.raw.set_verified();
            Ok(Ok(()))
        }
        Ok(_) => Ok(Err(Wrong::Index)),
        Err(refused) => {
            debug!(layer = %diff_id, %refused, "the content of a layer makes no index");
            Ok(Err(Wrong::Index))
        }
    }
}
