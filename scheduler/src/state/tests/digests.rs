use super::driver::*;

fn infos(driver: &mut Driver, session: SessionId) -> Vec<proto::TaskInfo> {
    let messages = driver.take(session).into_iter();
    messages.filter_map(|m| if let says::Message::TaskInfo(info) = m { Some(info) } else { None }).collect()
}

#[test]
fn digests_of_the_lease_holder_reach_all_who_registered_now_and_later() {
    let mut driver = Driver::new();
    let (seed, early) = (driver.seed("seed"), driver.peer("a"));
    driver.say(early, wants());
    let first = infos(&mut driver, early);
    assert_eq!((first.len(), first[0].leaves, first[0].digests.len()), (1, 0, 0));
    driver.say(seed, digests_of(0, 2, 0));
    let news = infos(&mut driver, early);
    assert_eq!((news.len(), news[0].length, news[0].leaves, news[0].first), (1, LENGTH, LEAVES, 0));
    assert_eq!((news[0].digests.len(), news[0].verified), (64, false));
    let late = driver.peer("b");
    driver.say(late, wants());
    driver.say(seed, digests_of(2, 2, 0));
    let firsts =
        |infos: Vec<proto::TaskInfo>| infos.iter().map(|i| (i.first, i.digests.len())).collect::<Vec<_>>();
    assert_eq!(firsts(infos(&mut driver, late)), [(0, 64), (2, 64)]);
    assert_eq!(firsts(infos(&mut driver, early)), [(2, 64)]);
    driver.say(seed, finished());
    assert!(infos(&mut driver, late).iter().all(|info| info.verified));
}

#[test]
fn digests_of_just_anybody_are_not_believed() {
    let mut driver = Driver::new();
    let (_, peers) = (driver.seed("seed"), ["a", "b"].map(|id| driver.peer(id)));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    driver.take(peers[1]);
    driver.say(peers[0], digests_of(0, LEAVES, 9));
    assert!(infos(&mut driver, peers[1]).is_empty());
}

#[test]
fn a_holder_is_asked_for_digests_that_nobody_knows_and_a_silent_one_only_once() {
    let mut driver = Driver::new();
    let holders = ["a", "b"].map(|id| driver.peer(id));
    holders.into_iter().for_each(|holder| driver.say(holder, holds(LEAVES)));
    let child = driver.peer("c");
    driver.say(child, wants());
    let asked = |driver: &mut Driver| {
        let was = |m: &says::Message| matches!(m, says::Message::SendDigests(_));
        holders.into_iter().filter(|holder| driver.take(*holder).iter().any(was)).collect::<Vec<_>>()
    };
    let first = asked(&mut driver);
    assert_eq!(first.len(), 1);
    driver.pass(3200);
    let second = asked(&mut driver);
    assert!(second.len() == 1 && second != first);
    driver.take(child);
    driver.say(second[0], digests_of(0, LEAVES, 0));
    assert_eq!(infos(&mut driver, child)[0].digests.len(), 128);
    driver.pass(10_000);
    assert!(asked(&mut driver).is_empty());
}

#[test]
fn holders_that_never_send_digests_are_as_good_as_none() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(LEAVES));
    driver.say(child, wants());
    assert!(driver.leased(&[child]).is_empty());
    driver.pass(3200);
    assert_eq!(driver.leased(&[child]), [child]);
    driver.say(child, failed(Kind::Cancelled));
    let again = driver.peer("a");
    driver.say(again, holds(LEAVES));
    driver.say(child, wants());
    assert!(driver.leased(&[child]).is_empty(), "it came back and has another chance");
}

