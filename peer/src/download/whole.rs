//! Checks the digest of the whole while the leaves arrive, in order, behind the download.

use std::{ops::Range, sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{
    Class, TaskError,
    content::{Shared, blocking},
    digest::Hasher,
    store::{Entry, StoreError},
};

/// Leaves hashed in one go.
const BATCH: u32 = 16;
/// A leaf that does not come by for so long is asked for: where leaves cannot be kept, they come for those who ask.
const PATIENCE: Duration = Duration::from_millis(200);

/// Waits for every leaf in order and compares the whole with the digest in the task's id, if there is one.
///
/// # Errors
/// [`TaskError::WrongDigest`], or a failure of the store.
pub(super) async fn check(entry: Arc<Entry>, shared: &Shared) -> Result<(), TaskError> {
    let expected = shared.id.digest();
    let leaves = entry.geometry().leaves();
    let mut changes = entry.changes();
    let mut hasher = expected.as_ref().map(|digest| digest.algorithm().hasher());
    let mut next = 0;
    while next < leaves {
        changes.mark_unchanged();
        let batch = next..leaves.min(next + BATCH);
        let end = batch.clone().find(|leaf| !entry.has(*leaf)).unwrap_or(batch.end);
        if end > next {
            let from = entry.clone();
            (hasher, next) = blocking(move || add(hasher, &from, next..end)).await?;
            if next < end {
                // It was here a moment ago, and the download may believe that it is.
                shared.demand(next..next + 1, Class::Stream).await;
            }
            continue;
        }
        match timeout(PATIENCE, changes.changed()).await {
            Ok(changed) => changed.map_err(|_| TaskError::Cancelled)?,
            Err(_) if entry.is_unkept() => shared.demand(batch, Class::Stream).await,
            Err(_) => {}
        }
    }
    match expected {
        Some(expected) if hasher.map(Hasher::finish).as_ref() != Some(&expected) => {
            Err(TaskError::WrongDigest { expected })
        }
        _ => Ok(()),
    }
}

/// Adds leaves until one is not here any more; also returns which that is, or the end.
fn add(
    mut hasher: Option<Hasher>,
    entry: &Entry,
    leaves: Range<u32>,
) -> Result<(Option<Hasher>, u32), StoreError> {
    for leaf in leaves.clone() {
        match (entry.read_leaf(leaf), &mut hasher) {
            (Ok(bytes), Some(hasher)) => hasher.update(&bytes),
            (Ok(_), None) => {}
            (Err(StoreError::NotHeld { .. } | StoreError::Rotten { .. }), _) => return Ok((hasher, leaf)),
            (Err(error), _) => return Err(error),
        }
    }
    Ok((hasher, leaves.end))
}
