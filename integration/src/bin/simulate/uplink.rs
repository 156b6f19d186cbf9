//! A host's uplink: a few leaves are sent at once and share it equally, the rest waits its turn.

use std::collections::VecDeque;

/// Microseconds since the simulation's start.
pub(crate) type Micros = u64;
/// A peer, by its number.
pub(crate) type Id = u32;

/// What is left of a leaf that counts as sent, in bytes: times are whole microseconds.
const ALMOST: f64 = 1000.0;

/// A leaf that somebody asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Wanted {
    pub(crate) child: Id,
    pub(crate) leaf: u32,
    pub(crate) asked: Micros,
}

/// One leaf under way.
#[derive(Debug, Clone, Copy)]
struct Sending {
    wanted: Wanted,
    since: Micros,
    left: f64,
}

/// A leaf that has left the uplink.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    pub(crate) wanted: Wanted,
    /// When its first byte was sent.
    pub(crate) since: Micros,
}

/// Processor sharing among a limited number of leaves.
#[derive(Debug)]
pub(crate) struct Uplink {
    /// Bytes per microsecond.
    rate: f64,
    slots: usize,
    leaf_len: f64,
    sending: Vec<Sending>,
    queue: VecDeque<Wanted>,
    updated: Micros,
    /// Grows with every change: an end that was foreseen before it is none any more.
    version: u32,
}

impl Uplink {
    pub(crate) fn new(rate: f64, slots: usize, leaf_len: u64) -> Self {
        Self {
            rate,
            slots,
            leaf_len: leaf_len as f64,
            sending: Vec::new(),
            queue: VecDeque::new(),
            updated: 0,
            version: 0,
        }
    }

    /// Queues a leaf. True if the next end is to be foreseen anew.
    pub(crate) fn want(&mut self, now: Micros, wanted: Wanted) -> bool {
        self.queue.push_back(wanted);
        self.sending.len() < self.slots && self.start(now)
    }

    /// Takes out what a child waits for: one leaf, or everything; true if there was something. What is being sent is
    /// sent.
    pub(crate) fn cancel(&mut self, child: Id, leaf: Option<u32>) -> bool {
        let before = self.queue.len();
        self.queue.retain(|wanted| wanted.child != child || leaf.is_some_and(|leaf| wanted.leaf != leaf));
        self.queue.len() < before
    }

    /// When the next leaf will have been sent, if nothing changes; with the version that it belongs to.
    pub(crate) fn next_end(&self) -> Option<(Micros, u32)> {
        let least = self.sending.iter().map(|sending| sending.left).reduce(f64::min)?;
        let wait = (least * self.sending.len() as f64 / self.rate).ceil();
        Some((self.updated + wait as Micros, self.version))
    }

    /// A foreseen end has come: what has been sent, unless something has changed since.
    pub(crate) fn ended(&mut self, now: Micros, version: u32) -> Vec<Sent> {
        if version != self.version {
            return Vec::new();
        }
        self.progress(now);
        let sent = self.sending.extract_if(.., |sending| sending.left <= ALMOST);
        let sent = sent.map(|sending| Sent { wanted: sending.wanted, since: sending.since }).collect();
        self.start(now);
        self.version += 1;
        sent
    }

    fn start(&mut self, now: Micros) -> bool {
        self.progress(now);
        let mut started = false;
        while self.sending.len() < self.slots
            && let Some(wanted) = self.queue.pop_front()
        {
            self.sending.push(Sending { wanted, since: now, left: self.leaf_len });
            started = true;
        }
        self.version += u32::from(started);
        started
    }

    fn progress(&mut self, now: Micros) {
        let each = (now - self.updated) as f64 * self.rate / self.sending.len().max(1) as f64;
        self.sending.iter_mut().for_each(|sending| sending.left -= each);
        self.updated = now;
    }
}

/// What can take in one leaf after the other: a downlink, or the link of a rack. A leaf passes through while it is sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pipe {
    /// Bytes per microsecond.
    rate: f64,
    free: Micros,
}

impl Pipe {
    pub(crate) fn new(rate: f64) -> Self {
        Self { rate, free: 0 }
    }

    /// A leaf enters from `since` on and would be through at `end`; returns when it is.
    pub(crate) fn pass(&mut self, bytes: u64, since: Micros, end: Micros) -> Micros {
        self.free = self.free.max(since) + (bytes as f64 / self.rate) as Micros;
        self.free.max(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(leaf: u32) -> Wanted {
        Wanted { child: 1, leaf, asked: 0 }
    }

    /// Leaves of 1 MB over 10 bytes a microsecond, with the times at which they have been sent.
    fn run(slots: usize, leaves: u32) -> Vec<(u32, Micros)> {
        let mut uplink = Uplink::new(10.0, slots, 1_000_000);
        for leaf in 0..leaves {
            uplink.want(0, wanted(leaf));
        }
        let mut sent = Vec::new();
        while let Some((end, version)) = uplink.next_end() {
            sent.extend(uplink.ended(end, version).iter().map(|sent| (sent.wanted.leaf, end)));
        }
        sent
    }

    #[test]
    fn what_is_sent_at_once_shares_the_link_and_the_rest_waits() {
        assert_eq!(run(1, 3), [(0, 100_000), (1, 200_000), (2, 300_000)]);
        assert_eq!(run(2, 3), [(0, 200_000), (1, 200_000), (2, 300_000)]);
    }

    #[test]
    fn a_change_makes_an_end_that_was_foreseen_void() {
        let mut uplink = Uplink::new(10.0, 2, 1_000_000);
        assert!(uplink.want(0, wanted(0)));
        let (end, version) = uplink.next_end().unwrap();
        assert!(uplink.want(50_000, wanted(1)));
        assert!(uplink.ended(end, version).is_empty());
        assert_eq!(uplink.next_end().unwrap().0, 150_000);
        assert!(!uplink.want(60_000, wanted(2)));
        uplink.cancel(1, Some(2));
        let (end, version) = uplink.next_end().unwrap();
        assert_eq!(uplink.ended(end, version).len(), 1);
        assert_eq!(uplink.next_end().unwrap().0, 200_000);
    }

    #[test]
    fn a_pipe_takes_one_after_the_other() {
        let mut pipe = Pipe::new(10.0);
        assert_eq!(pipe.pass(1_000_000, 0, 100_000), 100_000);
        assert_eq!(pipe.pass(1_000_000, 0, 100_000), 200_000);
        assert_eq!(pipe.pass(1_000_000, 500_000, 800_000), 800_000);
    }
}
