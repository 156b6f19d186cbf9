//! One connection to a parent: what the subscriptions on it and the tasks that drive it share.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    ops::Range,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};

use super::asked::Asked;
use crate::{
    Class, TaskId,
    transfer::{
        event::{ParentEvent, ParentEventKind, ParentKey, Refusal},
        frame::Frame,
    },
};

/// Bytes of frames that are written at once.
const BATCH_LEN: usize = 64 * 1024;

/// One connection to a parent.
pub(super) struct Link {
    state: Mutex<State>,
    /// Something is to be sent.
    pub(super) outgoing: Notify,
    /// Background leaves are to be requested.
    pub(super) background: Notify,
}

struct State {
    /// Why the connection ended.
    ended: Option<String>,
    last_stream: u32,
    streams: HashMap<u32, Stream>,
    /// Frames to be sent, in order.
    outbox: VecDeque<Frame>,
    /// Background leaves that the prefetch limit holds back.
    held_back: VecDeque<(u32, Range<u32>)>,
    /// Leaves that were asked for beyond what may be waited for.
    excess: VecDeque<(u32, Range<u32>)>,
    pulse: Pulse,
}

struct Stream {
    events: Outlet,
    asked: Asked,
    /// Unsubscribed; the parent's confirmation is due.
    closing: bool,
}

/// Where a subscription's events go.
#[derive(Debug, Clone)]
pub(super) struct Outlet {
    parent: ParentKey,
    events: mpsc::Sender<ParentEvent>,
}

/// When something last happened.
#[derive(Debug, Clone, Copy)]
struct Pulse {
    heard: Instant,
    said: Instant,
    /// A byte of a leaf or an answer came, or the first leaf was requested.
    progress: Instant,
    /// When the parent was asked whether it lives; `None` once it has shown that.
    asked: Option<Instant>,
    /// Since when no subscription is open.
    unused: Option<Instant>,
    /// This side is what keeps the parent waiting.
    held: bool,
}

/// How long a connection may do nothing of several kinds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    pub(super) progress: Duration,
    pub(super) silence: Duration,
    pub(super) ping: Duration,
    pub(super) unused: Duration,
    /// When a parent that owes leaves is asked whether it lives, and how long its answer may take.
    pub(super) ask: Duration,
    pub(super) frozen: Duration,
}

/// What to send next.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Leaves to refuse to tasks on the parent's behalf.
    pub(super) excess: Vec<(Outlet, Range<u32>)>,
}

/// Why a connection is given up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Broken(pub(super) String);

impl Link {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let pulse =
            Pulse { heard: now, said: now, progress: now, asked: None, unused: Some(now), held: false };
        let state = State {
            ended: None,
            last_stream: 0,
            streams: HashMap::new(),
            outbox: VecDeque::new(),
            held_back: VecDeque::new(),
            excess: VecDeque::new(),
            pulse,
        };
        Self { state: Mutex::new(state), outgoing: Notify::new(), background: Notify::new() }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    // ---- for subscriptions ----

    /// Opens a stream; its number is never used again on this connection.
    pub(super) fn open(&self, task: &TaskId, ticket: Bytes, outlet: Outlet) -> Result<u32, Broken> {
        let mut state = self.state.lock();
        if let Some(reason) = &state.ended {
            return Err(Broken(reason.clone()));
        }
        let spent = || Broken("all stream numbers of the connection are used".into());
        let stream = state.last_stream.checked_add(1).ok_or_else(spent)?;
        state.last_stream = stream;
        state.pulse.unused = None;
        state.streams.insert(stream, Stream { events: outlet, asked: Asked::default(), closing: false });
        state.outbox.push_back(Frame::Subscribe { stream, task: task.clone(), ticket });
        self.outgoing.notify_one();
        Ok(stream)
    }

    pub(super) fn request(&self, stream: u32, leaves: Range<u32>, class: Class) {
        let mut state = self.state.lock();
        let Some(open) = state.streams.get_mut(&stream) else { return };
        let call = open.asked.want(leaves, class, Instant::now());
        state.excess.extend(call.excess.into_iter().map(|leaves| (stream, leaves)));
        for leaves in call.send {
            match class {
                Class::Background => state.held_back.push_back((stream, leaves)),
                _ => state.push_request(stream, leaves, class),
            }
        }
        self.outgoing.notify_one();
        self.background.notify_one();
    }

    pub(super) fn cancel(&self, stream: u32, leaves: Range<u32>) {
        let mut state = self.state.lock();
        let Some(open) = state.streams.get_mut(&stream) else { return };
        let sent = open.asked.cancel(leaves);
        state.outbox.extend(sent.into_iter().map(|leaves| Frame::Cancel { stream, leaves }));
        self.outgoing.notify_one();
    }

