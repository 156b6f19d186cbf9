//! What a download tells the scheduler, and what it hears from it.

use super::*;

impl Download {
    /// Tells the scheduler that the task belongs to about it, unless it knows and need not give a new ticket.
    pub(super) async fn register(&mut self) {
        let Some(scheduler) = self.scheduler() else {
            self.session_lost.get_or_insert_with(Instant::now);
            return;
        };
        let denied = std::mem::take(&mut self.ticket_denied);
        let known = |registered: &&Registered| registered.scheduler.generation == scheduler.generation;
        if self.registered.as_ref().is_some_and(|registered| known(&registered)) && !denied {
            return;
        }
        self.session_lost = None;
        let registered = Registered { scheduler: scheduler.clone(), at: Instant::now(), answered: false };
        let before = self.registered.replace(registered).map(|registered| registered.scheduler);
        let before = before.filter(|before| before.scheduler != scheduler.scheduler);
        if let Some(before) = &before {
            before.send(Said::Moved(Moved { task: self.shared.id.to_string() })).await;
        }
        let register = Register {
            task: Some(wire::task_to_proto(&self.shared.id, self.shared.source.as_ref())),
            held: self.plan.as_ref().map_or(0, |plan| plan.held().count()),
            class: self.class as u32,
            digests_known: self.shared.id.digest().is_none() && self.shared.source.is_none(),
            from_origin: self.leased || self.back_to_source == BackToSource::Running,
            moved: before.is_some() || self.means.schedulers.shifted_lately(),
        };
        scheduler.send(Said::Register(register)).await;
        if self.back_to_source == BackToSource::Running {
            self.tell_again();
        }
    }

    pub(super) async fn on_scheduler(&mut self, from: Live, message: Heard) -> Result<(), TaskError> {
        match &mut self.registered {
            Some(registered) if registered.scheduler.generation == from.generation => {
                registered.answered = true;
            }
            // From one that the task does not belong to any more. What is wrong is wrong, whoever says it.
            _ if !matches!(message, Heard::Discard(_)) => return Ok(()),
            _ => {}
        }
        match message {
            Heard::TaskInfo(info) => self.on_info(&info).await?,
            Heard::Parents(parents) => self.on_parents(parents),
            Heard::Lease(_) | Heard::Fetch(_) => self.leased = true,
            Heard::SendDigests(_) => self.tell_again(),
            Heard::TaskFailed(failed) => {
                let failure = failed.failure.unwrap_or_default();
                if self.back_to_source == BackToSource::Not {
                    return Err(TaskError::from_failure(&self.shared.id, &failure));
                }
            }
            Heard::Discard(discard) => {
                tracing::warn!(task = %self.shared.id, reason = discard.reason, "discarded by the scheduler");
                self.discard().await;
                return Err(match self.shared.id.digest() {
                    Some(expected) => TaskError::WrongDigest { expected },
                    None => TaskError::Unreachable(discard.reason),
                });
            }
            other => tracing::debug!(task = %self.shared.id, ?other, "not for a task"),
        }
        Ok(())
    }

    pub(super) async fn on_info(&mut self, info: &TaskInfo) -> Result<(), TaskError> {
        let described = info.leaves > 0 || (info.verified && info.length == 0);
        if self.plan.is_none() && described {
            let geometry = Geometry::Fixed { len: info.length };
            if geometry.leaves() == info.leaves {
                let (store, id) = (self.means.store.clone(), self.shared.id.clone());
                self.set_entry(blocking(move || store.admit(&id, geometry)).await?);
            }
        }
        let (digests, rest) = info.digests.as_chunks::<32>();
        if !rest.is_empty() {
            tracing::warn!(task = %self.shared.id, "digests of odd length from the scheduler");
        }
        for (leaf, digest) in (info.first..).zip(digests) {
            self.learn(leaf, *digest);
        }
        Ok(())
    }

    /// A leaf's digest became known; the first one stays.
    pub(super) fn learn(&mut self, leaf: u32, digest: LeafDigest) {
        if let Some(known) = self.known.get_mut(leaf as usize) {
            known.get_or_insert(digest);
            if let Some(plan) = &mut self.plan {
                plan.know(leaf);
            }
        }
    }

    pub(super) fn on_parents(&mut self, message: ParentsMessage) {
        for host in message.remove {
            if let Some(key) = self.parents.key_of(&host) {
                self.drop_parent(key, Fault::None, "rotated");
            }
        }
        if !message.ticket.is_empty() {
            self.ticket = message.ticket;
        }
        for assigned in message.add {
            self.parents.add(assigned, &self.means.site);
        }
        for (border, claim) in message.claims.iter().filter_map(wire::claim_from_proto) {
            self.claims.insert(border, claim);
            if let Some(plan) = &mut self.plan {
                plan.claim(border, claim);
            }
        }
        self.connect_parents();
    }

