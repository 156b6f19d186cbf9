//! Who may send a leaf: a number of slots for the whole host, the most urgent class first, and within a class one
//! connection after the other.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::Class;

/// The upload slots of a host.
#[derive(Debug)]
pub(super) struct Admission {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Who waits, by class. A connection waits once, and again at the end after each leaf: so they take turns.
    waiting: [VecDeque<oneshot::Sender<Slot>>; 4],
}

/// A place in the queue for a slot; dropping it leaves the queue.
#[derive(Debug)]
pub(super) struct Wait {
    pub(super) class: Class,
    slot: oneshot::Receiver<Slot>,
}

/// The right to send one leaf; dropping it lets the next one in.
#[derive(Debug)]
pub(super) struct Slot {
    admission: Arc<Admission>,
}

impl Admission {
    pub(super) fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: slots.max(1), waiting: Default::default() }) })
    }

    /// Queues for a slot.
    pub(super) fn enter(self: &Arc<Self>, class: Class) -> Wait {
        let (sender, slot) = oneshot::channel();
        if let Some(queue) = self.state.lock().waiting.get_mut(class as usize) {
            queue.retain(|waiting| !waiting.is_closed());
            queue.push_back(sender);
        }
        self.grant();
        Wait { class, slot }
    }

    fn grant(self: &Arc<Self>) {
        // A wait that is dropped at this very moment drops the slot, which comes back here.
        while let Some(next) = self.state.lock().next() {
            drop(next.send(Slot { admission: self.clone() }));
        }
    }
}

impl State {
    /// Takes a free slot for the one whose turn it is.
    fn next(&mut self) -> Option<oneshot::Sender<Slot>> {
        if self.free == 0 {
            return None;
        }
        for queue in &mut self.waiting {
            while let Some(next) = queue.pop_front() {
                if !next.is_closed() {
                    self.free -= 1;
                    return Some(next);
                }
            }
        }
        None
    }
}

impl Wait {
    /// Waits for the slot. Can be dropped and called again without losing the place.
    pub(super) async fn slot(&mut self) -> Slot {
        match (&mut self.slot).await {
            Ok(slot) => slot,
            // Cannot be: a sender leaves the queue with a slot, or because this wait was dropped.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.state.lock().free += 1;
        self.admission.grant();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// Takes out the waits that were granted a slot.
    fn granted(waits: &mut Vec<(u32, Wait)>) -> Vec<(u32, Slot)> {
        let mut granted = Vec::new();
        waits.retain_mut(|(name, wait)| match wait.slot().now_or_never() {
            Some(slot) => {
                granted.push((*name, slot));
                false
            }
            None => true,
        });
        granted
    }

    fn enter(admission: &Arc<Admission>, classes: &[Class]) -> Vec<(u32, Wait)> {
        (0..).zip(classes.iter().map(|class| admission.enter(*class))).collect()
    }

    #[test]
    fn a_more_urgent_class_comes_first_and_a_class_takes_turns() {
        let admission = Admission::new(1);
        let mut held = granted(&mut enter(&admission, &[Class::Background]));
        let classes = [Class::Background, Class::Background, Class::Stream, Class::Demand];
        let mut waits = enter(&admission, &classes);
        for expected in [3, 2, 0, 1] {
            assert!(granted(&mut waits).is_empty());
            held.clear();
            held = granted(&mut waits);
            assert_eq!(held.iter().map(|(name, _)| *name).collect::<Vec<_>>(), [expected]);
        }
    }

    #[test]
    fn no_more_than_the_slots_and_none_is_lost() {
        let admission = Admission::new(3);
        let mut waits = enter(&admission, &[Class::Stream; 10]);
        let held = granted(&mut waits);
        assert_eq!(held.len(), 3);
        waits.truncate(2);
        drop(held);
        // The two that still wait get theirs; one slot stays free.
        assert_eq!(granted(&mut waits).len(), 2);
        // Waits that were granted a slot and never looked give it back.
        drop(enter(&admission, &[Class::Demand; 10]));
        assert_eq!(admission.state.lock().free, 3);
    }
}
