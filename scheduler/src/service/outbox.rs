//! What waits to be sent to one peer: bounded, so that a peer that does not read costs nothing for long.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use darter_proto::scheduler::SchedulerMessage;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::Instant;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{stopping, tickets::Issuer};

/// Most messages and bytes that may wait.
const MAX_MESSAGES: usize = 16 * 1024;
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// A peer that takes no message for so long while some wait does not read any more.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The actor's end.
#[derive(Debug)]
pub(crate) struct Outbox {
    queue: Arc<Mutex<Queue>>,
    ended: CancellationToken,
}

/// The stream's end.
#[derive(Debug)]
pub(crate) struct Outgoing {
    queue: Arc<Mutex<Queue>>,
    ended: CancellationToken,
    tickets: Arc<Issuer>,
}

#[derive(Debug)]
struct Queue {
    /// Who announced itself at the other end; empty before.
    host: Arc<str>,
    messages: VecDeque<SchedulerMessage>,
    bytes: usize,
    /// When a message was last taken, or the first one put in.
    moved: Instant,
    end: Option<End>,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum End {
    /// Still to be told to the peer.
    Because(Status),
    Told,
}

/// The peer does not read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stuck;

impl Outbox {
    pub(super) fn new(tickets: Arc<Issuer>) -> (Self, Outgoing) {
        let queue = Queue {
            host: Arc::default(),
            messages: VecDeque::new(),
            bytes: 0,
            moved: Instant::now(),
            end: None,
            waker: None,
        };
        let (queue, ended) = (Arc::new(Mutex::new(queue)), CancellationToken::new());
        (Self { queue: queue.clone(), ended: ended.clone() }, Outgoing { queue, ended, tickets })
    }

    /// The host at the other end announces itself; the first time counts.
    pub(super) fn announced(&self, host: &str) {
        let mut queue = self.queue.lock();
        if queue.host.is_empty() {
            queue.host = host.into();
        }
    }

    /// Cancelled when either side has ended the session.
    pub(super) fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Puts a message in, unless the peer has stopped reading.
    pub(super) fn send(&self, message: SchedulerMessage) -> Result<(), Stuck> {
        let mut queue = self.queue.lock();
        let now = Instant::now();
        if queue.messages.is_empty() {
            queue.moved = now;
        }
        queue.bytes += message.encoded_len();
        queue.messages.push_back(message);
        let full = queue.messages.len() > MAX_MESSAGES || queue.bytes > MAX_BYTES;
        if full || now - queue.moved > MAX_WAIT {
            return Err(Stuck);
        }
        queue.wake();
        Ok(())
    }

    /// Ends the stream with a status. What waits is sent before, but not to a peer that is stuck.
    pub(super) fn end(self, status: Status, stuck: bool) {
        let mut queue = self.queue.lock();
        if stuck {
            queue.messages.clear();
            queue.bytes = 0;
        }
        queue.end = Some(End::Because(status));
    }
}

impl Drop for Outbox {
    /// Nothing will be sent any more, so the stream ends; what ends the session otherwise is the service's own end.
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        queue.end.get_or_insert_with(|| End::Because(stopping()));
        queue.wake();
        self.ended.cancel();
    }
}

impl Queue {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn take(&mut self) -> Option<SchedulerMessage> {
        let message = self.messages.pop_front()?;
        self.bytes = self.bytes.saturating_sub(message.encoded_len());
        self.moved = Instant::now();
        Some(message)
    }
}

impl Stream for Outgoing {
    type Item = Result<SchedulerMessage, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.queue.lock();
        if let Some(mut message) = queue.take() {
            let host = queue.host.clone();
            drop(queue);
            // Here and not where it was put in: so the sessions' own tasks do the signing, and not the actor.
            self.tickets.stamp(&host, &mut message);
            return Poll::Ready(Some(Ok(message)));
        }
        match queue.end.take() {
            Some(end) => {
                queue.end = Some(End::Told);
                Poll::Ready(match end {
                    End::Because(status) => Some(Err(status)),
                    End::Told => None,
                })
            }
            None => {
                queue.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        // The connection is gone; whoever reads from it is to stop too.
        self.queue.lock().messages.clear();
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use darter_proto::scheduler::{TaskInfo, scheduler_message};
    use tokio::time::advance;
    use tokio_stream::StreamExt;

    use super::*;

    fn outbox() -> (Outbox, Outgoing) {
        Outbox::new(Arc::new(Issuer::new().unwrap()))
    }

    fn message(bytes: usize) -> SchedulerMessage {
        let info = TaskInfo { digests: Bytes::from(vec![0; bytes]), ..TaskInfo::default() };
        SchedulerMessage { message: Some(scheduler_message::Message::TaskInfo(info)) }
    }

    #[tokio::test]
    async fn what_waits_comes_before_the_end() {
        let (outbox, mut outgoing) = outbox();
        outbox.send(message(1)).unwrap();
        outbox.send(message(2)).unwrap();
        outbox.end(Status::unavailable("over"), false);
        assert_eq!(outgoing.next().await.unwrap().unwrap(), message(1));
        assert_eq!(outgoing.next().await.unwrap().unwrap(), message(2));
        assert_eq!(outgoing.next().await.unwrap().unwrap_err().message(), "over");
        assert!(outgoing.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_does_not_read_is_stuck() {
        let fill = |bytes: usize| {
            let (outbox, outgoing) = outbox();
            let sent = (0..20_000).take_while(|_| outbox.send(message(bytes)).is_ok()).count();
            drop(outgoing);
            sent
        };
        assert_eq!(fill(1), MAX_MESSAGES);
        assert_eq!(fill(MAX_BYTES / 10), 9);
        let (outbox, mut outgoing) = outbox();
        for _ in 0..3 {
            advance(MAX_WAIT * 2).await;
            outbox.send(message(1)).unwrap();
            outbox.send(message(1)).unwrap();
            outgoing.next().await.unwrap().unwrap();
            outgoing.next().await.unwrap().unwrap();
        }
        outbox.send(message(1)).unwrap();
        advance(MAX_WAIT * 2).await;
        assert_eq!(outbox.send(message(1)), Err(Stuck));
        outbox.end(Status::resource_exhausted("stuck"), true);
        assert!(outgoing.next().await.unwrap().is_err(), "nothing is kept for it");
    }
}
