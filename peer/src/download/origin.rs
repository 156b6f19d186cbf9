//! Back to source: streams what is missing from the origin, cuts it into leaves and stores them.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::timeout,
};

use crate::{
    Geometry, LeafDigest, LeafSet, TaskError,
    content::{Shared, blocking},
    digest::leaf_digest,
    origin::{Origin, OriginBody, OriginError, Source},
    store::{Entry, Store, StoreError},
};

/// A content whose origin does not tell its length is held in memory until its end; longer ones are refused.
const MAX_UNKNOWN_LEN: usize = 64 * 1024 * 1024;
/// Leaves being hashed and written while the next ones are read.
const WRITES: usize = 4;
/// So many leaves that came from elsewhere in a row make it worth asking the origin anew, behind them.
const SKIP: u32 = 8;
/// Where leaves cannot be kept, the origin waits so long for a reader to want the next one before it is let go.
const WAIT: Duration = Duration::from_secs(2);

/// What the fetch tells the download.
#[derive(Debug)]
pub(super) enum News {
    /// The length is known, so the entry exists.
    Entry(Arc<Entry>),
    /// A leaf is stored.
    Leaf { leaf: u32, digest: LeafDigest, bytes: u64 },
}

/// One back-to-source fetch of a task.
pub(super) struct Fetch {
    pub(super) shared: Arc<Shared>,
    pub(super) source: Source,
    pub(super) origin: Origin,
    pub(super) store: Store,
    pub(super) news: mpsc::Sender<News>,
    pub(super) covered: Arc<Covered>,
}

/// Leaves that need not be fetched, kept up to date by the download.
#[derive(Debug)]
pub(super) struct Covered {
    leaves: Mutex<LeafSet>,
    changed: Notify,
}

impl Covered {
    pub(super) fn new(leaves: LeafSet) -> Self {
        Self { leaves: Mutex::new(leaves), changed: Notify::new() }
    }

    pub(super) fn replace(&self, leaves: LeafSet) {
        *self.leaves.lock() = leaves;
        self.changed.notify_waiters();
    }

    pub(super) fn insert(&self, leaf: u32) {
        self.leaves.lock().insert(leaf);
    }

    fn contains(&self, leaf: u32) -> bool {
        self.leaves.lock().contains(leaf)
    }

    /// Waits until a leaf has to be fetched; false if that does not come for [`WAIT`].
    async fn is_wanted(&self, leaf: u32) -> bool {
        let wanted = async {
            loop {
                let changed = self.changed.notified();
                if !self.contains(leaf) {
                    return;
                }
                changed.await;
            }
        };
        timeout(WAIT, wanted).await.is_ok()
    }
}

impl Fetch {
    /// Fetches everything that is not covered. `entry` is what the store has of the task, if its length is known.
    ///
    /// # Errors
    /// The origin's refusal or failure, or the store's.
    pub(super) async fn run(self, entry: Option<Arc<Entry>>) -> Result<(), TaskError> {
        let (entry, mut body) = match entry {
            Some(entry) => (entry, None),
            None => {
                let body = self.origin.get(&self.source, None).await?;
                self.shared.granted.send_replace(true);
                match body.head.len {
                    Some(len) => (self.create(len).await?, Some(body)),
                    None => return self.unknown_length(body).await,
                }
            }
        };
        let leaves = entry.geometry().leaves();
        let mut next = 0;
        while let Some(start) = self.first_uncovered(&entry, next) {
            next = if start >= leaves { break } else { self.stream(&entry, start, body.take()).await? };
        }
        Ok(())
    }

    /// Streams from `start`, or with `body` from the beginning, until the end or until the next leaves are covered.
    /// Returns the leaf it got to.
    async fn stream(
        &self,
        entry: &Arc<Entry>,
        start: u32,
        body: Option<OriginBody>,
    ) -> Result<u32, TaskError> {
        let geometry = entry.geometry();
        let (mut leaf, mut body) = match body {
            Some(body) => (0, body),
            None => {
                let from = geometry.leaf_range(start).map_or(0, |range| range.start);
                let opened = self.origin.get(&self.source, Some(from..geometry.len())).await;
                let other_len = match &opened {
                    Ok(body) => body.head.len.is_some_and(|len| len != geometry.len()),
                    Err(OriginError::Status { status, .. }) => *status == 416,
                    Err(_) => false,
                };
                if other_len {
                    return Err(self.forget().await);
                }
                let body = opened?;
                self.shared.granted.send_replace(true);
                (start, body)
            }
        };
        let mut writes = JoinSet::new();
        let mut buffer = Cutter::default();
        self.shared.begun.show(leaf, buffer.begin(&mut body).await?);
        while let Some(range) = geometry.leaf_range(leaf) {
            if entry.is_unkept() && !self.covered.is_wanted(leaf).await {
                break;
            }
            let Some(bytes) = buffer.cut(&mut body, range).await? else {
                return Err(TaskError::Unreachable(
                    "the origin's content is shorter than it said".to_owned(),
                ));
            };
            if !entry.has(leaf) {
                if writes.len() >= WRITES {
                    self.written(writes.join_next().await).await?;
                }
                writes.spawn(write(entry.clone(), leaf, bytes));
            }
            leaf += 1;
            if self.next_are_covered(entry, leaf) {
                break;
            }
        }
        while let Some(result) = writes.join_next().await {
            self.written(Some(result)).await?;
        }
        Ok(leaf)
    }

