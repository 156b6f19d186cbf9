//! What a child asks.

use std::{collections::HashMap, io, ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::{
    io::BufReader,
    net::tcp::OwnedReadHalf,
    time::{Instant, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    Server,
    announce::announce,
    child::{Child, Stream},
    queue::Pushed,
};
use crate::{
    Class, TaskId,
    transfer::{
        SILENCE,
        codec::{CodecError, frame_begins, read_frame},
        event::Refusal,
        frame::{CONNECTION, Frame, FrameError},
    },
};

/// Most subscriptions of one connection.
const MAX_STREAMS: usize = 1024;

/// Reads a child's frames and does what they ask.
pub(super) struct Listener {
    server: Arc<Server>,
    child: Arc<Child>,
    reader: BufReader<OwnedReadHalf>,
    last_stream: u32,
    /// One for each subscription.
    announcers: HashMap<u32, AbortOnDropHandle<()>>,
    /// Since when the child has no subscription.
    unused: Instant,
}

impl Listener {
    pub(super) fn new(server: Arc<Server>, child: Arc<Child>, reader: BufReader<OwnedReadHalf>) -> Self {
        Self { server, child, reader, last_stream: 0, announcers: HashMap::new(), unused: Instant::now() }
    }

    /// Runs until the child leaves. A child that breaks the protocol, or does nothing, is told why it is dropped; the
    /// sending side then ends the connection.
    pub(super) async fn run(mut self) -> Result<(), CodecError> {
        loop {
            match self.step().await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(CodecError::Io(error)) if error.kind() != io::ErrorKind::TimedOut => {
                    return Err(error.into());
                }
                Err(error) => {
                    self.child.tell(Frame::Gone { stream: CONNECTION, reason: error.to_string() }).await;
                    return std::future::pending().await;
                }
            }
        }
    }

    /// Reads one frame and does what it asks; false once the child has left.
    async fn step(&mut self) -> Result<bool, CodecError> {
        let begins = timeout(SILENCE, frame_begins(&mut self.reader)).await;
        if !begins.map_err(|_| timed_out("nothing was heard of the child"))?? {
            return Ok(false);
        }
        let patience = self.server.config.progress_timeout;
        let frame = timeout(patience, read_frame(&mut self.reader)).await;
        self.handle(frame.map_err(|_| timed_out("a frame did not end in time"))??).await?;
        if self.child.streams() > 0 {
            self.unused = Instant::now();
        } else if self.unused.elapsed() > self.server.config.idle_timeout + SILENCE {
            return Err(timed_out("the connection is not used"));
        }
        Ok(true)
    }

    async fn handle(&mut self, frame: Frame) -> Result<(), CodecError> {
        match frame {
            Frame::Subscribe { stream, task, ticket } => self.subscribe(stream, task, ticket).await?,
            Frame::Request { stream, leaves, class } => {
                self.check_known(stream)?;
                self.request(stream, leaves, class).await;
            }
            Frame::Cancel { stream, leaves } => {
                self.check_known(stream)?;
                let cancelled = self.child.cancel(stream, &leaves);
                if let Some(place) = self.child.stream(stream).and_then(|open| open.place) {
                    cancelled.iter().for_each(|leaf| place.answered(*leaf, false));
                }
                self.refuse(stream, cancelled.into_iter().map(|leaf| (leaf, Refusal::Cancelled)).collect())
                    .await;
            }
            Frame::Unsubscribe { stream } => {
                self.check_known(stream)?;
                self.announcers.remove(&stream);
                self.child.close(stream, "unsubscribed").await;
            }
            Frame::Ping => self.child.tell(Frame::Pong).await,
            Frame::Pong => {}
            Frame::Have { .. }
            | Frame::Leaf { .. }
            | Frame::Refused { .. }
            | Frame::Gone { .. }
            | Frame::Denied { .. } => {
                return Err(FrameError::Invalid("a child speaks as a parent does").into());
            }
        }
        Ok(())
    }

    async fn subscribe(&mut self, stream: u32, task: TaskId, ticket: Bytes) -> Result<(), CodecError> {
        if stream <= self.last_stream {
            return Err(FrameError::Invalid("a stream number is used again").into());
        }
        self.last_stream = stream;
        if self.child.streams() >= MAX_STREAMS {
            let reason = "too many subscriptions on one connection".into();
            self.child.tell(Frame::Gone { stream, reason }).await;
            return Ok(());
        }
        // Known before the next frame is read, which may be a request for its leaves.
        let admitted = self.server.keys.check(&self.child.host, &task, &ticket).is_ok();
        let entry = admitted.then(|| self.server.store.get(&task)).flatten();
        self.child.open(stream, entry.map(|entry| Stream::of(&self.server, &self.child, entry)));
        self.announcers.retain(|_, announcer| !announcer.is_finished());
        let announcer = tokio::spawn(announce(self.server.clone(), self.child.clone(), stream, task, ticket));
        self.announcers.insert(stream, AbortOnDropHandle::new(announcer));
        Ok(())
    }

    async fn request(&self, stream: u32, leaves: Range<u32>, class: Class) {
        let Some(open) = self.child.stream(stream) else {
            // The stream may have ended while the request was under way; then the child was told so.
            if self.child.is_open(stream) {
                self.refuse(stream, leaves.map(|leaf| (leaf, Refusal::NotHeld)).collect()).await;
            }
            return;
        };
        let refused = leaves.filter_map(|leaf| {
            let has = open.entry.has(leaf);
            if let Some(place) = open.place.as_ref().filter(|_| has) {
                place.asked(leaf);
            }
            let refusal = match has.then(|| self.child.want(stream, leaf, class)) {
                Some(Pushed::Queued) => return None,
                Some(Pushed::Again) => Refusal::Cancelled,
                Some(Pushed::Full) => Refusal::Busy,
                None => Refusal::NotHeld,
            };
            Some((leaf, refusal))
        });
        self.refuse(stream, refused.collect()).await;
    }

    /// Refuses leaves, in one frame those that follow each other.
    async fn refuse(&self, stream: u32, refused: Vec<(u32, Refusal)>) {
        let runs = refused.chunk_by(|(leaf, refusal), (next, other)| leaf + 1 == *next && refusal == other);
        for run in runs {
            if let [(first, refusal), ..] = run {
                let leaves = *first..first.saturating_add(run.len() as u32);
                self.child.tell(Frame::Refused { stream, leaves, refusal: *refusal }).await;
            }
        }
    }

    fn check_known(&self, stream: u32) -> Result<(), CodecError> {
        if stream > self.last_stream {
            return Err(FrameError::Invalid("a stream was not opened").into());
        }
        Ok(())
    }
}

fn timed_out(what: &'static str) -> CodecError {
    io::Error::new(io::ErrorKind::TimedOut, what).into()
}
