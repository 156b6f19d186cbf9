//! The sending side of a connection to a parent, and the watch over it.

use std::time::Duration;

use tokio::net::TcpStream;

use super::link::{Broken, Link, Patience};
use crate::{
    Class, LEAF_LEN,
    limits::Bucket,
    transfer::{event::Refusal, socket::send_all},
};

/// Sends what the subscriptions have to say; ends when that fails.
pub(super) async fn transmit(link: &Link, stream: &TcpStream, patience: Duration) -> Broken {
    loop {
        let batch = link.next_batch();
        if batch.bytes.is_empty() && batch.excess.is_empty() {
            link.outgoing.notified().await;
            continue;
        }
        for (outlet, leaves) in batch.excess {
            // One that listens no more is noticed when it unsubscribes.
            outlet.refuse(leaves, Refusal::Busy).await;
        }
        if let Err(error) = send_all(stream, &batch.bytes, false, patience).await {
            return Broken(format!("sending failed: {error}"));
        }
        link.said();
    }
}

/// Requests background leaves as fast as the prefetch limit allows. It is paid before the request, since a limit on what
/// arrives would also hold up the more urgent leaves behind it; the difference to the true length is settled on arrival.
pub(super) async fn pace(link: &Link, prefetch: &Bucket) -> Broken {
    loop {
        if link.holds_back() {
            prefetch.take(Class::Background, u64::from(LEAF_LEN)).await;
            link.release();
        } else {
            link.background.notified().await;
        }
    }
}

/// Ends when the parent does not keep up its side.
pub(super) async fn watch(link: &Link, patience: Patience) -> Broken {
    let shortest = patience.progress.min(patience.ping).min(patience.unused).min(patience.ask);
    let mut ticks = tokio::time::interval((shortest / 4).max(Duration::from_millis(10)));
    loop {
        ticks.tick().await;
        if let Err(broken) = link.check(&patience) {
            return broken;
        }
    }
}
