//! The leaves that one child waits for, most urgent class first.

use std::{
    collections::{HashSet, VecDeque},
    ops::Range,
};

use tokio::time::Instant;

use crate::Class;

/// Most leaves that wait for one connection.
pub(super) const MAX_QUEUED: usize = 512;

/// The leaves that one child waits for.
#[derive(Debug, Default)]
pub(super) struct LeafQueue {
    lanes: [VecDeque<Wanted>; 4],
    /// Streams and leaves of all that wait.
    waiting: HashSet<(u32, u32)>,
}

/// A leaf that a child waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) stream: u32,
    pub(super) leaf: u32,
    pub(super) class: Class,
    pub(super) since: Instant,
}

/// What became of a request for one leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pushed {
    Queued,
    /// It takes the place of an earlier request for the same leaf, which must be answered too.
    Again,
    Full,
}

impl LeafQueue {
    /// Queues a leaf. One that waits already moves to the end of its new class.
    pub(super) fn push(&mut self, stream: u32, leaf: u32, class: Class) -> Pushed {
        let again = self.waiting.contains(&(stream, leaf));
        if again {
            self.remove(|wanted| wanted.stream == stream && wanted.leaf == leaf);
        } else if self.len() >= MAX_QUEUED {
            return Pushed::Full;
        }
        self.waiting.insert((stream, leaf));
        if let Some(lane) = self.lanes.get_mut(class as usize) {
            lane.push_back(Wanted { stream, leaf, class, since: Instant::now() });
        }
        if again { Pushed::Again } else { Pushed::Queued }
    }

    /// Number of leaves that wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// The most urgent class that waits.
    pub(super) fn top(&self) -> Option<Class> {
        let classes = [Class::Demand, Class::Stream, Class::Profile, Class::Background];
        classes.into_iter().zip(&self.lanes).find(|(_, lane)| !lane.is_empty()).map(|(class, _)| class)
    }

    /// Takes the next leaf to send.
    pub(super) fn pop(&mut self) -> Option<Wanted> {
        let next = self.lanes.iter_mut().find_map(VecDeque::pop_front)?;
        self.waiting.remove(&(next.stream, next.leaf));
        Some(next)
    }

    /// Puts back what was taken and not sent, unless it was asked for anew.
    pub(super) fn put_back(&mut self, wanted: Wanted) {
        if self.waiting.insert((wanted.stream, wanted.leaf))
            && let Some(lane) = self.lanes.get_mut(wanted.class as usize)
        {
            lane.push_front(wanted);
        }
    }

    /// Since when the leaf waits that waits longest.
    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lanes.iter().filter_map(VecDeque::front).map(|wanted| wanted.since).min()
    }

    /// Takes out all that wait since `limit` or longer.
    pub(super) fn expire(&mut self, limit: Instant) -> Vec<Wanted> {
        let mut expired = Vec::new();
        for lane in &mut self.lanes {
            while let Some(wanted) = lane.pop_front_if(|wanted| wanted.since <= limit) {
                self.waiting.remove(&(wanted.stream, wanted.leaf));
                expired.push(wanted);
            }
        }
        expired
    }

    /// Takes out leaves of a stream; returns them in order.
    pub(super) fn cancel(&mut self, stream: u32, leaves: &Range<u32>) -> Vec<u32> {
        let mut cancelled = Vec::new();
        self.remove(|wanted| {
            let hit = wanted.stream == stream && leaves.contains(&wanted.leaf);
            if hit {
                cancelled.push(wanted.leaf);
            }
            hit
        });
        cancelled.sort_unstable();
        cancelled
    }

    /// Takes out all leaves of a stream; returns how many.
    pub(super) fn drop_stream(&mut self, stream: u32) -> usize {
        self.remove(|wanted| wanted.stream == stream)
    }

    fn remove(&mut self, mut hit: impl FnMut(&Wanted) -> bool) -> usize {
        let before = self.len();
        let waiting = &mut self.waiting;
        for lane in &mut self.lanes {
            lane.retain(|wanted| !hit(wanted) || !waiting.remove(&(wanted.stream, wanted.leaf)));
        }
        before - self.len()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn order(queue: &mut LeafQueue) -> Vec<u32> {
        let lanes: usize = queue.lanes.iter().map(VecDeque::len).sum();
        assert_eq!(queue.len(), lanes);
        std::iter::from_fn(|| queue.pop()).map(|wanted| wanted.leaf).collect()
    }

    #[test]
    fn urgent_first_then_in_order() {
        let mut queue = LeafQueue::default();
        queue.push(1, 0, Class::Background);
        queue.push(1, 1, Class::Stream);
        queue.push(1, 2, Class::Background);
        queue.push(2, 3, Class::Demand);
        queue.push(2, 4, Class::Stream);
        assert_eq!(queue.push(1, 2, Class::Demand), Pushed::Again);
        assert_eq!(queue.top(), Some(Class::Demand));
        assert_eq!(order(&mut queue), [3, 2, 1, 4, 0]);
        assert_eq!((queue.top(), queue.oldest()), (None, None));
    }

    #[test]
    fn is_bounded() {
        let mut queue = LeafQueue::default();
        let queued = (0..10_000).filter(|leaf| queue.push(1, *leaf, Class::Stream) == Pushed::Queued).count();
        assert_eq!((queued, queue.len()), (MAX_QUEUED, MAX_QUEUED));
        assert_eq!(queue.push(1, 0, Class::Demand), Pushed::Again);
        assert_eq!(queue.push(2, 0, Class::Demand), Pushed::Full);
    }

    #[test]
    fn cancels_what_was_named_only() {
        let mut queue = LeafQueue::default();
        for (stream, leaf) in [(1, 5), (1, 3), (2, 4), (1, 9)] {
            queue.push(stream, leaf, Class::Stream);
        }
        assert_eq!(queue.cancel(1, &(3..9)), [3, 5]);
        assert_eq!(queue.drop_stream(2), 1);
        assert_eq!(order(&mut queue), [9]);
    }

    #[tokio::test(start_paused = true)]
    async fn expires_the_oldest_of_every_class() {
        let mut queue = LeafQueue::default();
        queue.push(1, 0, Class::Background);
        queue.push(1, 1, Class::Demand);
        tokio::time::advance(Duration::from_secs(1)).await;
        queue.push(1, 2, Class::Demand);
        let limit = queue.oldest().unwrap();
        let expired: Vec<_> = queue.expire(limit).into_iter().map(|wanted| wanted.leaf).collect();
        assert_eq!(expired, [1, 0]);
        assert_eq!(order(&mut queue), [2]);
    }
}
