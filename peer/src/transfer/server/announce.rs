//! Tells a child which leaves of a task this peer holds, as soon as it does: that is the relay below the piece.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Server,
    child::{Child, Stream},
    desk::Place,
};
use crate::{
    Geometry, TaskId,
    store::Entry,
    transfer::{
        Relay,
        frame::{Frame, MAX_RANGES},
        ranges::{added, joined},
    },
};

/// Between two announcements of one subscription pass a five-hundredth of its age, at least and at most these: what comes in
/// between is told in one. The more a task has before it, the less does the delay cost, and every message takes CPU time at
/// both ends.
const PAUSE: Range<Duration> = Duration::from_millis(2)..Duration::from_millis(100);
/// A child may come a little before its parent begins with the task itself, as in a crowd that comes at once, or before
/// the parent knows the scheduler that sent it.
const EARLY: Duration = Duration::from_secs(2);

/// Announces the leaves of a stream's task until that is removed; waits for the task first if it is not here. A child
/// without a good ticket hears nothing of it.
pub(super) async fn announce(
    server: Arc<Server>,
    child: Arc<Child>,
    stream: u32,
    task: TaskId,
    ticket: Bytes,
) {
    let open = match child.stream(stream) {
        Some(open) => open,
        None => {
            if let Err(denial) = server.keys.check_patiently(&child.host, &task, &ticket, EARLY).await {
                return child.deny(stream, &task, denial).await;
            }
            let Some(entry) = begun(&server, &task).await else {
                return child.close(stream, "the parent does not hold this task").await;
            };
            let open = Stream::of(&server, &child, entry);
            child.begin(stream, open.clone());
            open
        }
    };
    match open.place {
        Some(place) => in_turns(&child, stream, &open.entry, &place).await,
        None => everything(&child, stream, &open.entry, server.config.relay).await,
    }
}

/// The task's entry, as soon as it is there.
async fn begun(server: &Server, task: &TaskId) -> Option<Arc<Entry>> {
    let mut creations = server.store.creations();
    let begins = async {
        loop {
            creations.mark_unchanged();
            if let Some(entry) = server.store.get(task) {
                return Some(entry);
            }
            creations.changed().await.ok()?;
        }
    };
    timeout(EARLY, begins).await.ok().flatten()
}

/// Announces everything that is here.
async fn everything(child: &Child, stream: u32, entry: &Entry, relay: Relay) {
    let mut changes = entry.changes();
    let mut told = Vec::new();
    let begun = Instant::now();
    for round in 0u64.. {
        changes.mark_unchanged();
        if entry.is_removed() {
            return child.close(stream, "the parent has dropped this task").await;
        }
        let held = match relay {
            Relay::Leaves => entry.have_ranges(),
            Relay::Pieces => whole_pieces(&entry.have_ranges(), entry.geometry()),
        };
        let news = added(&held, &told);
        told = held;
        // The first announcement is made even if it is empty: the child waits for it.
        if !news.is_empty() || round == 0 {
            tell(child, stream, news).await;
        }
        sleep((begun.elapsed() / 500).clamp(PAUSE.start, PAUSE.end)).await;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Announces what it is this child's turn to get.
async fn in_turns(child: &Child, stream: u32, entry: &Entry, place: &Place) {
    let mut changes = entry.changes();
    tell(child, stream, Vec::new()).await;
    loop {
        changes.mark_unchanged();
        if entry.is_removed() {
            return child.close(stream, "the parent has dropped this task").await;
        }
        let mut news = place.news(entry);
        if !news.is_empty() {
            news.sort_unstable();
            tell(child, stream, joined(news)).await;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = place.called() => {}
        }
    }
}

async fn tell(child: &Child, stream: u32, mut leaves: Vec<Range<u32>>) {
    loop {
        let rest = leaves.split_off(leaves.len().min(MAX_RANGES as usize));
        child.tell(Frame::Have { stream, leaves }).await;
        leaves = rest;
        if leaves.is_empty() {
            return;
        }
    }
}

/// The pieces that are held completely, as ranges of leaves.
fn whole_pieces(held: &[Range<u32>], geometry: &Geometry) -> Vec<Range<u32>> {
    let mut whole: Vec<u32> = Vec::new();
    for range in held {
        let pieces = geometry.piece_of(range.start).zip(geometry.piece_of(range.end.saturating_sub(1)));
        for piece in pieces.into_iter().flat_map(|(first, last)| first..=last) {
            let leaves = geometry.piece_leaves(piece);
            if range.start <= leaves.start && leaves.end <= range.end {
                whole.extend(leaves);
            }
        }
    }
    joined(whole)
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_counts_when_it_is_complete() {
        // Three pieces of 16 leaves, the last one shorter.
        let geometry = Geometry::Fixed { len: 40 * u64::from(crate::LEAF_LEN) };
        let whole = |held: &[Range<u32>]| whole_pieces(held, &geometry);
        assert_eq!(whole(&[0..15, 17..40]), [32..40]);
        assert_eq!(whole(&[1..33]), [16..32]);
        assert_eq!(whole(&[0..32]), [0..32]);
        assert!(whole(&[0..8, 10..15]).is_empty());
    }
}
