//! Whether a container waits for something right now, anywhere on this host.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// A container that just waited for a leaf will soon wait for the next one: background work stays away for so long.
const RECENT: Duration = Duration::from_millis(500);

/// When a container last had to wait. All downloads of a host share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct DemandClock {
    last: Arc<Mutex<Option<Instant>>>,
}

impl DemandClock {
    /// A container waits now.
    pub(crate) fn note(&self) {
        *self.last.lock() = Some(Instant::now());
    }

    /// Whether background work has to stay away.
    pub(crate) fn is_recent(&self) -> bool {
        self.last.lock().is_some_and(|last| last.elapsed() < RECENT)
    }
}
