//! One running task: an actor that brings a content together from parents and, under a lease, from the origin.
//!
//! It ends with every leaf stored and the whole checked, or with the error that its readers get. Until then it reacts
//! to four things: what readers demand, what the scheduler says, what parents send, and time passing.

mod arriving;
mod asking;
mod demand;
mod origin;
mod parents;
mod scheduling;
mod whole;

use std::{collections::BTreeMap, ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use darter_proto::scheduler::{
    Digests, Dropped, Failed, Fault, Finished, Moved, Parents as ParentsMessage, Progress, Register,
    TaskInfo, TaskProgress, peer_message::Message as Said, scheduler_message::Message as Heard,
};
use parking_lot::Mutex;
use rand::{SeedableRng, rngs::SmallRng};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::demand::DemandClock;
use self::{
    origin::{Covered, Fetch, News},
    parents::{Parent, Parents},
};
use crate::{
    Border, Class, Geometry, LeafDigest, LeafSet, Site, TaskError, TaskId,
    content::{Demand, From, Shared, blocking},
    digest::leaf_digest,
    metrics::PeerMetrics,
    origin::{Origin, Source},
    plan::{Claim, Key, Plan},
    schedulers::{Live, Schedulers},
    store::{Entry, Store, StoreError},
    transfer::{ParentEvent, ParentEventKind, Pool, Reading, Refusal, Sources, Subscription, TransferError},
    wire,
};

/// How often time passing is looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long digests of leaves from the origin are gathered before they are announced, at least and at most.
const DIGESTS: Range<Duration> = Duration::from_millis(15)..Duration::from_millis(100);
/// How often progress is reported.
const REPORT: Duration = Duration::from_millis(250);
/// A scheduler that leaves a Register, or a report of starving, unanswered for so long is treated as if there were none.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);
/// With the session lost and no parent of use for so long, the origin is asked without a lease.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// Without a leaf for so long the scheduler is told.
const STARVING_AFTER: Duration = Duration::from_millis(500);
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
    pub(crate) sources: Sources,
    /// Where this host stands.
    pub(crate) site: Site,
    /// Whether seed peers show leaves in turns.
    pub(crate) coordinate: bool,
    pub(crate) schedulers: Schedulers,
    pub(crate) metrics: PeerMetrics,
    pub(crate) demand: DemandClock,
}

/// One running task.
pub(crate) struct Download {
    means: Means,
    shared: Arc<Shared>,
    class: Class,
    /// The scheduler told this seed to fetch: it holds the lease.
    leased: bool,
    known: Vec<Option<LeafDigest>>,
    plan: Option<Plan>,
    /// What parents are shown; the scheduler's newest, empty before the first.
    ticket: Bytes,
    /// A parent did not take the ticket, and the scheduler was not asked for another one since.
    ticket_denied: bool,
    /// What this peer is to bring over which border.
    claims: BTreeMap<Border, Claim>,
    parents: Parents,
    jobs: JoinSet<Done>,
    events: (mpsc::Sender<ParentEvent>, mpsc::Receiver<ParentEvent>),
    news: (mpsc::Sender<News>, mpsc::Receiver<News>),
    covered: Arc<Covered>,
    back_to_source: BackToSource,
    /// Set from the beginning of a back-to-source fetch on.
    reading: Option<Reading>,
    /// Digests to announce, in the order in which their leaves were stored.
    fresh_digests: Vec<(u32, LeafDigest)>,
    announced: Instant,
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

#[derive(Debug)]
struct Registered {
    scheduler: Live,
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
    pub(crate) fn new(means: Means, shared: Arc<Shared>, class: Class) -> Self {
        let now = Instant::now();
        let progress = TaskProgress { task: shared.id.to_string(), ..TaskProgress::default() };
        Self {
            means,
            class,
            leased: false,
            known: Vec::new(),
            plan: None,
            ticket: Bytes::new(),
            ticket_denied: false,
            claims: BTreeMap::new(),
            parents: Parents::default(),
            jobs: JoinSet::new(),
            events: mpsc::channel(EVENTS),
            news: mpsc::channel(EVENTS),
            covered: Arc::new(Covered::new(LeafSet::default())),
            back_to_source: BackToSource::Not,
            reading: None,
            announced: now,
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
        mut heard: mpsc::Receiver<(Live, Heard)>,
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
        heard: &mut mpsc::Receiver<(Live, Heard)>,
        demands: &mut mpsc::Receiver<Demand>,
    ) -> Result<(), TaskError> {
        let mut sessions = self.means.schedulers.watch();
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
            if self.is_complete() && self.passed_check() {
                return self.seal().await;
            }
            let digests_due = self.announced + self.digest_pause();
            tokio::select! {
                Some((from, message)) = heard.recv() => self.on_scheduler(from, message).await?,
                Some(event) = self.events.1.recv() => self.on_parent(event),
                Some(news) = self.news.1.recv() => self.on_news(news),
                Some(done) = self.jobs.join_next() => self.on_done(done.map_err(|_| TaskError::Cancelled)?)?,
                Some(demand) = demands.recv() => self.on_demand(demand),
                Ok(()) = fill.changed() => {
                    let class = *fill.borrow_and_update();
                    self.on_fill(class);
                }
                Ok(()) = sessions.changed() => self.register().await,
                () = sleep_until(digests_due), if !self.fresh_digests.is_empty() => {
                    self.announce().await;
                }
                _ = ticks.tick() => self.on_tick().await?,
            }
        }
    }

