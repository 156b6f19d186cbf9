//! Reading on: which leaves are fetched before a reader asks for them.
//!
//! The kernel reads ahead little, because a read is answered only when all of its bytes are here. So whoever goes through
//! a layer in order would wait for each leaf in turn. The leaves behind those that it reads are fetched meanwhile, the
//! more of them the longer it goes on.

use std::{collections::VecDeque, ops::Range};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Leaves that are fetched ahead when a second read follows the first, and at most.
const WINDOW: (u32, u32) = (2, 8);
/// Readers of a layer that are told apart.
const RUNS: usize = 16;
/// Leaves of a layer that are fetched ahead at a time: a container's read must not wait behind many.
const AT_ONCE: usize = 4;

/// The readers of one layer.
#[derive(Debug)]
pub(super) struct Ahead {
    /// The latest comes last.
    runs: Mutex<VecDeque<Run>>,
    pub(super) at_once: Semaphore,
}

/// Leaves that are read one after the other.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// The leaf behind those that were read.
    next: u32,
    /// The leaf behind those that are fetched.
    fetched: u32,
    window: u32,
}

impl Default for Ahead {
    fn default() -> Self {
        Self { runs: Mutex::default(), at_once: Semaphore::new(AT_ONCE) }
    }
}

impl Ahead {
    /// These leaves are read. Returns those to be fetched now because they will be read next.
    pub(super) fn after(&self, leaves: &Range<u32>) -> Range<u32> {
        let mut runs = self.runs.lock();
        let goes_on = |run: &Run| (leaves.start..=leaves.end).contains(&run.next);
        let mut run = match runs.iter().position(goes_on).and_then(|at| runs.remove(at)) {
            Some(run) if run.next == leaves.end => {
                // The same leaf once more.
                runs.push_back(run);
                return 0..0;
            }
            Some(run) => Run { window: (2 * run.window).clamp(WINDOW.0, WINDOW.1), ..run },
            None => Run { next: 0, fetched: 0, window: 0 },
        };
        run.next = leaves.end;
        let new = run.fetched.max(leaves.end)..leaves.end.saturating_add(run.window);
        run.fetched = new.end.max(run.fetched);
        runs.push_back(run);
        if runs.len() > RUNS {
            runs.pop_front();
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_a_reader_goes_on_the_more_is_fetched_ahead_of_it() {
        let ahead = Ahead::default();
        assert!(ahead.after(&(3..4)).is_empty());
        assert_eq!(ahead.after(&(3..5)), 5..7);
        assert!(ahead.after(&(4..5)).is_empty());
        assert_eq!(ahead.after(&(5..6)), 7..10);
        assert_eq!(ahead.after(&(6..8)), 10..16);
        assert_eq!(ahead.after(&(8..9)), 16..17);
    }

    #[test]
    fn readers_at_several_places_do_not_disturb_each_other() {
        let ahead = Ahead::default();
        assert!(ahead.after(&(3..4)).is_empty());
        assert!(ahead.after(&(90..91)).is_empty());
        assert_eq!(ahead.after(&(4..5)), 5..7);
        assert_eq!(ahead.after(&(91..92)), 92..94);
    }
}
