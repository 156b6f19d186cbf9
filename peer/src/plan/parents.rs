//! One parent as the plan sees it, and which to ask first.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng, RngExt};

use super::Key;
use crate::{Border, LeafSet};

/// What a parent is taken to need for a leaf before it has sent one: it is tried.
const UNTRIED: Duration = Duration::from_millis(1);
/// Share of a new wait in the smoothed one.
const FRESH: f64 = 0.3;
/// Half of what was seen of a parent is forgotten after so long: a queue that was long may not be so any more.
const HALF_LIFE: f64 = 0.5;

/// One parent.
#[derive(Debug)]
pub(super) struct Parent {
    pub(super) have: LeafSet,
    /// It shows to one child what it shows to nobody else.
    pub(super) source: bool,
    /// It stands beyond this border.
    pub(super) beyond: Option<Border>,
    /// Leaves asked of it and not yet here.
    pub(super) in_flight: u32,
    /// It was too busy, and is not asked before this time.
    pub(super) rests_until: Duration,
    /// Smoothed seconds between request and arrival, and when the last leaf came.
    wait: Option<(f64, Duration)>,
}

impl Parent {
    pub(super) fn new(leaves: u32, source: bool, beyond: Option<Border>) -> Self {
        let have = LeafSet::new(leaves);
        Self { have, source, beyond, in_flight: 0, rests_until: Duration::ZERO, wait: None }
    }

    /// Whether it stands on this side of a border.
    pub(super) fn is_within(&self, border: Border) -> bool {
        self.beyond.is_none_or(|beyond| beyond < border)
    }

    /// A leaf came from it.
    pub(super) fn arrived(&mut self, wait: Duration, now: Duration) {
        let seconds = wait.as_secs_f64();
        let smoothed = self.wait.map_or(seconds, |(before, _)| before + FRESH * (seconds - before));
        self.wait = Some((smoothed, now));
    }

    /// When a leaf that is asked of it now is likely to be here.
    pub(super) fn expected(&self, now: Duration) -> Duration {
        let wait = match self.wait {
            Some((wait, at)) => {
                let age = now.saturating_sub(at).as_secs_f64();
                Duration::from_secs_f64(wait * 0.5f64.powf(age / HALF_LIFE)).max(UNTRIED)
            }
            None => UNTRIED,
        };
        wait * (self.in_flight + 1)
    }
}

/// The parents that may be asked now, the one that is likely to be the first to answer first. Some chance keeps children
/// from all asking the same one.
pub(super) fn ranked(parents: &BTreeMap<Key, Parent>, now: Duration, rng: &mut impl Rng) -> Vec<Key> {
    let awake = parents.iter().filter(|(_, parent)| parent.rests_until <= now);
    let mut ranked: Vec<(Duration, Key)> =
        awake.map(|(key, parent)| (parent.expected(now).mul_f64(rng.random_range(0.5..1.5)), *key)).collect();
    ranked.sort_unstable();
    ranked.into_iter().map(|(_, key)| key).collect()
}
