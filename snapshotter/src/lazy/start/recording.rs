//! Notes what is read of an image's layers until its start has settled.

use std::{collections::HashSet, ops::Range, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::profile::StartLeaf;

/// A start that read nothing new for so long has settled.
const QUIET: Duration = Duration::from_secs(5);
/// A start that still reads after this time is taken as it is.
const LONGEST: Duration = Duration::from_secs(60);
/// A container that was not started by this time after the pull will not be.
const PATIENCE: Duration = Duration::from_secs(600);
/// Most leaves that are noted.
const MAX_LEAVES: usize = 16_384;
const POLL: Duration = Duration::from_millis(500);

/// The reads of one start, as they come.
#[derive(Debug, Default)]
pub(crate) struct Recording(Mutex<Reads>);

#[derive(Debug, Default)]
struct Reads {
    order: Vec<StartLeaf>,
    seen: HashSet<StartLeaf>,
    /// When the first and the latest new leaf were read.
    times: Option<(Instant, Instant)>,
}

impl Recording {
    /// These leaves of a layer are read now.
    pub(crate) fn note(&self, layer: u16, leaves: Range<u32>) {
        let mut reads = self.0.lock();
        for leaf in leaves {
            let leaf = StartLeaf { layer, leaf };
            if reads.order.len() < MAX_LEAVES && reads.seen.insert(leaf) {
                reads.order.push(leaf);
                let now = Instant::now();
                reads.times = Some((reads.times.map_or(now, |(first, _)| first), now));
            }
        }
    }

    /// Waits until the start has settled, and says what it read. `None` if nothing was started.
    pub(super) async fn settled(&self) -> Option<Vec<StartLeaf>> {
        let begun = Instant::now();
        loop {
            let times = self.0.lock().times;
            match times {
                Some((first, latest)) if latest.elapsed() >= QUIET || first.elapsed() >= LONGEST => {
                    return Some(std::mem::take(&mut self.0.lock().order));
                }
                None if begun.elapsed() >= PATIENCE => return None,
                _ => sleep(POLL).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_settles_when_nothing_new_is_read() {
        let recording = Recording::default();
        let leaf = |layer, leaf| StartLeaf { layer, leaf };
        let reading = async {
            recording.note(1, 3..5);
            sleep(QUIET / 2).await;
            recording.note(0, 0..1);
            recording.note(1, 4..5);
            sleep(QUIET / 2).await;
            recording.note(1, 2..3);
        };
        let (settled, ()) = tokio::join!(recording.settled(), reading);
        assert_eq!(settled.unwrap(), [leaf(1, 3), leaf(1, 4), leaf(0, 0), leaf(1, 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_never_settles_is_taken_as_it_is_and_one_that_never_begins_is_none() {
        let recording = Recording::default();
        let reading = async {
            for leaf in 0.. {
                recording.note(0, leaf..leaf + 1);
                sleep(Duration::from_secs(1)).await;
            }
        };
        let settled = tokio::select! {
            settled = recording.settled() => settled,
            () = reading => None,
        };
        assert!((55..65).contains(&settled.unwrap().len()));
        assert_eq!(Recording::default().settled().await, None);
    }
}
