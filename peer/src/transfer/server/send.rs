//! What a child gets: frames first, then its most urgent leaf as soon as the host has a slot for it.

use std::{io, ops::Range, pin::Pin, sync::Arc, time::Duration};

use tokio::{
    net::{TcpStream, tcp::OwnedWriteHalf},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Server,
    admission::{Admission, Slot, Wait},
    child::{Child, Stream},
    queue::Wanted,
};
use crate::{
    Class,
    store::{Entry, Place},
    transfer::{
        event::Refusal,
        frame::{CONNECTION, Frame},
        socket::{no_progress, send_all, send_file, send_some, warm},
    },
};

/// A child that takes no bytes for this long gives its slot to another while it goes on with its leaf. Long enough that a
/// slow uplink that all slots share is not taken for a child that has stopped.
const SLOT_PATIENCE: Duration = Duration::from_secs(1);
/// Bytes of frames that are written at once.
const BATCH_LEN: usize = 64 * 1024;

/// Writes to a child; the only one that does.
pub(super) struct Sender {
    server: Arc<Server>,
    child: Arc<Child>,
    writer: OwnedWriteHalf,
    frames: mpsc::Receiver<Frame>,
    shutdown: CancellationToken,
    stage: Stage,
}

/// How far the next leaf is.
enum Stage {
    /// No leaf is wanted.
    Idle,
    /// Waits for a slot.
    Queued(Wait),
    /// Waits for the upload limit.
    Paying(Payment),
}

/// A leaf that waits for the upload limit.
struct Payment {
    parcel: Parcel,
    paid: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// A leaf on its way.
struct Parcel {
    wanted: Wanted,
    entry: Arc<Entry>,
    bytes: Range<u64>,
    slot: Slot,
}

/// What to do next.
enum Next {
    Frame(Frame),
    Slot(Slot),
    Leaf(Parcel),
    /// Leaves have waited too long.
    Expired,
    /// A leaf was queued; it may be of another class than those before.
    Queued,
    Shutdown,
}

impl Sender {
    pub(super) fn new(
        server: Arc<Server>,
        child: Arc<Child>,
        writer: OwnedWriteHalf,
        frames: mpsc::Receiver<Frame>,
        shutdown: CancellationToken,
    ) -> Self {
        Self { server, child, writer, frames, shutdown, stage: Stage::Idle }
    }

    /// Runs until the connection must end.
    pub(super) async fn run(mut self) -> io::Result<()> {
        loop {
            match self.next().await {
                Next::Queued => {}
                Next::Slot(slot) => self.begin(slot).await?,
                Next::Leaf(parcel) => self.leaf(parcel).await?,
                Next::Expired => self.refuse_expired().await?,
                Next::Frame(frame) => {
                    if !self.frames(frame).await? {
                        return Ok(());
                    }
                }
                Next::Shutdown => {
                    if let Stage::Paying(payment) = std::mem::replace(&mut self.stage, Stage::Idle) {
                        self.leaf(payment.finish().await).await?;
                    }
                    let reason = "the parent is shutting down".into();
                    self.frames(Frame::Gone { stream: CONNECTION, reason }).await?;
                    return Ok(());
                }
            }
        }
    }

    /// Waits for the next thing to do. Can be dropped without loss.
    async fn next(&mut self) -> Next {
        let (top, oldest) = self.child.outlook();
        if let (Stage::Paying(Payment { parcel, .. }), Some(top)) = (&self.stage, top)
            && top < parcel.wanted.class
        {
            // What is more urgent does not wait until this one has been paid for.
            self.child.put_back(parcel.wanted);
            self.stage = Stage::Idle;
        }
        self.stage.aim(top, &self.server.admission);
        let expiry = self.stage.since().into_iter().chain(oldest).min().map(|since| since + self.patience());
        tokio::select! {
            biased;
            () = self.shutdown.cancelled() => Next::Shutdown,
            Some(frame) = self.frames.recv() => Next::Frame(frame),
            next = self.stage.advance() => next,
            () = self.child.queued.notified() => Next::Queued,
            () = passes(expiry) => Next::Expired,
        }
    }

    /// Takes the most urgent leaf, now that there is a slot for it.
    async fn begin(&mut self, slot: Slot) -> io::Result<()> {
        self.stage = Stage::Idle;
        let Some(wanted) = self.child.next() else { return Ok(()) };
        // The stream may have ended; then the child was told so.
        let Some(Stream { entry, .. }) = self.child.stream(wanted.stream) else { return Ok(()) };
        let bytes = entry.geometry().leaf_range(wanted.leaf).filter(|_| entry.has(wanted.leaf));
        let Some(bytes) = bytes else { return self.refuse(&[wanted], Refusal::NotHeld).await };
        let upload = self.server.limits.upload.clone();
        let len = bytes.end - bytes.start;
        let class = wanted.class;
        let paid = Box::pin(async move { upload.take(class, len).await });
        self.stage = Stage::Paying(Payment { parcel: Parcel { wanted, entry, bytes, slot }, paid });
        Ok(())
    }

    /// How long a leaf may wait to be sent: the child must hear of it before it takes this side to stand still.
    fn patience(&self) -> Duration {
        self.server.config.progress_timeout / 2
    }

    /// Sends a frame and those that wait behind it; false if that ended the connection.
    async fn frames(&mut self, first: Frame) -> io::Result<bool> {
        let mut batch = Vec::new();
        let mut next = Some(first);
        let mut goes_on = true;
        while let Some(frame) = next.take() {
            goes_on = !matches!(frame, Frame::Gone { stream: CONNECTION, .. });
            frame.encode(&mut batch);
            if goes_on && batch.len() < BATCH_LEN {
                next = self.frames.try_recv().ok();
            }
        }
        self.write(&batch, false).await?;
        Ok(goes_on)
    }