    async fn on_tick(&mut self) -> Result<(), TaskError> {
        if *self.shared.handles.borrow() > 0 || self.is_complete() {
            self.unwanted = None;
        } else if self.unwanted.get_or_insert_with(Instant::now).elapsed() > LINGER {
            return Err(TaskError::Cancelled);
        }
        self.register().await;
        self.connect_parents();
        self.passed_check();
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.report(false).await;
        }
        self.consider_origin()
    }

    /// How long digests are gathered before they are announced: the longer, the longer the task goes on. The last ones
    /// are not kept back.
    fn digest_pause(&self) -> Duration {
        match self.back_to_source {
            BackToSource::Running => (self.born.elapsed() / 40).clamp(DIGESTS.start, DIGESTS.end),
            _ => Duration::ZERO,
        }
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
        match self.shared.source.clone() {
            Some(source) => self.start_fetch(source),
            None if alone && self.parents.is_empty() => {
                return Err(TaskError::NotFound(self.shared.id.clone()));
            }
            None => {}
        }
        Ok(())
    }

    /// Whether nobody can grant a lease: no scheduler, or none that answers.
    fn is_alone(&self, idle: bool) -> bool {
        let Some(registered) = &self.registered else { return self.scheduler().is_none() };
        let asked = &registered.scheduler;
        if !registered.answered && registered.at.elapsed() > ANSWER_DEADLINE {
            asked.set_silent(true);
        }
        match self.scheduler() {
            None => idle && self.session_lost.is_some_and(|lost| lost.elapsed() > ALONE_AFTER),
            Some(scheduler) => {
                // Otherwise it goes to that one now.
                scheduler.generation == asked.generation && !registered.answered && asked.is_silent()
            }
        }
    }

    /// The scheduler that the task belongs to.
    fn scheduler(&self) -> Option<Live> {
        self.means.schedulers.of(self.shared.id.as_str())
    }

    fn start_fetch(&mut self, source: Source) {
        tracing::debug!(task = %self.shared.id, leased = self.leased, "back to source");
        self.back_to_source = BackToSource::Running;
        self.reading = Some(self.means.sources.reads(&self.shared.id));
        let fetch = Fetch {
            shared: self.shared.clone(),
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
            self.covered.replace(plan.covered());
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
        Heard::Fetch(_)
        | Heard::MakeLayer(_)
        | Heard::Layer(_)
        | Heard::Welcome(_)
        | Heard::Config(_)
        | Heard::StartProfile(_) => {
            return None;
        }
    };
    TaskId::parse(id).ok()
}
