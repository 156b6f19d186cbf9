//! Host-wide rate limits, changeable at run time.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};

use crate::{Class, LEAF_LEN};

/// The rates of a host, in bytes per second; 0 means unlimited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// What is fetched from parents.
    #[serde(with = "darter_service::config::size")]
    pub download: u64,
    /// What is sent to children.
    #[serde(with = "darter_service::config::size")]
    pub upload: u64,
    /// What is fetched from origins.
    #[serde(with = "darter_service::config::size")]
    pub origin: u64,
    /// What is fetched from parents in the background; counts against `download` too.
    #[serde(with = "darter_service::config::size")]
    pub prefetch: u64,
}

/// The buckets of a host. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    /// See [`LimitsConfig::download`].
    pub download: Arc<Bucket>,
    /// See [`LimitsConfig::upload`].
    pub upload: Arc<Bucket>,
    /// See [`LimitsConfig::origin`].
    pub origin: Arc<Bucket>,
    /// See [`LimitsConfig::prefetch`].
    pub prefetch: Arc<Bucket>,
}

/// A token bucket: over any time `t`, at most `rate * t + burst` bytes are taken. The most urgent class is served first,
/// and within a class whoever asks first.
///
/// The burst is what the rate gives in 100 ms, and at least [`LEAF_LEN`].
pub struct Bucket {
    state: Mutex<State>,
    /// The rate changed, or whose turn it is.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    level: Level,
    /// Who waits, the next one first.
    waiting: BTreeSet<(Class, u64)>,
    /// The number of the next who comes.
    next: u64,
}

/// A place among those who wait; dropping it lets the next one in.
struct Turn<'a> {
    bucket: &'a Bucket,
    place: (Class, u64),
}

#[derive(Debug)]
struct Level {
    /// Bytes per second, 0 for unlimited.
    rate: u64,
    /// Bytes that may be taken at once; below 0 after a [`Bucket::settle`] of more than was paid.
    tokens: f64,
    /// When `tokens` was right.
    at: Instant,
}

impl Limits {
    /// Buckets with the rates of `config`.
    pub fn new(config: &LimitsConfig) -> Self {
        let bucket = |rate| Arc::new(Bucket::new(rate));
        Self {
            download: bucket(config.download),
            upload: bucket(config.upload),
            origin: bucket(config.origin),
            prefetch: bucket(config.prefetch),
        }
    }

    /// Changes all rates; who waits already waits by the new ones.
    pub fn set(&self, config: &LimitsConfig) {
        self.download.set(config.download);
        self.upload.set(config.upload);
        self.origin.set(config.origin);
        self.prefetch.set(config.prefetch);
    }
}

impl Bucket {
    /// A full bucket; `rate` in bytes per second, 0 for unlimited.
    pub fn new(rate: u64) -> Self {
        let level = Level { rate, tokens: burst(rate), at: Instant::now() };
        let state = State { level, waiting: BTreeSet::new(), next: 0 };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    /// The rate in bytes per second, 0 for unlimited.
    pub fn rate(&self) -> u64 {
        self.state.lock().level.rate
    }

    /// Changes the rate, also for those who wait.
    pub fn set(&self, rate: u64) {
        self.state.lock().level.set(rate);
        self.changed.notify_waiters();
    }

    /// Waits until `bytes` may be moved. More than a burst is taken burst by burst, and only somebody more urgent gets in
    /// between.
    ///
    /// Dropping the future gives up the turn; what it took by then is not returned.
    pub async fn take(&self, class: Class, bytes: u64) {
        if self.rate() == 0 {
            return;
        }
        let turn = self.enter(class);
        let mut left = bytes;
        while left > 0 {
            let changed = self.changed.notified();
            match turn.draw(left) {
                Ok(drawn) => left -= drawn,
                Err(Some(wait)) => {
                    tokio::select! {
                        () = tokio::time::sleep(wait) => {}
                        () = changed => {}
                    }
                }
                Err(None) => changed.await,
            }
        }
    }

    /// The class whose turn it is.
    #[cfg(test)]
    pub(crate) fn first(&self) -> Option<Class> {
        self.state.lock().waiting.first().map(|(class, _)| *class)
    }

    fn enter(&self, class: Class) -> Turn<'_> {
        let mut state = self.state.lock();
        let place = (class, state.next);
        state.next += 1;
        state.waiting.insert(place);
        let overtakes = state.waiting.len() > 1 && state.waiting.first() == Some(&place);
        drop(state);
        if overtakes {
            self.changed.notify_waiters();
        }
        Turn { bucket: self, place }
    }

    /// Corrects an earlier [`Self::take`] of `paid` bytes that stood for a length not known yet and turned out to be
    /// `used`. Never waits: the next one to take waits instead.
    pub fn settle(&self, paid: u64, used: u64) {
        self.state.lock().level.settle(paid, used);
    }
}

impl Default for Bucket {
    /// Unlimited.
    fn default() -> Self {
        Self::new(0)
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.rate()).finish()
    }
}

impl Turn<'_> {
    /// Takes up to a burst of `want` bytes. Or says how long to wait for it, if it is this one's turn.
    fn draw(&self, want: u64) -> Result<u64, Option<Duration>> {
        let mut state = self.bucket.state.lock();
        if state.level.rate > 0 && state.waiting.first() != Some(&self.place) {
            return Err(None);
        }
        state.level.draw(want).map_err(Some)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.bucket.state.lock().waiting.remove(&self.place);
        self.bucket.changed.notify_waiters();
    }
}

impl Level {
    /// Takes up to a burst of `want` bytes, or says how long to wait for it.
    fn draw(&mut self, want: u64) -> Result<u64, Duration> {
        if self.rate == 0 {
            return Ok(want);
        }
        self.fill();
        let slice = (want as f64).min(burst(self.rate));
        if self.tokens >= slice {
            self.tokens -= slice;
            return Ok(slice as u64);
        }
        let wait = Duration::from_secs_f64((slice - self.tokens) / self.rate as f64);
        Err(wait + Duration::from_nanos(1))
    }

    fn settle(&mut self, paid: u64, used: u64) {
        if self.rate > 0 {
            self.fill();
            self.tokens = (self.tokens + paid as f64 - used as f64).min(burst(self.rate));
        }
    }

    fn set(&mut self, rate: u64) {
        self.fill();
        self.tokens = if self.rate == 0 { burst(rate) } else { self.tokens.min(burst(rate)) };
        self.rate = rate;
    }

    fn fill(&mut self) {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * self.rate as f64;
        self.tokens = (self.tokens + gained).min(burst(self.rate));
        self.at = now;
    }
}

/// Bytes that may be taken at once, a whole number.
fn burst(rate: u64) -> f64 {
    (rate / 10).max(u64::from(LEAF_LEN)) as f64
}

#[cfg(test)]
mod tests;
