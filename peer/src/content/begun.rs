//! The first bytes of a leaf that an origin is sending: a stream's reader need not wait for the end of its first leaf.
//!
//! Nobody can have checked them. Whoever passes them on compares them with the leaf once that is here, and breaks off if
//! they differ. So whoever gets the last byte of a content has got nothing but bytes of what was checked as a whole.

use bytes::Bytes;
use tokio::sync::watch;

/// Most bytes that are shown.
const MOST: usize = 64 * 1024;

/// What has arrived of the leaf with which an answer of the origin begins.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    leaf: watch::Sender<Option<(u32, Bytes)>>,
}

impl Begun {
    /// Shows the beginning of a leaf.
    pub(crate) fn show(&self, leaf: u32, bytes: &Bytes) {
        let shown = bytes.slice(..bytes.len().min(MOST));
        self.leaf.send_replace(Some((leaf, shown)).filter(|(_, shown)| !shown.is_empty()));
    }

    /// The leaf is here as a whole.
    pub(crate) fn end(&self) {
        self.leaf.send_replace(None);
    }

    /// The beginning of a leaf, as soon as there is one.
    pub(super) async fn of(&self, leaf: u32) -> Bytes {
        let mut begun = self.leaf.subscribe();
        let shown = begun.wait_for(|begun| begun.as_ref().is_some_and(|(shown, _)| *shown == leaf)).await;
        match shown.ok().and_then(|begun| begun.clone()) {
            Some((_, bytes)) => bytes,
            None => std::future::pending().await,
        }
    }
}
