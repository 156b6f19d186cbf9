//! What is to be looked at again later. A timer is a reminder only: whoever handles it checks whether it still matters.

use std::collections::BTreeMap;

use super::{
    ids::{HostKey, SessionId, TaskId},
    time::Time,
};

/// A reminder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Timer {
    /// The peers have had their time to come back after this scheduler's start.
    Settled,
    /// A session should have announced its host by now.
    Unannounced(SessionId),
    /// A host without a session may be forgotten.
    HostGone(HostKey),
    /// Those who have a part in a task have had their time to come here from another scheduler.
    TaskSettled(TaskId),
    /// A task without peers may be forgotten.
    TaskIdle(TaskId),
    /// The lease holders of a task should have shown progress.
    Lease(TaskId),
    /// Digests were gathered and are to be passed on.
    Untold(TaskId),
    /// The digests that a host was asked for should have come.
    DigestsAsked(TaskId, HostKey),
    /// A host does not answer: others may have to fetch what it holds.
    Mute(HostKey),
    /// A layer should have been made by now.
    Making(TaskId, HostKey),
}

/// Reminders by the time they are due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    due: BTreeMap<(Time, u64), Timer>,
    next: u64,
}

impl Timers {
    pub(super) fn at(&mut self, time: Time, timer: Timer) {
        self.due.insert((time, self.next), timer);
        self.next += 1;
    }

    /// Takes out the next reminder that is due.
    pub(super) fn pop(&mut self, now: Time) -> Option<Timer> {
        let entry = self.due.first_entry()?;
        (entry.key().0 <= now).then(|| entry.remove())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_in_order_and_not_before_their_time() {
        let mut timers = Timers::default();
        let (early, late) = (Time::from_millis(1), Time::from_millis(2));
        timers.at(late, Timer::HostGone(HostKey(2)));
        timers.at(early, Timer::HostGone(HostKey(0)));
        timers.at(early, Timer::HostGone(HostKey(1)));
        assert_eq!(timers.pop(Time::default()), None);
        let all: Vec<_> = std::iter::from_fn(|| timers.pop(late)).collect();
        assert_eq!(all, [0, 1, 2].map(|n| Timer::HostGone(HostKey(n))));
    }
}
