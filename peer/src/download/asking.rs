//! What a download asks of its parents, and what they send.

use super::*;

impl Download {
    pub(super) fn on_parent(&mut self, event: ParentEvent) {
        let key = event.parent;
        if self.parents.get(key).is_none() {
            return;
        }
        match event.kind {
            ParentEventKind::Have(ranges) => {
                if let Some(plan) = &mut self.plan {
                    plan.parent_has(key, &ranges);
                }
                self.parents.answered(key);
            }
            ParentEventKind::Leaf { leaf, bytes, waited } => self.on_leaf(key, leaf, bytes, waited),
            ParentEventKind::Refused { leaves, reason } => self.on_refused(key, leaves, reason),
            ParentEventKind::Gone(reason) => {
                self.on_gone(key, &reason);
            }
            ParentEventKind::Denied(reason) => {
                tracing::debug!(task = %self.shared.id, reason, "a parent did not take the ticket");
                // A parent that is given up needs no better one.
                self.ticket_denied |= self.on_gone(key, &reason);
            }
        }
    }

    /// A subscription ended; returns whether the parent is asked again.
    pub(super) fn on_gone(&mut self, key: Key, reason: &str) -> bool {
        let again = self.parents.retry(key);
        if !again {
            self.drop_parent(key, Fault::Gone, reason);
        } else if let Some(plan) = &mut self.plan {
            plan.remove_parent(key);
        }
        again
    }

    pub(super) fn on_leaf(&mut self, key: Key, leaf: u32, bytes: Bytes, waited: Duration) {
        let Some(entry) = self.shared.entry.borrow().clone() else { return };
        let Some(digest) = self.known.get(leaf as usize).copied().flatten() else { return };
        self.parents.count(key, bytes.len() as u64, waited);
        let len = bytes.len() as u64;
        self.jobs.spawn(async move {
            let stored = blocking(move || {
                if leaf_digest(&bytes) != digest {
                    return Ok(Err(Unstored::Wrong));
                }
                entry.take_leaf(leaf, digest, bytes)?;
                Ok::<_, StoreError>(Ok(()))
            });
            let result = stored.await.unwrap_or_else(|error| Err(Unstored::Failed(error)));
            Done::Stored { key, leaf, bytes: len, result }
        });
    }

    pub(super) fn on_refused(&mut self, key: Key, leaves: Range<u32>, reason: Refusal) {
        let now = self.born.elapsed();
        if let Some(plan) = &mut self.plan {
            match reason {
                Refusal::NotHeld => plan.lacks(key, leaves),
                Refusal::Busy | Refusal::Cancelled => plan.busy(key, leaves, now),
            }
        }
        self.note_covered();
    }

    /// Sends the requests that the plan chooses.
    pub(super) fn ask(&mut self) {
        let Some(plan) = &mut self.plan else { return };
        let now = self.born.elapsed();
        let requests = plan.pick(now, self.means.demand.is_recent(), &mut self.rng);
        if requests.is_empty() {
            return;
        }
        for request in requests {
            match self.parents.get(request.parent).and_then(Parent::subscription) {
                Some(subscription) => subscription.request(request.leaves, request.class),
                // What it has was heard before its subscription was.
                None => plan.busy(request.parent, request.leaves, now),
            }
        }
        self.note_covered();
    }
}
