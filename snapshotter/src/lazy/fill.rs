//! Completes a mounted layer in the background and checks the whole of it.

use std::{sync::Arc, time::Duration};

use darter_peer::Class;
use darter_service::backoff::Backoff;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::{
    layer::{LazyLayer, ReadError},
    verify::{Wrong, verify},
};

/// Leaves that are decoded and written at a time.
const AT_ONCE: usize = 4;

/// What is known of a layer that is complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// It is what its image says.
    Right,
    /// It is not: what it was made of, and what was read of it, is wrong.
    Wrong(Wrong),
}

/// Fetches what is missing of a layer, saves it and checks it.
pub(super) async fn fill(layer: &Arc<LazyLayer>) -> Result<Filled, ReadError> {
    if !layer.raw.is_complete() {
        fetch_all(layer).await?;
    }
    if layer.raw.is_verified() {
        return Ok(Filled::Right);
    }
    let verified = blocking({
        let layer = layer.clone();
        move || {
            let verified = verify(&layer)?;
            layer.raw.save()?;
            Ok(verified)
        }
    });
    if let Err(wrong) = verified.await? {
        return Ok(Filled::Wrong(wrong));
    }
    layer.drop_leaves().await;
    info!(layer = %layer.reference.diff_id, bytes = layer.raw.len(), "the layer is complete");
    Ok(Filled::Right)
}

async fn fetch_all(layer: &Arc<LazyLayer>) -> Result<(), ReadError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    while let Err(error) = layer.start_filling().await {
        debug!(layer = %layer.reference.diff_id, %error, "the layer cannot be filled yet");
        sleep(backoff.wait()).await;
    }
    let missing =
        stream::iter(0..layer.leaf_count()).filter(|leaf| std::future::ready(!layer.raw.has(*leaf)));
    let fetch = |leaf| async move { layer.leaf(leaf, Class::Background).await.map(drop) };
    missing.map(fetch).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    if !layer.raw.is_complete() {
        warn!(layer = %layer.reference.diff_id, "the layer is fetched, but could not be kept on disk");
        return Err(ReadError::Io("the disk is full".into()));
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, ReadError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|err| ReadError::Io(err.to_string())),
        Err(_) => Err(ReadError::Stopping),
    }
}