    /// Subscribes to parents that are due. What a parent has can be noted only once the geometry is known.
    pub(super) fn connect_parents(&mut self) {
        let Some(plan) = &mut self.plan else { return };
        for (key, address, seed, beyond) in self.parents.due() {
            // Before the subscription: what the parent has may be heard before the subscription is.
            plan.add_parent(key, seed && self.means.coordinate, beyond);
            let (pool, task, ticket, events) =
                (self.means.pool.clone(), self.shared.id.clone(), self.ticket.clone(), self.events.0.clone());
            self.jobs.spawn(async move {
                Done::Subscribed(key, pool.subscribe(&address, &task, ticket, events, key).await)
            });
        }
    }

    pub(super) fn drop_parent(&mut self, key: Key, fault: Fault, reason: &str) {
        self.parents.remove(key, fault, reason);
        if let Some(plan) = &mut self.plan {
            plan.remove_parent(key);
        }
        self.note_covered();
        self.note_status();
    }

    /// Announces all digests anew that this peer can vouch for.
    pub(super) fn tell_again(&mut self) {
        let entry = self.shared.entry.borrow().clone();
        if let Some(entry) = entry {
            let held = entry.have_ranges().into_iter().flatten();
            self.fresh_digests = held.filter_map(|leaf| Some((leaf, entry.digest(leaf)?))).collect();
        }
    }

    /// Sends digests of leaves that came from the origin, run by run.
    pub(super) async fn announce(&mut self) {
        let Some(geometry) = self.geometry() else { return };
        self.announced = Instant::now();
        let fresh = std::mem::take(&mut self.fresh_digests);
        let follows = |a: &(u32, LeafDigest), b: &(u32, LeafDigest)| a.0 + 1 == b.0;
        for run in fresh.chunk_by(follows) {
            let Some((first, _)) = run.first() else { continue };
            let message = Digests {
                task: self.shared.id.to_string(),
                length: geometry.len(),
                leaves: geometry.leaves(),
                first: *first,
                digests: run.iter().flat_map(|(_, digest)| *digest).collect::<Vec<u8>>().into(),
                verified: false,
            };
            self.say(Said::Digests(message)).await;
        }
    }

    pub(super) async fn report(&mut self, last: bool) {
        let starving =
            !last && self.plan.as_ref().is_some_and(Plan::wants) && self.last_leaf.elapsed() > STARVING_AFTER;
        self.progress.parents = self.parents.reports();
        self.progress.held = self.plan.as_ref().map_or(0, |plan| plan.held().count());
        self.progress.starving = starving;
        // Who goes to the origin shows that it lives, however slow the origin is.
        let quiet = self.back_to_source != BackToSource::Running
            && self.progress.from_origin == 0
            && self.progress.from_peers == 0
            && self.progress.parents.is_empty();
        if (quiet && !starving) || self.registered.is_none() {
            return;
        }
        if starving {
            self.expect_answer();
        }
        let next = TaskProgress { task: self.shared.id.to_string(), ..TaskProgress::default() };
        let progress = std::mem::replace(&mut self.progress, next);
        self.say(Said::Progress(Progress { tasks: vec![progress] })).await;
    }

    /// The scheduler answers whoever starves: one that does not is frozen.
    fn expect_answer(&mut self) {
        if let Some(registered) = self.registered.as_mut().filter(|registered| registered.answered) {
            (registered.answered, registered.at) = (false, Instant::now());
        }
    }

    /// All schedulers are told: whichever is asked for the content later knows that it is here.
    pub(super) async fn say_finished(&self) {
        let task = self.shared.id.to_string();
        let message = if self.is_unkept() {
            Said::Dropped(Dropped { tasks: vec![task] })
        } else if let Some(geometry) = self.geometry() {
            Said::Finished(Finished { task, length: geometry.len(), leaves: geometry.leaves() })
        } else {
            return;
        };
        self.means.schedulers.tell_all(&message).await;
    }

    pub(super) async fn say(&self, message: Said) {
        let scheduler = self.registered.as_ref().map(|registered| &registered.scheduler);
        let told = match scheduler {
            Some(scheduler) => scheduler.send(message).await,
            None => false,
        };
        if !told {
            tracing::trace!(task = %self.shared.id, "not told: no session");
        }
    }
}
