//! The child's side: connections to parents, shared by all tasks.

mod asked;
mod link;
mod receive;
mod subscription;
mod transmit;

use std::{collections::HashMap, fmt, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    io::BufReader,
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::subscription::Subscription;
use self::{
    link::{Broken, Link, Outlet, Patience},
    receive::Receiver,
    transmit::{pace, transmit, watch},
};
use super::{ASK_AFTER, FROZEN_AFTER, PING_AFTER, SILENCE};
use super::{
    codec::{CodecError, encode_hello, read_hello},
    config::TransferConfig,
    event::{ParentEvent, ParentKey, TransferError},
    metrics::TransferMetrics,
    socket::{send_all, tune},
};
use crate::{Limits, Site, TaskId};

/// Bytes read ahead of a frame. Small, since of a leaf they are copied once more.
const READ_AHEAD: usize = 4096;

/// The connections to parents: one for each address, shared by all tasks. Clones share them.
///
/// A task hears of its parents through a bounded channel of its own. One that does not read it holds up the others on
/// the same connections, since frames of all tasks come in one order; so it must read without waiting for its disk.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    host_id: String,
    site: Site,
    limits: Limits,
    config: TransferConfig,
    metrics: TransferMetrics,
    links: Mutex<HashMap<String, Arc<Place>>>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// The connection to one address; locked while it is dialled, so that it is dialled once.
type Place = tokio::sync::Mutex<Option<Arc<Link>>>;

type Reader = BufReader<OwnedReadHalf>;

impl Pool {
    /// No connections yet. `host_id` and where it stands are told to parents.
    pub fn new(
        host_id: impl Into<String>,
        site: Site,
        limits: Limits,
        config: &TransferConfig,
        metrics: TransferMetrics,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                host_id: host_id.into(),
                site,
                limits,
                config: config.clone(),
                metrics,
                links: Mutex::default(),
                tasks: TaskTracker::new(),
                shutdown: CancellationToken::new(),
            }),
        }
    }

    /// Subscribes `task` to the parent at `address` (`"ip:port"`), over the connection to it or a new one, and shows it the
    /// `ticket` that the scheduler gave. What the parent does comes to `events` under the name `parent`, first what it
    /// holds.
    ///
    /// # Errors
    /// No connection within the dial time-out, or the pool is closed. A parent that does not hold the task, or does not
    /// take the ticket, is no error here: it answers with [`Gone`](crate::transfer::ParentEventKind::Gone) or
    /// [`Denied`](crate::transfer::ParentEventKind::Denied).
    pub async fn subscribe(
        &self,
        address: &str,
        task: &TaskId,
        ticket: Bytes,
        events: mpsc::Sender<ParentEvent>,
        parent: ParentKey,
    ) -> Result<Subscription, TransferError> {
        let limit = self.inner.config.dial_timeout;
        let link = timeout(limit, self.inner.link(address)).await;
        let link = link.map_err(|_| TransferError::Timeout { address: address.into(), timeout: limit })??;
        match link.open(task, ticket, Outlet::new(parent, events)) {
            Ok(stream) => Ok(Subscription::new(link, stream)),
            Err(Broken(reason)) => Err(TransferError::Ended { address: address.into(), reason }),
        }
    }

    /// Closes all connections, tells the subscriptions, and waits until that is done.
    pub async fn close(&self) {
        self.inner.shutdown.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

impl Inner {
    async fn link(&self, address: &str) -> Result<Arc<Link>, TransferError> {
        let place = self.place(address);
        let mut place = place.lock().await;
        if self.shutdown.is_cancelled() {
            return Err(TransferError::Closed);
        }
        if let Some(link) = place.as_ref().filter(|link| !link.is_ended()) {
            return Ok(link.clone());
        }
        let (reader, writer, host) = self.dial(address).await?;
        let link = Arc::new(Link::new());
        self.tasks.spawn(self.drive(link.clone(), reader, writer, format!("{address} ({host})")));
        *place = Some(link.clone());
        Ok(link)
    }

    /// The place of an address; those of ended connections are forgotten on the way.
    fn place(&self, address: &str) -> Arc<Place> {
        let mut links = self.links.lock();
        links.retain(|_, place| {
            let live =
                || place.try_lock().is_ok_and(|link| link.as_ref().is_some_and(|link| !link.is_ended()));
            Arc::strong_count(place) > 1 || live()
        });
        links.entry(address.to_owned()).or_default().clone()
    }

    /// Connects and shakes hands; returns the parent's host id too.
    async fn dial(&self, address: &str) -> Result<(Reader, OwnedWriteHalf, String), TransferError> {
        let connect = |source| TransferError::Connect { address: address.into(), source };
        let stream = TcpStream::connect(address).await.map_err(connect)?;
        tune(&stream).map_err(connect)?;
        let hello = encode_hello(&self.host_id, self.site);
        send_all(&stream, &hello, false, self.config.dial_timeout).await.map_err(connect)?;
        let (reader, writer) = stream.into_split();
        let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
        let hello = read_hello(&mut reader).await.map_err(|error| TransferError::Handshake {
            address: address.into(),
            reason: match error {
                CodecError::Io(error) => format!("{error} (it may serve as many children as it takes)"),
                other => other.to_string(),
            },
        })?;
        Ok((reader, writer, hello.host))
    }

    /// Drives a connection until it ends: all its parts in one task, and the first that ends says why. The task holds
    /// nothing of the pool, so that dropping the pool ends it.
    fn drive(
        &self,
        link: Arc<Link>,
        reader: Reader,
        writer: OwnedWriteHalf,
        parent: String,
    ) -> impl Future<Output = ()> + use<> {
        let progress = self.config.progress_timeout;
        let patience = Patience {
            progress,
            silence: SILENCE,
            ping: PING_AFTER,
            unused: self.config.idle_timeout,
            ask: ASK_AFTER,
            frozen: FROZEN_AFTER,
        };
        let (limits, metrics, shutdown) = (self.limits.clone(), self.metrics.clone(), self.shutdown.clone());
        let prefetch = limits.prefetch.clone();
        let receiver = Receiver { link: link.clone(), reader, limits, metrics: metrics.clone() };
        async move {
            metrics.parents.inc();
            tracing::debug!(parent, "connected to parent");
            let broken = tokio::select! {
                () = shutdown.cancelled() => Broken("this peer is shutting down".into()),
                broken = receiver.run() => broken,
                broken = transmit(&link, writer.as_ref(), progress) => broken,
                broken = pace(&link, &prefetch) => broken,
                broken = watch(&link, patience) => broken,
            };
            drop(writer);
            metrics.parents.dec();
            tracing::debug!(parent, reason = %broken, "connection to parent ended");
            link.end(&broken.0, progress).await;
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("links", &self.inner.links.lock().len()).finish_non_exhaustive()
    }
}
