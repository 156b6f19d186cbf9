//! A peer and an origin for tests of the engine.
#![allow(dead_code, reason = "every test program uses its own part")]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use darter_peer::{
    Class, Config, Content, Digest, LayerMaker, Peer, TaskError, TaskId, Want, origin::Source,
};
use darter_proto::scheduler::{StatusReply, StatusRequest, scheduler_client::SchedulerClient};
use darter_service::Registry;
use futures_util::TryStreamExt;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

/// How an origin misbehaves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Faults {
    /// Ends every body after so many bytes, with the connection.
    pub(crate) cut_after: Option<u64>,
    /// Answers 200 with everything to a request with Range.
    pub(crate) no_ranges: bool,
    /// Sends a body of the right length with one byte flipped.
    pub(crate) flip: bool,
    /// Answers with this status.
    pub(crate) status: Option<u16>,
    /// Bytes per 10 ms; 0 is no limit.
    pub(crate) trickle: u64,
}

/// A small HTTP server that counts what it sends.
pub(crate) struct Origin {
    pub(crate) url: String,
    pub(crate) sent: Arc<AtomicU64>,
    pub(crate) requests: Arc<AtomicU64>,
}

impl Origin {
    pub(crate) async fn start(contents: BTreeMap<&'static str, Vec<u8>>, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sent, requests) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let contents = Arc::new(contents);
        let counters = (sent.clone(), requests.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, contents.clone(), faults, counters.clone()));
            }
        });
        Self { url, sent, requests }
    }

    pub(crate) fn source(&self, path: &str) -> Source {
        Source { url: format!("{}/{path}", self.url), headers: Vec::new() }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

async fn answer(
    stream: TcpStream,
    contents: Arc<BTreeMap<&'static str, Vec<u8>>>,
    faults: Faults,
    (sent, requests): (Arc<AtomicU64>, Arc<AtomicU64>),
) -> Option<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    loop {
        let first = lines.next_line().await.ok()??;
        let (mut range, mut line) = (None, lines.next_line().await.ok()??);
        while !line.is_empty() {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
                let (start, end) = value.split_once('-')?;
                range = Some((start.parse::<usize>().ok()?, end.parse::<usize>().ok()));
            }
            line = lines.next_line().await.ok()??;
        }
        requests.fetch_add(1, Ordering::SeqCst);
        let path = first.split(' ').nth(1)?.trim_start_matches('/');
        let content = contents.get(path);
        if content.is_none() || faults.status.is_some() {
            let status = faults.status.unwrap_or(404);
            writer
                .write_all(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n").as_bytes())
                .await
                .ok()?;
            continue;
        }
        let content = content?;
        let total = content.len();
        let (status, start, end) = match range.filter(|_| !faults.no_ranges) {
            Some((start, end)) => (206, start, end.map_or(total, |end| end + 1).min(total)),
            None => (200, 0, total),
        };
        let mut head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nETag: \"v1\"\r\n", end - start);
        if status == 206 {
            head += &format!("Content-Range: bytes {start}-{}/{total}\r\n", end - 1);
        }
        writer.write_all((head + "\r\n").as_bytes()).await.ok()?;
        if first.starts_with("HEAD") {
            continue;
        }
        let mut body = content[start..end].to_vec();
        if faults.flip {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        if let Some(cut) = faults.cut_after.filter(|cut| (*cut as usize) < body.len()) {
            body.truncate(cut as usize);
            writer.write_all(&body).await.ok()?;
            sent.fetch_add(body.len() as u64, Ordering::SeqCst);
            return None;
        }
        let step = if faults.trickle == 0 { 64 * 1024 } else { faults.trickle as usize };
        for part in body.chunks(step) {
            writer.write_all(part).await.ok()?;
            sent.fetch_add(part.len() as u64, Ordering::SeqCst);
            if faults.trickle > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// A peer with a directory of its own; it stops when dropped.
pub(crate) struct Node {
    pub(crate) peer: Peer,
    pub(crate) dir: TempDir,
    pub(crate) stop: CancellationToken,
}

impl Node {
    pub(crate) async fn start(change: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), change).await
    }

    pub(crate) async fn start_in(dir: TempDir, change: impl FnOnce(&mut Config)) -> Self {
        Self::start_making(dir, None, change).await
    }

    /// A peer that makes layers like this.
    pub(crate) async fn start_making(
        dir: TempDir,
        maker: Option<Arc<dyn LayerMaker>>,
        change: impl FnOnce(&mut Config),
    ) -> Self {
        let mut config = Config::default();
        config.origin.allow = vec!["127.0.0.0/8".parse().unwrap()];
        config.store.dir = dir.path().join("store");
        config.control_socket = dir.path().join("peer.sock");
        config.transfer.listen = "127.0.0.1:0".parse().unwrap();
        config.stall_timeout = Duration::from_secs(20);
        change(&mut config);
        let stop = CancellationToken::new();
        let peer = Peer::start(config, maker, &mut Registry::default(), stop.clone()).await.unwrap();
        Self { peer, dir, stop }
    }

    pub(crate) async fn open(&self, id: &TaskId, source: Option<Source>) -> Content {
        self.peer.open(Want { id: id.clone(), source, class: Class::Stream }).await.unwrap()
    }

    /// Stops the peer and gives its directory back.
    pub(crate) async fn stop(self) -> TempDir {
        self.stop.cancel();
        self.peer.stopped().await;
        self.peer.store().close().unwrap();
        self.dir
    }
}

/// A scheduler that can be stopped and started again at the same address.
pub(crate) struct Scheduler {
    address: SocketAddr,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Scheduler {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let mut scheduler = Self { address, running: None };
        scheduler.run();
        scheduler
    }

    pub(crate) fn run(&mut self) {
        let text = format!("listen = \"{}\"\n[admin]\nlisten = \"127.0.0.1:0\"\n", self.address);
        let config = darter_service::config::parse(&text, "scheduler").unwrap();
        let stop = CancellationToken::new();
        let task = darter_scheduler::run(config, stop.clone());
        self.running = Some((stop, tokio::spawn(async move { task.await.unwrap() })));
    }

    pub(crate) async fn stop(&mut self) {
        if let Some((stop, task)) = self.running.take() {
            stop.cancel();
            task.await.unwrap();
        }
    }

    /// Where peers find it.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What it knows.
    pub(crate) async fn status(&self) -> StatusReply {
        let mut client = SchedulerClient::connect(self.url()).await.unwrap();
        client.status(StatusRequest {}).await.unwrap().into_inner()
    }

    pub(crate) async fn peer(&self, seed: bool) -> Node {
        self.peer_with(|config| config.seed = seed).await
    }

    pub(crate) async fn peer_with(&self, change: impl FnOnce(&mut Config)) -> Node {
        self.start_peer(None, change).await
    }

    /// A peer that makes layers like this.
    pub(crate) async fn maker(&self, maker: Arc<dyn LayerMaker>, seed: bool) -> Node {
        self.start_peer(Some(maker), |config| config.seed = seed).await
    }

    async fn start_peer(&self, maker: Option<Arc<dyn LayerMaker>>, change: impl FnOnce(&mut Config)) -> Node {
        let url = self.url();
        let node = Node::start_making(TempDir::new().unwrap(), maker, |config| {
            config.scheduler.addresses = vec![url];
            change(config);
        })
        .await;
        while node.peer.schedulers().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node
    }

    /// A peer whose children reach it through a relay that spoils what it sends.
    pub(crate) async fn spoilt_peer(&self, spoil: Spoil) -> Node {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let spoilt = relay(address, spoil).await;
        self.peer_with(|config| {
            config.transfer.listen = address;
            config.transfer.advertise = Some(spoilt);
        })
        .await
    }

    pub(crate) async fn peers(&self, count: usize) -> Vec<Node> {
        let mut peers = Vec::new();
        for _ in 0..count {
            peers.push(self.peer(false).await);
        }
        peers
    }
}

impl Node {
    pub(crate) async fn read(&self, id: &TaskId, source: Option<Source>) -> Result<Vec<u8>, TaskError> {
        read(&self.peer, id, source).await
    }
}

/// All bytes of a content.
pub(crate) async fn read(peer: &Peer, id: &TaskId, source: Option<Source>) -> Result<Vec<u8>, TaskError> {
    let content = peer.open(Want { id: id.clone(), source, class: Class::Stream }).await?;
    let len = content.geometry().await?.len();
    let parts: Vec<_> = content.read(0..len).try_collect().await?;
    content.finished().await?;
    Ok(parts.concat())
}

/// Flips a byte of every data file of a stopped or running peer's store, at this offset.
pub(crate) fn rot(dir: &std::path::Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let folders = std::fs::read_dir(dir.join("store/content")).unwrap();
    for file in folders.flat_map(|folder| std::fs::read_dir(folder.unwrap().path()).unwrap()) {
        let file = std::fs::File::options().read(true).write(true).open(file.unwrap().path()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[!byte[0]], offset).unwrap();
    }
}

/// Reproducible bytes that do not compress, and their task.
pub(crate) fn blob(len: usize, seed: u64) -> (Vec<u8>, TaskId) {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    let id = TaskId::of_digest(&Digest::sha256(&bytes));
    (bytes, id)
}

/// How a parent's answers are spoilt on their way, after so many bytes of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    /// Nothing more comes, and nobody says so.
    Stall(usize),
    /// One byte is another one.
    Flip(usize),
    /// It goes on at 100 KB/s.
    Trickle(usize),
    /// The connection breaks.
    Cut(usize),
}

