//! Connections on which nothing is transferred. The clock is paused once they stand, and runs ahead to the next timer.

use tokio::{io::AsyncWriteExt, net::TcpStream, time};

use super::*;
use crate::transfer::{
    codec::{encode_hello, read_frame, read_hello},
    frame::Frame,
};

#[tokio::test]
async fn a_quiet_connection_stays() {
    let (host, mut child) = (Host::start().await, Child::new());
    let entry = host.store.create(&task(1), Geometry::Fixed { len: 5 }).unwrap();
    let _subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, []);
    time::pause();
    time::sleep(10 * SILENCE).await;
    time::resume();
    write(&entry, 1, 0);
    assert_eq!(child.have().await, [0..1]);
    host.stop().await;
}

#[tokio::test]
async fn a_silent_parent_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut child = Child::new();
    let parent = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_hello(&mut stream).await.unwrap();
        stream.write_all(&encode_hello("fake", crate::Site::default())).await.unwrap();
        stream
    };
    let (mut parent, subscription) = tokio::join!(parent, child.subscribe(address, 1));
    time::pause();
    assert_eq!(child.gone().await, "silent for 60s");
    drop(subscription);
    let mut frames = Vec::new();
    while let Ok(frame) = read_frame(&mut parent).await {
        frames.push(frame);
    }
    assert_eq!(
        frames.first(),
        Some(&Frame::Subscribe { stream: 1, task: task(1), ticket: ticket("child", 1) })
    );
    assert!(frames.len() > 2 && frames[1..].iter().all(|frame| *frame == Frame::Ping), "{frames:?}");
}

#[tokio::test]
async fn a_silent_child_is_given_up() {
    let host = Host::start().await;
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    stream.write_all(&encode_hello("raw", crate::Site::default())).await.unwrap();
    read_hello(&mut stream).await.unwrap();
    time::pause();
    let reason = "nothing was heard of the child".to_owned();
    assert_eq!(read_frame(&mut stream).await.unwrap(), Frame::Gone { stream: 0, reason });
    time::resume();
    until(|| host.metrics.children.get() == 0).await;
    host.stop().await;
}

#[tokio::test]
async fn a_child_that_only_pings_is_given_up() {
    let host = Host::start().await;
    let mut stream = TcpStream::connect(host.address).await.unwrap();
    stream.write_all(&encode_hello("raw", crate::Site::default())).await.unwrap();
    read_hello(&mut stream).await.unwrap();
    time::pause();
    let mut ping = Vec::new();
    Frame::Ping.encode(&mut ping);
    let reason = loop {
        stream.write_all(&ping).await.unwrap();
        match read_frame(&mut stream).await.unwrap() {
            Frame::Pong => time::sleep(PING_AFTER).await,
            Frame::Gone { stream: 0, reason } => break reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(reason, "the connection is not used");
    time::resume();
    host.stop().await;
}
