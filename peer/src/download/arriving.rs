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
        *self.covered.lock() = plan.covered();
        self.plan = Some(plan);
        self.shared.set_entry(entry);
        self.connect_parents();
    }

    pub(super) fn on_demand(&mut self, demand: Demand) {
        if demand.class == Class::Demand {
            self.means.demand.note();
        }
        if let Some(plan) = &mut self.plan {
            plan.demand(demand.leaves, demand.class);
        }
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
        if let Some(plan) = &mut self.plan {
            plan.landed(leaf);
            self.covered.lock().insert(leaf);
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
        let others = self.plan.as_mut().map(|plan| plan.arrived(leaf, key)).unwrap_or_default();
        match result {
            Ok(()) => {
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
        self.plan.as_ref().is_some_and(|plan| plan.held().is_full())
    }

    /// Everything is here: waits for the check of the whole and makes the entry verified.
    pub(super) async fn seal(&mut self) -> Result<(), TaskError> {
        let Some(entry) = self.shared.entry.borrow().clone() else { return Err(TaskError::Cancelled) };
        self.announce().await;
        self.parents.leave();
        if let Some(expected) = self.shared.id.digest() {
            self.start_check(&entry, expected);
            while self.check != Check::Passed {
                match self.jobs.join_next().await {
                    Some(Ok(Done::Checked(result))) => self.on_done(Done::Checked(result))?,
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(TaskError::Cancelled),
                }
            }
        }
        blocking(move || entry.mark_verified()).await
    }

    pub(super) fn start_check(&mut self, entry: &Arc<Entry>, expected: crate::Digest) {
        if self.check == Check::Not {
            self.check = Check::Running;
            let entry = entry.clone();
            self.jobs.spawn(async move { Done::Checked(whole::check(entry, expected).await) });
        }
    }

    pub(super) async fn discard(&self) {
        let (store, id) = (self.means.store.clone(), self.shared.id.clone());
        if let Err(error) = blocking(move || store.remove(&id)).await {
            tracing::error!(task = %self.shared.id, %error, "a wrong content could not be removed");
        }
    }
}
