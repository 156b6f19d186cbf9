//! Tells a child which leaves of a task this peer holds, as soon as it does: that is the relay below the piece.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use super::child::Child;
use crate::{
    store::Entry,
    transfer::{
        frame::{Frame, MAX_RANGES},
        ranges::added,
    },
};

/// Shortest time between two announcements of one subscription: what comes in between is told in one.
const PAUSE: Duration = Duration::from_millis(2);

/// Announces the leaves of `entry` until that is removed.
pub(super) async fn announce(child: Arc<Child>, stream: u32, entry: Arc<Entry>) {
    let mut changes = entry.changes();
    let mut told = Vec::new();
    for round in 0u64.. {
        changes.mark_unchanged();
        if entry.is_removed() {
            child.close(stream, "the parent has dropped this task").await;
            return;
        }
        let held = entry.have_ranges();
        let mut news = added(&held, &told);
        told = held;
        // The first announcement is made even if it is empty: the child waits for it.
        while !news.is_empty() || round == 0 {
            let rest = news.split_off(news.len().min(MAX_RANGES as usize));
            child.tell(Frame::Have { stream, leaves: news }).await;
            news = rest;
            if news.is_empty() {
                break;
            }
        }
        sleep(PAUSE).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}
