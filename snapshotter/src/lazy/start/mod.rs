//! Learning what a start needs: while a container starts, the leaves that are read are noted, in their order. The first
//! node that sees an image start tells the others through the scheduler; they fetch just those leaves, in that order,
//! ahead of all background work.
//!
//! A profile is a hint by another node. A wrong one costs the fetching of leaves of this very image, in another order.

mod profile;
mod recording;
mod saved;

use std::{collections::HashSet, num::NonZeroUsize, path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use darter_peer::{Class, Digest};
use futures_util::{StreamExt, stream};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::timeout;
use tracing::{debug, info, warn};

pub(super) use self::recording::Recording;
use self::{
    profile::{Profile, StartLeaf},
    saved::Saved,
};
use super::{Layers, blocking, layer::LazyLayer};

/// Leaves of a profile that are fetched at a time: enough for a fast link, and little for a read to wait behind.
const AT_ONCE: usize = 6;
/// Fetching a profile's leaves is given up after this time; the rest comes in the background.
const PREFETCH_DEADLINE: Duration = Duration::from_secs(600);
/// Most stored bytes that are fetched for one profile.
const MAX_PREFETCH: u64 = 1 << 30;
/// A profile that named fewer of the leaves that were read than this share is replaced.
const GOOD: f64 = 0.9;
/// Most images whose start is remembered.
const MAX_SEEN: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// What is known of the starts on this node.
#[derive(Debug)]
pub(super) struct Starts {
    saved: Saved,
    seen: Mutex<LruCache<Digest, Seen>>,
}

/// How well an image's start was foreseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Leaves that the start read.
    pub(crate) read: u32,
    /// Those of them that the profile had named; `None` if there was no profile.
    pub(crate) foreseen: Option<u32>,
}

impl Starts {
    pub(super) fn below(root: &Path) -> Self {
        Self { saved: Saved::below(root), seen: Mutex::new(LruCache::new(MAX_SEEN)) }
    }

    /// How well the latest start of an image with this chainID was foreseen.
    pub(super) fn seen(&self, image: &Digest) -> Option<Seen> {
        self.seen.lock().peek(image).copied()
    }
}

/// Tells the scheduler what this node knows from before.
pub(super) async fn tell_saved(layers: Arc<Layers>) {
    let saved = layers.starts.saved.clone();
    match blocking("reading the start profiles", move || saved.all()).await {
        Ok(all) => {
            for (image, profile) in all {
                layers.engine.share_start_profile(&image, profile.into()).await;
            }
        }
        Err(error) => warn!(%error, "the start profiles of an earlier run are not shared"),
    }
}

/// Fetches what the start of the image with this chainID will read, and notes what it does read. The layers are all
/// that the image has, the lowest first.
pub(super) async fn follow(layers: Arc<Layers>, image: Digest, of: Vec<Arc<LazyLayer>>) {
    if of.iter().all(|layer| layer.raw.is_complete()) {
        return;
    }
    let recording = Arc::new(Recording::default());
    (0..).zip(&of).for_each(|(at, layer)| layer.record(at, &recording));
    let tables: Vec<_> = of.iter().map(|layer| layer.descriptor.table.clone()).collect();
    let foreseen = profile(&layers, &image).await.map(|profile| profile.leaves(&tables));
    if foreseen.is_some() {
        of.iter().for_each(|layer| layer.foresee());
    }
    let fetching = async {
        let leaves = foreseen.as_deref().unwrap_or_default();
        if timeout(PREFETCH_DEADLINE, prefetch(&of, leaves)).await.is_err() {
            debug!(%image, "the start profile was not fetched in time");
        }
    };
    let (read, ()) = tokio::join!(recording.settled(), fetching);
    let Some(read) = read else { return };
    let seen = compare(&read, foreseen.as_deref());
    info!(%image, ?seen, "the start has settled");
    layers.starts.seen.lock().put(image.clone(), seen);
    layers.metrics.started(seen.read, seen.foreseen);
    let good = seen.foreseen.is_some_and(|foreseen| f64::from(foreseen) >= GOOD * f64::from(seen.read));
    if good {
        return;
    }
    let Some(profile) = Profile::new(&tables, read).map(|profile| Bytes::from(profile.encode())) else {
        return;
    };
    layers.engine.share_start_profile(&image, profile.clone()).await;
    let saved = layers.starts.saved.clone();
    let saving = blocking("saving the start profile", move || saved.put(&image, &profile));
    if let Err(error) = saving.await {
        warn!(%error, "a start profile is not kept");
    }
}

/// What another node or an earlier start on this one read.
async fn profile(layers: &Layers, image: &Digest) -> Option<Profile> {
    if let Some(shared) = layers.engine.start_profile(image).await {
        return Profile::decode(&shared);
    }
    let (saved, image) = (layers.starts.saved.clone(), image.clone());
    let found = blocking("reading a start profile", move || Ok(saved.get(&image))).await;
    found.ok().flatten().and_then(|found| Profile::decode(&found))
}

async fn prefetch(of: &[Arc<LazyLayer>], leaves: &[StartLeaf]) {
    let mut room = MAX_PREFETCH;
    let mut wanted = Vec::new();
    for leaf in leaves {
        let Some(layer) = of.get(usize::from(leaf.layer)) else { continue };
        let Some(len) = layer.stored_len(leaf.leaf).filter(|_| !layer.raw.has(leaf.leaf)) else { continue };
        let Some(left) = room.checked_sub(len) else { break };
        room = left;
        wanted.push((layer, leaf.leaf));
    }
    debug!(leaves = wanted.len(), bytes = MAX_PREFETCH - room, "fetching what the start will read");
    let fetch = async |(layer, leaf): (&Arc<LazyLayer>, u32)| {
        if !layer.raw.has(leaf)
            && let Err(error) = layer.leaf(leaf, Class::Profile).await
        {
            debug!(?layer, leaf, %error, "not fetched ahead");
        }
    };
    stream::iter(wanted).map(fetch).buffer_unordered(AT_ONCE).collect::<()>().await;
}

fn compare(read: &[StartLeaf], foreseen: Option<&[StartLeaf]>) -> Seen {
    let count = |leaves: usize| u32::try_from(leaves).unwrap_or(u32::MAX);
    let named = foreseen.map(|leaves| leaves.iter().collect::<HashSet<_>>());
    let foreseen = named.map(|named| count(read.iter().filter(|leaf| named.contains(leaf)).count()));
    Seen { read: count(read.len()), foreseen }
}