    /// The origin says that the content has another length than what is here. Neither was ever checked, and who lied
    /// cannot be known: the next one who asks begins anew.
    async fn forget(&self) -> TaskError {
        let (store, id) = (self.store.clone(), self.shared.id.clone());
        match blocking(move || store.remove(&id)).await {
            Ok(_) => TaskError::Unreachable("the origin's content has another length now".to_owned()),
            Err(error) => error,
        }
    }

    async fn written(
        &self,
        result: Option<Result<Written, tokio::task::JoinError>>,
    ) -> Result<(), TaskError> {
        let Some(Ok(result)) = result else { return Err(TaskError::Cancelled) };
        let (leaf, digest, bytes) = result?;
        self.shared.begun.end();
        self.tell(News::Leaf { leaf, digest, bytes }).await
    }

    async fn tell(&self, news: News) -> Result<(), TaskError> {
        self.news.send(news).await.map_err(|_| TaskError::Cancelled)
    }

    async fn create(&self, len: u64) -> Result<Arc<Entry>, TaskError> {
        let (store, id) = (self.store.clone(), self.shared.id.clone());
        let entry = blocking(move || store.admit(&id, Geometry::Fixed { len })).await?;
        self.tell(News::Entry(entry.clone())).await?;
        Ok(entry)
    }

    async fn unknown_length(&self, mut body: OriginBody) -> Result<(), TaskError> {
        let mut whole = BytesMut::new();
        while let Some(bytes) = body.next().await? {
            if whole.len() + bytes.len() > MAX_UNKNOWN_LEN {
                let reason = "the origin does not tell the content's length, and it is longer than 64 MiB";
                return Err(TaskError::Unreachable(reason.to_owned()));
            }
            whole.extend_from_slice(&bytes);
        }
        let entry = self.create(whole.len() as u64).await?;
        let mut leaf = 0;
        while let Some(range) = entry.geometry().leaf_range(leaf) {
            let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let bytes = whole.split_to(len.min(whole.len())).freeze();
            let (leaf_number, digest, bytes) = write(entry.clone(), leaf, bytes).await?;
            self.tell(News::Leaf { leaf: leaf_number, digest, bytes }).await?;
            leaf += 1;
        }
        Ok(())
    }

    fn first_uncovered(&self, entry: &Entry, from: u32) -> Option<u32> {
        let covered = self.covered.leaves.lock();
        (from..entry.geometry().leaves()).find(|leaf| !covered.contains(*leaf) && !entry.has(*leaf))
    }

    fn next_are_covered(&self, entry: &Entry, leaf: u32) -> bool {
        if entry.is_unkept() {
            return false;
        }
        let covered = self.covered.leaves.lock();
        let end = entry.geometry().leaves().min(leaf + SKIP);
        leaf < end && (leaf..end).all(|leaf| covered.contains(leaf) || entry.has(leaf))
    }
}

type Written = Result<(u32, LeafDigest, u64), TaskError>;

async fn write(entry: Arc<Entry>, leaf: u32, bytes: Bytes) -> Written {
    blocking(move || {
        let digest = leaf_digest(&bytes);
        let len = bytes.len() as u64;
        entry.take_leaf(leaf, digest, bytes)?;
        Ok::<_, StoreError>((leaf, digest, len))
    })
    .await
}

/// Cuts a body into leaves.
#[derive(Default)]
struct Cutter {
    rest: Bytes,
}

impl Cutter {
    /// The bytes with which the body begins.
    async fn begin(&mut self, body: &mut OriginBody) -> Result<&Bytes, TaskError> {
        self.rest = body.next().await?.unwrap_or_default();
        Ok(&self.rest)
    }

    /// The next leaf; `None` if the body ends before it does.
    async fn cut(&mut self, body: &mut OriginBody, range: Range<u64>) -> Result<Option<Bytes>, TaskError> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        if self.rest.len() >= len {
            return Ok(Some(self.rest.split_to(len)));
        }
        let mut leaf = BytesMut::with_capacity(len);
        loop {
            let take = self.rest.len().min(len - leaf.len());
            leaf.extend_from_slice(&self.rest.split_to(take));
            if leaf.len() == len {
                return Ok(Some(leaf.freeze()));
            }
            match body.next().await? {
                Some(bytes) => self.rest = bytes,
                None => return Ok(None),
            }
        }
    }
}
