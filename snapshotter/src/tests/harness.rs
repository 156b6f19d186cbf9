//! A snapshotter in a directory of its own, and what containerd would do with its answers.

use std::{
    collections::{HashMap, HashSet},
    ffi::CString,
    fs,
    future::pending,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use containerd_client::{
    services::v1::snapshots::{
        CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
        RemoveSnapshotRequest, StatSnapshotRequest, UsageRequest, ViewSnapshotRequest,
        snapshots_client::SnapshotsClient,
    },
    tonic::{Code, Status, transport::Channel},
    types::Mount,
};
use darter_peer::{Class, Digest, LayerDescriptor, TaskError};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount_bind_recursive, mount_remount, move_mount, unmount,
};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, MountKind, Snapshotter,
    engine::{Engine, Leaves, NotAllowed, OpenLayer},
    image::Repository,
    lazy::{LayerRef, detach_stale, keeper},
    metrics::Metrics,
    snapshots::Labels,
};

/// A directory in which everything is unmounted and removed when it is dropped, also when the test fails.
pub(super) struct Home {
    path: PathBuf,
    mount: MountKind,
    _removed: Option<TempDir>,
}

/// A running snapshotter, in this process, and a client of it.
pub(super) struct Daemon {
    pub(super) snapshotter: Snapshotter,
    client: Client,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

/// containerd's side of a snapshotter's socket.
pub(super) struct Client {
    pub(super) client: SnapshotsClient<Channel>,
}

/// A peer and the registry behind it, in memory.
#[derive(Default)]
pub(super) struct FakePeer {
    documents: Mutex<HashMap<Digest, Bytes>>,
    layers: Mutex<HashMap<Digest, OpenLayer>>,
    /// Whether the registry and other peers can be reached.
    pub(super) offline: watch::Sender<bool>,
    /// What was asked of others than this peer itself.
    pub(super) asked: Mutex<Vec<String>>,
    stalled: Mutex<HashSet<Digest>>,
    /// The only repository in which the registry lets this node read a layer; any other layer everywhere.
    private: Mutex<HashMap<Digest, &'static str>>,
    /// Whether the registry gives no answer to who asks whether it may read a layer.
    pub(super) silent: AtomicBool,
    /// Layers that are not needed any more.
    pub(super) removed: Mutex<Vec<Digest>>,
    /// Start profiles by image, as the scheduler would keep them.
    pub(super) profiles: Mutex<HashMap<Digest, Bytes>>,
    /// Layers that were said to be wrong.
    pub(super) blamed: Mutex<Vec<LayerDescriptor>>,
}

/// Leaves that arrive only when the test says so.
pub(super) struct GatedLeaves {
    leaves: Arc<dyn Leaves>,
    open: watch::Receiver<bool>,
}

/// Leaves that nobody has any more.
pub(super) struct NoLeaves;

impl Home {
    pub(super) fn new() -> Self {
        Self::with(MountKind::Auto)
    }

    /// A directory for a snapshotter that mounts in this way.
    pub(super) fn with(mount: MountKind) -> Self {
        // On disk also where /tmp is a tmpfs.
        let dir = tempfile::Builder::new().prefix("snapshotter-").tempdir_in("/var/tmp").unwrap();
        Self { path: dir.path().to_owned(), mount, _removed: Some(dir) }
    }

    /// A directory that belongs to another test process, which also removes it.
    pub(super) fn at(path: PathBuf, mount: MountKind) -> Self {
        Self { path, mount, _removed: None }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn mount(&self) -> MountKind {
        self.mount
    }

    pub(super) fn config(&self) -> Config {
        Config {
            socket: self.path.join("s.sock"),
            root: self.path.join("root"),
            mount: self.mount,
            prepare_timeout: Duration::from_secs(20),
            ..Config::default()
        }
    }

    /// A new empty directory.
    pub(super) fn dir(&self, name: &str) -> PathBuf {
        let dir = self.path.join("dirs").join(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Err(error) = detach_stale(&self.path) {
            eprintln!("{}: {error}", self.path.display());
        }
    }
}

impl Daemon {
    pub(super) async fn start(config: &Config, peer: Arc<FakePeer>) -> Self {
        let snapshotter =
            Snapshotter::with_engine(config, peer, Metrics::default(), start_keeper).await.unwrap();
        let shutdown = CancellationToken::new();
        let (running, stop) = (snapshotter.clone(), shutdown.clone());
        let task = tokio::spawn(async move { running.run(stop).await.unwrap() });
        Self { snapshotter, client: Client::connect(config).await, task, shutdown }
    }

    /// A daemon for ordinary snapshots only.
    pub(super) async fn plain(home: &Home) -> Self {
        Self::start(&Config { lazy: false, ..home.config() }, Arc::default()).await
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        drop(self.client);
        self.task.await.unwrap();
    }
}

impl Deref for Daemon {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

/// A keeper in this process: it ends with the test.
pub(super) fn start_keeper(dir: &Path) -> std::io::Result<()> {
    let dir = dir.to_owned();
    std::thread::spawn(move || keeper::keep(&dir, false));
    Ok(())
}

impl Client {
    /// Waits until somebody listens.
    pub(super) async fn connect(config: &Config) -> Self {
        loop {
            // A killed snapshotter's socket is there, but nobody listens on it.
            match containerd_client::connect(&config.socket).await {
                Ok(channel) => return Self { client: SnapshotsClient::new(channel) },
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }

    pub(super) async fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, Labels::new()).await
    }

    pub(super) async fn prepare_with(
        &self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let request = PrepareSnapshotRequest {
            snapshotter: "darter".into(),
            key: key.into(),
            parent: parent.into(),
            labels: labels.into_iter().collect(),
        };
        Ok(self.client.clone().prepare(request).await?.into_inner().mounts)
    }

    pub(super) async fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.into(), parent.into());
        let request =
            ViewSnapshotRequest { snapshotter: "darter".into(), key, parent, labels: HashMap::new() };
        Ok(self.client.clone().view(request).await?.into_inner().mounts)
    }

    pub(super) async fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { snapshotter: "darter".into(), key: key.into() };
        Ok(self.client.clone().mounts(request).await?.into_inner().mounts)
    }