/// A relay to `server`, as a link or a parent that does not do what it should.
pub(crate) async fn relay(server: std::net::SocketAddr, spoil: Spoil) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((child, _)) = listener.accept().await {
            tokio::spawn(async move {
                let parent = TcpStream::connect(server).await.ok()?;
                let (mut from_child, to_child) = child.into_split();
                let (from_parent, mut to_parent) = parent.into_split();
                tokio::select! {
                    _ = tokio::io::copy(&mut from_child, &mut to_parent) => {}
                    _ = pass(from_parent, to_child, spoil) => {}
                }
                Some(())
            });
        }
    });
    address
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    spoil: Spoil,
) -> std::io::Result<()> {
    let (Spoil::Stall(after) | Spoil::Flip(after) | Spoil::Trickle(after) | Spoil::Cut(after)) = spoil;
    let mut buffer = vec![0; 16 * 1024];
    let mut passed = 0;
    loop {
        let len = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await?;
        if len == 0 {
            return Ok(());
        }
        if passed + len > after {
            match spoil {
                Spoil::Stall(_) => std::future::pending::<()>().await,
                Spoil::Cut(_) => return Ok(()),
                Spoil::Flip(_) if passed <= after => buffer[after - passed] ^= 1,
                Spoil::Flip(_) => {}
                Spoil::Trickle(_) => tokio::time::sleep(Duration::from_millis(10 * len as u64 / 1000)).await,
            }
        }
        passed += len;
        to.write_all(&buffer[..len]).await?;
    }
}
