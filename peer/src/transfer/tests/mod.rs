// A list of one range is what is meant.
#![allow(clippy::single_range_in_vec_init)]

mod broken_children;
mod broken_parents;
mod limits;
mod quiet;
mod serving;
mod tickets;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    path::Path,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use darter_proto::{scheduler::TicketKey, ticket::Signer};
use darter_service::Registry;
use tempfile::TempDir;
use tokio::{net::TcpListener, sync::mpsc, task::JoinHandle, time::timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    Class, Geometry, LEAF_LEN, Limits, TaskId,
    digest::leaf_digest,
    store::{Entry, Store, StoreConfig},
};

/// Far longer than anything takes: so that a mistake is a failure, and not a hang.
const GUARD: Duration = Duration::from_secs(90);

/// Makes the tickets that are good here.
static SIGNER: LazyLock<Signer> = LazyLock::new(|| Signer::new().unwrap());

/// A parent with a store of its own.
struct Host {
    store: Store,
    limits: Limits,
    metrics: TransferMetrics,
    address: SocketAddr,
    shutdown: CancellationToken,
    serving: JoinHandle<()>,
    keys: Keys,
    /// The session with the scheduler that signs as [`SIGNER`] does.
    _session: KeyInUse,
    dir: TempDir,
}

/// A child's tasks, all listening to one channel.
struct Child {
    pool: Pool,
    limits: Limits,
    metrics: TransferMetrics,
    events: mpsc::Sender<ParentEvent>,
    heard: mpsc::Receiver<ParentEvent>,
}

impl Host {
    async fn start() -> Self {
        Self::with(TransferConfig::default()).await
    }

    async fn with(config: TransferConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store =
            Store::open(&StoreConfig { dir: dir.path().join("store"), ..StoreConfig::default() }).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (limits, shutdown) = (Limits::default(), CancellationToken::new());
        let (metrics, keys) = (metrics(), Keys::default());
        let _session = learn(&keys, &SIGNER);
        let (sources, counted) = (Sources::default(), metrics.clone());
        let server = Server::new(store.clone(), limits.clone(), config, counted, sources, keys.clone());
        let serving = tokio::spawn(server.serve(listener, shutdown.clone()));
        Self { store, limits, metrics, address, shutdown, serving, keys, _session, dir }
    }

    /// Stores a content of `len` bytes made up from `seed`.
    fn hold(&self, seed: u64, len: u64) -> Arc<Entry> {
        let entry = self.store.create(&task(seed), Geometry::Fixed { len }).unwrap();
        for leaf in 0..entry.geometry().leaves() {
            write(&entry, seed, leaf);
        }
        entry
    }

    async fn stop(self) -> Store {
        self.shutdown.cancel();
        timeout(GUARD, self.serving).await.unwrap().unwrap();
        self.store
    }

    /// Waits until this many leaves wait for children.
    async fn queues(&self, leaves: i64) {
        until(|| self.metrics.queued.get() == leaves).await;
    }
}

impl Child {
    fn new() -> Self {
        Self::with(&TransferConfig::default())
    }

    fn with(config: &TransferConfig) -> Self {
        let (limits, metrics) = (Limits::default(), metrics());
        let (events, heard) = mpsc::channel(1024);
        Self {
            pool: Pool::new("child", crate::Site::default(), limits.clone(), config, metrics.clone()),
            limits,
            metrics,
            events,
            heard,
        }
    }

    async fn subscribe(&self, address: SocketAddr, seed: u64) -> Subscription {
        timeout(GUARD, self.try_subscribe(address, seed)).await.unwrap().unwrap()
    }

    async fn try_subscribe(&self, address: SocketAddr, seed: u64) -> Result<Subscription, TransferError> {
        self.show(address, seed, ticket("child", seed)).await
    }

    /// Subscribes with this ticket.
    async fn show(
        &self,
        address: SocketAddr,
        seed: u64,
        ticket: Bytes,
    ) -> Result<Subscription, TransferError> {
        self.pool.subscribe(&address.to_string(), &task(seed), ticket, self.events.clone(), seed).await
    }

    async fn next(&mut self) -> ParentEvent {
        timeout(GUARD, self.heard.recv()).await.unwrap().unwrap()
    }

    async fn have(&mut self) -> Vec<Range<u32>> {
        match self.next().await.kind {
            ParentEventKind::Have(leaves) => leaves,
            other => panic!("{other:?}"),
        }
    }

    async fn leaf(&mut self) -> (u32, Bytes) {
        match self.next().await.kind {
            ParentEventKind::Leaf { leaf, bytes, .. } => (leaf, bytes),
            other => panic!("{other:?}"),
        }
    }

    async fn leaves(&mut self, count: usize) -> Vec<u32> {
        let mut leaves = Vec::new();
        while leaves.len() < count {
            leaves.push(self.leaf().await.0);
        }
        leaves
    }

    async fn gone(&mut self) -> String {
        loop {
            match self.next().await.kind {
                ParentEventKind::Gone(reason) => return reason,
                ParentEventKind::Have(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn metrics() -> TransferMetrics {
    TransferMetrics::register(&mut Registry::default())
}

fn learn(keys: &Keys, signer: &Signer) -> KeyInUse {
    let public_key = Bytes::copy_from_slice(&signer.public_key());
    keys.learn(&TicketKey { public_key, now: 0 }).unwrap()
}

/// A good ticket, until the end of any test.
fn ticket(host: &str, seed: u64) -> Bytes {
    SIGNER.sign(host, task(seed).as_str(), u64::MAX)
}

fn task(seed: u64) -> TaskId {
    TaskId::parse(&format!("url:{seed}")).unwrap()
}

/// The bytes of a leaf of the content made up from `seed`.
fn leaf_bytes(entry: &Entry, seed: u64, leaf: u32) -> Vec<u8> {
    let range = entry.geometry().leaf_range(leaf).unwrap();
    let mut bytes = vec![0; (range.end - range.start) as usize];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .update(&leaf.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn write(entry: &Entry, seed: u64, leaf: u32) {
    let bytes = leaf_bytes(entry, seed, leaf);
    assert!(entry.write_leaf(leaf, leaf_digest(&bytes), &bytes).unwrap());
}

async fn until(mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(GUARD, wait).await.unwrap();
}

/// Number of this process's open files below `dir`.
fn open_files(dir: &Path) -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links.filter(|file| file.starts_with(dir)).count()
}

/// Number of sockets on `port` that a process still holds.
fn open_sockets(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let here = format!(":{port:04X}");
    let held = table.lines().skip(1).filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (fields[1].ends_with(&here) || fields[2].ends_with(&here)) && fields[9] != "0"
    });
    held.count()
}