    pub(super) async fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let (name, key) = (name.into(), key.into());
        let request = CommitSnapshotRequest { snapshotter: "darter".into(), name, key, ..Default::default() };
        self.client.clone().commit(request).await.map(drop)
    }

    pub(super) async fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: "darter".into(), key: key.into() };
        self.client.clone().remove(request).await.map(drop)
    }

    pub(super) async fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { snapshotter: "darter".into(), key: key.into() };
        Ok(self.client.clone().stat(request).await?.into_inner().info.unwrap())
    }

    pub(super) async fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let filters = filters.iter().map(|&filter| filter.to_owned()).collect();
        let request = ListSnapshotsRequest { snapshotter: "darter".into(), filters };
        let mut stream = self.client.clone().list(request).await?.into_inner();
        let mut infos = Vec::new();
        while let Some(batch) = stream.message().await? {
            infos.extend(batch.info);
        }
        Ok(infos)
    }

    pub(super) async fn usage(&self, key: &str) -> Result<(i64, i64), Status> {
        let request = UsageRequest { snapshotter: "darter".into(), key: key.into() };
        let usage = self.client.clone().usage(request).await?.into_inner();
        Ok((usage.size, usage.inodes))
    }

    /// Prepares a snapshot on `parent`, changes it and commits it as `name`.
    pub(super) async fn layer(&self, home: &Home, name: &str, parent: &str, change: impl FnOnce(&Path)) {
        let key = format!("extract {name}");
        let mounted = Mounted::new(home, &self.prepare(&key, parent).await.unwrap());
        change(mounted.path());
        drop(mounted);
        self.commit(name, &key).await.unwrap();
    }
}

/// The gRPC code of a failure.
pub(super) fn code<T>(result: Result<T, Status>) -> Code {
    result.map_or_else(|status| status.code(), |_| Code::Ok)
}

/// A snapshot's mounts, made as containerd makes them, and undone when this is dropped.
pub(super) struct Mounted(TempDir);

impl Mounted {
    pub(super) fn new(home: &Home, mounts: &[Mount]) -> Self {
        let target = Self(TempDir::new_in(home.dir("mounted")).unwrap());
        for mount in mounts {
            make_mount(mount, target.path());
        }
        target
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(self.0.path(), UnmountFlags::DETACH).ok();
    }
}

fn make_mount(mount: &Mount, target: &Path) {
    if mount.r#type == "bind" {
        mount_bind_recursive(&mount.source, target).unwrap();
        if mount.options.iter().any(|option| option == "ro") {
            mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        }
        return;
    }
    let fs = fsopen(mount.r#type.as_str(), FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for (name, value) in mount.options.iter().map(|option| option.split_once('=').unwrap()) {
        match name {
            // One option would be longer than a page; containerd shortens it by changing its directory.
            "lowerdir" => {
                value.split(':').for_each(|dir| fsconfig_set_string(&fs, "lowerdir+", dir).unwrap())
            }
            _ => fsconfig_set_string(&fs, name, value).unwrap(),
        }
    }
    fsconfig_create(&fs).unwrap();
    let made = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    let target = CString::new(target.to_str().unwrap()).unwrap();
    move_mount(&made, c"", rustix::fs::CWD, target.as_c_str(), flags).unwrap();
}

impl FakePeer {
    pub(super) fn put_document(&self, json: &str) -> Digest {
        let digest = Digest::sha256(json.as_bytes());
        self.documents.lock().insert(digest.clone(), Bytes::copy_from_slice(json.as_bytes()));
        digest
    }

