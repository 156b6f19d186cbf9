//! The connection of one child.

use std::{
    collections::HashMap,
    io::{self, ErrorKind},
    net::SocketAddr,
    ops::Range,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::{
    io::BufReader,
    net::TcpStream,
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Server,
    desk::Place,
    listen::Listener,
    queue::{LeafQueue, Pushed, Wanted},
    send::Sender,
};
use crate::{
    Border, Class, TaskId,
    store::Entry,
    transfer::{
        codec::{CodecError, encode_hello, read_hello},
        frame::Frame,
        metrics::TransferMetrics,
        socket::{send_all, tune},
        tickets::Denial,
    },
};

/// Frames that wait to be sent before what makes them waits.
const WAITING_FRAMES: usize = 64;
/// Bytes of a child's frames that are read at once.
const READ_AHEAD: usize = 8192;

/// What the tasks of one child's connection share.
pub(super) struct Child {
    /// Whose tickets it shows.
    pub(super) host: String,
    streams: Mutex<HashMap<u32, Option<Stream>>>,
    queue: Mutex<LeafQueue>,
    metrics: TransferMetrics,
    /// The border between this host and the child.
    pub(super) beyond: Option<Border>,
    /// A leaf was queued.
    pub(super) queued: Notify,
    /// Frames to be sent, in order; leaves are taken from the queue.
    frames: mpsc::Sender<Frame>,
}

/// A subscription to a task that is here.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) entry: Arc<Entry>,
    /// The child's place in the queue, if this host is the task's source.
    pub(super) place: Option<Arc<Place>>,
}

impl Stream {
    /// A subscription to the entry's task.
    pub(super) fn of(server: &Server, child: &Child, entry: Arc<Entry>) -> Self {
        let turns = server.config.coordinate && server.sources.contains(entry.id());
        let place = turns.then(|| Arc::new(server.desks.join(&entry, child.beyond)));
        Self { entry, place }
    }
}

/// Serves one child until it leaves.
pub(super) async fn serve(
    server: Arc<Server>,
    stream: TcpStream,
    address: SocketAddr,
    shutdown: CancellationToken,
) {
    server.metrics.children.inc();
    match converse(&server, stream, shutdown).await {
        Ok(()) => tracing::debug!(%address, "child left"),
        Err(error) => tracing::debug!(%address, %error, "connection of a child ended"),
    }
    server.metrics.children.dec();
}

async fn converse(
    server: &Arc<Server>,
    stream: TcpStream,
    shutdown: CancellationToken,
) -> Result<(), CodecError> {
    tune(&stream)?;
    let patience = server.config.progress_timeout;
    let (reader, writer) = stream.into_split();
    let mut reader = BufReader::with_capacity(READ_AHEAD, reader);
    let hello = timeout(patience, read_hello(&mut reader)).await;
    let answer = encode_hello(server.store.host_id(), server.sources.site());
    // Also a child of another version is told which one is spoken here.
    send_all(writer.as_ref(), &answer, false, patience).await?;
    let hello = hello.map_err(|_| io::Error::new(ErrorKind::TimedOut, "no handshake in time"))??;
    tracing::debug!(host = hello.host, "child connected");
    // One that does not say where it stands is served as if it were near.
    let beyond = if hello.site.is_known() { server.sources.site().border_to(&hello.site) } else { None };

    let (frames, waiting) = mpsc::channel(WAITING_FRAMES);
    let child = Arc::new(Child {
        host: hello.host,
        streams: Mutex::default(),
        queue: Mutex::default(),
        metrics: server.metrics.clone(),
        beyond,
        queued: Notify::new(),
        frames,
    });
    let listener = Listener::new(server.clone(), child.clone(), reader);
    let sender = Sender::new(server.clone(), child, writer, waiting, shutdown);
    tokio::select! {
        ended = listener.run() => ended,
        ended = sender.run() => Ok(ended?),
    }
}

