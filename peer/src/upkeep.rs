//! What the store needs now and then: that it stays below its limits when others fill the disk, and that what rots is found
//! before it is needed.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::{
    Bucket, Class, Peer, TaskError, TaskId, Want,
    content::blocking,
    store::{Entry, StoreError},
};

/// How often the limits are looked at.
const LIMITS: Duration = Duration::from_secs(5);
/// How long a damaged leaf may take to be fetched again.
const REPAIR_DEADLINE: Duration = Duration::from_secs(60);

/// What a look at everything that is held found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Leaves that are right.
    pub leaves: u64,
    /// What they take, in bytes.
    pub bytes: u64,
    /// Leaves that were not, and are dropped.
    pub damaged: Vec<(TaskId, u32)>,
}

/// Runs until shutdown.
pub(crate) async fn run(peer: Peer) {
    let shutdown = peer.inner.shutdown.clone();
    let upkeep = async { tokio::join!(keep_limits(&peer), scrub(&peer)) };
    shutdown.run_until_cancelled(upkeep).await;
}

async fn keep_limits(peer: &Peer) {
    let mut ticks = interval(LIMITS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let store = peer.store().clone();
        let kept = blocking(move || {
            store.keep_limits();
            store.measure();
            Ok::<_, StoreError>(())
        });
        if let Err(error) = kept.await {
            tracing::debug!(%error, "the store's limits were not looked at");
        }
    }
}

async fn scrub(peer: &Peer) {
    let config = &peer.inner.config.store;
    if config.scrub_rate == 0 {
        return;
    }
    let pace = Bucket::new(config.scrub_rate);
    loop {
        sleep(config.scrub_interval).await;
        let found = peer.verify_store(&pace).await;
        let (leaves, damaged) = (found.leaves, found.damaged.len());
        tracing::info!(leaves, damaged, "the store was compared with its digests");
    }
}

impl Peer {
    /// Compares everything that is held with its digests, no faster than `pace` allows. What is damaged is dropped; if it
    /// is pinned, it is fetched again.
    pub async fn verify_store(&self, pace: &Bucket) -> Verified {
        let mut found = Verified::default();
        for entry in self.store().entries() {
            let mut damaged = Vec::new();
            for leaf in entry.have_ranges().into_iter().flatten() {
                let len = entry.geometry().leaf_range(leaf).map_or(0, |range| range.end - range.start);
                pace.take(Class::Background, len).await;
                let at = entry.clone();
                match tokio::task::spawn_blocking(move || at.verify_leaf(leaf)).await {
                    Ok(Ok(0)) => {}
                    Ok(Ok(bytes)) => {
                        found.leaves += 1;
                        found.bytes += bytes;
                    }
                    Ok(Err(StoreError::Rotten { .. })) => damaged.push(leaf),
                    // Evicted or removed meanwhile.
                    Ok(Err(error)) if error.is_loss() => {}
                    Ok(Err(error)) => {
                        tracing::warn!(task = %entry.id(), leaf, %error, "a leaf was not verified")
                    }
                    Err(_) => return found,
                }
            }
            if !damaged.is_empty() && entry.is_pinned() {
                let (peer, entry, leaves) = (self.clone(), entry.clone(), damaged.clone());
                self.inner.tracker.spawn(async move { peer.repair(entry, leaves).await });
            }
            found.damaged.extend(damaged.into_iter().map(|leaf| (entry.id().clone(), leaf)));
        }
        found
    }

    async fn repair(&self, entry: Arc<Entry>, leaves: Vec<u32>) {
        let task = entry.id().clone();
        let fetch = async {
            let want = Want { id: task.clone(), source: None, class: Class::Background };
            let content = self.open_as(want, Some(entry), false).await?;
            for leaf in leaves {
                timeout(REPAIR_DEADLINE, content.leaf(leaf, Class::Background)).await.map_err(|_| {
                    TaskError::Deadline { what: format!("leaf {leaf}"), seconds: REPAIR_DEADLINE.as_secs() }
                })??;
            }
            Ok::<_, TaskError>(())
        };
        match self.inner.shutdown.run_until_cancelled(fetch).await {
            Some(Ok(())) => tracing::info!(%task, "what was damaged is here again"),
            Some(Err(error)) => tracing::warn!(%task, %error, "what was damaged cannot be had again now"),
            None => {}
        }
    }
}
