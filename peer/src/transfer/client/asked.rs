//! What a subscription has asked of its parent. Pure bookkeeping.
//!
//! The protocol answers each leaf of each Request exactly once, so it is always known which answers may still come.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
};

use tokio::time::{Duration, Instant};

use crate::{Class, transfer::ranges::joined};

/// Most leaves that one subscription may wait for.
pub(super) const MAX_ASKED: usize = 2048;
/// Most answers that may be due for one leaf: it takes repeated cancelling and asking to get there.
const MAX_DUE: u8 = 8;

/// The leaves a subscription waits for, and the answers that are due.
#[derive(Debug, Default)]
pub(super) struct Asked {
    leaves: HashMap<u32, Ask>,
    /// Sum of all answers due.
    due: usize,
}

#[derive(Debug)]
struct Ask {
    /// Answers that the parent still owes.
    due: u8,
    /// `None` once the leaf was delivered or cancelled.
    want: Option<Want>,
}

#[derive(Debug)]
struct Want {
    since: Instant,
    class: Class,
    /// Whether it was requested with this class.
    sent: bool,
}

/// What a call for leaves comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Call {
    /// To be requested of the parent.
    pub(super) send: Vec<Range<u32>>,
    /// More than may be waited for.
    pub(super) excess: Vec<Range<u32>>,
}

/// The parent sent or refused what was not asked of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotAsked;

impl Asked {
    /// The task wants `leaves`. What it waits for already is asked again only if it became more urgent.
    pub(super) fn want(&mut self, leaves: Range<u32>, class: Class, now: Instant) -> Call {
        let (mut send, mut excess) = (Vec::new(), Vec::new());
        // Counted so that a call for four billion leaves does not list them one by one.
        let room = MAX_ASKED.saturating_sub(self.leaves.len());
        let mut rest = leaves;
        for leaf in rest.by_ref().take(room + MAX_ASKED) {
            match self.want_one(leaf, class, now) {
                Wanted::Send => send.push(leaf),
                Wanted::Waiting => {}
                Wanted::Excess => excess.push(leaf),
            }
        }
        let mut excess = joined(excess);
        if !rest.is_empty() {
            excess.push(rest);
        }
        Call { send: joined(send), excess }
    }

    fn want_one(&mut self, leaf: u32, class: Class, now: Instant) -> Wanted {
        let full = self.leaves.len() >= MAX_ASKED;
        let ask = match self.leaves.entry(leaf) {
            Entry::Vacant(_) if full => return Wanted::Excess,
            Entry::Vacant(vacant) => vacant.insert(Ask { due: 0, want: None }),
            Entry::Occupied(occupied) => occupied.into_mut(),
        };
        let since = match &ask.want {
            Some(want) if want.class <= class || ask.due >= MAX_DUE => return Wanted::Waiting,
            Some(want) => want.since,
            None if ask.due >= MAX_DUE => return Wanted::Excess,
            None => now,
        };
        ask.want = Some(Want { since, class, sent: false });
        Wanted::Send
    }

    /// Whether a leaf is wanted with this urgency and was not requested yet.
    pub(super) fn is_unsent(&self, leaf: u32, class: Class) -> bool {
        let want = self.leaves.get(&leaf).and_then(|ask| ask.want.as_ref());
        want.is_some_and(|want| want.class == class && !want.sent)
    }

    /// A Request for `leaves` may go out; returns those of them that it must be for by now.
    pub(super) fn send(&mut self, leaves: Range<u32>, class: Class) -> Vec<Range<u32>> {
        let sent = leaves.filter(|leaf| {
            let unsent = self.is_unsent(*leaf, class);
            if let Some(ask) = self.leaves.get_mut(leaf).filter(|_| unsent) {
                ask.due += 1;
                self.due += 1;
                ask.want.iter_mut().for_each(|want| want.sent = true);
            }
            unsent
        });
        joined(sent)
    }

    /// The task wants `leaves` no more; returns those that a Cancel must be sent for.
    pub(super) fn cancel(&mut self, leaves: Range<u32>) -> Vec<Range<u32>> {
        let mut cancelled: Vec<u32> = Vec::new();
        self.leaves.retain(|leaf, ask| {
            if leaves.contains(leaf) && ask.want.take().is_some() && ask.due > 0 {
                cancelled.push(*leaf);
            }
            ask.due > 0 || ask.want.is_some()
        });
        cancelled.sort_unstable();
        joined(cancelled)
    }

    /// A leaf begins to arrive. Whether the task still wants it can change until it is there: see [`Self::arrived`].
    pub(super) fn expects(&self, leaf: u32) -> Result<Option<Class>, NotAsked> {
        let ask = self.leaves.get(&leaf).filter(|ask| ask.due > 0).ok_or(NotAsked)?;
        Ok(ask.want.as_ref().map(|want| want.class))
    }

    /// A leaf has arrived; returns how long the task waited for it, if it did.
    pub(super) fn arrived(&mut self, leaf: u32, now: Instant) -> Option<Duration> {
        self.answered(leaf).ok()?;
        let want = self.leaves.get_mut(&leaf).and_then(|ask| ask.want.take());
        self.forget(leaf);
        want.map(|want| now.duration_since(want.since))
    }

    /// The parent refuses a leaf; returns whether the task must hear of it.
    pub(super) fn refused(&mut self, leaf: u32) -> Result<bool, NotAsked> {
        self.answered(leaf)?;
        // Another answer is due if the leaf was asked for again since.
        let told = self
            .leaves
            .get_mut(&leaf)
            .filter(|ask| ask.due == 0 && ask.want.as_ref().is_some_and(|w| w.sent));
        let told = told.is_some_and(|ask| ask.want.take().is_some());
        self.forget(leaf);
        Ok(told)
    }

    /// Number of answers that the parent owes.
    pub(super) fn due(&self) -> usize {
        self.due
    }

    fn answered(&mut self, leaf: u32) -> Result<(), NotAsked> {
        let ask = self.leaves.get_mut(&leaf).filter(|ask| ask.due > 0).ok_or(NotAsked)?;
        ask.due -= 1;
        self.due -= 1;
        Ok(())
    }

    fn forget(&mut self, leaf: u32) {
        if self.leaves.get(&leaf).is_some_and(|ask| ask.due == 0 && ask.want.is_none()) {
            self.leaves.remove(&leaf);
        }
    }
}

enum Wanted {
    Send,
    Waiting,
    Excess,
}

#[cfg(test)]
mod tests;
