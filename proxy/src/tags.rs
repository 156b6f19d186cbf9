//! What tags stood for when the origin was last asked, for the time in which it gives no answer.

use std::{num::NonZeroUsize, time::Duration};

use darter_peer::Digest;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Tags that are remembered.
const TAGS: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();

/// Tags by registry and path.
pub(crate) struct Tags {
    /// How old an answer may be.
    lifetime: Duration,
    known: Mutex<LruCache<(String, String), (Digest, Instant)>>,
}

impl Tags {
    pub(crate) fn new(lifetime: Duration) -> Self {
        Self { lifetime, known: Mutex::new(LruCache::new(TAGS)) }
    }

    /// Remembers what a tag stands for.
    pub(crate) fn learn(&self, registry: &str, path: &str, digest: Digest) {
        if !self.lifetime.is_zero() {
            self.known.lock().put((registry.to_owned(), path.to_owned()), (digest, Instant::now()));
        }
    }

    /// What a tag stood for not too long ago.
    pub(crate) fn stale(&self, registry: &str, path: &str) -> Option<Digest> {
        let known = self.known.lock().get(&(registry.to_owned(), path.to_owned())).cloned();
        known.filter(|(_, at)| at.elapsed() < self.lifetime).map(|(digest, _)| digest)
    }
}
