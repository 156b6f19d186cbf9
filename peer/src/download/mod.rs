//! One running task: an actor that brings a content together from parents and, under a lease, from the origin.
//!
//! It ends with every leaf stored and the whole checked, or with the error that its readers get. Until then it reacts
//! to four things: what readers demand, what the scheduler says, what parents send, and time passing.

mod origin;
mod parents;
mod plan;
mod whole;

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use darter_proto::scheduler::{
    Digests, Failed, Fault, Finished, Parents as ParentsMessage, Progress, Register, TaskInfo, TaskProgress,
    peer_message::Message as Said, scheduler_message::Message as Heard,
};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use self::{
    origin::{Fetch, News},
    parents::{Parent, Parents},
    plan::{Key, Plan},
};
use crate::{
    Class, Geometry, LeafDigest, LeafSet, TaskError, TaskId,
    content::{Demand, From, Shared, blocking},
    digest::leaf_digest,
    metrics::PeerMetrics,
    origin::{Origin, Source},
    session::Session,
    store::{Entry, Store, StoreError},
    transfer::{ParentEvent, ParentEventKind, Pool, Refusal, Subscription, TransferError},
    wire,
};

/// How often time passing is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How often progress is reported.
const REPORT: Duration = Duration::from_millis(250);
/// A scheduler that leaves a Register unanswered for so long is treated as if there were none.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// With the session lost and no parent of use for so long, the origin is asked without a lease.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// Without a leaf for so long the scheduler is told.
const STARVING_AFTER: Duration = Duration::from_millis(700);
/// An unfinished task that nobody wants any more goes on for so long: runtimes come back after a hiccup.
const LINGER: Duration = Duration::from_secs(3);
/// Parents' events that may wait.
const EVENTS: usize = 64;

/// What every download of a peer works with.
#[derive(Clone)]
pub(crate) struct Means {
    pub(crate) store: Store,
    pub(crate) origin: Origin,
    pub(crate) pool: Pool,
    pub(crate) session: Session,
    pub(crate) metrics: PeerMetrics,
}

/// One running task.
pub(crate) struct Download {
    means: Means,
    shared: Arc<Shared>,
    source: Option<Source>,
    class: Class,
    /// The scheduler told this seed to fetch: it holds the lease.
    leased: bool,
    known: Vec<Option<LeafDigest>>,
    plan: Option<Plan>,
    parents: Parents,
    jobs: JoinSet<Done>,
    events: (mpsc::Sender<ParentEvent>, mpsc::Receiver<ParentEvent>),
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    covered: Arc<Mutex<LeafSet>>,
    back_to_source: BackToSource,
    /// Digests to announce, in the order in which their leaves were stored.
    fresh_digests: Vec<(u32, LeafDigest)>,
    registered: Option<Registered>,
    progress: TaskProgress,
    reported: Instant,
    last_leaf: Instant,
    session_lost: Option<Instant>,
    unwanted: Option<Instant>,
    check: Check,
    status: Arc<Mutex<DownloadStatus>>,
    rng: SmallRng,
    born: Instant,
}

/// For `darter status`.
#[derive(Debug, Clone, Default)]
pub(crate) struct DownloadStatus {
    pub(crate) parents: Vec<String>,
    pub(crate) from_origin: bool,
}

#[derive(Debug, Clone, Copy)]
struct Registered {
    generation: u64,
    at: Instant,
    answered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum BackToSource {
    Not,
    Running,
    Done,
    Failed(TaskError),
}

/// How far the check of the whole is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    Not,
    Running,
    Passed,
}

/// The end of a job that the download started.
enum Done {
    Subscribed(Key, Result<Subscription, TransferError>),
    Stored { key: Key, leaf: u32, bytes: u64, result: Result<(), Unstored> },
    Fetched(Result<(), TaskError>),
    Checked(Result<(), TaskError>),
}

/// Why a leaf from a parent was not stored.
enum Unstored {
    Wrong,
    Failed(TaskError),
}

