//! A task's hold on one of its parents.

use std::{fmt, ops::Range, sync::Arc};

use super::link::Link;
use crate::Class;

/// A task's subscription to one parent. Dropping it cancels all requests and unsubscribes.
pub struct Subscription {
    link: Arc<Link>,
    stream: u32,
}

impl Subscription {
    pub(super) fn new(link: Arc<Link>, stream: u32) -> Self {
        Self { link, stream }
    }

    /// Asks the parent for leaves; never waits.
    ///
    /// Each comes as one event, a leaf or a refusal, unless it is cancelled or the subscription ends first. A leaf that
    /// is under way already is asked for again only if it became more urgent. More than 2048 leaves at once are
    /// refused as [`Busy`](crate::transfer::Refusal::Busy).
    pub fn request(&self, leaves: Range<u32>, class: Class) {
        self.link.request(self.stream, leaves, class);
    }

    /// Gives up requested leaves; never waits. A leaf whose event is on its way already may still come.
    pub fn cancel(&self, leaves: Range<u32>) {
        self.link.cancel(self.stream, leaves);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.link.unsubscribe(self.stream);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("stream", &self.stream).finish_non_exhaustive()
    }
}
