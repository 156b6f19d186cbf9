//! The peer: opens tasks, keeps the running ones, and hands the scheduler's messages to them.

use std::{
    collections::{HashMap, hash_map},
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use darter_proto::scheduler::{
    Config as Limited, Digests, Dropped, Holdings, Host, MakeLayer, Moved, SendDigests,
    peer_message::Message as Said, scheduler_message::Message as Heard,
};
use darter_service::{
    Registry,
    listen::{self, ListenError},
    manager::{Manager, ManagerError},
};
use lru::LruCache;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Class, Content, Digest, LayerMaker, TaskError, TaskId, cluster,
    config::{Config, advertised},
    content::{Reopen, Shared, blocking},
    control::{self, FileRules, StatusPart},
    download::{DemandClock, Download, DownloadStatus, Means, task_of},
    layers::{Awaited, Made},
    limits::{Limits, LimitsConfig},
    metrics::PeerMetrics,
    origin::{Origin, Registries, RegistryError, Source},
    profiles::Profiles,
    schedulers::{Keepers, Live, Schedulers},
    session::holding,
    store::{Entry, Store, StoreError},
    transfer::{Keys, Pool, Server, Sources, TransferMetrics},
    upkeep, wire,
};

/// A download's inbox that stays full for so long belongs to a stuck download, which then misses a message.
const INBOX_DEADLINE: Duration = Duration::from_secs(5);

/// So many wrong layers are remembered; there should be none.
const MAX_WRONG_LAYERS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// A handle on the engine; cheap to clone.
#[derive(Clone)]
pub struct Peer {
    pub(crate) inner: Arc<Inner>,
}

/// A content to be opened.
#[derive(Debug, Clone)]
pub struct Want {
    /// Names the content.
    pub id: TaskId,
    /// Its origin; `None` if only peers can have it.
    pub source: Option<Source>,
    /// Why it is wanted.
    pub class: Class,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) means: Means,
    pub(crate) limits: Limits,
    rates: Mutex<Rates>,
    pub(crate) registries: Registries,
    pub(crate) maker: Option<Arc<dyn LayerMaker>>,
    /// How many layers may be made at once.
    pub(crate) makes: Semaphore,
    /// Descriptors that are awaited from the scheduler, by blob.
    pub(crate) awaited: Mutex<HashMap<String, watch::Sender<Awaited>>>,
    profiles: Arc<Profiles>,
    /// This host as others are told of it.
    host: watch::Sender<Host>,
    manager: Option<Manager>,
    /// Layers being made here, by blob.
    pub(crate) making: Mutex<HashMap<TaskId, watch::Receiver<Option<Made>>>>,
    /// Layers that are wrong as they were made: by diffID, index and leaf table.
    pub(crate) wrong_layers: Mutex<LruCache<[Digest; 3], ()>>,
    running: Mutex<HashMap<TaskId, Running>>,
    pub(crate) transfer_address: String,
    pub(crate) transfer_metrics: TransferMetrics,
    pub(crate) status_parts: Mutex<Vec<StatusPart>>,
    pub(crate) file_rules: OnceLock<FileRules>,
    pub(crate) started: Instant,
    pub(crate) tracker: TaskTracker,
    pub(crate) shutdown: CancellationToken,
}

/// Who set which limits; 0 is none.
struct Rates {
    own: LimitsConfig,
    cluster: LimitsConfig,
}

struct Running {
    shared: Arc<Shared>,
    inbox: mpsc::Sender<(Live, Heard)>,
    status: Arc<Mutex<DownloadStatus>>,
}

