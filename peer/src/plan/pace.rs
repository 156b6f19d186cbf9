//! How many leaves a download keeps on their way.

use std::{collections::VecDeque, time::Duration};

/// Leaves on their way, at most.
const CEILING: usize = 256;
/// So many times what the way itself holds.
const REACH: f64 = 2.0;
/// Arrivals that the rate is measured over.
const ARRIVALS: usize = 16;
/// Share of a new wait in the usual one.
const FRESH: f64 = 0.125;

/// How fast leaves come, and how long they take.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The shortest wait ever: what the way takes without queues.
    shortest: Option<Duration>,
    /// The smoothed wait in seconds.
    usual: Option<f64>,
    arrivals: VecDeque<Duration>,
}

impl Pace {
    /// A leaf came, so long after it was asked for.
    pub(super) fn arrived(&mut self, wait: Duration, now: Duration) {
        self.shortest = Some(self.shortest.map_or(wait, |shortest| shortest.min(wait)));
        let seconds = wait.as_secs_f64();
        self.usual = Some(self.usual.map_or(seconds, |usual| usual + FRESH * (seconds - usual)));
        if self.arrivals.len() >= ARRIVALS {
            self.arrivals.pop_front();
        }
        self.arrivals.push_back(now);
    }

    /// How long a leaf takes, queues included.
    pub(super) fn usual_wait(&self) -> Duration {
        self.usual.map_or(Duration::ZERO, Duration::from_secs_f64)
    }

    /// Leaves to keep on their way: what the way holds at the rate that is reached, and `floor` to wait at its start. A
    /// rate that grows with the window makes it grow further, until the link is full.
    pub(super) fn window(&self, floor: usize) -> usize {
        let (Some(shortest), Some(first), Some(last)) =
            (self.shortest, self.arrivals.front(), self.arrivals.back())
        else {
            return floor;
        };
        let span = last.saturating_sub(*first).as_secs_f64();
        if self.arrivals.len() < ARRIVALS || span <= 0.0 {
            return floor;
        }
        let rate = (self.arrivals.len() - 1) as f64 / span;
        let on_the_way = (REACH * rate * shortest.as_secs_f64()).min(CEILING as f64) as usize;
        (floor + on_the_way).min(CEILING)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: usize = 8;

    /// The window after leaves that each take `wait` and come `gap` apart.
    fn window(wait: Duration, gap: Duration) -> usize {
        let mut pace = Pace::default();
        (1..=100).for_each(|leaf| pace.arrived(wait, gap * leaf));
        pace.window(FLOOR)
    }

    #[test]
    fn a_long_way_takes_more_leaves() {
        // 100 leaves a second over 20 ms, and over 400 ms.
        let gap = Duration::from_millis(10);
        assert_eq!(window(Duration::from_millis(20), gap), FLOOR + 4);
        assert_eq!(window(Duration::from_millis(400), gap), FLOOR + 80);
        assert_eq!(window(Duration::from_secs(100), gap), CEILING);
    }

    #[test]
    fn queues_do_not_widen_the_window() {
        let mut pace = Pace::default();
        pace.arrived(Duration::from_millis(10), Duration::from_millis(10));
        for leaf in 2..100 {
            pace.arrived(Duration::from_secs(2), Duration::from_millis(10 * leaf));
        }
        assert_eq!(pace.window(FLOOR), FLOOR + 2);
    }
}