impl Download {
    pub(crate) fn new(means: Means, shared: Arc<Shared>, source: Option<Source>, class: Class) -> Self {
        let now = Instant::now();
        let progress = TaskProgress { task: shared.id.to_string(), ..TaskProgress::default() };
        Self {
            means,
            source,
            class,
            leased: false,
            known: Vec::new(),
            plan: None,
            parents: Parents::default(),
            jobs: JoinSet::new(),
            events: mpsc::channel(EVENTS),
            news: mpsc::channel(EVENTS),
            covered: Arc::default(),
            back_to_source: BackToSource::Not,
            fresh_digests: Vec::new(),
            registered: None,
            progress,
            reported: now,
            last_leaf: now,
            session_lost: None,
            unwanted: None,
            check: Check::Not,
            status: Arc::default(),
            rng: SmallRng::from_rng(&mut rand::rng()),
            born: now,
            shared,
        }
    }

    /// This peer holds the lease from the beginning.
    pub(crate) fn leased(mut self) -> Self {
        self.leased = true;
        self
    }

    /// The content's leaves are known: a layer's, by their table.
    pub(crate) fn with_entry(mut self, entry: Arc<Entry>) -> Self {
        self.resume(entry);
        self
    }

    /// Where `darter status` looks.
    pub(crate) fn status(&self) -> Arc<Mutex<DownloadStatus>> {
        self.status.clone()
    }

    /// Runs to the end and gives the outcome to the readers.
    pub(crate) async fn run(
        mut self,
        mut heard: mpsc::Receiver<Heard>,
        mut demands: mpsc::Receiver<Demand>,
        cancel: CancellationToken,
    ) {
        let outcome = tokio::select! {
            outcome = self.work(&mut heard, &mut demands) => outcome,
            () = cancel.cancelled() => Err(TaskError::Cancelled),
        };
        self.jobs.shutdown().await;
        self.shared.finish(outcome.clone());
        // After the readers know why: what they would find missing now is not the reason.
        if matches!(outcome, Err(TaskError::WrongDigest { .. })) {
            self.discard().await;
        }
        self.report(true).await;
        match &outcome {
            Ok(()) => self.say_finished().await,
            Err(error) => {
                tracing::info!(task = %self.shared.id, %error, "task failed");
                let failed = Failed { task: self.shared.id.to_string(), failure: Some(error.to_failure()) };
                self.say(Said::Failed(failed)).await;
            }
        }
    }

    async fn work(
        &mut self,
        heard: &mut mpsc::Receiver<Heard>,
        demands: &mut mpsc::Receiver<Demand>,
    ) -> Result<(), TaskError> {
        let mut session = self.means.session.watch();
        let mut fill = self.shared.fill.subscribe();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        if self.plan.is_none()
            && let Some(entry) = self.means.store.get(&self.shared.id)
        {
            self.resume(entry);
        }
        self.register().await;
        loop {
            self.ask();
            if self.is_complete() {
                return self.seal().await;
            }
            tokio::select! {
                Some(message) = heard.recv() => self.on_scheduler(message).await?,
                Some(event) = self.events.1.recv() => self.on_parent(event),
                Some(news) = self.news.1.recv() => self.on_news(news),
                Some(done) = self.jobs.join_next() => self.on_done(done.map_err(|_| TaskError::Cancelled)?)?,
                Some(demand) = demands.recv() => self.on_demand(demand),
                Ok(()) = fill.changed() => {
                    let class = *fill.borrow_and_update();
                    self.on_fill(class);
                }
                Ok(()) = session.changed() => self.register().await,
                _ = ticks.tick() => self.on_tick().await?,
            }
        }
    }

    // ---- the scheduler ----

