//! Where the children of a task take turns, if this host is its source.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{
    Border, TaskId,
    plan::{ChildKey, Offers},
    store::Entry,
};

/// How often time passing is looked at.
const TICK: Duration = Duration::from_millis(100);

/// The desks of a host, one for each task with children that take turns.
#[derive(Debug, Default)]
pub(super) struct Desks {
    by_task: Mutex<HashMap<TaskId, Weak<Desk>>>,
}

/// Where the children of one task take turns.
#[derive(Debug)]
struct Desk {
    state: Mutex<State>,
    born: Instant,
}

#[derive(Debug)]
struct State {
    offers: Offers,
    /// The entry's state that was looked at last.
    version: Option<u64>,
    places: HashMap<ChildKey, Waiting>,
}

/// What a child is to be told.
#[derive(Debug, Default)]
struct Waiting {
    news: Vec<u32>,
    bell: Arc<Notify>,
}

/// A child's place at a desk; dropping it leaves the desk.
#[derive(Debug)]
pub(super) struct Place {
    desk: Arc<Desk>,
    child: ChildKey,
    bell: Arc<Notify>,
}

impl Desks {
    /// A place for a child of the entry's task, which may stand beyond a border.
    pub(super) fn join(&self, entry: &Entry, beyond: Option<Border>) -> Place {
        let mut desks = self.by_task.lock();
        desks.retain(|_, desk| desk.strong_count() > 0);
        let desk = desks.get(entry.id()).and_then(Weak::upgrade);
        let desk = desk.unwrap_or_else(|| {
            let offers = Offers::new(entry.geometry().leaves());
            let state = State { offers, version: None, places: HashMap::new() };
            let desk = Arc::new(Desk { state: Mutex::new(state), born: Instant::now() });
            desks.insert(entry.id().clone(), Arc::downgrade(&desk));
            desk
        });
        let (child, bell) = {
            let mut state = desk.state.lock();
            let (child, waiting) = (state.offers.join(beyond), Waiting::default());
            let bell = waiting.bell.clone();
            state.places.insert(child, waiting);
            (child, bell)
        };
        Place { desk, child, bell }
    }
}

impl Place {
    /// The child asks for a leaf.
    pub(super) fn asked(&self, leaf: u32) {
        let now = self.desk.born.elapsed();
        self.desk.state.lock().offers.asked(self.child, leaf, now);
    }

    /// A leaf was sent to the child, or will not be.
    pub(super) fn answered(&self, leaf: u32, sent: bool) {
        let now = self.desk.born.elapsed();
        let mut state = self.desk.state.lock();
        state.offers.answered(self.child, leaf, sent, now);
        state.show(now);
    }

    /// Takes what the child is to be told, after a look at what the entry holds.
    pub(super) fn news(&self, entry: &Entry) -> Vec<u32> {
        let now = self.desk.born.elapsed();
        let version = *entry.changes().borrow();
        let mut state = self.desk.state.lock();
        if state.version != Some(version) {
            state.version = Some(version);
            state.offers.holds(&entry.have_ranges());
        }
        state.show(now);
        state.places.get_mut(&self.child).map(|place| std::mem::take(&mut place.news)).unwrap_or_default()
    }

    /// Waits until there may be news.
    pub(super) async fn called(&self) {
        tokio::select! {
            () = self.bell.notified() => {}
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let now = self.desk.born.elapsed();
        let mut state = self.desk.state.lock();
        state.places.remove(&self.child);
        state.offers.leave(self.child);
        state.show(now);
    }
}

impl State {
    fn show(&mut self, now: Duration) {
        for (child, leaves) in self.offers.show(now) {
            if let Some(place) = self.places.get_mut(&child) {
                place.news.extend(leaves);
                place.bell.notify_one();
            }
        }
    }
}
