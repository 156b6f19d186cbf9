//! A parent and its children that both keep to the protocol.

use super::*;

const LEAF: u64 = LEAF_LEN as u64;

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_task_is_transferred() {
    let (host, mut child) = (Host::start().await, Child::new());
    let entry = host.hold(1, 20 * LEAF + 17);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..21]);
    subscription.request(0..21, Class::Stream);
    let mut got = BTreeMap::new();
    while got.len() < 21 {
        let ParentEvent { parent, kind } = child.next().await;
        let ParentEventKind::Leaf { leaf, bytes, waited } = kind else { panic!("{kind:?}") };
        assert!(parent == 1 && waited > Duration::ZERO);
        assert_eq!(Some(leaf_digest(&bytes)), entry.digest(leaf));
        assert!(got.insert(leaf, bytes).is_none());
    }
    until(|| host.metrics.sent.get() == 20 * LEAF + 17).await;
    assert_eq!(child.metrics.received.get(), 20 * LEAF + 17);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaf_is_passed_on_before_the_next_one_is_there() {
    let (host, mut child) = (Host::start().await, Child::new());
    let entry = host.store.create(&task(1), Geometry::Fixed { len: 8 * LEAF }).unwrap();
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, []);
    for leaf in [0, 1, 5, 4, 2] {
        write(&entry, 1, leaf);
        assert_eq!(child.have().await, [leaf..leaf + 1]);
        subscription.request(leaf..leaf + 1, Class::Stream);
        let (got, bytes) = child.leaf().await;
        assert_eq!((got, &bytes[..]), (leaf, &leaf_bytes(&entry, 1, leaf)[..]));
    }
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_held_is_refused() {
    let (host, mut child) = (Host::start().await, Child::new());
    let entry = host.store.create(&task(1), Geometry::Fixed { len: 8 * LEAF }).unwrap();
    write(&entry, 1, 3);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [3..4]);
    subscription.request(0..100, Class::Stream);
    let (mut refused, mut sent) = (Vec::new(), Vec::new());
    while refused.len() < 2 || sent.is_empty() {
        match child.next().await.kind {
            ParentEventKind::Refused { leaves, reason: Refusal::NotHeld } => refused.push(leaves),
            ParentEventKind::Leaf { leaf, .. } => sent.push(leaf),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((refused, sent), (vec![0..3, 4..100], vec![3]));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_removed_tasks_are_gone() {
    let (host, mut child) = (Host::start().await, Child::new());
    let unknown = child.subscribe(host.address, 7).await;
    assert_eq!(child.gone().await, "the parent does not hold this task");
    unknown.request(0..1, Class::Stream);
    host.hold(1, 5);
    let _subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..1]);
    host.store.remove(&task(1)).unwrap();
    assert_eq!(child.gone().await, "the parent has dropped this task");
    assert_eq!(child.metrics.parents.get(), 1);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_share_one_connection() {
    const TASKS: u64 = 150;
    let (host, mut child) = (Host::start().await, Child::new());
    let mut subscriptions = Vec::new();
    for seed in 0..TASKS {
        host.hold(seed, 3000 + seed);
        subscriptions.push(child.subscribe(host.address, seed).await);
    }
    for subscription in &subscriptions {
        subscription.request(0..1, Class::Profile);
    }
    let mut got = BTreeMap::new();
    while got.len() < TASKS as usize {
        let event = child.next().await;
        if let ParentEventKind::Leaf { bytes, .. } = event.kind {
            got.insert(event.parent, bytes.len() as u64);
        }
    }
    assert!(got.iter().all(|(seed, len)| *len == 3000 + seed));
    assert_eq!((child.metrics.parents.get(), host.metrics.children.get()), (1, 1));
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_parent_is_gone_with_a_reason() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 64 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..64]);
    subscription.request(0..64, Class::Stream);
    assert_eq!(child.leaf().await.0, 0);
    host.serving.abort();
    let reason = child.gone().await;
    assert!(reason.contains("closed the connection") || reason.contains("reset"), "{reason}");

    // Another parent at the same address is dialled anew.
    let gone = child.try_subscribe(host.address, 1).await.unwrap_err();
    assert!(matches!(gone, TransferError::Connect { .. }), "{gone}");
    let listener = TcpListener::bind(host.address).await.unwrap();
    let (store, limits) = (host.store.clone(), Limits::default());
    let (config, sources, keys) = (TransferConfig::default(), Sources::default(), host.keys.clone());
    let server = Server::new(store, limits, config, metrics(), sources, keys);
    tokio::spawn(server.serve(listener, host.shutdown.clone()));
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..64]);
    subscription.request(63..64, Class::Stream);
    assert_eq!(child.leaf().await.0, 63);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_finishes_the_leaf_being_sent() {
    let (host, mut child) = (Host::start().await, Child::new());
    host.hold(1, 10 * LEAF);
    host.limits.upload.set(1);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..10]);
    subscription.request(0..10, Class::Stream);
    assert_eq!(child.leaf().await.0, 0);
    // Leaf 1 waits for the limit.
    host.queues(8).await;
    host.shutdown.cancel();
    host.limits.upload.set(0);
    assert_eq!(child.leaf().await.0, 1);
    assert_eq!(child.gone().await, "the parent is shutting down");
    timeout(GUARD, host.serving).await.unwrap().unwrap();
    assert_eq!((host.metrics.queued.get(), host.metrics.children.get()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_given_back() {
    let (host, mut child) = (Host::start().await, Child::new());
    let (dir, port) = (host.dir.path().to_path_buf(), host.address.port());
    let baseline = open_files(&dir);
    for seed in 0..20 {
        host.hold(seed, LEAF + 1);
    }
    for _ in 0..3 {
        let mut subscriptions = Vec::new();
        for seed in 0..20 {
            let subscription = child.subscribe(host.address, seed).await;
            subscription.request(0..2, Class::Stream);
            subscriptions.push(subscription);
        }
        let mut leaves = 0;
        while leaves < 40 {
            leaves += usize::from(matches!(child.next().await.kind, ParentEventKind::Leaf { .. }));
        }
    }
    until(|| open_files(&dir) == baseline).await;
    child.pool.close().await;
    until(|| host.metrics.children.get() == 0).await;
    assert_eq!(child.metrics.parents.get(), 0);
    assert!(matches!(child.try_subscribe(host.address, 1).await, Err(TransferError::Closed)));
    host.stop().await;
    assert_eq!(open_sockets(port), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_connection_is_closed_and_a_used_one_is_not() {
    let config = TransferConfig { idle_timeout: Duration::from_millis(100), ..TransferConfig::default() };
    let (host, mut child) = (Host::start().await, Child::with(&config));
    host.hold(1, 5);
    let subscription = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..1]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(child.metrics.parents.get(), 1);
    drop(subscription);
    until(|| child.metrics.parents.get() == 0 && host.metrics.children.get() == 0).await;
    let _again = child.subscribe(host.address, 1).await;
    assert_eq!(child.have().await, [0..1]);
    host.stop().await;
}
