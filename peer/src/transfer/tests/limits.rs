//! Order, limits and cancelling, seen with an upload limit as the valve: after one burst nothing moves until it opens.

use super::*;

const LEAF: u64 = LEAF_LEN as u64;

/// A parent whose first leaf has passed, whose leaf 1 waits for the limit, and where `queued` more wait behind.
async fn stopped(class: Class, queued: u32) -> (Host, Child, Subscription) {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 64 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..64]);
    subscription.request(0..queued + 2, class);
    assert_eq!(child.leaf().await.0, 0);
    host.queues(i64::from(queued)).await;
    (host, child, subscription)
}

#[tokio::test(flavor = "multi_thread")]
async fn demand_overtakes_all() {
    let (host, mut child, subscription) = stopped(Class::Stream, 6).await;
    subscription.request(40..41, Class::Profile);
    host.queues(7).await;
    subscription.request(50..52, Class::Demand);
    host.queues(9).await;
    until(|| host.limits.upload.first() == Some(Class::Demand)).await;
    host.limits.upload.set(0);
    assert_eq!(child.leaves(10).await, [50, 51, 1, 2, 3, 4, 5, 6, 7, 40]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_that_became_urgent_comes_once() {
    let (host, mut child, subscription) = stopped(Class::Stream, 6).await;
    subscription.request(6..8, Class::Demand);
    // Asked for less urgently again: nothing changes.
    subscription.request(2..8, Class::Profile);
    subscription.request(20..21, Class::Profile);
    host.queues(7).await;
    until(|| host.limits.upload.first() == Some(Class::Demand)).await;
    host.limits.upload.set(0);
    assert_eq!(child.leaves(8).await, [6, 7, 1, 2, 3, 4, 5, 20]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_does_not_come() {
    let (host, mut child, subscription) = stopped(Class::Stream, 6).await;
    subscription.cancel(3..7);
    subscription.cancel(3..5);
    subscription.request(5..6, Class::Stream);
    host.queues(3).await;
    host.limits.upload.set(0);
    assert_eq!(child.leaves(3).await, [1, 2, 7]);
    assert_eq!(child.leaf().await.0, 5);
    subscription.request(30..31, Class::Stream);
    assert_eq!(child.leaf().await.0, 30);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsubscribing_cancels_everything() {
    let (host, mut child, subscription) = stopped(Class::Stream, 6).await;
    drop(subscription);
    host.queues(0).await;
    host.limits.upload.set(0);
    let again = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..64]);
    again.request(9..10, Class::Stream);
    assert_eq!(child.leaf().await.0, 9);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_as_busy() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(2, 64 * LEAF);
    host.limits.upload.set(1);
    // 20 subscriptions ask for 64 leaves each; 512 may wait.
    let mut subscriptions = Vec::new();
    for _ in 0..20 {
        let subscription = child.subscribe(host.address, 2).await;
        subscription.request(0..64, Class::Stream);
        subscriptions.push(subscription);
    }
    let mut busy = 0;
    while busy < 20 * 64 - 512 - 2 {
        if let ParentEventKind::Refused { leaves, reason } = child.next().await.kind {
            assert_eq!(reason, Refusal::Busy);
            busy += leaves.len();
        }
    }
    until(|| host.metrics.refused.get() == busy as u64).await;
    host.limits.upload.set(0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_may_be_waited_for_is_refused_here() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 5);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..1]);
    subscription.request(0..u32::MAX, Class::Stream);
    let (mut leaves, mut busy, mut not_held) = (0u64, 0u64, 0u64);
    while leaves + busy + not_held < u64::from(u32::MAX) {
        match child.next().await.kind {
            ParentEventKind::Leaf { .. } => leaves += 1,
            ParentEventKind::Refused { leaves, reason: Refusal::Busy } => busy += leaves.len() as u64,
            ParentEventKind::Refused { leaves, .. } => not_held += leaves.len() as u64,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((leaves, not_held), (1, 2047));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_is_refused_as_busy() {
    let config = TransferConfig { progress_timeout: Duration::from_millis(400), ..TransferConfig::default() };
    let (host, mut child) = (Host::with(config).await, Child::new());
    host.hold(1, 8 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..8]);
    subscription.request(0..8, Class::Stream);
    assert_eq!(child.leaf().await.0, 0);
    let mut refused = Vec::new();
    while refused.len() < 7 {
        match child.next().await.kind {
            ParentEventKind::Refused { leaves, reason: Refusal::Busy } => refused.extend(leaves),
            other => panic!("{other:?}"),
        }
    }
    refused.sort_unstable();
    assert_eq!(refused, [1, 2, 3, 4, 5, 6, 7]);
    host.limits.upload.set(0);
    subscription.request(7..8, Class::Stream);
    assert_eq!(child.leaf().await.0, 7);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prefetch_limits_background_and_nothing_else() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 16 * LEAF);
    child.limits.prefetch.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..16]);
    subscription.request(0..8, Class::Background);
    assert_eq!(child.leaf().await.0, 0);
    for leaf in 8..16 {
        subscription.request(leaf..leaf + 1, Class::Demand);
        assert_eq!(child.leaf().await.0, leaf);
    }
    // One that is held back becomes urgent, two are cancelled.
    subscription.request(7..8, Class::Stream);
    assert_eq!(child.leaf().await.0, 7);
    subscription.cancel(2..4);
    child.limits.prefetch.set(0);
    assert_eq!(child.leaves(4).await, [1, 4, 5, 6]);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_parent_is_not_blamed_for_our_own_limit() {
    let config = TransferConfig { progress_timeout: Duration::from_millis(200), ..TransferConfig::default() };
    let (host, mut child) = (Host::start().await, Child::with(&config));
    let entry = host.hold(1, 4 * LEAF);
    child.limits.download.set(LEAF);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..4]);
    subscription.request(0..4, Class::Stream);
    for leaf in 0..4 {
        let (got, bytes) = child.leaf().await;
        assert_eq!((got, &bytes[..]), (leaf, &leaf_bytes(&entry, 1, leaf)[..]));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slot_is_shared_in_turns() {
    let config = TransferConfig { upload_slots: 1, ..TransferConfig::default() };
    let host = Host::with(config).await;
    host.hold(1, 32 * LEAF);
    host.limits.upload.set(1);
    let mut children = Vec::new();
    for _ in 0..3 {
        let mut child = Child::new();
        let subscription = child.subscribe(host.address, 1).await;
        assert_eq!(child.have().await, [0..32]);
        subscription.request(0..32, Class::Stream);
        children.push((child, subscription));
    }
    // One leaf of 96 passed the limit, one waits for it.
    host.queues(94).await;
    host.limits.upload.set(0);
    for (child, _) in &mut children {
        assert_eq!(child.leaves(32).await, (0..32).collect::<Vec<_>>());
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_refused_after_its_stream_ended_harms_nothing() {
    let config = TransferConfig { progress_timeout: Duration::from_millis(200), ..TransferConfig::default() };
    let (host, mut child) = (Host::with(config).await, Child::new());
    host.hold(1, 8 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..8]);
    subscription.request(0..2, Class::Stream);
    assert_eq!(child.leaf().await.0, 0);
    drop(subscription);
    // Leaf 1 waited for the limit too long.
    until(|| host.metrics.refused.get() == 1).await;
    host.limits.upload.set(0);
    let again = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..8]);
    again.request(7..8, Class::Stream);
    assert_eq!(child.leaf().await.0, 7);
    assert_eq!(child.metrics.parents.get(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demanded_leaf_does_not_wait_until_bulk_has_been_paid_for() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 8 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..8]);
    subscription.request(0..6, Class::Background);
    assert_eq!(child.leaf().await.0, 0);
    until(|| host.limits.upload.first() == Some(Class::Background)).await;
    subscription.request(7..8, Class::Demand);
    until(|| host.limits.upload.first() == Some(Class::Demand)).await;
    host.limits.upload.set(0);
    assert_eq!(child.leaves(6).await, [7, 1, 2, 3, 4, 5]);
    host.stop().await;
}
