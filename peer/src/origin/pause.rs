//! Origins that asked to be left alone for a while (`Retry-After`): all tasks of this node respect it.

use std::{num::NonZeroUsize, time::Duration};

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

/// Origins that are remembered.
const ORIGINS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// Longest pause that an origin can ask for.
const LONGEST: Duration = Duration::from_secs(3600);

/// Until when which origin is left alone.
pub(super) struct Pauses {
    until: Mutex<LruCache<String, Pause>>,
}

/// What an origin asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    /// The status that it asked with.
    pub(super) status: u16,
    pub(super) until: Instant,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { until: Mutex::new(LruCache::new(ORIGINS)) }
    }
}

impl Pauses {
    /// Notes that an origin wants to be left alone.
    pub(super) fn note(&self, url: &Url, status: u16, wait: Duration) {
        let pause = Pause { status, until: Instant::now() + wait.min(LONGEST) };
        self.until.lock().put(url.origin().ascii_serialization(), pause);
    }

    /// The pause that an origin is in.
    pub(super) fn of(&self, url: &Url) -> Option<Pause> {
        let pause = self.until.lock().get(&url.origin().ascii_serialization()).copied();
        pause.filter(|pause| pause.until > Instant::now())
    }
}