impl Child {
    /// An open stream whose task is here.
    pub(super) fn stream(&self, stream: u32) -> Option<Stream> {
        self.streams.lock().get(&stream).cloned().flatten()
    }

    /// Whether a stream is open, whether its task is here or not.
    pub(super) fn is_open(&self, stream: u32) -> bool {
        self.streams.lock().contains_key(&stream)
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.lock().len()
    }

    /// Opens a stream; without its task if that is not here yet.
    pub(super) fn open(&self, stream: u32, open: Option<Stream>) {
        self.streams.lock().insert(stream, open);
    }

    /// The task of an open stream is here now. Does nothing if the stream has ended.
    pub(super) fn begin(&self, stream: u32, begun: Stream) {
        if let Some(open) = self.streams.lock().get_mut(&stream) {
            *open = Some(begun);
        }
    }

    /// Ends a stream and tells the child; does nothing if it has ended.
    pub(super) async fn close(&self, stream: u32, reason: &str) {
        self.end(stream, Frame::Gone { stream, reason: reason.into() }).await;
    }

    /// Ends a stream because the child's ticket is not good.
    pub(super) async fn deny(&self, stream: u32, task: &TaskId, denial: Denial) {
        tracing::debug!(host = self.host, %task, reason = %denial, "a child gets nothing of a task");
        self.metrics.denied(denial);
        self.end(stream, Frame::Denied { stream, reason: denial.to_string() }).await;
    }

    async fn end(&self, stream: u32, last: Frame) {
        // Reserved before, so that nobody can be aborted between ending the stream and telling of it.
        let Ok(permit) = self.frames.reserve().await else { return };
        let open = self.streams.lock().remove(&stream);
        if open.is_some() {
            self.with_queue(|queue| queue.drop_stream(stream));
            permit.send(last);
        }
    }

    /// Queues a frame for the child, and waits if it is behind. Not for the sending side, which would wait for itself.
    pub(super) async fn tell(&self, frame: Frame) {
        // Fails only once the sending side has ended, and with it the connection.
        self.frames.send(frame).await.ok();
    }

    /// Queues a leaf for the child.
    pub(super) fn want(&self, stream: u32, leaf: u32, class: Class) -> Pushed {
        let pushed = self.with_queue(|queue| queue.push(stream, leaf, class));
        match pushed {
            Pushed::Queued | Pushed::Again => self.queued.notify_one(),
            Pushed::Full => drop(self.metrics.refused.inc()),
        }
        pushed
    }

    /// Takes leaves out of the queue; returns them in order.
    pub(super) fn cancel(&self, stream: u32, leaves: &Range<u32>) -> Vec<u32> {
        self.with_queue(|queue| queue.cancel(stream, leaves))
    }

    /// Takes the next leaf to send.
    pub(super) fn next(&self) -> Option<Wanted> {
        self.with_queue(LeafQueue::pop)
    }

    /// Puts back a leaf that was taken and not sent.
    pub(super) fn put_back(&self, wanted: Wanted) {
        self.with_queue(|queue| queue.put_back(wanted));
    }

    /// Takes out the leaves that wait since `limit` or longer.
    pub(super) fn expire(&self, limit: Instant) -> Vec<Wanted> {
        self.with_queue(|queue| queue.expire(limit))
    }

    /// The most urgent class that waits, and since when the leaf waits that waits longest.
    pub(super) fn outlook(&self) -> (Option<Class>, Option<Instant>) {
        let queue = self.queue.lock();
        (queue.top(), queue.oldest())
    }

    /// Works on the queue and counts its length.
    fn with_queue<T>(&self, work: impl FnOnce(&mut LeafQueue) -> T) -> T {
        let mut queue = self.queue.lock();
        let before = queue.len();
        let result = work(&mut queue);
        self.metrics.queued.inc_by(queue.len() as i64 - before as i64);
        result
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.metrics.queued.dec_by(self.queue.get_mut().len() as i64);
    }
}