    /// Sends a leaf, from the page cache if it is there.
    async fn leaf(&mut self, parcel: Parcel) -> io::Result<()> {
        let Parcel { wanted, entry, bytes, slot } = parcel;
        // The stream may have ended while the leaf was paid for.
        let Some(Stream { place: turn, .. }) = self.child.stream(wanted.stream) else { return Ok(()) };
        let len = bytes.end - bytes.start;
        let place = match entry.place(wanted.leaf).map_err(io::Error::other) {
            Ok(Place::File(file, offset, pin)) => {
                warm(&file, offset, len).await.map(|()| Place::File(file, offset, pin))
            }
            place => place,
        };
        let place = match place {
            Ok(place) => place,
            Err(error) => {
                tracing::warn!(task = %entry.id(), leaf = wanted.leaf, %error, "a leaf cannot be sent");
                return self.refuse(&[wanted], Refusal::NotHeld).await;
            }
        };
        let mut header = Vec::new();
        let frame_len = u32::try_from(len).map_err(io::Error::other)?;
        Frame::Leaf { stream: wanted.stream, leaf: wanted.leaf, len: frame_len }.encode(&mut header);
        self.write(&header, true).await?;
        self.body(&place, len, slot).await?;
        self.server.metrics.sent.inc_by(len);
        if let Some(turn) = turn {
            turn.answered(wanted.leaf, true);
        }
        Ok(())
    }

    /// Sends a leaf's bytes. A child that does not take them loses its slot, and later its connection.
    async fn body(&mut self, place: &Place, len: u64, slot: Slot) -> io::Result<()> {
        let stream: &TcpStream = self.writer.as_ref();
        let mut slot = Some(slot);
        let mut sent = 0;
        while sent < len {
            let patience = if slot.is_some() { SLOT_PATIENCE } else { self.server.config.progress_timeout };
            match timeout(patience, part(stream, place, sent, len)).await {
                Ok(part) => sent += part?,
                Err(_) if slot.take().is_some() => {}
                Err(_) => return Err(no_progress(patience)),
            }
        }
        Ok(())
    }

    /// Refuses what has waited too long, so that the child can ask another parent.
    async fn refuse_expired(&mut self) -> io::Result<()> {
        let limit = Instant::now().checked_sub(self.patience());
        let Some(limit) = limit else { return Ok(()) };
        let mut expired = self.child.expire(limit);
        if let Stage::Paying(Payment { parcel, .. }) = &self.stage
            && parcel.wanted.since <= limit
        {
            expired.push(parcel.wanted);
            self.stage = Stage::Idle;
        }
        self.refuse(&expired, Refusal::Busy).await
    }

    async fn refuse(&mut self, leaves: &[Wanted], refusal: Refusal) -> io::Result<()> {
        let mut batch = Vec::new();
        for Wanted { stream, leaf, .. } in leaves {
            if let Some(place) = self.child.stream(*stream).and_then(|open| open.place) {
                place.answered(*leaf, false);
            }
            Frame::Refused { stream: *stream, leaves: *leaf..leaf + 1, refusal }.encode(&mut batch);
        }
        if refusal == Refusal::Busy {
            self.server.metrics.refused.inc_by(leaves.len() as u64);
        }
        self.write(&batch, false).await
    }

    async fn write(&mut self, bytes: &[u8], more: bool) -> io::Result<()> {
        send_all(self.writer.as_ref(), bytes, more, self.server.config.progress_timeout).await
    }
}

impl Stage {
    /// Queues for a slot in the most urgent class that waits.
    fn aim(&mut self, top: Option<Class>, admission: &Arc<Admission>) {
        let aimed = match self {
            Self::Idle => None,
            Self::Queued(wait) => Some(wait.class),
            Self::Paying(_) => return,
        };
        if aimed != top {
            *self = top.map_or(Self::Idle, |class| Self::Queued(admission.enter(class)));
        }
    }

    /// Since when the leaf waits that is being paid for.
    fn since(&self) -> Option<Instant> {
        match self {
            Self::Paying(payment) => Some(payment.parcel.wanted.since),
            _ => None,
        }
    }

    /// Waits for the slot or the upload limit. Can be dropped without loss.
    async fn advance(&mut self) -> Next {
        match self {
            Self::Idle => std::future::pending().await,
            Self::Queued(wait) => Next::Slot(wait.slot().await),
            Self::Paying(payment) => {
                payment.paid.as_mut().await;
                match std::mem::replace(self, Self::Idle) {
                    Self::Paying(payment) => Next::Leaf(payment.parcel),
                    _ => Next::Queued,
                }
            }
        }
    }
}

impl Payment {
    async fn finish(self) -> Parcel {
        self.paid.await;
        self.parcel
    }
}

/// Sends as much of a leaf as the connection takes at once, from its byte `from` on; returns how much that was.
async fn part(stream: &TcpStream, place: &Place, from: u64, len: u64) -> io::Result<u64> {
    match place {
        Place::File(file, offset, _pin) => send_file(stream, file, offset + from, len - from).await,
        Place::Memory(bytes) => {
            let rest = usize::try_from(from).ok().and_then(|from| bytes.get(from..)).unwrap_or_default();
            send_some(stream, rest, false).await
        }
    }
}

async fn passes(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}
