//! What a child gets of a parent that does not take its ticket: nothing, and the reason.

use std::sync::Arc;

use super::*;

/// A parent that holds the contents 1 and 2, and a child.
async fn parent_and_child() -> (Host, Child) {
    let host = Host::start().await;
    host.hold(1, 5);
    host.hold(2, 5);
    (host, Child::new())
}

/// Why the parent denies the child content 1; it must say nothing else.
async fn denied(host: &Host, child: &mut Child, ticket: Bytes) -> String {
    let subscription = child.show(host.address, 1, ticket).await.unwrap();
    subscription.request(0..1, Class::Demand);
    let mut refused = false;
    loop {
        match child.next().await.kind {
            ParentEventKind::Denied(reason) => return reason,
            ParentEventKind::Refused { leaves, reason: Refusal::NotHeld } if !refused => {
                assert_eq!(leaves, 0..1);
                refused = true;
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_ticket_nothing_is_given_or_told() {
    let (host, mut child) = parent_and_child().await;
    let stranger = Signer::new().unwrap();
    let mut forged = ticket("child", 1).to_vec();
    *forged.last_mut().unwrap() ^= 1;
    for (ticket, says) in [
        (Bytes::new(), "showed no ticket"),
        (Bytes::from_static(b"a ticket"), "cannot be read"),
        (forged.into(), "is forged"),
        (ticket("other", 1), "not for this host"),
        (ticket("child", 2), "not for this host and this task"),
        (stranger.sign("child", "url:1", u64::MAX), "had no session with lately"),
    ] {
        let reason = denied(&host, &mut child, ticket).await;
        assert!(reason.contains(says), "{reason:?} does not say {says:?}");
    }
    assert_eq!(host.metrics.sent.get(), 0);
    // The same connection is as good as ever.
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..1]);
    subscription.request(0..1, Class::Demand);
    assert_eq!(child.leaf().await.0, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_here_is_denied_in_the_same_words() {
    let (host, mut child) = parent_and_child().await;
    host.store.remove(&task(1)).unwrap();
    let reason = denied(&host, &mut child, Bytes::new()).await;
    assert!(reason.contains("showed no ticket"), "{reason}");
    host.stop().await;
}

#[tokio::test]
async fn a_ticket_ends_by_its_schedulers_clock_and_what_runs_goes_on() {
    let (host, mut child) = parent_and_child().await;
    let ticket = SIGNER.sign("child", "url:1", 30);
    let running = child.show(host.address, 1, ticket.clone()).await.unwrap();
    assert_eq!(child.have().await, [0..1]);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(31)).await;
    tokio::time::resume();
    let reason = denied(&host, &mut child, ticket).await;
    assert!(reason.contains("expired"), "{reason}");
    running.request(0..1, Class::Demand);
    assert_eq!(child.leaf().await.0, 0);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_of_a_scheduler_that_the_parent_meets_just_now_is_served() {
    let (host, mut child) = parent_and_child().await;
    let signer = Arc::new(Signer::new().unwrap());
    let _subscription = child.show(host.address, 1, signer.sign("child", "url:1", u64::MAX)).await.unwrap();
    // By now the parent has read it: it answers in order.
    let other = child.subscribe(host.address, 2).await;
    assert_eq!(child.next().await, ParentEvent { parent: 2, kind: ParentEventKind::Have(vec![0..1]) });
    let _session = learn(&host.keys, &signer);
    assert_eq!(child.next().await, ParentEvent { parent: 1, kind: ParentEventKind::Have(vec![0..1]) });
    drop(other);
    host.stop().await;
}
