//! Parents that do not keep to the protocol: the child closes the connection and says why.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::transfer::{
    codec::{encode_hello, read_frame, read_hello},
    frame::Frame,
};

/// A listener that plays a parent by hand.
struct Fake {
    listener: TcpListener,
    address: SocketAddr,
}

impl Fake {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { address: listener.local_addr().unwrap(), listener }
    }

    async fn accept(&self) -> TcpStream {
        timeout(GUARD, self.listener.accept()).await.unwrap().unwrap().0
    }

    /// Answers a child properly until it has subscribed and asked for leaf 0.
    async fn asked(&self) -> TcpStream {
        let mut stream = self.accept().await;
        read_hello(&mut stream).await.unwrap();
        stream.write_all(&encode_hello("fake", crate::Site::default())).await.unwrap();
        let subscribe = Frame::Subscribe { stream: 1, task: task(1), ticket: ticket("child", 1) };
        assert_eq!(read_frame(&mut stream).await.unwrap(), subscribe);
        send(&mut stream, Frame::Have { stream: 1, leaves: vec![0..9] }).await;
        let asked = Frame::Request { stream: 1, leaves: 0..1, class: Class::Stream };
        assert_eq!(read_frame(&mut stream).await.unwrap(), asked);
        stream
    }
}

async fn send(stream: &mut TcpStream, frame: Frame) {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes).await.unwrap();
}

fn impatient() -> TransferConfig {
    TransferConfig { progress_timeout: Duration::from_millis(300), ..TransferConfig::default() }
}

/// Why a child that asks for leaf 0 gives up a parent that behaves like `parent`.
async fn given_up(fake: &Fake, mut child: Child, parent: impl Future<Output = ()>) -> String {
    let reason = async {
        let subscription = child.subscribe(fake.address, 1).await;
        subscription.request(0..1, Class::Stream);
        child.gone().await
    };
    tokio::join!(parent, reason).1
}

/// Waits until the child closes the connection.
async fn closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    timeout(GUARD, stream.read_to_end(&mut rest)).await.unwrap().ok();
}

/// What a child makes of a parent that, asked for leaf 0, sends `answer` and then nothing more.
async fn reaction(answer: &[u8]) -> String {
    let fake = Fake::start().await;
    let parent = async {
        let mut stream = fake.asked().await;
        stream.write_all(answer).await.unwrap();
        closed(&mut stream).await;
    };
    given_up(&fake, Child::with(&impatient()), parent).await
}

fn encoded(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

#[tokio::test]
async fn a_broken_protocol_ends_the_connection() {
    let mut oversized = encoded(&Frame::Leaf { stream: 1, leaf: 0, len: 1 });
    oversized[12..].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut empty = oversized.clone();
    empty[12..].fill(0);
    for (answer, says) in [
        (oversized, "a leaf of 4294967295 where 16777216 is the most"),
        (empty, "a leaf is empty"),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), "no frame kind 72"),
        (encoded(&Frame::Leaf { stream: 1, leaf: 1, len: 5 }), "leaf 1, which was not asked"),
        (encoded(&Frame::Leaf { stream: 2, leaf: 0, len: 5 }), "leaf 0, which was not asked"),
        (
            encoded(&Frame::Refused { stream: 1, leaves: 0..2, refusal: Refusal::Busy }),
            "leaf 1, which was not asked",
        ),
        (encoded(&Frame::Have { stream: 9, leaves: vec![] }), "stream 9, which was never opened"),
        (encoded(&Frame::Request { stream: 1, leaves: 0..1, class: Class::Demand }), "speaks as a child"),
        (encoded(&Frame::Gone { stream: 0, reason: "no more".into() }), "no more"),
    ] {
        let reason = reaction(&answer).await;
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
    }
}

#[tokio::test]
async fn a_parent_that_stands_still_is_given_up() {
    let mut half = encoded(&Frame::Leaf { stream: 1, leaf: 0, len: 1000 });
    half.extend([0; 999]);
    for answer in [
        vec![],
        encoded(&Frame::Leaf { stream: 1, leaf: 0, len: 1000 })[..7].to_vec(),
        encoded(&Frame::Pong),
        half,
    ] {
        let reason = reaction(&answer).await;
        assert!(reason.contains("stalled: 1 leaves"), "{reason}");
    }
}

#[tokio::test]
async fn a_frozen_parent_is_given_up_long_before_a_slow_one() {
    let fake = Fake::start().await;
    let parent = async {
        let mut stream = fake.asked().await;
        // It lives, but the leaf takes a while.
        assert_eq!(read_frame(&mut stream).await.unwrap(), Frame::Ping);
        send(&mut stream, Frame::Pong).await;
        assert_eq!(read_frame(&mut stream).await.unwrap(), Frame::Ping);
        closed(&mut stream).await;
    };
    // With the usual patience for one that answers.
    let reason = given_up(&fake, Child::new(), parent).await;
    assert!(reason.contains("no sign of life"), "{reason}");
}

#[tokio::test]
async fn a_leaf_that_breaks_off_is_no_leaf() {
    let fake = Fake::start().await;
    let parent = async {
        let mut stream = fake.asked().await;
        send(&mut stream, Frame::Leaf { stream: 1, leaf: 0, len: 1000 }).await;
        stream.write_all(&[0; 999]).await.unwrap();
    };
    let reason = given_up(&fake, Child::new(), parent).await;
    assert!(reason.contains("within a leaf"), "{reason}");
}

#[tokio::test]
async fn a_second_answer_is_noticed() {
    let mut twice = encoded(&Frame::Leaf { stream: 1, leaf: 0, len: 1 });
    twice.push(7);
    twice.extend(twice.clone());
    let (fake, mut child) = (Fake::start().await, Child::new());
    let parent = async { fake.asked().await.write_all(&twice).await.unwrap() };
    let outcome = async {
        let subscription = child.subscribe(fake.address, 1).await;
        subscription.request(0..1, Class::Stream);
        assert_eq!(child.have().await, [0..9]);
        assert_eq!(child.leaf().await.1, [7][..]);
        child.gone().await
    };
    let ((), reason) = tokio::join!(parent, outcome);
    assert!(reason.contains("not asked"), "{reason}");
}

#[tokio::test]
async fn what_is_no_parent_fails_the_handshake() {
    let config = TransferConfig { dial_timeout: Duration::from_millis(200), ..TransferConfig::default() };
    let (fake, child) = (Fake::start().await, Child::with(&config));
    let subscribe = || child.try_subscribe(fake.address, 1);

    let mut newer = encode_hello("fake", crate::Site::default());
    newer[4] = 3;
    for (hello, says) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "no Darter peer"),
        (&newer, "speaks version 3"),
        (&b""[..], "may serve as many children"),
    ] {
        let (subscribed, ()) = tokio::join!(subscribe(), async {
            let mut stream = fake.accept().await;
            read_hello(&mut stream).await.unwrap();
            stream.write_all(hello).await.unwrap();
        });
        let error = subscribed.unwrap_err();
        assert!(
            matches!(error, TransferError::Handshake { .. }) && error.to_string().contains(says),
            "{error}"
        );
    }

    // Accepts by the kernel only: ten at once wait for one dial.
    let waiting = futures_util::future::join_all((0..10).map(|_| subscribe())).await;
    assert!(waiting.iter().all(|result| matches!(result, Err(TransferError::Timeout { .. }))), "{waiting:?}");
}
