//! Checks the digest of the whole while the leaves arrive, in order, behind the download.

use std::sync::Arc;

use crate::{
    Digest, TaskError,
    content::blocking,
    store::{Entry, StoreError},
};

/// Leaves hashed in one go.
const BATCH: u32 = 16;

/// Waits for every leaf in order and compares the whole with `expected`.
///
/// # Errors
/// [`TaskError::WrongDigest`], or a failure of the store.
pub(super) async fn check(entry: Arc<Entry>, expected: Digest) -> Result<(), TaskError> {
    let leaves = entry.geometry().leaves();
    let mut changes = entry.changes();
    let mut hasher = expected.algorithm().hasher();
    let mut next = 0;
    while next < leaves {
        changes.mark_unchanged();
        let end = (next..leaves.min(next + BATCH))
            .find(|leaf| !entry.has(*leaf))
            .unwrap_or(leaves.min(next + BATCH));
        if end == next {
            changes.changed().await.map_err(|_| TaskError::Cancelled)?;
            continue;
        }
        let from = entry.clone();
        hasher = blocking(move || {
            for leaf in next..end {
                hasher.update(&from.read_leaf(leaf)?);
            }
            Ok::<_, StoreError>(hasher)
        })
        .await?;
        next = end;
    }
    if hasher.finish() == expected { Ok(()) } else { Err(TaskError::WrongDigest { expected }) }
}
