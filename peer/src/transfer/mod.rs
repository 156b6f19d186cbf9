//! Moves leaves between peers, over framed TCP.
//!
//! A child has one connection to each of its parents, shared by all tasks ([`Pool`]); a parent serves what its store
//! holds ([`Server`]). A leaf that a parent has just received is announced and sent on at once, while the rest of its
//! task still arrives. Leaves are not verified here: whoever receives them checks their digests.
//!
//! # Wire format, version 2
//!
//! All numbers are little-endian. The child connects and sends its hello, the parent answers with its own:
//!
//! | bytes | hello |
//! |---|---|
//! | 4 | `DRTP` |
//! | 2 | version: 2 |
//! | 2 | length of the host id: 1 to 128 |
//! | … | host id, printable ASCII, without `@` |
//!
//! A host that knows where it stands adds `@` and three hexadecimal numbers with dots between them: hashes of its region,
//! zone and rack, 0 where it does not know. Whoever does not know of this takes all of it for the host id, which is only
//! shown to people.
//!
//! Then both send frames. Each has a header of 16 bytes: kind (1 byte), detail (1), zero (2), stream (4), A (4), B (4);
//! fields that a kind does not use are 0. The child chooses stream numbers: from 1 upwards, each larger than the last.
//! Stream 0 is the connection itself.
//!
//! | kind | from | detail | A | B | follows |
//! |---|---|---|---|---|---|
//! | 1 Subscribe | child | | ticket's length: 0 to 256 | length: 1 to 160 | task id, ticket |
//! | 2 Have | parent | | | ranges: 0 to 2048 | each 8 bytes: first leaf, leaf after the last |
//! | 3 Request | child | class | first leaf | leaves: 1 to 4096 | |
//! | 4 Leaf | parent | | leaf | length: 1 to 16 Mi | the leaf's bytes |
//! | 5 Refused | parent | why | first leaf | leaves: 1 to 4096 | |
//! | 6 Cancel | child | | first leaf | leaves: 1 to 4096 | |
//! | 7 Unsubscribe | child | | | | |
//! | 8 Gone | parent | | | length: 0 to 512 | reason, UTF-8 |
//! | 9 Ping | both | | | | |
//! | 10 Pong | both | | | | |
//! | 11 Denied | parent | | | length: 0 to 512 | reason, UTF-8 |
//!
//! Classes: 0 demand, 1 stream, 2 profile, 3 background. Why: 1 busy, 2 not held, 3 cancelled or asked again.
//!
//! - A Subscribe shows the ticket that a scheduler gave this host for the task ([`darter_proto::ticket`]). Without a good
//!   one it is answered by Denied, which ends the stream as Gone does; what the parent holds is not told. Once the stream
//!   is open the ticket is not asked for again.
//! - A Subscribe is otherwise answered by Have with what the parent holds, or by Gone. Further Haves add to the first. The ranges
//!   of one Have are not empty, ascend, and do not touch.
//! - Each leaf of each Request is answered exactly once, by Leaf or Refused, in any order: the most urgent class is sent
//!   first. A Request for a leaf that is still queued replaces the one before, which is answered as cancelled. Cancel has
//!   no answer of its own; it makes the parent refuse what it has not begun to send.
//! - Gone ends a stream: no leaf of it follows, nor further answers. Unsubscribe is answered by Gone, unless one is under
//!   way already. Other frames of a stream that has ended may still be under way from either side, and are ignored. Gone
//!   on stream 0 ends the connection and says why.
//! - Ping is answered by Pong. A child that has sent nothing for 15 s sends a Ping; either side gives up a connection on
//!   which it has heard nothing for 60 s.
//! - Whatever else arrives is a broken protocol, and ends the connection.

mod client;
mod codec;
mod config;
mod event;
mod frame;
mod metrics;
mod ranges;
mod server;
mod socket;
mod sources;
#[cfg(test)]
mod tests;
mod tickets;

use std::time::Duration;

pub(crate) use self::socket::warm;
pub use self::{
    client::{Pool, Subscription},
    config::{Relay, TransferConfig},
    event::{ParentEvent, ParentEventKind, ParentKey, Refusal, TransferError},
    metrics::TransferMetrics,
    server::Server,
    sources::{Reading, Sources},
    tickets::{KeyInUse, Keys},
};

/// A child that has sent nothing for this long shows that it lives.
const PING_AFTER: Duration = Duration::from_secs(15);
/// A parent that owes leaves and has sent nothing for this long is asked whether it lives.
const ASK_AFTER: Duration = Duration::from_millis(500);
/// How long it may take to say so: it answers between two leaves, however many children wait for theirs.
const FROZEN_AFTER: Duration = Duration::from_secs(1);
/// Either side gives up a connection on which it has heard nothing for this long.
const SILENCE: Duration = Duration::from_secs(60);
