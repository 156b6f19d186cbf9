//! The parents of one download: who they are, how they do, and who is not asked again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use darter_proto::scheduler::{Fault, Parent as Assigned, ParentReport};

use tokio::time::Instant;

use crate::{Border, Site, plan::Key, transfer::Subscription, wire};

/// A parent that did not hold the task, and did not get it for two seconds, or did not take the ticket, is asked again
/// after so long, so many times.
const RETRY: Duration = Duration::from_millis(200);
const RETRIES: u32 = 2;

/// The parents that the scheduler assigned.
#[derive(Default)]
pub(super) struct Parents {
    by_key: BTreeMap<Key, Parent>,
    /// Host ids that sent a wrong leaf.
    blocked: BTreeSet<String>,
    next_key: Key,
    /// Reports of parents that are gone already.
    last_words: Vec<ParentReport>,
}

/// One parent.
pub(super) struct Parent {
    pub(super) host: String,
    pub(super) address: String,
    pub(super) seed: bool,
    /// It stands beyond this border.
    beyond: Option<Border>,
    state: State,
    /// It said what it has of the task.
    answered: bool,
    /// Subscriptions that ended because the parent did not hold the task (yet).
    misses: u32,
    report: ParentReport,
}

enum State {
    /// To be subscribed to, not before this time.
    Due(Instant),
    Connecting,
    Subscribed(Subscription),
}

impl Parent {
    /// The way to ask this parent, once there is one.
    pub(super) fn subscription(&self) -> Option<&Subscription> {
        match &self.state {
            State::Subscribed(subscription) => Some(subscription),
            State::Due(_) | State::Connecting => None,
        }
    }

    /// The parent is subscribed to, unless it has ended the subscription already: that may be heard first.
    pub(super) fn subscribed(&mut self, subscription: Subscription) {
        if matches!(self.state, State::Connecting) {
            self.state = State::Subscribed(subscription);
        }
    }
}

impl Parents {
    /// Adds an assigned parent, unless it is one already or was blocked. `site` is where this host stands.
    pub(super) fn add(&mut self, assigned: Assigned, site: &Site) {
        let known = self.by_key.values().any(|parent| parent.host == assigned.host);
        if known || self.blocked.contains(&assigned.host) {
            return;
        }
        let key = self.next_key;
        self.next_key += 1;
        let report = ParentReport { host: assigned.host.clone(), ..ParentReport::default() };
        let parent = Parent {
            host: assigned.host,
            address: assigned.transfer_address,
            seed: assigned.seed,
            beyond: site.border_to(&wire::site_from_proto(&assigned.place.unwrap_or_default())),
            state: State::Due(Instant::now()),
            answered: false,
            misses: 0,
            report,
        };
        self.by_key.insert(key, parent);
    }

    /// Parents to subscribe to now, whether each is a seed peer, and beyond which border it stands; they count as
    /// connecting from here on.
    pub(super) fn due(&mut self) -> Vec<(Key, String, bool, Option<Border>)> {
        let now = Instant::now();
        let mut due = Vec::new();
        for (key, parent) in &mut self.by_key {
            if matches!(parent.state, State::Due(at) if at <= now) {
                parent.state = State::Connecting;
                due.push((*key, parent.address.clone(), parent.seed, parent.beyond));
            }
        }
        due
    }

    /// A parent said what it has of the task.
    pub(super) fn answered(&mut self, key: Key) {
        if let Some(parent) = self.by_key.get_mut(&key) {
            parent.answered = true;
        }
    }

    /// A subscription ended. True if its parent never held the task, perhaps only not yet, and will be asked again.
    pub(super) fn retry(&mut self, key: Key) -> bool {
        let Some(parent) = self.by_key.get_mut(&key) else { return false };
        parent.misses += 1;
        parent.state = State::Due(Instant::now() + RETRY);
        !parent.answered && parent.misses <= RETRIES
    }

    /// Ends all subscriptions.
    pub(super) fn leave(&mut self) {
        let keys: Vec<Key> = self.by_key.keys().copied().collect();
        keys.into_iter().for_each(|key| self.remove(key, Fault::None, "done"));
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut Parent> {
        self.by_key.get_mut(&key)
    }

    pub(super) fn get(&self, key: Key) -> Option<&Parent> {
        self.by_key.get(&key)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Addresses of the parents in use, for people.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.by_key
            .values()
            .filter(|parent| parent.subscription().is_some())
            .map(|parent| parent.address.clone())
            .collect()
    }

    pub(super) fn key_of(&self, host: &str) -> Option<Key> {
        self.by_key.iter().find(|(_, parent)| parent.host == host).map(|(key, _)| *key)
    }

    /// Takes a parent out for a reason that the scheduler is told.
    pub(super) fn remove(&mut self, key: Key, fault: Fault, reason: &str) {
        let Some(parent) = self.by_key.remove(&key) else { return };
        if fault == Fault::WrongLeaf {
            self.blocked.insert(parent.host.clone());
        }
        if fault != Fault::None {
            tracing::info!(parent = parent.address, ?fault, reason, "parent given up");
        }
        let report = ParentReport { fault: fault.into(), reason: reason.to_owned(), ..parent.report };
        self.last_words.push(report);
    }

    /// Counts a leaf that a parent sent.
    pub(super) fn count(&mut self, key: Key, bytes: u64, waited: Duration) {
        if let Some(parent) = self.by_key.get_mut(&key) {
            parent.report.bytes += bytes;
            parent.report.leaves += 1;
            parent.report.busy_us += u64::try_from(waited.as_micros()).unwrap_or(u64::MAX);
        }
    }

    /// What happened since the last reports.
    pub(super) fn reports(&mut self) -> Vec<ParentReport> {
        let mut reports = std::mem::take(&mut self.last_words);
        for parent in self.by_key.values_mut().filter(|parent| parent.report.leaves > 0) {
            let fresh = ParentReport { host: parent.host.clone(), ..ParentReport::default() };
            reports.push(std::mem::replace(&mut parent.report, fresh));
        }
        reports
    }
}