#[test]
fn one_that_came_back_with_a_lease_is_asked_for_what_it_computed_before() {
    let mut driver = Driver::unsettled();
    let (reader, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(reader, said::Message::Register(proto::Register { held: 2, from_origin: true, ..register() }));
    driver.take(reader);
    driver.say(child, wants());
    driver.say(reader, digests_of(0, 2, 0));
    assert_eq!(infos(&mut driver, child).last().unwrap().digests.len(), 64);
}

#[test]
fn who_checked_the_whole_overrules_who_did_not() {
    let mut driver = Driver::new();
    let (seed, child) = (driver.seed("seed"), driver.peer("a"));
    driver.say(child, wants());
    driver.say(seed, digests_of(0, LEAVES, 0));
    let holder = driver.peer("b");
    driver.say(holder, holds(LEAVES));
    driver.take(child);
    let said::Message::Digests(digests) = digests_of(0, LEAVES, 1) else { unreachable!() };
    driver.say(holder, said::Message::Digests(proto::Digests { verified: true, ..digests }));
    assert!(driver.take(child).iter().any(|m| matches!(m, says::Message::Discard(_))));
    driver.say(seed, digests_of(0, LEAVES, 0));
    driver.say(child, wants());
    let right = infos(&mut driver, child);
    assert!(right.len() == 1 && right[0].verified && right[0].digests[..32] == [1; 32]);
}

#[test]
fn a_layers_leaves_need_no_digests_from_here() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(LEAVES));
    driver.say(child, said::Message::Register(proto::Register { digests_known: true, ..register() }));
    assert!(!driver.take(holder).iter().any(|m| matches!(m, says::Message::SendDigests(_))));
    assert!(infos(&mut driver, child).is_empty());
}

#[test]
fn what_nobody_wants_or_holds_is_forgotten() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(LEAVES));
    driver.say(child, wants());
    driver.say(holder, digests_of(0, LEAVES, 0));
    driver.pass(400_000);
    assert_eq!(driver.state.counts().digest_bytes, 128);
    driver.say(child, finished());
    driver.pass(400_000);
    assert_eq!(
        (driver.state.counts().digest_bytes, driver.state.counts().tasks),
        (0, 1),
        "holders know them"
    );
    driver.close(holder);
    driver.close(child);
    driver.pass(700_000);
    assert_eq!(driver.state.counts(), Counts::default());
    assert_eq!(driver.state.world.hosts.iter().count(), 0);
}

#[test]
fn who_checked_the_whole_may_send_its_digests_before_anything_else() {
    let mut driver = Driver::new();
    let (maker, child) = (driver.seed("s"), driver.peer("a"));
    let said::Message::Digests(digests) = digests_of(0, LEAVES, 0) else { unreachable!() };
    driver.say(maker, said::Message::Digests(proto::Digests { verified: true, ..digests }));
    driver.say(maker, finished());
    driver.say(child, wants());
    assert!(driver.leased(&[maker]).is_empty());
    let told = driver.take(child);
    let info =
        told.iter().find_map(|m| if let says::Message::TaskInfo(info) = m { Some(info) } else { None });
    assert!(info.is_some_and(|info| info.verified && info.digests.len() == 128));
    assert!(told.iter().any(|m| matches!(m, says::Message::Parents(change) if change.add.len() == 1)));
}

#[test]
fn very_many_are_told_digests_in_batches() {
    let mut driver = Driver::new();
    let seed = driver.seed("seed");
    let peers: Vec<_> = (0..100).map(|n| driver.peer(&format!("p{n}"))).collect();
    peers.iter().for_each(|peer| driver.say(*peer, wants()));
    let told = |driver: &mut Driver| {
        let infos = driver.take(peers[50]).into_iter().filter_map(|m| match m {
            says::Message::TaskInfo(info) => Some(info.digests.len() / 32),
            _ => None,
        });
        infos.filter(|digests| *digests > 0).collect::<Vec<_>>()
    };
    for leaf in 0..LEAVES {
        driver.say(seed, digests_of(leaf, 1, 0));
    }
    assert!(told(&mut driver).is_empty());
    driver.pass(1000);
    assert_eq!(told(&mut driver), [LEAVES as usize]);
    let late = driver.peer("late");
    driver.say(late, wants());
    assert!(
        driver.take(late).iter().any(
            |m| matches!(m, says::Message::TaskInfo(info) if info.digests.len() == 32 * LEAVES as usize)
        )
    );
}
