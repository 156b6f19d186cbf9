//! Looking after a running peer's store and limits, through its control socket.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Faults, Node, Origin, Scheduler, blob, rot};
use darter_peer::{Class, Config};
use darter_proto::peer::{
    EvictRequest, LimitsReply, LimitsRequest, RemoveRequest, StoreStatusRequest, VerifyStoreRequest,
    peer_client::PeerClient,
};
use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};

const LEAF: usize = 256 * 1024;
const LEN: usize = 40 * LEAF;

async fn control(node: &Node) -> PeerClient<Channel> {
    let path = format!("unix://{}", node.dir.path().join("peer.sock").display());
    PeerClient::new(Endpoint::from_shared(path).unwrap().connect().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_finds_rot_evict_frees_and_remove_removes() {
    let (bytes, id) = blob(LEN, 1);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let node = Node::start(|_| {}).await;
    assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    let mut control = control(&node).await;
    let verify = VerifyStoreRequest { rate: 0 };
    let found = control.verify_store(verify).await.unwrap().into_inner();
    assert_eq!((found.leaves, found.bytes, found.damaged.len()), (40, LEN as u64, 0));
    rot(node.dir.path(), 3 * LEAF as u64);
    let found = control.verify_store(verify).await.unwrap().into_inner();
    assert_eq!((found.leaves, found.damaged.len()), (39, 1));
    assert_eq!((found.damaged[0].task.as_str(), found.damaged[0].leaf), (id.as_str(), 3));

    let evicted = control.evict(EvictRequest { bytes: 1 }).await.unwrap().into_inner().bytes;
    assert!((1..=16 * LEAF as u64).contains(&evicted), "one piece: {evicted}");
    let status = control.store_status(StoreStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.used, status.tasks, status.partial), ((LEN - LEAF) as u64 - evicted, 1, 1));
    assert_eq!((status.evicted, status.damaged, status.pinned), (evicted, 1, 0));

    let removed = control.remove(RemoveRequest { id: id.to_string() }).await.unwrap().into_inner();
    assert_eq!(removed.bytes, status.used);
    assert_eq!(node.peer.store().used(), 0);
    assert!(control.remove(RemoveRequest { id: "../x".to_owned() }).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_use_and_rotten_is_fetched_again_from_a_peer() {
    let (bytes, id) = blob(LEN, 2);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let (one, other) = (scheduler.peer(false).await, scheduler.peer(false).await);
    for node in [&one, &other] {
        assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    }
    let _in_use = one.open(&id, None).await;
    rot(one.dir.path(), 3 * LEAF as u64);
    let verify = VerifyStoreRequest { rate: 0 };
    assert_eq!(control(&one).await.verify_store(verify).await.unwrap().into_inner().damaged.len(), 1);
    while !one.peer.store().peek(&id).unwrap().is_verified() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(origin.sent(), LEN as u64, "not from the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_hears_that_an_evicted_leaf_is_gone_and_gets_it_elsewhere() {
    let (bytes, id) = blob(LEN, 3);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let (one, other, child) =
        (scheduler.peer(false).await, scheduler.peer(false).await, scheduler.peer(false).await);
    for node in [&one, &other] {
        assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    }
    let content = child.open(&id, Some(origin.source("b"))).await;
    let (mut control, mut evicted) = (control(&one).await, 0);
    // What is just being sent to the child is pinned.
    while evicted < 20 * LEAF as u64 {
        evicted += control.evict(EvictRequest { bytes: 20 * LEAF as u64 }).await.unwrap().into_inner().bytes;
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(child.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    content.leaf(0, Class::Demand).await.unwrap();
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_change_at_run_time() {
    let node = Node::start(|config| config.limits.upload = 7).await;
    let mut control = control(&node).await;
    let show = control.limits(LimitsRequest::default()).await.unwrap().into_inner();
    assert_eq!(show, LimitsReply { upload: 7, ..LimitsReply::default() });
    let change = LimitsRequest { download: Some(1 << 20), upload: Some(0), ..LimitsRequest::default() };
    let now = control.limits(change).await.unwrap().into_inner();
    assert_eq!(now, LimitsReply { download: 1 << 20, ..LimitsReply::default() });
    let show = control.limits(LimitsRequest::default()).await.unwrap().into_inner();
    assert_eq!(show, now);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_configuration_changes_limits_and_makes_a_seed_and_back() {
    let contents = (0..100).map(|number| (&*number.to_string().leak(), blob(1000, number).0));
    let origin = Origin::start(contents.collect(), Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let nodes = scheduler.peers(2).await;
    let [changed, other] = &nodes[..] else { unreachable!() };
    let mut numbers = 0..100;
    // Whether what the other one wants comes through a seed peer.
    let mut through_seed = async || {
        let number = numbers.next().unwrap();
        let before = other.peer.metrics().by_source().seed;
        let source = origin.source(&number.to_string());
        other.read(&blob(1000, number).1, Some(source)).await.unwrap();
        sleep(Duration::from_millis(20)).await;
        other.peer.metrics().by_source().seed > before
    };
    let mut control = control(changed).await;
    assert!(!through_seed().await);

    let mut config = Config { seed: true, ..Config::default() };
    config.limits.upload = 1 << 30;
    changed.peer.reload(&config).unwrap();
    while !through_seed().await {}
    let limits = control.limits(LimitsRequest::default()).await.unwrap().into_inner();
    assert_eq!(limits, LimitsReply { upload: 1 << 30, ..LimitsReply::default() });

    changed.peer.reload(&Config::default()).unwrap();
    while through_seed().await {}
    let limits = control.limits(LimitsRequest::default()).await.unwrap().into_inner();
    assert_eq!(limits, LimitsReply::default());
}
