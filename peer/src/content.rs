//! A handle on a task's content: wait for leaves, read them, stream them.

mod begun;

use std::{
    fmt,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, future::BoxFuture, stream};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use self::begun::Begun;
use crate::{
    Class, Geometry, StoredFile, TaskError, TaskId,
    metrics::PeerMetrics,
    origin::Source,
    store::{Entry, Pin},
};

/// How often a leaf is fetched again that the disk lost before it could be read.
const TRIES: usize = 5;

/// A handle on a task's content. While one lives, an unfinished task goes on.
pub struct Content {
    shared: Arc<Shared>,
}

/// Bytes of one task by where they came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BySource {
    /// Were in this peer's store before.
    pub local: u64,
    /// Came from peers.
    pub peer: u64,
    /// Came from seed peers.
    pub seed: u64,
    /// Came from the origin.
    pub origin: u64,
}

/// Where bytes come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum From {
    Local,
    Peer,
    Seed,
    Origin,
}

/// What a reader asks of the download: these leaves are waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Demand {
    pub(crate) leaves: Range<u32>,
    pub(crate) class: Class,
}

/// Opens the same content anew.
pub(crate) type Reopen = Arc<dyn Fn() -> BoxFuture<'static, Result<Content, TaskError>> + Send + Sync>;

/// What the handles and the download share.
pub(crate) struct Shared {
    pub(crate) id: TaskId,
    /// What the origin is asked with, if this peer asks it.
    pub(crate) source: Option<Source>,
    /// Set once the origin has answered that with the content.
    pub(crate) granted: watch::Sender<bool>,
    /// What comes from the origin just now.
    pub(crate) begun: Begun,
    /// Set once the geometry is known.
    pub(crate) entry: watch::Sender<Option<Arc<Entry>>>,
    /// Set once: everything is there and checked, or it will never be.
    pub(crate) outcome: watch::Sender<Option<Result<(), TaskError>>>,
    /// Number of handles.
    pub(crate) handles: watch::Sender<usize>,
    /// Set once all leaves are wanted, most urgent class wins.
    pub(crate) fill: watch::Sender<Option<Class>>,
    demands: Option<mpsc::Sender<Demand>>,
    /// Counts what is read of a content that was complete when it was opened.
    local: Option<PeerMetrics>,
    /// For leaves that are lost after the task has ended.
    reopen: Reopen,
    pin: Mutex<Option<Pin>>,
    sources: [AtomicU64; 4],
    stall: Duration,
}

impl Shared {
    /// A task that a download works on; it hears of readers' demands through the receiver.
    pub(crate) fn downloading(
        id: TaskId,
        source: Option<Source>,
        stall: Duration,
        reopen: Reopen,
    ) -> (Arc<Self>, mpsc::Receiver<Demand>) {
        let (demands, receiver) = mpsc::channel(256);
        (Arc::new(Self { source, ..Self::new(id, Some(demands), stall, reopen) }), receiver)
    }

    fn new(id: TaskId, demands: Option<mpsc::Sender<Demand>>, stall: Duration, reopen: Reopen) -> Self {
        Self {
            id,
            source: None,
            granted: watch::Sender::new(false),
            begun: Begun::default(),
            entry: watch::Sender::new(None),
            outcome: watch::Sender::new(None),
            handles: watch::Sender::new(0),
            fill: watch::Sender::new(None),
            demands,
            local: None,
            reopen,
            pin: Mutex::new(None),
            sources: Default::default(),
            stall,
        }
    }

    /// Makes the entry known to the readers and keeps it from eviction.
    pub(crate) fn set_entry(&self, entry: Arc<Entry>) {
        *self.pin.lock() = Some(entry.pin());
        self.entry.send_replace(Some(entry));
    }

    /// Has the download fetch these leaves; nothing happens if it has ended.
    pub(crate) async fn demand(&self, leaves: Range<u32>, class: Class) {
        if let Some(demands) = &self.demands {
            demands.send(Demand { leaves, class }).await.ok();
        }
    }

