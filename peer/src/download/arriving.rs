//! Leaves on their way into the store, from parents and from the origin, until the whole is there and checked.

use super::*;

impl Download {
    /// Goes on with what the store has of the task.
    pub(super) fn resume(&mut self, entry: Arc<Entry>) {
        self.shared.count(From::Local, entry.held_bytes());
        self.set_entry(entry);
    }

    pub(super) fn set_entry(&mut self, entry: Arc<Entry>) {
        let geometry = entry.geometry().clone();
        let mut held = LeafSet::new(geometry.leaves());
        entry.have_ranges().into_iter().for_each(|range| held.insert_range(range));
        self.known = match &geometry {
            Geometry::Fixed { .. } => (0..geometry.leaves()).map(|leaf| entry.digest(leaf)).collect(),
            Geometry::Table(table) => table.entries().iter().map(|leaf| Some(leaf.digest)).collect(),
        };
        let mut plan = Plan::new(geometry.clone(), held);
        (0u32..)
            .zip(&self.known)
            .filter(|(_, digest)| digest.is_some())
            .for_each(|(leaf, _)| plan.know(leaf));
        if matches!(geometry, Geometry::Fixed { .. }) {
            plan.fill(self.class);
        }
        if entry.is_unkept() {
            plan.pass();
        }
        self.claims.iter().for_each(|(border, claim)| plan.claim(*border, *claim));
        self.covered.replace(plan.covered());
        self.plan = Some(plan);
        self.shared.set_entry(entry);
        self.connect_parents();
    }

    pub(super) fn on_demand(&mut self, demand: Demand) {
        if demand.class == Class::Demand {
            self.means.demand.note();
        }
        let entry = self.shared.entry.borrow().clone();
        if let (Some(plan), Some(entry)) = (&mut self.plan, entry) {
            // The disk, or the want of room on it, may have cost leaves that were here.
            demand.leaves.clone().filter(|leaf| !entry.has(*leaf)).for_each(|leaf| plan.lost(leaf));
            plan.demand(demand.leaves, demand.class);
        }
        self.note_covered();
    }

    pub(super) fn on_fill(&mut self, class: Option<Class>) {
        if let (Some(plan), Some(class)) = (&mut self.plan, class) {
            plan.fill(class);
        }
    }

    pub(super) fn on_news(&mut self, news: News) {
        match news {
            News::Entry(entry) if self.plan.is_none() => self.set_entry(entry),
            News::Entry(_) => {}
            News::Leaf { leaf, digest, bytes } => {
                self.fresh_digests.push((leaf, digest));
                self.learn(leaf, digest);
                self.landed(leaf, bytes, From::Origin);
            }
        }
    }

    pub(super) fn landed(&mut self, leaf: u32, bytes: u64, from: From) {
        let unkept = self.is_unkept();
        if let Some(plan) = &mut self.plan {
            plan.landed(leaf);
            self.covered.insert(leaf);
            if unkept && plan.pass() {
                self.note_covered();
            }
        }
        self.last_leaf = Instant::now();
        self.shared.count(from, bytes);
        self.means.metrics.received(from, bytes);
        match from {
            From::Origin => self.progress.from_origin += bytes,
            From::Peer | From::Seed | From::Local => self.progress.from_peers += bytes,
        }
    }

    pub(super) fn on_done(&mut self, done: Done) -> Result<(), TaskError> {
        match done {
            Done::Subscribed(key, Ok(subscription)) => {
                if let Some(parent) = self.parents.get_mut(key) {
                    parent.subscribed(subscription);
                    self.note_status();
                }
            }
            Done::Subscribed(key, Err(error)) => {
                self.drop_parent(key, Fault::Unreachable, &error.to_string())
            }
            Done::Stored { key, leaf, bytes, result } => self.on_stored(key, leaf, bytes, result)?,
            Done::Fetched(Ok(())) => self.back_to_source = BackToSource::Done,
            Done::Fetched(Err(error)) => self.back_to_source = BackToSource::Failed(error),
            Done::Checked(result) => {
                result?;
                self.check = Check::Passed;
            }
        }
        Ok(())
    }

    pub(super) fn on_stored(
        &mut self,
        key: Key,
        leaf: u32,
        bytes: u64,
        result: Result<(), Unstored>,
    ) -> Result<(), TaskError> {
        match result {
            Ok(()) => {
                let now = self.born.elapsed();
                let others = self.plan.as_mut().map(|plan| plan.arrived(leaf, key, now)).unwrap_or_default();
                for other in others {
                    if let Some(subscription) = self.parents.get(other).and_then(Parent::subscription) {
                        subscription.cancel(leaf..leaf + 1);
                    }
                }
                let seed = self.parents.get(key).is_some_and(|parent| parent.seed);
                self.landed(leaf, bytes, if seed { From::Seed } else { From::Peer });
            }
            Err(Unstored::Wrong) => {
                self.means.metrics.wrong_leaf();
                tracing::warn!(task = %self.shared.id, leaf, "a parent sent a wrong leaf");
                self.drop_parent(key, Fault::WrongLeaf, &format!("leaf {leaf} does not have its digest"));
            }
            Err(Unstored::Failed(error)) => return Err(error),
        }
        Ok(())
    }

    pub(super) fn is_complete(&self) -> bool {
        // What could not be kept has passed by, in order, once the whole of it was checked.
        let passed_by = self.check == Check::Passed && self.is_unkept();
        passed_by || self.plan.as_ref().is_some_and(|plan| plan.held().is_full())
    }

    /// Whether leaves had to be passed on without being kept.
    pub(super) fn is_unkept(&self) -> bool {
        self.shared.entry.borrow().as_ref().is_some_and(|entry| entry.is_unkept())
    }

    /// Everything is here and was checked: makes the entry verified.
    pub(super) async fn seal(&mut self) -> Result<(), TaskError> {
        let Some(entry) = self.shared.entry.borrow().clone() else { return Err(TaskError::Cancelled) };
        self.announce().await;
        self.parents.leave();
        blocking(move || if entry.is_complete() { entry.mark_verified() } else { Ok(()) }).await
    }

    /// Whether the content needs no check of the whole, or passed it; the check starts with the first call.
    pub(super) fn passed_check(&mut self) -> bool {
        let Some(entry) = self.shared.entry.borrow().clone() else { return false };
        // What cannot be kept has to come by in order to have been here as a whole; a layer's leaves are read at random.
        let table = matches!(entry.geometry(), Geometry::Table(_));
        if self.shared.id.digest().is_none() && (table || !entry.is_unkept()) {
            return true;
        }
        if self.check == Check::Not {
            self.check = Check::Running;
            let shared = self.shared.clone();
            self.jobs.spawn(async move { Done::Checked(whole::check(entry, &shared).await) });
        }
        self.check == Check::Passed
    }

    pub(super) async fn discard(&self) {
        let (store, id) = (self.means.store.clone(), self.shared.id.clone());
        if let Err(error) = blocking(move || store.remove(&id)).await {
            tracing::error!(task = %self.shared.id, %error, "a wrong content could not be removed");
        }
    }
}