    pub(super) fn put_layer(&self, layer: OpenLayer) {
        self.layers.lock().insert(layer.descriptor.blob.clone(), layer);
    }

    pub(super) fn forget(&self, blob: &Digest) {
        self.layers.lock().remove(blob);
    }

    /// Never answers who asks for this layer.
    pub(super) fn stall(&self, blob: &Digest) {
        self.stalled.lock().insert(blob.clone());
    }

    /// Lets a layer be read in this repository only.
    pub(super) fn keep_private(&self, blob: &Digest, repository: &'static str) {
        self.private.lock().insert(blob.clone(), repository);
    }

    /// Lets leaves of a layer arrive only while the sender says true.
    pub(super) fn gate(&self, blob: &Digest) -> watch::Sender<bool> {
        let (sender, open) = watch::channel(false);
        let mut layers = self.layers.lock();
        let layer = layers.get_mut(blob).unwrap();
        layer.leaves = Arc::new(GatedLeaves { leaves: layer.leaves.clone(), open });
        sender
    }

    async fn ask<T>(&self, what: String, answer: Option<T>) -> Result<T, TaskError> {
        self.asked.lock().push(what.clone());
        if *self.offline.borrow() {
            return Err(TaskError::Unreachable("the network is away".into()));
        }
        answer.ok_or_else(|| TaskError::Unreachable(format!("nobody has {what}")))
    }
}

impl Engine for FakePeer {
    fn manifest<'a>(
        &'a self,
        _: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        let found = self.documents.lock().get(digest).cloned();
        Box::pin(self.ask(format!("manifest {digest}"), found))
    }

    fn tagged<'a>(&'a self, _: &'a Repository, tag: &'a str) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        // A tag's name is the digest of its manifest with `-` for `:`.
        let digest: Digest = tag.replacen('-', ":", 1).parse().unwrap();
        let found = self.documents.lock().get(&digest).cloned();
        Box::pin(self.ask(format!("tag {tag}"), found))
    }

    fn blob<'a>(&'a self, _: &'a Repository, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        let found = self.documents.lock().get(digest).cloned();
        Box::pin(self.ask(format!("blob {digest}"), found))
    }

    fn allows<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<(), NotAllowed>> {
        let elsewhere =
            self.private.lock().get(&layer.blob).is_some_and(|only| *only != layer.repository.name);
        let silent = *self.offline.borrow() || self.silent.load(Ordering::Relaxed);
        Box::pin(async move {
            match (silent, elsewhere) {
                (true, _) => Err(NotAllowed::NoAnswer("it is away".into())),
                (_, true) => Err(NotAllowed::Refused("it answered 404".into())),
                _ => Ok(()),
            }
        })
    }

    fn layer<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<OpenLayer, TaskError>> {
        let found = self.layers.lock().get(&layer.blob).cloned();
        let stalled = self.stalled.lock().contains(&layer.blob);
        Box::pin(async move {
            if stalled {
                pending::<()>().await;
            }
            self.ask(format!("layer {}", layer.blob), found).await
        })
    }

    fn local_layer<'a>(&'a self, _: &'a LayerRef) -> BoxFuture<'a, Option<OpenLayer>> {
        Box::pin(async { None })
    }

    fn remove<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, ()> {
        self.removed.lock().push(layer.blob.clone());
        Box::pin(async {})
    }

    fn start_profile<'a>(&'a self, image: &'a Digest) -> BoxFuture<'a, Option<Bytes>> {
        let profile = self.profiles.lock().get(image).cloned();
        Box::pin(async { profile })
    }

    fn share_start_profile<'a>(&'a self, image: &'a Digest, profile: Bytes) -> BoxFuture<'a, ()> {
        self.profiles.lock().insert(image.clone(), profile);
        Box::pin(async {})
    }

    fn blame<'a>(&'a self, layer: &'a LayerDescriptor) -> BoxFuture<'a, Result<(), TaskError>> {
        self.blamed.lock().push(layer.clone());
        Box::pin(async { Ok(()) })
    }
}

impl Leaves for GatedLeaves {
    fn leaf(&self, leaf: u32, class: Class) -> BoxFuture<'_, Result<Bytes, TaskError>> {
        let mut open = self.open.clone();
        Box::pin(async move {
            if open.wait_for(|open| *open).await.is_err() {
                pending::<()>().await;
            }
            self.leaves.leaf(leaf, class).await
        })
    }

    fn fill(&self) {
        self.leaves.fill();
    }
}

impl Leaves for NoLeaves {
    fn leaf(&self, leaf: u32, _: Class) -> BoxFuture<'_, Result<Bytes, TaskError>> {
        Box::pin(async move { Err(TaskError::Unreachable(format!("nobody has leaf {leaf}"))) })
    }

    fn fill(&self) {}
}
