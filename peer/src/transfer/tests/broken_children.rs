//! Children that do not keep to the protocol: the parent tells them and drops them, and serves the others.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;
use crate::transfer::{
    codec::{CodecError, encode_hello, read_frame, read_hello},
    frame::Frame,
};

const LEAF: u64 = LEAF_LEN as u64;

async fn connect(host: &Host) -> TcpStream {
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    stream.write_all(&encode_hello("raw", crate::Site::default())).await.unwrap();
    timeout(GUARD, read_hello(&mut stream)).await.unwrap().unwrap();
    stream
}

fn encoded(frames: &[Frame]) -> Vec<u8> {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    bytes
}

async fn read(stream: &mut TcpStream) -> Result<Frame, CodecError> {
    timeout(GUARD, read_frame(stream)).await.unwrap()
}

/// Reads to the end of the connection.
async fn drained(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    timeout(GUARD, stream.read_to_end(&mut rest)).await.unwrap().ok();
    rest
}

fn impatient() -> TransferConfig {
    TransferConfig { progress_timeout: Duration::from_millis(300), ..TransferConfig::default() }
}

fn subscribe(stream: u32) -> Frame {
    Frame::Subscribe { stream, task: task(1), ticket: ticket("raw", 1) }
}

fn request(stream: u32, leaves: Range<u32>) -> Frame {
    Frame::Request { stream, leaves, class: Class::Stream }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_protocol_is_answered_with_gone() {
    let host = Host::with(impatient()).await;
    host.hold(1, LEAF);
    let mut oversized = encoded(&[request(1, 0..1)]);
    oversized[12..].fill(0xff);
    let mut unknown = encoded(&[Frame::Ping]);
    unknown[0] = 99;
    let half_a_header = encoded(&[Frame::Ping])[..9].to_vec();
    for (bytes, says) in [
        (unknown, "no frame kind 99"),
        (oversized, "where 4096 is the most"),
        (half_a_header, "did not end in time"),
        (encoded(&[request(1, 0..1)]), "not opened"),
        (encoded(&[subscribe(5), subscribe(5)]), "used again"),
        (encoded(&[Frame::Have { stream: 1, leaves: vec![] }]), "speaks as a parent"),
    ] {
        let mut stream = connect(&host).await;
        stream.write_all(&bytes).await.unwrap();
        let reason = loop {
            match read(&mut stream).await.unwrap() {
                Frame::Gone { stream: 0, reason } => break reason,
                Frame::Have { .. } => {}
                other => panic!("{other:?}"),
            }
        };
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
        assert!(drained(&mut stream).await.is_empty());
    }
    until(|| host.metrics.children.get() == 0).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_child_is_dropped() {
    let host = Host::with(impatient()).await;
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &b"DRT"[..], &b""[..]] {
        let mut stream = TcpStream::connect(host.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        // All it gets is the parent's hello.
        assert_eq!(drained(&mut stream).await, encode_hello(host.store.host_id(), crate::Site::default()));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_takes_nothing_is_dropped_and_blocks_nobody() {
    let host = Host::with(TransferConfig { upload_slots: 1, ..impatient() }).await;
    host.hold(1, 256 * LEAF);
    let mut stuck = connect(&host).await;
    stuck.write_all(&encoded(&[subscribe(1), request(1, 0..256)])).await.unwrap();
    until(|| host.metrics.queued.get() > 0).await;
    let mut child = Child::new();
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..256]);
    let mut got = 0;
    subscription.request(0..64, Class::Stream);
    while got < 64 {
        match child.next().await.kind {
            ParentEventKind::Leaf { .. } => got += 1,
            // It waited too long behind the stuck one.
            ParentEventKind::Refused { leaves, .. } => subscription.request(leaves, Class::Stream),
            other => panic!("{other:?}"),
        }
    }
    until(|| host.metrics.children.get() == 1).await;
    drop(stuck);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_leaf_of_every_request_is_answered_once() {
    let host = Host::start().await;
    host.hold(1, 8 * LEAF);
    host.limits.upload.set(1);
    let mut stream = connect(&host).await;
    let cancel = Frame::Cancel { stream: 1, leaves: 3..20 };
    let asks = [subscribe(1), request(1, 0..8), request(1, 5..10), cancel, request(1, 3..4)];
    stream.write_all(&encoded(&asks)).await.unwrap();
    let (mut sent, mut refused) = (Vec::new(), Vec::new());
    while sent.len() + refused.len() < 8 + 5 + 1 {
        match read(&mut stream).await.unwrap() {
            Frame::Leaf { stream: 1, leaf, len } => {
                stream.read_exact(&mut vec![0; len as usize]).await.unwrap();
                sent.push(leaf);
                if leaf == 0 {
                    // Leaf 1 waits for the limit.
                    host.queues(2).await;
                    host.limits.upload.set(0);
                }
            }
            Frame::Refused { stream: 1, leaves, refusal } => {
                refused.extend(leaves.map(|leaf| (leaf, refusal)))
            }
            Frame::Have { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(sent, [0, 1, 2, 3]);
    refused.sort_by_key(|(leaf, _)| *leaf);
    let cancelled = [3, 4, 5, 5, 6, 6, 7, 7].map(|leaf| (leaf, Refusal::Cancelled));
    let not_held = [8, 9].map(|leaf| (leaf, Refusal::NotHeld));
    assert_eq!(refused, [&cancelled[..], &not_held[..]].concat());
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_for_an_ended_stream_is_ignored() {
    let host = Host::start().await;
    host.hold(1, LEAF);
    let mut stream = connect(&host).await;
    let unsubscribe = Frame::Unsubscribe { stream: 1 };
    let asks = [subscribe(1), unsubscribe.clone(), request(1, 0..1), unsubscribe, Frame::Ping];
    stream.write_all(&encoded(&asks)).await.unwrap();
    let mut frames = Vec::new();
    while frames.last() != Some(&Frame::Pong) {
        frames.push(read(&mut stream).await.unwrap());
    }
    let gone = Frame::Gone { stream: 1, reason: "unsubscribed".into() };
    assert_eq!(frames.iter().filter(|frame| **frame == gone).count(), 1);
    assert!(!frames.iter().any(|frame| matches!(frame, Frame::Leaf { .. } | Frame::Refused { .. })));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_that_comes_early_is_answered_and_waits() {
    let host = Host::start().await;
    let mut stream = connect(&host).await;
    stream.write_all(&encoded(&[subscribe(1), request(1, 0..2)])).await.unwrap();
    let refused = Frame::Refused { stream: 1, leaves: 0..2, refusal: Refusal::NotHeld };
    assert_eq!(read(&mut stream).await.unwrap(), refused);
    host.hold(1, LEAF);
    let mut had = Vec::new();
    while had.is_empty() {
        match read(&mut stream).await.unwrap() {
            Frame::Have { stream: 1, leaves } => had = leaves,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(had, [0..1]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_and_subscriptions_are_bounded() {
    let host = Host::with(TransferConfig { connections: 2, ..TransferConfig::default() }).await;
    host.hold(1, LEAF);
    let (mut first, second) = (connect(&host).await, connect(&host).await);
    let turned_away = Child::new();
    let error = turned_away.try_subscribe(host.address, 1).await.unwrap_err().to_string();
    assert!(error.contains("may serve as many children") || error.contains("reset"), "{error}");

    let asks: Vec<Frame> = (1..1100).map(subscribe).collect();
    let (mut reader, mut writer) = first.split();
    let write = async { writer.write_all(&encoded(&asks)).await.unwrap() };
    let read = async {
        loop {
            if let Frame::Gone { stream, reason } =
                timeout(GUARD, read_frame(&mut reader)).await.unwrap().unwrap()
            {
                return (stream, reason);
            }
        }
    };
    let ((), (stream, reason)) = tokio::join!(write, read);
    assert_eq!((stream, reason.as_str()), (1025, "too many subscriptions on one connection"));

    drop(second);
    until(|| host.metrics.children.get() == 1).await;
    let mut welcome = Child::new();
    let _subscription = welcome.subscribe(host.address, 1).await;
    assert_eq!(welcome.have().await, [0..1]);
    host.stop().await;
}
