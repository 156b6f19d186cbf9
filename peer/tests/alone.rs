//! A peer with neither scheduler nor other peers: it fetches from the origin, checks, keeps, and never lies.

mod common;

use std::collections::BTreeMap;

use common::{Faults, Node, Origin, blob};
use darter_peer::{TaskError, TaskId};

const LEN: usize = 3 * 1024 * 1024 + 12_345;

#[tokio::test]
async fn fetches_once_and_keeps_it_over_a_restart_without_the_origin() {
    let (bytes, id) = blob(LEN, 1);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), Faults::default()).await;
    let node = Node::start(|_| {}).await;
    let (first, second) =
        tokio::join!(node.read(&id, Some(origin.source("b"))), node.read(&id, Some(origin.source("b"))));
    assert!(first.unwrap() == bytes && second.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
    let node = Node::start_in(node.stop().await, |_| {}).await;
    assert!(node.read(&id, None).await.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
    assert_eq!(node.peer.metrics().by_source().local, LEN as u64);
}

#[tokio::test]
async fn goes_on_after_a_restart_with_what_is_missing_only() {
    let (bytes, id) = blob(8 * LEN, 2);
    let slow = Faults { trickle: 256 * 1024, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), slow).await;
    let node = Node::start(|_| {}).await;
    let content = node.open(&id, Some(origin.source("b"))).await;
    content.geometry().await.unwrap();
    content.leaf(40, darter_peer::Class::Demand).await.unwrap();
    let dir = node.stop().await;
    drop(content);
    let node = Node::start_in(dir, |_| {}).await;
    let before = origin.sent();
    assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    // The first connection may have sent a little more before it noticed its end.
    let (missing, slack) = ((bytes.len() - 41 * 256 * 1024) as u64, 1024 * 1024);
    assert!(origin.sent() - before <= missing + slack, "what was there was fetched again");
}

#[tokio::test]
async fn an_origin_that_breaks_off_is_resumed() {
    let (bytes, id) = blob(LEN, 3);
    let faults = Faults { cut_after: Some(1_000_000), ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), faults).await;
    let node = Node::start(|_| {}).await;
    assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test]
async fn an_origin_without_ranges_streams() {
    let (bytes, id) = blob(LEN, 4);
    let faults = Faults { no_ranges: true, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), faults).await;
    let node = Node::start(|_| {}).await;
    assert!(node.read(&id, Some(origin.source("b"))).await.unwrap() == bytes);
}

#[tokio::test]
async fn a_wrong_content_is_never_complete_and_never_kept() {
    let (bytes, id) = blob(LEN, 5);
    let faults = Faults { flip: true, ..Faults::default() };
    let origin = Origin::start(BTreeMap::from([("b", bytes)]), faults).await;
    let node = Node::start(|_| {}).await;
    let error = node.read(&id, Some(origin.source("b"))).await.unwrap_err();
    assert_eq!(error, TaskError::WrongDigest { expected: id.digest().unwrap() });
    while node.peer.store().get(&id).is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_the_origin_refuses_is_refused_with_its_status() {
    let (_, id) = blob(1, 6);
    let node = Node::start(|_| {}).await;
    for status in [401, 403, 404, 416] {
        let faults = Faults { status: Some(status), ..Faults::default() };
        let origin = Origin::start(BTreeMap::new(), faults).await;
        let error = node.read(&id, Some(origin.source("b"))).await.unwrap_err();
        assert!(matches!(error, TaskError::Origin { status: s, .. } if s == status), "{error}");
    }
}

#[tokio::test]
async fn empty_contents_and_those_without_any_source() {
    let (bytes, id) = blob(0, 7);
    let origin = Origin::start(BTreeMap::from([("b", bytes)]), Faults::default()).await;
    let node = Node::start(|_| {}).await;
    assert!(node.read(&id, Some(origin.source("b"))).await.unwrap().is_empty());
    let nobody = TaskId::parse("leaves:00").unwrap();
    assert_eq!(node.read(&nobody, None).await.unwrap_err(), TaskError::NotFound(nobody));
}