    /// Ends the task; the first outcome stays.
    pub(crate) fn finish(&self, outcome: Result<(), TaskError>) {
        self.outcome.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(outcome);
            }
            first
        });
    }

    /// Counts bytes that arrived.
    pub(crate) fn count(&self, from: From, bytes: u64) {
        if let Some(counter) = self.sources.get(from as usize) {
            counter.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    fn counted(&self, from: From) -> u64 {
        self.sources.get(from as usize).map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

impl Content {
    /// A handle on a task that a download works on.
    pub(crate) fn joined(shared: Arc<Shared>) -> Self {
        shared.handles.send_modify(|handles| *handles += 1);
        Self { shared }
    }

    /// A handle on what the store has completely.
    pub(crate) fn stored(entry: Arc<Entry>, stall: Duration, metrics: PeerMetrics, reopen: Reopen) -> Self {
        let mut shared = Shared::new(entry.id().clone(), None, stall, reopen);
        shared.local = Some(metrics);
        shared.count(From::Local, entry.geometry().len());
        shared.set_entry(entry);
        shared.finish(Ok(()));
        Self::joined(Arc::new(shared))
    }

    /// The task's id.
    pub fn id(&self) -> &TaskId {
        &self.shared.id
    }

    /// How the content is cut, and so how long it is; waits until that is known.
    ///
    /// # Errors
    /// The task's failure, or [`TaskError::Deadline`].
    pub async fn geometry(&self) -> Result<Geometry, TaskError> {
        Ok(self.entry().await?.geometry().clone())
    }

    /// Waits until the origin answers this very request, with these headers, with the content. False if it did so before,
    /// or will not be asked that: the task asks with other headers, or has ended.
    pub async fn granted(&self, source: &Source) -> bool {
        let (mut granted, mut outcome) = (self.shared.granted.subscribe(), self.shared.outcome.subscribe());
        let before = *granted.borrow_and_update();
        !before
            && self.shared.source.as_ref() == Some(source)
            && tokio::select! {
                biased;
                granted = granted.changed() => granted.is_ok(),
                _ = outcome.wait_for(Option::is_some) => false,
            }
    }

    /// Whether a leaf is here already.
    pub fn has(&self, leaf: u32) -> bool {
        self.shared.entry.borrow().as_ref().is_some_and(|entry| entry.has(leaf))
    }

    /// Bytes of the stored content that are here already.
    pub fn held_bytes(&self) -> u64 {
        self.shared.entry.borrow().as_ref().map_or(0, |entry| entry.held_bytes())
    }

    /// The file that the content lies in, if it was here completely when this was opened.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub async fn stored_file(&self) -> Result<Option<StoredFile>, TaskError> {
        let Some(metrics) = self.shared.local.clone() else { return Ok(None) };
        let entry = self.entry().await?;
        if entry.is_unkept() {
            return Ok(None);
        }
        blocking(move || StoredFile::open(entry, metrics)).await.map(Some)
    }

    /// Where the bytes came from so far.
    pub fn by_source(&self) -> BySource {
        BySource {
            local: self.shared.counted(From::Local),
            peer: self.shared.counted(From::Peer),
            seed: self.shared.counted(From::Seed),
            origin: self.shared.counted(From::Origin),
        }
    }

    /// The stored bytes of one leaf, verified; waits until they are here.
    ///
    /// # Errors
    /// The task's failure; [`TaskError::Deadline`] if nothing of the task arrives for the stall time.
    pub async fn leaf(&self, leaf: u32, class: Class) -> Result<Bytes, TaskError> {
        let bytes = self.read_leaf(leaf..leaf.saturating_add(1), class, false).await?;
        self.count_local(bytes.len() as u64);
        Ok(bytes)
    }

    /// Goes on to completeness, for contents that are otherwise fetched as they are read.
    pub fn fill(&self, class: Class) {
        self.shared.fill.send_if_modified(|fill| {
            let more_urgent = fill.is_none_or(|current| class < current);
            if more_urgent {
                *fill = Some(class);
            }
            more_urgent
        });
    }

    /// Waits until everything is here and the whole was checked.
    ///
    /// # Errors
    /// The task's failure.
    pub async fn finished(&self) -> Result<(), TaskError> {
        let mut outcome = self.shared.outcome.subscribe();
        match outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone()) {
            Ok(Some(outcome)) => outcome,
            _ => Err(TaskError::Cancelled),
        }
    }

    /// Streams the stored bytes of `range` in order while they arrive. The content's last leaf is kept back until the
    /// whole was checked, so that a reader that got the last byte has the right bytes; otherwise the stream ends with
    /// an error.
    pub fn read(
        &self,
        range: Range<u64>,
    ) -> impl Stream<Item = Result<Bytes, TaskError>> + Send + 'static + use<> {
        let begin = (self.clone(), range, Bytes::new());
        stream::try_unfold(begin, |(content, range, early): (Self, Range<u64>, Bytes)| async move {
            if range.is_empty() {
                return Ok(None);
            }
            let (bytes, early) = content.next(range.clone(), early).await?;
            let rest = range.start + bytes.len() as u64..range.end;
            Ok(Some((bytes, (content, rest, early))))
        })
    }

    /// At least one byte from the start of `range`, and those of them that belong to a leaf that is still on its way.
    /// `early` is what was given before of the leaf in which `range` starts.
    async fn next(&self, range: Range<u64>, early: Bytes) -> Result<(Bytes, Bytes), TaskError> {
        let entry = self.entry().await?;
        let geometry = entry.geometry();
        let outside = || TaskError::Local(format!("{} has no byte {}", self.shared.id, range.start));
        let first = geometry.leaf_at(range.start).ok_or_else(outside)?;
        let ahead = first..first.saturating_add(16).min(geometry.leaves());
        let leaf = geometry.leaf_range(first).ok_or_else(outside)?;
        let (skip, until) = (range.start - leaf.start, range.end.min(leaf.end) - leaf.start);
        let is_last = first == geometry.leaves().saturating_sub(1);
        // The rest of the leaf will be read too, and shows then whether its beginning was the right one.
        if skip == 0 && range.end >= leaf.end && !is_last {
            let arrival = self.arrival(&entry, ahead.clone(), Class::Stream);
            tokio::select! {
                biased;
                arrived = arrival => drop(arrived?),
                begun = self.shared.begun.of(first) => return Ok((begun.clone(), begun)),
            }
        }
        // Whole leaves, because only these are checked again on their way from the disk.
        let bytes = self.read_leaf(ahead, Class::Stream, is_last).await?;
        if !bytes.starts_with(&early) {
            let reason = "the first bytes that came from the origin are not those of the content";
            return Err(TaskError::Unreachable(reason.to_owned()));
        }
        match (usize::try_from(skip), usize::try_from(until)) {
            (Ok(skip), Ok(until)) if until <= bytes.len() => {
                self.count_local((until - skip) as u64);
                Ok((bytes.slice(skip..until), Bytes::new()))
            }
            _ => Err(outside()),
        }
    }

    /// The first of `leaves`; the others are only asked for. With `whole`, waits until the whole was checked.
    async fn read_leaf(&self, leaves: Range<u32>, class: Class, whole: bool) -> Result<Bytes, TaskError> {
        let mut content = self.clone();
        for _ in 0..TRIES {
            if let Some(bytes) = content.try_read(&leaves, class, whole).await? {
                return Ok(bytes);
            }
            let ended = content.shared.outcome.borrow().is_some();
            if ended {
                content = (content.shared.reopen)().await?;
            }
        }
        let lost = format!("{}: leaf {} is lost again and again", self.shared.id, leaves.start);
        Err(TaskError::Local(lost))
    }

    /// `None` if the leaf was lost before it could be read.
    async fn try_read(
        &self,
        leaves: &Range<u32>,
        class: Class,
        whole: bool,
    ) -> Result<Option<Bytes>, TaskError> {
        let entry = self.entry().await?;
        if !self.arrival(&entry, leaves.clone(), class).await? {
            return Ok(None);
        }
        if whole {
            self.finished().await?;
        }
        let leaf = leaves.start;
        match tokio::task::spawn_blocking(move || entry.read_leaf(leaf)).await {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(error)) => match &*self.shared.outcome.borrow() {
                // If the task failed, its leaves are gone because of that.
                Some(Err(reason)) => Err(reason.clone()),
                _ if error.is_loss() => Ok(None),
                _ => Err(error.into()),
            },
            Err(_) => Err(TaskError::Cancelled),
        }
    }

    fn count_local(&self, bytes: u64) {
        if let Some(metrics) = &self.shared.local {
            metrics.received(From::Local, bytes);
        }
    }

    /// Waits until the first of `leaves` is here; the others are only asked for. False if it is not, and the task has
    /// ended well.
    async fn arrival(&self, entry: &Arc<Entry>, leaves: Range<u32>, class: Class) -> Result<bool, TaskError> {
        let first = leaves.start;
        if entry.has(first) {
            return Ok(true);
        }
        // If the download has ended, the loop below finds out how.
        self.shared.demand(leaves, class).await;
        let mut changes = entry.changes();
        let mut outcome = self.shared.outcome.subscribe();
        loop {
            changes.mark_unchanged();
            if entry.has(first) {
                return Ok(true);
            }
            let ended = outcome.borrow_and_update().clone();
            if let Some(ended) = ended {
                return ended.map(|()| false);
            }
            let news = async {
                tokio::select! {
                    changed = changes.changed() => changed.is_ok(),
                    ended = outcome.changed() => ended.is_ok(),
                }
            };
            match timeout(self.shared.stall, news).await {
                Ok(true) => {}
                Ok(false) => return Err(TaskError::Cancelled),
                Err(_) => return Err(self.stalled(&format!("leaf {first} of {}", self.shared.id))),
            }
        }
    }

    async fn entry(&self) -> Result<Arc<Entry>, TaskError> {
        let mut entry = self.shared.entry.subscribe();
        let mut outcome = self.shared.outcome.subscribe();
        let wait = async {
            tokio::select! {
                biased;
                entry = entry.wait_for(Option::is_some) => entry.ok().and_then(|entry| entry.clone()).ok_or(TaskError::Cancelled),
                ended = outcome.wait_for(Option::is_some) => match ended.map(|ended| ended.clone()) {
                    Ok(Some(Err(error))) => Err(error),
                    _ => Err(TaskError::Cancelled),
                },
            }
        };
        timeout(self.shared.stall, wait).await.unwrap_or_else(|_| Err(self.stalled(self.shared.id.as_str())))
    }

    fn stalled(&self, what: &str) -> TaskError {
        TaskError::Deadline { what: what.to_owned(), seconds: self.shared.stall.as_secs() }
    }
}

