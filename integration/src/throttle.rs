//! A relay in front of a server that is slow, breaks off, lies or is gone, as a test wants it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::wait;

/// Bytes are passed on in portions of at most this size, so that a limit is kept also over short times.
const PORTION: usize = 16 * 1024;

/// What was not used so long ago may still be: timers are late by a millisecond or two, which is several portions on a
/// fast link.
const SLACK: Duration = Duration::from_millis(10);

/// A TCP relay on a loopback port. What the server sends back can be limited, held, counted, cut and changed.
#[derive(Debug)]
pub struct Throttle {
    /// Where to connect instead of to the server.
    pub address: SocketAddr,
    state: Arc<State>,
    stop: CancellationToken,
}

#[derive(Debug)]
struct State {
    server: SocketAddr,
    limit: watch::Sender<Limit>,
    /// When the bytes passed on so far are paid for.
    paid_until: Mutex<Instant>,
    sent: AtomicU64,
    fault: Mutex<Option<Fault>>,
    connections: TaskTracker,
    /// Replaced when all connections are broken.
    broken: Mutex<CancellationToken>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Limit {
    None,
    BytesPerSecond(u64),
    /// New connections are closed at once.
    Down,
}

/// What goes wrong once this many more bytes have been sent.
#[derive(Debug, Clone, Copy)]
struct Fault {
    after: u64,
    kind: FaultKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FaultKind {
    Cut,
    FlipByte,
}

// === impl Throttle ===

impl Throttle {
    /// A relay to `server` that changes nothing yet.
    pub async fn to(server: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let state = Arc::new(State {
            server,
            limit: watch::Sender::new(Limit::None),
            paid_until: Mutex::new(Instant::now()),
            sent: AtomicU64::new(0),
            fault: Mutex::new(None),
            connections: TaskTracker::new(),
            broken: Mutex::new(CancellationToken::new()),
        });
        let stop = CancellationToken::new();
        let accepting = Arc::clone(&state).accept(listener);
        state.connections.spawn(stop.clone().run_until_cancelled_owned(accepting));
        Ok(Self { address, state, stop })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Passes on at most this many bytes a second from here on, over all connections together; 0 holds everything.
    pub fn limit(&self, bytes_per_second: u64) {
        self.state.set_limit(Limit::BytesPerSecond(bytes_per_second));
    }

    /// Passes on nothing from here on, and keeps the connections open.
    pub fn hold(&self) {
        self.limit(0);
    }

    /// Passes on everything at once from here on.
    pub fn unlimited(&self) {
        self.state.set_limit(Limit::None);
    }

    /// Breaks every connection and takes no new ones, as a dead server would. [`Self::unlimited`] ends it.
    pub fn down(&self) {
        self.state.set_limit(Limit::Down);
        self.state.break_connections();
    }

    /// Breaks the connection that carries the byte after the next `bytes` bytes, once.
    pub fn cut_after(&self, bytes: u64) {
        *self.state.fault.lock() = Some(Fault { after: bytes, kind: FaultKind::Cut });
    }

    /// Changes the byte after the next `bytes` bytes, once.
    pub fn flip_byte_after(&self, bytes: u64) {
        *self.state.fault.lock() = Some(Fault { after: bytes, kind: FaultKind::FlipByte });
    }

    /// Whether a fault that was asked for has not happened yet.
    pub fn fault_is_pending(&self) -> bool {
        self.state.fault.lock().is_some()
    }

    /// Bytes that the server has sent through this relay so far, headers included.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    /// Waits until the server has sent `bytes` more bytes through this relay.
    pub async fn until_sent(&self, bytes: u64) -> Result<()> {
        let until = self.sent() + bytes;
        wait::until("sent as much", async || self.sent() >= until).await
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.state.break_connections();
    }
}

// === impl State ===

impl State {
    fn set_limit(&self, limit: Limit) {
        *self.paid_until.lock() = Instant::now();
        self.limit.send_replace(limit);
    }

    fn break_connections(&self) {
        std::mem::take(&mut *self.broken.lock()).cancel();
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Ok((client, _)) = listener.accept().await {
            if *self.limit.borrow() == Limit::Down {
                continue;
            }
            let broken = self.broken.lock().clone();
            let relay = Arc::clone(&self).relay(client);
            self.connections.spawn(broken.run_until_cancelled_owned(relay));
        }
    }

    /// Relays one connection until both directions have ended or one of them breaks. An error of either side is
    /// passed on by closing the connection to the other.
    async fn relay(self: Arc<Self>, client: TcpStream) {
        let Ok(server) = TcpStream::connect(self.server).await else { return };
        // A link holds nothing back to send it together with more.
        if client.set_nodelay(true).and_then(|()| server.set_nodelay(true)).is_err() {
            return;
        }
        let (mut from_client, to_client) = client.into_split();
        let (from_server, mut to_server) = server.into_split();
        let requests = async {
            tokio::io::copy(&mut from_client, &mut to_server).await?;
            to_server.shutdown().await
        };
        let answers = self.pass_answers(from_server, to_client);
        tokio::try_join!(requests, answers).ok();
    }

    async fn pass_answers(
        &self,
        mut server: OwnedReadHalf,
        mut client: OwnedWriteHalf,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; PORTION];
        loop {
            let len = server.read(&mut buffer).await?;
            if len == 0 {
                return client.shutdown().await;
            }
            let (portion, _) = buffer.split_at_mut(len);
            self.wait_for_turn(len as u64).await;
            let whole = self.apply_fault(portion);
            client.write_all(portion.split_at(whole).0).await?;
            self.sent.fetch_add(whole as u64, Ordering::Relaxed);
            if whole < len {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    /// Waits until `bytes` more bytes keep within the limit, also if the limit changes meanwhile.
    async fn wait_for_turn(&self, bytes: u64) {
        let mut limits = self.limit.subscribe();
        loop {
            let turn = match *limits.borrow_and_update() {
                Limit::None | Limit::Down => return,
                Limit::BytesPerSecond(0) => None,
                Limit::BytesPerSecond(rate) => Some(self.reserve(bytes, rate)),
            };
            tokio::select! {
                () = sleep_until(turn.unwrap_or_else(Instant::now)), if turn.is_some() => return,
                changed = limits.changed() => if changed.is_err() { return },
            }
        }
    }

    /// When bytes that are asked for now may be passed on.
    fn reserve(&self, bytes: u64, rate: u64) -> Instant {
        let mut paid_until = self.paid_until.lock();
        let earliest = Instant::now().checked_sub(SLACK);
        *paid_until = earliest.map_or(*paid_until, |earliest| (*paid_until).max(earliest))
            + Duration::from_secs_f64(bytes as f64 / rate as f64);
        *paid_until
    }

    /// Changes the portion if that is due, and says how many bytes of it are to be passed on.
    fn apply_fault(&self, portion: &mut [u8]) -> usize {
        let mut slot = self.fault.lock();
        let Some(fault) = slot.as_mut() else { return portion.len() };
        let len = portion.len() as u64;
        let Some(byte) = usize::try_from(fault.after).ok().and_then(|after| portion.get_mut(after)) else {
            fault.after -= len;
            return portion.len();
        };
        let fault = *fault;
        *slot = None;
        match fault.kind {
            FaultKind::Cut => usize::try_from(fault.after).unwrap_or_default(),
            FaultKind::FlipByte => {
                *byte ^= 1;
                portion.len()
            }
        }
    }
}