    pub(super) fn unsubscribe(&self, stream: u32) {
        let mut state = self.state.lock();
        let Some(open) = state.streams.get_mut(&stream).filter(|open| !open.closing) else { return };
        open.closing = true;
        open.asked.cancel(0..u32::MAX);
        state.held_back.retain(|(other, _)| *other != stream);
        state.excess.retain(|(other, _)| *other != stream);
        state.outbox.push_back(Frame::Unsubscribe { stream });
        self.outgoing.notify_one();
    }

    // ---- for the sending side ----

    /// Takes what is to be sent next, a limited part of it.
    pub(super) fn next_batch(&self) -> Batch {
        let mut state = self.state.lock();
        let mut batch = Batch::default();
        while batch.bytes.len() < BATCH_LEN
            && let Some(frame) = state.outbox.pop_front()
        {
            state.encode(frame, &mut batch.bytes);
        }
        let excess = std::mem::take(&mut state.excess);
        let outlets = excess.into_iter().filter_map(|(stream, leaves)| Some((state.outlet(stream)?, leaves)));
        batch.excess = outlets.collect();
        batch
    }

    /// Whether background leaves wait for the prefetch limit.
    pub(super) fn holds_back(&self) -> bool {
        let mut state = self.state.lock();
        state.drop_unwanted();
        !state.held_back.is_empty()
    }

    /// Lets one background leaf go.
    pub(super) fn release(&self) {
        let mut state = self.state.lock();
        state.drop_unwanted();
        let Some((stream, leaves)) = state.held_back.front_mut() else { return };
        let (stream, leaf) = (*stream, leaves.start);
        leaves.start += 1;
        state.push_request(stream, leaf..leaf + 1, Class::Background);
        self.outgoing.notify_one();
    }

    /// Something was sent.
    pub(super) fn said(&self) {
        self.state.lock().pulse.said = Instant::now();
    }

    // ---- for the receiving side ----

    /// A frame came.
    pub(super) fn heard(&self) {
        let pulse = &mut self.state.lock().pulse;
        (pulse.heard, pulse.asked) = (Instant::now(), None);
    }

    /// A byte of a leaf came.
    pub(super) fn progressed(&self) {
        let now = Instant::now();
        let pulse = &mut self.state.lock().pulse;
        (pulse.heard, pulse.progress, pulse.asked) = (now, now, None);
    }

    /// Waits for something on this side, a limit or a reader of events; the parent is not blamed for that time.
    pub(super) async fn holding<T>(&self, wait: impl Future<Output = T>) -> T {
        self.state.lock().pulse.held = true;
        let result = wait.await;
        let now = Instant::now();
        let pulse = &mut self.state.lock().pulse;
        (pulse.heard, pulse.progress, pulse.asked, pulse.held) = (now, now, None, false);
        result
    }

    /// Answers a ping.
    pub(super) fn pong(&self) {
        let mut state = self.state.lock();
        if !state.outbox.contains(&Frame::Pong) {
            state.outbox.push_back(Frame::Pong);
        }
        self.outgoing.notify_one();
    }

    /// Where news of a stream go; `None` if nobody wants them any more.
    pub(super) fn outlet(&self, stream: u32) -> Result<Option<Outlet>, Broken> {
        let state = self.state.lock();
        state.check_opened(stream)?;
        Ok(state.outlet(stream))
    }

    /// Whether a leaf that begins to arrive was asked for, and with which class if it is wanted still.
    pub(super) fn expects(&self, stream: u32, leaf: u32) -> Result<Option<Class>, Broken> {
        let state = self.state.lock();
        let open = state.streams.get(&stream).ok_or_else(|| not_asked(leaf))?;
        open.asked.expects(leaf).map_err(|_| not_asked(leaf))
    }

    /// A leaf has arrived. Where it goes and how long it was waited for; `None` if it is not wanted any more.
    pub(super) fn arrived(&self, stream: u32, leaf: u32) -> Option<(Outlet, Duration)> {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.pulse.progress = now;
        let open = state.streams.get_mut(&stream)?;
        let waited = open.asked.arrived(leaf, now)?;
        Some((open.events.clone(), waited))
    }

    /// The parent refused leaves; returns those that the task must hear of.
    pub(super) fn refused(&self, stream: u32, leaves: Range<u32>) -> Result<Vec<u32>, Broken> {
        let mut state = self.state.lock();
        state.check_opened(stream)?;
        state.pulse.progress = Instant::now();
        let mut told = Vec::new();
        // It may have been under way when the stream ended.
        let Some(open) = state.streams.get_mut(&stream) else { return Ok(told) };
        for leaf in leaves {
            if open.asked.refused(leaf).map_err(|_| not_asked(leaf))? {
                told.push(leaf);
            }
        }
        Ok(told)
    }

    /// The parent ended a stream; returns who must hear of it.
    pub(super) fn gone(&self, stream: u32) -> Option<Outlet> {
        let mut state = self.state.lock();
        let closed = state.streams.remove(&stream)?;
        if state.streams.is_empty() {
            state.pulse.unused = Some(Instant::now());
        }
        (!closed.closing).then_some(closed.events)
    }

    // ---- for the connection as a whole ----