    /// Tells a new session about this task.
    async fn register(&mut self) {
        let Some(live) = self.means.session.live() else {
            self.session_lost.get_or_insert_with(Instant::now);
            return;
        };
        if self.registered.is_some_and(|registered| registered.generation == live.generation) {
            return;
        }
        self.session_lost = None;
        self.registered =
            Some(Registered { generation: live.generation, at: Instant::now(), answered: false });
        let register = Register {
            task: Some(wire::task_to_proto(&self.shared.id, self.source.as_ref())),
            held: self.plan.as_ref().map_or(0, |plan| plan.held().count()),
            class: self.class as u32,
            digests_known: self.shared.id.digest().is_none() && self.source.is_none(),
            from_origin: self.leased || self.back_to_source == BackToSource::Running,
        };
        live.send(Said::Register(register)).await;
        if self.back_to_source == BackToSource::Running {
            self.tell_again();
        }
    }

    async fn on_scheduler(&mut self, message: Heard) -> Result<(), TaskError> {
        if let Some(registered) = &mut self.registered {
            registered.answered = true;
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

    async fn on_info(&mut self, info: &TaskInfo) -> Result<(), TaskError> {
        let described = info.leaves > 0 || (info.verified && info.length == 0);
        if self.plan.is_none() && described {
            let geometry = Geometry::Fixed { len: info.length };
            if geometry.leaves() == info.leaves {
                let (store, id) = (self.means.store.clone(), self.shared.id.clone());
                self.set_entry(blocking(move || store.create(&id, geometry)).await?);
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
    fn learn(&mut self, leaf: u32, digest: LeafDigest) {
        if let Some(known) = self.known.get_mut(leaf as usize) {
            known.get_or_insert(digest);
            if let Some(plan) = &mut self.plan {
                plan.know(leaf);
            }
        }
    }

    fn on_parents(&mut self, message: ParentsMessage) {
        for host in message.remove {
            if let Some(key) = self.parents.key_of(&host) {
                self.drop_parent(key, Fault::None, "rotated");
            }
        }
        for assigned in message.add {
            self.parents.add(assigned);
        }
        self.connect_parents();
    }

    /// Subscribes to parents that are due. What a parent has can be noted only once the geometry is known.
    fn connect_parents(&mut self) {
        if self.plan.is_none() {
            return;
        }
        for (key, address) in self.parents.due() {
            let (pool, task, events) =
                (self.means.pool.clone(), self.shared.id.clone(), self.events.0.clone());
            self.jobs.spawn(async move {
                Done::Subscribed(key, pool.subscribe(&address, &task, events, key).await)
            });
        }
    }

    fn drop_parent(&mut self, key: Key, fault: Fault, reason: &str) {
        self.parents.remove(key, fault, reason);
        if let Some(plan) = &mut self.plan {
            plan.remove_parent(key);
        }
        self.note_covered();
        self.note_status();
    }

    /// Announces all digests anew that this peer can vouch for.
    fn tell_again(&mut self) {
        let entry = self.shared.entry.borrow().clone();
        if let Some(entry) = entry {
            let held = entry.have_ranges().into_iter().flatten();
            self.fresh_digests = held.filter_map(|leaf| Some((leaf, entry.digest(leaf)?))).collect();
        }
    }

    /// Sends digests of leaves that came from the origin, run by run.
    async fn announce(&mut self) {
        let Some(geometry) = self.geometry() else { return };
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

    async fn report(&mut self, last: bool) {
        let starving =
            !last && self.plan.as_ref().is_some_and(Plan::wants) && self.last_leaf.elapsed() > STARVING_AFTER;
        self.progress.parents = self.parents.reports();
        self.progress.held = self.plan.as_ref().map_or(0, |plan| plan.held().count());
        self.progress.starving = starving;
        let quiet = self.progress.from_origin == 0
            && self.progress.from_peers == 0
            && self.progress.parents.is_empty();
        if (quiet && !starving) || self.registered.is_none() {
            return;
        }
        let next = TaskProgress { task: self.shared.id.to_string(), ..TaskProgress::default() };
        let progress = std::mem::replace(&mut self.progress, next);
        self.say(Said::Progress(Progress { tasks: vec![progress] })).await;
    }

    async fn say_finished(&self) {
        if let Some(geometry) = self.geometry() {
            let task = self.shared.id.to_string();
            self.say(Said::Finished(Finished { task, length: geometry.len(), leaves: geometry.leaves() }))
                .await;
        }
    }

    async fn say(&self, message: Said) {
        if !self.means.session.send(message).await {
            tracing::trace!(task = %self.shared.id, "not told: no session");
        }
    }

    // ---- parents ----

    fn on_parent(&mut self, event: ParentEvent) {
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
            ParentEventKind::Gone(reason) => self.on_gone(key, &reason),
        }
    }

    fn on_gone(&mut self, key: Key, reason: &str) {
        if self.parents.retry(key) {
            if let Some(plan) = &mut self.plan {
                plan.remove_parent(key);
            }
        } else {
            self.drop_parent(key, Fault::Gone, reason);
        }
    }

    fn on_leaf(&mut self, key: Key, leaf: u32, bytes: Bytes, waited: Duration) {
        let Some(entry) = self.shared.entry.borrow().clone() else { return };
        let Some(digest) = self.known.get(leaf as usize).copied().flatten() else { return };
        self.parents.count(key, bytes.len() as u64, waited);
        let len = bytes.len() as u64;
        self.jobs.spawn(async move {
            let stored = blocking(move || {
                if leaf_digest(&bytes) != digest {
                    return Ok(Err(Unstored::Wrong));
                }
                entry.write_leaf(leaf, digest, &bytes)?;
                Ok::<_, StoreError>(Ok(()))
            });
            let result = stored.await.unwrap_or_else(|error| Err(Unstored::Failed(error)));
            Done::Stored { key, leaf, bytes: len, result }
        });
    }

    fn on_refused(&mut self, key: Key, leaves: Range<u32>, reason: Refusal) {
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
    fn ask(&mut self) {
        let Some(plan) = &mut self.plan else { return };
        let requests = plan.pick(self.born.elapsed(), &mut self.rng);
        if !requests.is_empty() {
            self.note_covered();
        }
        for request in requests {
            if let Some(subscription) = self.parents.get(request.parent).and_then(Parent::subscription) {
                subscription.request(request.leaves, request.class);
            }
        }
    }

    // ---- leaves ----

    /// Goes on with what the store has of the task.
    fn resume(&mut self, entry: Arc<Entry>) {
        self.shared.count(From::Local, entry.held_bytes());
        self.set_entry(entry);
    }

    fn set_entry(&mut self, entry: Arc<Entry>) {
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

    fn on_demand(&mut self, demand: Demand) {
        if let Some(plan) = &mut self.plan {
            plan.demand(demand.leaves, demand.class);
        }
    }

    fn on_fill(&mut self, class: Option<Class>) {
        if let (Some(plan), Some(class)) = (&mut self.plan, class) {
            plan.fill(class);
        }
    }

    fn on_news(&mut self, news: News) {
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

    fn landed(&mut self, leaf: u32, bytes: u64, from: From) {
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

    fn on_done(&mut self, done: Done) -> Result<(), TaskError> {
        match done {
            Done::Subscribed(key, Ok(subscription)) => {
                if let Some(parent) = self.parents.get_mut(key) {
                    parent.subscribed(subscription);
                    if let Some(plan) = &mut self.plan {
                        plan.add_parent(key);
                    }
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

    fn on_stored(
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

    fn is_complete(&self) -> bool {
        self.plan.as_ref().is_some_and(|plan| plan.held().is_full())
    }

    /// Everything is here: waits for the check of the whole and makes the entry verified.
    async fn seal(&mut self) -> Result<(), TaskError> {
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

    fn start_check(&mut self, entry: &Arc<Entry>, expected: crate::Digest) {
        if self.check == Check::Not {
            self.check = Check::Running;
            let entry = entry.clone();
            self.jobs.spawn(async move { Done::Checked(whole::check(entry, expected).await) });
        }
    }

    async fn discard(&self) {
        let (store, id) = (self.means.store.clone(), self.shared.id.clone());
        if let Err(error) = blocking(move || store.remove(&id)).await {
            tracing::error!(task = %self.shared.id, %error, "a wrong content could not be removed");
        }
    }

    // ---- time ----

    async fn on_tick(&mut self) -> Result<(), TaskError> {
        if *self.shared.handles.borrow() > 0 {
            self.unwanted = None;
        } else if self.unwanted.get_or_insert_with(Instant::now).elapsed() > LINGER {
            return Err(TaskError::Cancelled);
        }
        self.connect_parents();
        let entry = self.shared.entry.borrow().clone();
        if let (Some(entry), Some(expected)) = (entry, self.shared.id.digest()) {
            self.start_check(&entry, expected);
        }
        if !self.fresh_digests.is_empty() {
            self.announce().await;
        }
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.report(false).await;
        }
        self.consider_origin()
    }

    /// Goes back to source with a lease, or without one where nobody could grant it.
    fn consider_origin(&mut self) -> Result<(), TaskError> {
        let idle = self.plan.as_ref().is_none_or(|plan| !plan.is_waiting());
        match &self.back_to_source {
            BackToSource::Running => return Ok(()),
            BackToSource::Failed(error) if idle => return Err(error.clone()),
            BackToSource::Failed(_) => return Ok(()),
            BackToSource::Done | BackToSource::Not => {}
        }
        let alone = self.is_alone(idle);
        if !(self.leased || alone) || !self.plan.as_ref().is_none_or(Plan::wants) {
            return Ok(());
        }
        match self.source.clone() {
            Some(source) => self.start_fetch(source),
            None if alone && self.parents.is_empty() => {
                return Err(TaskError::NotFound(self.shared.id.clone()));
            }
            None => {}
        }
        Ok(())
    }

    /// Whether nobody can grant a lease: no scheduler, or one that does not answer.
    fn is_alone(&self, idle: bool) -> bool {
        match (self.registered, self.means.session.live()) {
            (None, None) => true,
            (Some(_), None) => idle && self.session_lost.is_some_and(|lost| lost.elapsed() > ALONE_AFTER),
            (Some(registered), Some(_)) => !registered.answered && registered.at.elapsed() > ANSWER_DEADLINE,
            (None, Some(_)) => false,
        }
    }

    fn start_fetch(&mut self, source: Source) {
        tracing::debug!(task = %self.shared.id, leased = self.leased, "back to source");
        self.back_to_source = BackToSource::Running;
        let fetch = Fetch {
            id: self.shared.id.clone(),
            source,
            origin: self.means.origin.clone(),
            store: self.means.store.clone(),
            news: self.news.0.clone(),
            covered: self.covered.clone(),
        };
        self.note_covered();
        self.tell_again();
        let entry = self.shared.entry.borrow().clone();
        self.jobs.spawn(async move { Done::Fetched(fetch.run(entry).await) });
        self.note_status();
    }

    /// Tells a running back-to-source fetch what it need not fetch.
    fn note_covered(&self) {
        if let (BackToSource::Running, Some(plan)) = (&self.back_to_source, &self.plan) {
            *self.covered.lock() = plan.covered();
        }
    }

    fn geometry(&self) -> Option<Geometry> {
        self.shared.entry.borrow().as_ref().map(|entry| entry.geometry().clone())
    }

    fn note_status(&self) {
        let mut status = self.status.lock();
        status.parents = self.parents.addresses();
        status.from_origin = self.back_to_source == BackToSource::Running;
    }
}

/// The task that a message of the scheduler is about.
pub(crate) fn task_of(message: &Heard) -> Option<TaskId> {
    let id = match message {
        Heard::TaskInfo(info) => &info.task,
        Heard::Parents(parents) => &parents.task,
        Heard::Lease(lease) => &lease.task,
        Heard::TaskFailed(failed) => &failed.task,
        Heard::SendDigests(send) => &send.task,
        Heard::Discard(discard) => &discard.task,
        Heard::Fetch(_) | Heard::MakeLayer(_) | Heard::Layer(_) | Heard::Welcome(_) | Heard::Config(_) => {
            return None;
        }
    };
    TaskId::parse(id).ok()
}
