//! Start profiles: what the start of a container read of an image's layers, passed on through the scheduler as a hint
//! for the next node. What is in one is the snapshotter's business.

use std::{collections::HashMap, num::NonZeroUsize, time::Duration};

use bytes::Bytes;
use darter_proto::scheduler::{ProfileWanted, StartProfile, peer_message::Message as Said};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};

use crate::{Digest, Peer};

/// A scheduler that does not answer for so long is not waited for: the start goes on without the hint.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// Most profiles that a new scheduler is told.
const MAX_SHARED: NonZeroUsize = NonZeroUsize::new(64).unwrap();

/// Profiles on their way between this peer and the scheduler.
#[derive(Debug)]
pub(crate) struct Profiles {
    /// Those that this peer saw, by image, for the next scheduler.
    shared: Mutex<LruCache<String, Bytes>>,
    awaited: Mutex<HashMap<String, watch::Sender<Option<Bytes>>>>,
}

impl Default for Profiles {
    fn default() -> Self {
        Self { shared: Mutex::new(LruCache::new(MAX_SHARED)), awaited: Mutex::default() }
    }
}

impl Profiles {
    /// What a scheduler is told that knows nothing.
    pub(crate) fn to_tell(&self) -> Vec<StartProfile> {
        let shared = self.shared.lock();
        let profiles = shared.iter().rev();
        profiles.map(|(image, reads)| StartProfile { image: image.clone(), reads: reads.clone() }).collect()
    }

    /// The scheduler's answer to a ProfileWanted.
    pub(crate) fn heard(&self, profile: StartProfile) {
        if let Some(sender) = self.awaited.lock().get(&profile.image) {
            sender.send_replace(Some(profile.reads));
        }
    }

    fn wait_for(&self, image: &str) -> watch::Receiver<Option<Bytes>> {
        let mut awaited = self.awaited.lock();
        awaited.retain(|_, sender| sender.receiver_count() > 0);
        awaited.entry(image.to_owned()).or_default().subscribe()
    }
}

impl Peer {
    /// What another node's start of the image with this chainID read, if the scheduler knows it.
    pub async fn start_profile(&self, image: &Digest) -> Option<Bytes> {
        let image = image.to_string();
        let mut answer = self.profiles().wait_for(&image);
        let wanted = Said::ProfileWanted(ProfileWanted { image: image.clone() });
        if !self.sessions().tell(&image, wanted).await {
            return None;
        }
        let answer = timeout(ANSWER_DEADLINE, answer.wait_for(Option::is_some)).await;
        let reads = answer.ok()?.ok()?.clone();
        reads.filter(|reads| !reads.is_empty())
    }

    /// Tells all schedulers, and every later one, what a start of the image with this chainID read.
    pub async fn share_start_profile(&self, image: &Digest, reads: Bytes) {
        let image = image.to_string();
        self.profiles().shared.lock().put(image.clone(), reads.clone());
        self.sessions().tell_all(&Said::StartProfile(StartProfile { image, reads })).await;
    }
}