    /// Whether the connection is alive; sends a ping if it should show that.
    pub(super) fn check(&self, patience: &Patience) -> Result<(), Broken> {
        let now = Instant::now();
        let mut state = self.state.lock();
        let Pulse { heard, said, progress, asked, unused, held } = state.pulse;
        let over = |since: Instant, limit: Duration| now.duration_since(since) > limit;
        let due: usize = state.streams.values().map(|open| open.asked.due()).sum();
        if !held && due > 0 && over(progress, patience.progress) {
            let seconds = patience.progress;
            return Err(Broken(format!("stalled: {due} leaves requested, and nothing came for {seconds:?}")));
        }
        if !held && over(heard, patience.silence) {
            return Err(Broken(format!("silent for {:?}", patience.silence)));
        }
        if unused.is_some_and(|since| over(since, patience.unused)) {
            return Err(Broken("unused".into()));
        }
        if !held && due > 0 && asked.is_some_and(|since| over(since, patience.frozen)) {
            let seconds = patience.ask + patience.frozen;
            return Err(Broken(format!(
                "stalled: {due} leaves requested, and no sign of life for {seconds:?}"
            )));
        }
        let doubtful =
            !held && due > 0 && asked.is_none() && over(heard, patience.ask) && over(progress, patience.ask);
        if doubtful {
            state.pulse.asked = Some(now);
        }
        if doubtful || (over(said, patience.ping) && state.outbox.is_empty()) {
            state.outbox.push_back(Frame::Ping);
            self.outgoing.notify_one();
        }
        Ok(())
    }

    /// Ends the connection and tells everybody.
    pub(super) async fn end(&self, reason: &str, patience: Duration) {
        let streams = {
            let mut state = self.state.lock();
            state.ended = Some(reason.to_owned());
            state.outbox.clear();
            state.held_back.clear();
            state.excess.clear();
            std::mem::take(&mut state.streams)
        };
        let open = streams.into_values().filter(|open| !open.closing);
        let goodbyes =
            open.map(|open| async move { open.events.tell(ParentEventKind::Gone(reason.into())).await });
        // Whoever does not read its events within that time will find the channel closed.
        timeout(patience, join_all(goodbyes)).await.ok();
    }
}

impl State {
    fn check_opened(&self, stream: u32) -> Result<(), Broken> {
        if stream <= self.last_stream {
            return Ok(());
        }
        Err(Broken(format!("the parent speaks of stream {stream}, which was never opened")))
    }

    fn outlet(&self, stream: u32) -> Option<Outlet> {
        self.streams.get(&stream).filter(|open| !open.closing).map(|open| open.events.clone())
    }

    fn push_request(&mut self, stream: u32, leaves: Range<u32>, class: Class) {
        if let Some(Frame::Request { stream: s, leaves: before, class: c }) = self.outbox.back_mut()
            && (*s, *c, before.end) == (stream, class, leaves.start)
        {
            before.end = leaves.end;
            return;
        }
        self.outbox.push_back(Frame::Request { stream, leaves, class });
    }

    /// Encodes a frame; of a request only what is wanted still.
    fn encode(&mut self, frame: Frame, out: &mut Vec<u8>) {
        let Frame::Request { stream, leaves, class } = frame else { return frame.encode(out) };
        let idle = self.streams.values().all(|open| open.asked.due() == 0);
        let Some(open) = self.streams.get_mut(&stream) else { return };
        for leaves in open.asked.send(leaves, class) {
            Frame::Request { stream, leaves, class }.encode(out);
            if idle {
                self.pulse.progress = Instant::now();
            }
        }
    }

    /// Drops what was held back and is not wanted any more from the front of the queue.
    fn drop_unwanted(&mut self) {
        while let Some((stream, leaves)) = self.held_back.front_mut() {
            let asked = self.streams.get(stream).map(|open| &open.asked);
            let unsent = |leaf: &u32| asked.is_some_and(|asked| asked.is_unsent(*leaf, Class::Background));
            leaves.start = leaves.clone().find(unsent).unwrap_or(leaves.end);
            if leaves.start < leaves.end {
                return;
            }
            self.held_back.pop_front();
        }
    }
}

impl Outlet {
    pub(super) fn new(parent: ParentKey, events: mpsc::Sender<ParentEvent>) -> Self {
        Self { parent, events }
    }

    /// Hands an event over, and waits if the task is behind; false if it does not listen any more.
    pub(super) async fn tell(&self, kind: ParentEventKind) -> bool {
        self.events.send(ParentEvent { parent: self.parent, kind }).await.is_ok()
    }

    /// Tells the task that leaves do not come.
    pub(super) async fn refuse(&self, leaves: Range<u32>, reason: Refusal) -> bool {
        self.tell(ParentEventKind::Refused { leaves, reason }).await
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        f.debug_struct("Link").field("streams", &state.streams.len()).field("ended", &state.ended).finish()
    }
}

fn not_asked(leaf: u32) -> Broken {
    Broken(format!("the parent sent or refused leaf {leaf}, which was not asked of it"))
}
