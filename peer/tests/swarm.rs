//! Peers with a real scheduler: the origin is asked once, and whoever dies, the right bytes arrive.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Faults, Node, Origin, Scheduler, Spoil, blob};
use tokio::task::JoinSet;

const LEN: usize = 24 * 1024 * 1024 + 4321;

/// All nodes read at once.
async fn all_read(nodes: &[Node], origin: &Origin, id: &darter_peer::TaskId, bytes: &[u8]) {
    let mut reads = JoinSet::new();
    for node in nodes {
        let (peer, id, source) = (node.peer.clone(), id.clone(), origin.source("b"));
        reads.spawn(async move { common::read(&peer, &id, Some(source)).await });
    }
    while let Some(read) = reads.join_next().await {
        assert!(read.unwrap().unwrap() == bytes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_seed_the_origin_sends_each_byte_once() {
    let (bytes, id) = blob(LEN, 1);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let seed = scheduler.peer(true).await;
    let peers = scheduler.peers(4).await;
    all_read(&peers, &origin, &id, &bytes).await;
    assert_eq!(origin.sent(), LEN as u64);
    for peer in &peers {
        let from = peer.peer.metrics().by_source();
        assert_eq!((from.origin, from.peer + from.seed), (0, LEN as u64));
    }
    drop(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_seed_one_peer_gets_the_lease() {
    let (bytes, id) = blob(LEN, 2);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let peers = scheduler.peers(4).await;
    all_read(&peers, &origin, &id, &bytes).await;
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_peer_has_comes_from_it() {
    let (bytes, id) = blob(LEN, 3);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let peers = scheduler.peers(2).await;
    assert!(peers[0].read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert!(peers[1].read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
    assert_eq!(peers[1].peer.metrics().by_source().peer, LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_scheduler_knows_what_peers_hold() {
    let (bytes, id) = blob(LEN, 4);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let mut scheduler = Scheduler::start().await;
    let peers = scheduler.peers(2).await;
    assert!(peers[0].read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    scheduler.stop().await;
    while peers.iter().any(|peer| !peer.peer.schedulers().is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scheduler.run();
    while peers.iter().any(|peer| peer.peer.schedulers().is_empty()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(peers[1].read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_scheduler_dies_in_the_middle() {
    let (bytes, id) = blob(LEN, 5);
    let slow = Faults { trickle: 128 * 1024, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), slow).await;
    let mut scheduler = Scheduler::start().await;
    let seed = scheduler.peer(true).await;
    let peers = scheduler.peers(3).await;
    let stop = async {
        while origin.sent() < LEN as u64 / 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        scheduler.stop().await;
    };
    tokio::join!(all_read(&peers, &origin, &id, &bytes), stop);
    drop(seed);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seed_dies_in_the_middle() {
    let (bytes, id) = blob(LEN, 6);
    let slow = Faults { trickle: 128 * 1024, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), slow).await;
    let scheduler = Scheduler::start().await;
    let seed = scheduler.peer(true).await;
    let peers = scheduler.peers(3).await;
    let stop = async {
        while origin.sent() < LEN as u64 / 3 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        seed.stop().await;
    };
    tokio::join!(all_read(&peers, &origin, &id, &bytes), stop);
    // The seed's part was relayed before it died, but for what was under way.
    assert!(origin.sent() < LEN as u64 * 3 / 2, "{} bytes were fetched again", origin.sent() - LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_fails_in_the_middle_is_made_up_for_by_another() {
    let (bytes, id) = blob(LEN, 7);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let good = scheduler.peer(false).await;
    assert!(good.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    for spoil in [Spoil::Stall(700_000), Spoil::Cut(700_000), Spoil::Flip(700_000), Spoil::Trickle(700_000)] {
        let bad = scheduler.spoilt_peer(spoil).await;
        assert!(bad.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
        let child = scheduler.peer(false).await;
        assert!(child.read(&id, None).await.unwrap() == bytes, "{spoil:?}");
        bad.stop().await;
        child.stop().await;
    }
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_whose_only_holder_lies_ends_with_an_error() {
    let (bytes, id) = blob(LEN, 8);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let liar = scheduler.spoilt_peer(Spoil::Flip(300_000)).await;
    assert!(liar.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    let child = scheduler.peer(false).await;
    assert!(child.read(&id, None).await.is_err());
}