/// Why a peer did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A registry's configuration cannot be used.
    #[error(transparent)]
    Registries(#[from] RegistryError),
    /// An address cannot be listened on.
    #[error(transparent)]
    Address(#[from] ListenError),
    /// The manager's address is no address.
    #[error(transparent)]
    Manager(#[from] ManagerError),
    /// The control socket cannot be listened on.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// Its path.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The peer was told to stop while it started.
    #[error("stopped while starting")]
    Stopped,
}

impl Peer {
    /// Starts everything that a peer does; it goes on until `shutdown`, see [`Self::stopped`].
    ///
    /// # Errors
    /// The store is not usable, or an address is taken.
    pub async fn start(
        config: Config,
        maker: Option<Arc<dyn LayerMaker>>,
        metrics: &mut Registry,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let store_config = config.store.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&store_config))
            .await
            .map_err(|_| StartError::Stopped)??;
        let limits = Limits::new(&config.limits);
        let registries = Registries::with_credentials(&config.registries, &config.credentials)?;
        warn_insecure(&registries);
        let origin = Origin::new(&config.origin, registries.clone(), limits.clone());
        let listener = listen::bind("transfers to other peers", config.transfer.listen).await?;
        let listening = listener.local_addr().unwrap_or(config.transfer.listen);
        let transfer_address = advertised(config.transfer.advertise, listening).to_string();
        let control = control::bind(&config.control_socket)?;

        let tracker = TaskTracker::new();
        let transfer_metrics = TransferMetrics::register(metrics);
        let site = config.place.site();
        let pool =
            Pool::new(store.host_id(), site, limits.clone(), &config.transfer, transfer_metrics.clone());
        let sources = Sources::new(config.seed, site);
        let keys = Keys::default();
        let (inbox, heard) = mpsc::channel(1024);
        let host = watch::Sender::new(cluster::host(&config, &store, &transfer_address));
        let manager = cluster::link(&config, &host.borrow(), &tracker, &shutdown)?;
        let profiles = Arc::<Profiles>::default();
        let keepers = Keepers {
            addresses: cluster::schedulers(
                config.scheduler.addresses.clone(),
                manager.clone(),
                &tracker,
                &shutdown,
            ),
            host: host.subscribe(),
            store: store.clone(),
            profiles: profiles.clone(),
            keys: keys.clone(),
            inbox,
            shutdown: shutdown.clone(),
        };
        let (schedulers, keeping) = keepers.start();
        tracker.spawn(keeping);
        let server = Server::new(
            store.clone(),
            limits.clone(),
            config.transfer.clone(),
            transfer_metrics.clone(),
            sources.clone(),
            keys,
        );
        tracker.spawn(server.serve(listener, shutdown.clone()));
        store.register(metrics);
        let metrics = PeerMetrics::register(metrics);
        let inner = Arc::new(Inner {
            makes: Semaphore::new(config.makes.max(1)),
            registries,
            means: Means {
                store,
                origin,
                pool,
                sources,
                site,
                coordinate: config.transfer.coordinate,
                schedulers,
                metrics,
                demand: DemandClock::default(),
            },
            rates: Mutex::new(Rates { own: config.limits.clone(), cluster: LimitsConfig::default() }),
            config,
            limits,
            maker,
            awaited: Mutex::default(),
            profiles,
            host,
            manager: manager.clone(),
            making: Mutex::default(),
            wrong_layers: Mutex::new(LruCache::new(MAX_WRONG_LAYERS)),
            running: Mutex::default(),
            transfer_address,
            transfer_metrics,
            status_parts: Mutex::default(),
            file_rules: OnceLock::new(),
            started: Instant::now(),
            tracker,
            shutdown,
        });
        let peer = Self { inner };
        peer.inner.tracker.spawn(peer.clone().hear(heard));
        peer.inner.tracker.spawn(peer.clone().tell_losses());
        peer.inner.tracker.spawn(upkeep::run(peer.clone()));
        peer.inner.tracker.spawn(control::serve(control, peer.clone()));
        if let Some(manager) = manager {
            peer.inner.tracker.spawn(cluster::follow_limits(peer.clone(), manager));
        }
        Ok(peer)
    }

    /// Waits until everything has ended after shutdown, and the store is flushed.
    pub async fn stopped(&self) {
        self.inner.shutdown.cancelled().await;
        self.inner.means.pool.close().await;
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
        let store = self.inner.means.store.clone();
        if let Err(error) = blocking(move || store.flush()).await {
            tracing::error!(%error, "the store could not be flushed; unflushed leaves will be fetched again");
        }
    }

    /// Joins a task or starts it. Returns at once; failures come from the content.
    ///
    /// # Errors
    /// Only [`TaskError::Cancelled`], during shutdown.
    pub async fn open(&self, want: Want) -> Result<Content, TaskError> {
        self.open_as(want, None, false).await
    }

    /// As [`Self::open`], of a content whose leaves are known (`entry`), or that the scheduler leased to this peer.
    pub(crate) async fn open_as(
        &self,
        want: Want,
        entry: Option<Arc<Entry>>,
        leased: bool,
    ) -> Result<Content, TaskError> {
        if self.inner.shutdown.is_cancelled() {
            return Err(TaskError::Cancelled);
        }
        let stall = self.inner.config.stall_timeout;
        let reopen = self.reopen(&want);
        let verified = self.inner.means.store.get(&want.id).filter(|entry| entry.is_verified());
        if let Some(entry) = verified {
            return Ok(Content::stored(entry, stall, self.metrics().clone(), reopen));
        }
        let mut running = self.inner.running.lock();
        if let hash_map::Entry::Occupied(occupied) = running.entry(want.id.clone())
            && occupied.get().shared.outcome.borrow().is_none()
        {
            return Ok(Content::joined(occupied.get().shared.clone()));
        }
        let (shared, demands) = Shared::downloading(want.id.clone(), want.source, stall, reopen);
        let (inbox, heard) = mpsc::channel(256);
        let mut download = Download::new(self.inner.means.clone(), shared.clone(), want.class);
        if let Some(entry) = entry {
            download = download.with_entry(entry);
        }
        if leased {
            download = download.leased();
        }
        let status = download.status();
        running.insert(want.id.clone(), Running { shared: shared.clone(), inbox, status });
        drop(running);
        let content = Content::joined(shared.clone());
        let (peer, cancel) = (self.clone(), self.inner.shutdown.clone());
        self.inner.tracker.spawn(async move {
            download.run(heard, demands, cancel).await;
            let mut running = peer.inner.running.lock();
            if running.get(&want.id).is_some_and(|running| Arc::ptr_eq(&running.shared, &shared)) {
                running.remove(&want.id);
            }
        });
        Ok(content)
    }

    /// How a content's readers open it again.
    fn reopen(&self, want: &Want) -> Reopen {
        let (inner, want) = (Arc::downgrade(&self.inner), want.clone());
        Arc::new(move || {
            let (inner, want) = (inner.clone(), want.clone());
            Box::pin(async move {
                let inner = inner.upgrade().ok_or(TaskError::Cancelled)?;
                let peer = Self { inner };
                let entry = peer.inner.means.store.get(&want.id);
                peer.open_as(want, entry, false).await
            })
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.inner.means.store
    }

    /// The client for origins.
    pub fn origin(&self) -> &Origin {
        &self.inner.means.origin
    }

    /// Where registries are reached.
    pub fn registries(&self) -> &Registries {
        &self.inner.registries
    }

    /// Takes the registries, credentials and limits of another configuration, for everything that is asked from now on,
    /// and whether this is a seed peer.
    ///
    /// # Errors
    /// The first registry that cannot be used; then nothing changes.
    pub fn reload(&self, config: &Config) -> Result<(), RegistryError> {
        self.registries().reload(&config.registries, &config.credentials)?;
        warn_insecure(self.registries());
        self.change_limits(|own| own.clone_from(&config.limits));
        self.set_seed(config.seed);
        Ok(())
    }

    /// Whether this is a seed peer.
    pub fn is_seed(&self) -> bool {
        self.inner.host.borrow().seed
    }

    /// Becomes a seed peer, or an ordinary one. What it fetches or makes for others by then it brings to its end.
    fn set_seed(&self, seed: bool) {
        let changed =
            self.inner.host.send_if_modified(|host| std::mem::replace(&mut host.seed, seed) != seed);
        if !changed {
            return;
        }
        self.inner.means.sources.set_seed(seed);
        tracing::info!(seed, "the configuration gives this peer another part");
        if let Some(manager) = &self.inner.manager {
            manager.set_kind(cluster::kind(seed));
        }
    }

    /// The counters.
    pub fn metrics(&self) -> &PeerMetrics {
        &self.inner.means.metrics
    }

    /// The addresses of the schedulers whose sessions are up.
    pub fn schedulers(&self) -> Vec<String> {
        self.inner.means.schedulers.live().into_iter().map(|live| live.address).collect()
    }

    /// What a running task is doing.
    pub(crate) fn download_status(&self, id: &TaskId) -> Option<DownloadStatus> {
        self.inner.running.lock().get(id).map(|running| running.status.lock().clone())
    }

    pub(crate) fn profiles(&self) -> &Profiles {
        &self.inner.profiles
    }

    pub(crate) fn sessions(&self) -> &Schedulers {
        &self.inner.means.schedulers
    }

    /// Hands the schedulers' messages to whom they are for.
    async fn hear(self, mut heard: mpsc::Receiver<(Live, Heard)>) {
        while let Some((from, message)) = tokio::select! {
            message = heard.recv() => message,
            () = self.inner.shutdown.cancelled() => None,
        } {
            match message {
                Heard::Fetch(fetch) => self.fetch(from, fetch.task.unwrap_or_default()).await,
                Heard::MakeLayer(make) => self.make(from, make),
                Heard::Layer(layer) => self.layer_heard(layer),
                Heard::StartProfile(profile) => self.profiles().heard(profile),
                Heard::Config(config) => self.limit(&config),
                Heard::SendDigests(send) if self.is_idle(&send) => self.send_digests(&from, &send).await,
                Heard::Discard(discard) if self.inbox(&TaskId::parse(&discard.task).ok()).is_none() => {
                    self.discard(&discard.task).await;
                }
                message => self.pass_on(from, message).await,
            }
        }
    }

    async fn pass_on(&self, from: Live, message: Heard) {
        let Some(inbox) = self.inbox(&task_of(&message)) else {
            tracing::trace!(?message, "for no running task");
            return;
        };
        if !matches!(timeout(INBOX_DEADLINE, inbox.send((from, message))).await, Ok(Ok(()))) {
            tracing::debug!("a task ended before it heard the scheduler");
        }
    }

    fn inbox(&self, id: &Option<TaskId>) -> Option<mpsc::Sender<(Live, Heard)>> {
        let running = self.inner.running.lock();
        running.get(id.as_ref()?).filter(|r| r.shared.outcome.borrow().is_none()).map(|r| r.inbox.clone())
    }

    fn is_idle(&self, send: &SendDigests) -> bool {
        self.inbox(&TaskId::parse(&send.task).ok()).is_none()
    }

    /// A seed's work: fetches a task from its origin under a lease and holds on to it until it is done. If the task belongs
    /// to another scheduler by now, the lease is that one's to give.
    async fn fetch(&self, from: Live, task: darter_proto::scheduler::Task) {
        let (id, source) = match wire::task_from_proto(&task) {
            Ok((id, Some(source))) => (id, source),
            Ok((id, None)) => return tracing::warn!(task = %id, "asked to fetch a task without an origin"),
            Err(error) => return tracing::warn!(%error, "asked to fetch a malformed task"),
        };
        let own = self.sessions().of(id.as_str()).is_none_or(|own| own.generation == from.generation);
        if !own {
            from.send(Said::Moved(Moved { task: id.to_string() })).await;
        } else if let Some(inbox) = self.inbox(&Some(id.clone())) {
            let lease = darter_proto::scheduler::Lease { task: id.to_string() };
            inbox.send((from, Heard::Lease(lease))).await.ok();
        }
        let want = Want { id, source: Some(source), class: Class::Stream };
        let Ok(content) = self.open_as(want, None, own).await else { return };
        self.inner.tracker.spawn(async move {
            if let Err(error) = content.finished().await {
                tracing::info!(task = %content.id(), %error, "a fetch under lease failed");
            }
        });
    }

    fn make(&self, from: Live, make: MakeLayer) {
        let peer = self.clone();
        self.inner.tracker.spawn(async move { peer.make_for_others(from, make).await });
    }

    async fn send_digests(&self, to: &Live, send: &SendDigests) {
        let Ok(id) = TaskId::parse(&send.task) else { return };
        if let Some(entry) = self.inner.means.store.get(&id) {
            self.tell_digests(to, &entry).await;
        }
    }

    /// Tells a scheduler the leaf digests of what is here completely.
    pub(crate) async fn tell_digests(&self, to: &Live, entry: &Arc<Entry>) {
        let leaves = entry.geometry().leaves();
        let Some(digests) = entry.digests(0..leaves).filter(|_| entry.is_verified()) else { return };
        let message = Digests {
            task: entry.id().to_string(),
            length: entry.geometry().len(),
            leaves,
            first: 0,
            digests: digests.into(),
            verified: true,
        };
        to.send(Said::Digests(message)).await;
    }

    async fn discard(&self, id: &str) {
        let Ok(id) = TaskId::parse(id) else { return };
        tracing::warn!(task = %id, "discarded by the scheduler");
        let store = self.inner.means.store.clone();
        if let Err(error) = blocking(move || store.remove(&id)).await {
            tracing::error!(%error, "a discarded task could not be removed");
        }
    }

    /// The cluster's limits, where it sets some, take the place of the own ones.
    pub(crate) fn limit(&self, config: &Limited) {
        self.inner.rates.lock().cluster = LimitsConfig {
            download: config.download_bytes_per_second,
            upload: config.upload_bytes_per_second,
            origin: config.origin_bytes_per_second,
            prefetch: config.prefetch_bytes_per_second,
        };
        self.change_limits(|_| ());
    }

    /// Changes the own limits; those that are in force then.
    pub(crate) fn change_limits(&self, change: impl FnOnce(&mut LimitsConfig)) -> LimitsConfig {
        let mut rates = self.inner.rates.lock();
        change(&mut rates.own);
        let Rates { own, cluster } = &*rates;
        let rate = |theirs: u64, own: u64| if theirs == 0 { own } else { theirs };
        let now = LimitsConfig {
            download: rate(cluster.download, own.download),
            upload: rate(cluster.upload, own.upload),
            origin: rate(cluster.origin, own.origin),
            prefetch: rate(cluster.prefetch, own.prefetch),
        };
        self.inner.limits.set(&now);
        now
    }

    /// What the store loses is not to be promised to others.
    async fn tell_losses(self) {
        let mut losses = self.inner.means.store.losses();
        loop {
            let lost = tokio::select! {
                lost = losses.recv() => lost,
                () = self.inner.shutdown.cancelled() => return,
            };
            match lost {
                Ok(id) => {
                    let left = self.inner.means.store.peek(&id).filter(|entry| entry.held() > 0);
                    let message = match left {
                        Some(entry) => {
                            Said::Holdings(Holdings { tasks: vec![holding(&entry)], ..Holdings::default() })
                        }
                        None => Said::Dropped(Dropped { tasks: vec![id.to_string()] }),
                    };
                    self.sessions().tell_all(&message).await;
                }
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            }
        }
    }
}

fn warn_insecure(registries: &Registries) {
    for registry in registries.insecure() {
        tracing::warn!(
            registry,
            "its certificate is not checked, as its configuration says (insecure = true)"
        );
    }
}

impl std::fmt::Debug for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peer").field("transfer", &self.inner.transfer_address).finish_non_exhaustive()
    }
}
