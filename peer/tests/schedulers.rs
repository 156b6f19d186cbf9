//! Several schedulers at once.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, time::Duration};

use common::{Faults, Node, Origin, Scheduler, blob};
use darter_peer::TaskId;
use tokio::time::sleep;

const LEN: usize = 300_000;
/// So many that each of two schedulers has some.
const CONTENTS: usize = 16;
const NAMES: [&str; CONTENTS] =
    ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

/// Contents of this length at an origin.
async fn contents(len: usize, faults: Faults) -> (Origin, Vec<(TaskId, Vec<u8>)>) {
    let contents = (100..).take(CONTENTS).map(|seed| blob(len, seed));
    let contents: Vec<_> = contents.map(|(bytes, id)| (id, bytes)).collect();
    let named = NAMES.into_iter().zip(contents.iter().map(|(_, bytes)| bytes.clone()));
    (Origin::start(named.collect::<BTreeMap<_, _>>(), faults).await, contents)
}

/// A peer with a session to each of these schedulers.
async fn peer_of(schedulers: &[Scheduler], seed: bool) -> Node {
    let node = Node::start(|config| {
        config.seed = seed;
        config.scheduler.addresses = schedulers.iter().map(Scheduler::url).collect();
    })
    .await;
    while node.peer.schedulers().len() < schedulers.len() {
        sleep(Duration::from_millis(10)).await;
    }
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn each_scheduler_has_its_tasks_and_knows_those_of_a_lost_one() {
    let (origin, contents) = contents(LEN, Faults::default()).await;
    let mut schedulers = vec![Scheduler::start().await, Scheduler::start().await];
    let (_seed, one, two) = (
        peer_of(&schedulers, true).await,
        peer_of(&schedulers, false).await,
        peer_of(&schedulers, false).await,
    );
    for ((id, bytes), name) in contents.iter().zip(NAMES) {
        assert!(one.read(id, Some(origin.source(name))).await.unwrap() == *bytes);
    }
    for scheduler in &schedulers {
        // Who gave the parents of a task knows its digests; the others only know who holds it.
        let tasks = scheduler.status().await.tasks;
        assert_eq!(tasks.len(), CONTENTS);
        let own = tasks.iter().filter(|task| task.digests_known > 0).count();
        assert!((1..CONTENTS).contains(&own), "{own} of {CONTENTS} tasks");
    }

    schedulers[0].stop().await;
    for ((id, bytes), name) in contents.iter().zip(NAMES) {
        assert!(two.read(id, Some(origin.source(name))).await.unwrap() == *bytes);
    }
    assert_eq!(origin.sent(), (LEN * CONTENTS) as u64);
    assert_eq!(two.peer.metrics().by_source().origin, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_tasks_go_on_under_another_scheduler_and_come_back() {
    let len = 2 << 20;
    let (origin, contents) = contents(len, Faults { trickle: 8 * 1024, ..Faults::default() }).await;
    let mut schedulers = vec![Scheduler::start().await, Scheduler::start().await];
    let _seed = peer_of(&schedulers, true).await;
    let nodes = [peer_of(&schedulers, false).await, peer_of(&schedulers, false).await];
    let read = async |node: &Node, at: usize| {
        let (id, bytes) = &contents[at];
        assert!(node.read(id, Some(origin.source(NAMES[at]))).await.unwrap() == *bytes, "{id}");
    };
    let all = nodes.iter().flat_map(|node| (0..8).map(|at| read(node, at)).collect::<Vec<_>>());
    let part_sent = async |part: usize| {
        while origin.sent() < (len * 8 / 4 * part) as u64 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let death = async {
        part_sent(1).await;
        schedulers[0].stop().await;
        part_sent(2).await;
        schedulers[0].run();
    };
    tokio::join!(futures_util::future::join_all(all), death);
    assert_eq!(origin.sent(), (len * 8) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scheduler_under_two_addresses_is_one() {
    let (origin, contents) = contents(LEN, Faults::default()).await;
    let scheduler = Scheduler::start().await;
    let addresses = vec![scheduler.url(), scheduler.url().replace("127.0.0.1", "localhost")];
    let nodes = [(); 2].map(|()| Node::start(|config| config.scheduler.addresses.clone_from(&addresses)));
    let nodes = futures_util::future::join_all(nodes).await;
    // A session that was replaced is looked for again within two seconds, if it is at all.
    sleep(Duration::from_secs(3)).await;
    for node in &nodes {
        assert_eq!(node.peer.schedulers().len(), 1);
    }
    for ((id, bytes), name) in contents.iter().zip(NAMES) {
        for node in &nodes {
            assert!(node.read(id, Some(origin.source(name))).await.unwrap() == *bytes);
        }
    }
    assert_eq!(origin.sent(), (LEN * CONTENTS) as u64);
}
