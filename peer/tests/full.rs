//! Disks that are full or rot: a peer loses its cache over it, never a pull.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Faults, Node, Origin, Scheduler, blob, rot};
use darter_peer::{Class, Config, TaskError};
use tokio::time::{sleep, timeout};

const MIB: usize = 1024 * 1024;
const LEN: usize = 12 * MIB + 4321;
const LEAF: usize = 256 * 1024;

/// Room for two leaves on the disk and for eight in memory.
fn tight(config: &mut Config) {
    config.store.quota = 2 * LEAF as u64;
    config.store.memory = 8 * LEAF as u64;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_the_bytes_of_the_origin_stream_through() {
    let (bytes, id) = blob(LEN, 1);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let node = Node::start(tight).await;
    let (first, second) =
        tokio::join!(node.read(&id, Some(origin.source("b"))), node.read(&id, Some(origin.source("b"))));
    assert!(first.unwrap() == bytes && second.unwrap() == bytes);
    assert!(node.peer.store().used() <= 2 * LEAF as u64);
    assert!(node.peer.store().get(&id).is_none_or(|entry| !entry.is_verified()));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_a_wrong_content_is_never_complete() {
    let (bytes, id) = blob(LEN, 2);
    let faults = Faults { flip: true, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes)]), faults).await;
    let node = Node::start(tight).await;
    let error = node.read(&id, Some(origin.source("b"))).await.unwrap_err();
    assert_eq!(error, TaskError::WrongDigest { expected: id.digest().unwrap() });
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_the_bytes_of_a_peer_stream_through() {
    let (bytes, id) = blob(LEN, 3);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let (whole, full) = (scheduler.peer(false).await, scheduler.peer_with(tight).await);
    assert!(whole.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert!(full.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_without_room_relays() {
    let (bytes, id) = blob(LEN, 4);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let seed = scheduler
        .peer_with(|config| {
            config.seed = true;
            tight(config);
        })
        .await;
    let peers = [scheduler.peer(false).await, scheduler.peer(false).await];
    let [first, second] = &peers;
    let source = || Some(origin.source("b"));
    let (first, second) = tokio::join!(first.read(&id, source()), second.read(&id, source()));
    assert!(first.unwrap() == bytes && second.unwrap() == bytes);
    drop(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotten_leaf_is_fetched_again_while_it_is_read_and_after_a_restart() {
    let (bytes, id) = blob(LEN, 5);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let node = Node::start(|_| {}).await;
    let source = || Some(origin.source("b"));
    assert!(node.read(&id, source()).await.unwrap() == bytes);
    let open = node.open(&id, source()).await;
    rot(node.dir.path(), 5 * LEAF as u64 + 17);
    assert!(open.leaf(5, Class::Stream).await.unwrap() == bytes[5 * LEAF..6 * LEAF]);
    // It can be read a moment before it is counted.
    let counted = || node.peer.metrics().by_source().origin == (LEN + LEAF) as u64;
    let until = async {
        while !counted() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), until).await.unwrap();
    rot(node.dir.path(), 7 * LEAF as u64);
    assert!(node.read(&id, source()).await.unwrap() == bytes);
    drop(open);
    let dir = node.stop().await;
    rot(dir.path(), 9 * LEAF as u64);
    let node = Node::start_in(dir, |_| {}).await;
    assert!(node.read(&id, source()).await.unwrap() == bytes);
    assert_eq!(node.peer.metrics().by_source().origin, LEAF as u64);
}