impl Clone for Content {
    fn clone(&self) -> Self {
        Self::joined(self.shared.clone())
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        self.shared.handles.send_modify(|handles| *handles -= 1);
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Content").field(&self.shared.id).finish()
    }
}

/// Runs a store operation where it may block.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, TaskError>
where
    T: Send + 'static,
    E: Into<TaskError> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(TaskError::Cancelled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        LEAF_LEN,
        digest::leaf_digest,
        store::{Store, StoreConfig},
    };
    use futures_util::{FutureExt as _, StreamExt as _};
    use std::pin::pin;

    const LEN: u64 = 2 * LEAF_LEN as u64;

    /// A content of sevens that is being downloaded, of which nothing is here.
    fn downloading(store: &Store, number: u8) -> (Content, Arc<Entry>, mpsc::Receiver<Demand>) {
        let id = TaskId::of_url("x", &number.to_string());
        let reopen: Reopen = Arc::new(|| Box::pin(async { Err(TaskError::Cancelled) }));
        let (shared, demands) = Shared::downloading(id.clone(), None, Duration::from_secs(60), reopen);
        let entry = store.create(&id, Geometry::Fixed { len: LEN }).unwrap();
        shared.set_entry(entry.clone());
        (Content::joined(shared), entry, demands)
    }

    #[tokio::test]
    async fn a_leaf_that_ends_otherwise_than_it_began_ends_the_stream() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { dir: dir.path().to_owned(), min_free: 0, ..StoreConfig::default() };
        let store = Store::open(&config).unwrap();
        let leaf = vec![7; LEAF_LEN as usize];
        for begun in [7, 8] {
            let (content, entry, _demands) = downloading(&store, begun);
            let beginning = vec![begun; 100];
            content.shared.begun.show(0, &beginning.clone().into());
            let mut stream = pin!(content.read(0..LEN));
            assert_eq!(stream.next().await.unwrap().unwrap(), beginning);
            // What ends within the leaf would not be compared with it.
            assert!(pin!(content.read(0..50)).next().now_or_never().is_none());
            entry.write_leaf(0, leaf_digest(&leaf), &leaf).unwrap();
            match stream.next().await.unwrap() {
                Ok(rest) => assert_eq!((begun, &*rest), (7, &leaf[100..])),
                Err(error) => assert!(begun == 8 && matches!(error, TaskError::Unreachable(_)), "{error}"),
            }
        }
    }
}
