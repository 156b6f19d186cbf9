//! Who may read what: the origin's word, remembered for a short time.
//!
//! A read of a content is allowed if the origin let this caller read this repository a moment ago, and said as lately
//! that the content is in it. Else the origin is asked for this very content with the caller's own credentials. What a
//! manifest says about contents counts for nothing: not every registry checks what is pushed to it. And an origin's
//! word counts for contents of its own pool only, because others are other tasks.
//! Nothing that identifies a caller is kept: the memory holds hashes under a key that dies with the process.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use darter_peer::{Digest, origin::OriginError};
use http::HeaderValue;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Offline;

/// Callers and repositories that are remembered.
const PERMITS: NonZeroUsize = NonZeroUsize::new(16 * 1024).unwrap();
/// Contents of repositories that are remembered.
const MEMBERS: NonZeroUsize = NonZeroUsize::new(256 * 1024).unwrap();
/// Questions to origins that others may wait for.
const QUESTIONS: NonZeroUsize = NonZeroUsize::new(4 * 1024).unwrap();

/// A caller in a repository.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) registry: &'a str,
    pub(crate) repository: &'a str,
    pub(crate) authorization: Option<&'a HeaderValue>,
    /// Whether the origin sees nobody's credentials: neither the caller's nor configured ones.
    pub(crate) anonymous: bool,
}

/// What origins said.
pub(crate) struct Access {
    key: [u8; blake3::KEY_LEN],
    offline: Offline,
    lifetime: Duration,
    /// How long after it was seen to be public a content is served while the origin gives no answer.
    offline_for: Duration,
    permits: Mutex<LruCache<Hash, Instant>>,
    members: Mutex<LruCache<Hash, Member>>,
    questions: Mutex<LruCache<Hash, Arc<tokio::sync::Mutex<()>>>>,
}

type Hash = [u8; blake3::OUT_LEN];

/// A content is in a repository.
#[derive(Clone, Copy)]
struct Member {
    /// Until when that needs no new question.
    until: Instant,
    /// When it was last read there without credentials.
    public: Option<Instant>,
}

impl Access {
    pub(crate) fn new(offline: Offline, lifetime: Duration, offline_for: Duration) -> Self {
        Self {
            key: rand::random(),
            offline,
            lifetime,
            offline_for,
            permits: Mutex::new(LruCache::new(PERMITS)),
            members: Mutex::new(LruCache::new(MEMBERS)),
            questions: Mutex::new(LruCache::new(QUESTIONS)),
        }
    }

    /// Lets the caller read a content, or says why not. `ask` asks the origin for it with the caller's credentials; it
    /// runs once for all who wait for the same answer, unless that is a refusal.
    pub(crate) async fn check(
        &self,
        caller: Caller<'_>,
        digest: &Digest,
        ask: impl Future<Output = Result<(), OriginError>>,
    ) -> Result<(), OriginError> {
        if self.is_allowed(caller, digest) {
            return Ok(());
        }
        let question =
            self.questions.lock().get_or_insert(self.question(caller, digest), Arc::default).clone();
        let _asking = question.lock().await;
        if self.is_allowed(caller, digest) {
            return Ok(());
        }
        match ask.await {
            Ok(()) => {
                self.learn(caller, [digest.clone()]);
                Ok(())
            }
            Err(error) if error.is_no_answer() && self.is_served_offline(caller, digest) => {
                tracing::info!(registry = caller.registry, %error, "served without asking, as `offline` allows");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Remembers that the origin let the caller read these contents of the repository.
    pub(crate) fn learn(&self, caller: Caller<'_>, digests: impl IntoIterator<Item = Digest>) {
        let now = Instant::now();
        let until = now + self.lifetime;
        self.permits.lock().put(self.permit(caller), until);
        let mut members = self.members.lock();
        for digest in digests {
            let key = self.member(caller, &digest);
            let member = members.get_or_insert_mut(key, || Member { until, public: None });
            member.until = until;
            member.public = if caller.anonymous { Some(now) } else { member.public };
        }
    }

    /// Whether the origin let the caller read this repository a moment ago.
    pub(crate) fn is_permitted(&self, caller: Caller<'_>) -> bool {
        self.permits.lock().get(&self.permit(caller)).is_some_and(|until| *until > Instant::now())
    }

    fn is_allowed(&self, caller: Caller<'_>, digest: &Digest) -> bool {
        let member = self.members.lock().get(&self.member(caller, digest)).copied();
        member.is_some_and(|member| member.until > Instant::now()) && self.is_permitted(caller)
    }

    fn is_served_offline(&self, caller: Caller<'_>, digest: &Digest) -> bool {
        let public = self.members.lock().get(&self.member(caller, digest)).and_then(|member| member.public);
        public.is_some_and(|seen| seen.elapsed() < self.offline_for) || self.offline == Offline::Open
    }

    fn permit(&self, caller: Caller<'_>) -> Hash {
        self.hash("permit", caller, caller.authorization.map_or(&[], HeaderValue::as_bytes))
    }

    fn member(&self, caller: Caller<'_>, digest: &Digest) -> Hash {
        self.hash("member", caller, digest.to_string().as_bytes())
    }

    fn question(&self, caller: Caller<'_>, digest: &Digest) -> Hash {
        self.hash("question", caller, &[self.permit(caller), self.member(caller, digest)].concat())
    }

    fn hash(&self, what: &str, caller: Caller<'_>, rest: &[u8]) -> Hash {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        for part in [what.as_bytes(), caller.registry.as_bytes(), caller.repository.as_bytes(), rest] {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        *hasher.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests;
