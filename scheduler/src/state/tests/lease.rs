use super::driver::*;

#[test]
fn a_seed_fetches_what_nobody_has_with_the_source_of_who_asked() {
    let mut driver = Driver::new();
    let (seed, peer) = (driver.seed("seed"), driver.peer("a"));
    driver.say(peer, wants());
    let fetch = driver.one(seed, |m| match m {
        says::Message::Fetch(fetch) => fetch.task,
        _ => None,
    });
    assert_eq!(fetch.unwrap().source, Some(source()));
    assert_eq!(driver.parents(peer), ["seed"]);
    let other = driver.peer("b");
    driver.say(other, wants());
    assert!(driver.leased(&[seed, peer, other]).is_empty(), "one origin fetch");
}

#[test]
fn all_schedulers_choose_the_same_seed() {
    let chosen = [["s1", "s2", "s3"], ["s3", "s1", "s2"]].into_iter().map(|names| {
        let mut driver = Driver::new();
        let seeds = names.map(|name| driver.seed(name));
        let peer = driver.peer("a");
        driver.say(peer, wants());
        let leased = driver.leased(&seeds);
        names[seeds.iter().position(|seed| *seed == leased[0]).unwrap()]
    });
    let chosen: Vec<_> = chosen.collect();
    assert_eq!(chosen[0], chosen[1]);
}

#[test]
fn without_a_seed_one_that_wants_it_fetches_and_its_death_moves_the_lease() {
    let mut driver = Driver::new();
    let peers = ["a", "b", "c"].map(|id| driver.peer(id));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    assert_eq!(driver.leased(&peers), [peers[0]]);
    driver.say(peers[2], got(2));
    driver.close(peers[0]);
    assert_eq!(driver.leased(&peers), [peers[2]], "the one that holds most");
    driver.close(peers[2]);
    assert_eq!(driver.leased(&peers), [peers[1]]);
}

#[test]
fn a_holder_without_progress_loses_its_lease_and_may_find_back() {
    let mut driver = Driver::new();
    let peers = ["a", "b"].map(|id| driver.peer(id));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    assert_eq!(driver.leased(&peers), [peers[0]]);
    let mut alive = |held: u32, seconds: usize| {
        for _ in 0..seconds {
            driver.say(peers[0], got(held));
            driver.pass(1000);
        }
        driver.leased(&peers)
    };
    assert!(alive(0, 4).is_empty() && alive(1, 4).is_empty(), "it got on");
    assert_eq!(alive(1, 2), [peers[1]]);
    driver.say(peers[0], digests_of(0, 2, 0));
    driver.say(peers[1], failed(Kind::OriginUnreachable));
    assert!(driver.leased(&peers).is_empty(), "the first one gets on again");
    driver.say(peers[0], finished());
    assert_eq!(driver.failure(peers[0]), None);
}

#[test]
fn a_frozen_holder_loses_its_lease_soon_and_gets_no_other_before_it_speaks() {
    let mut driver = Driver::new();
    let seeds = ["s", "t"].map(|id| driver.seed(id));
    let peer = driver.peer("a");
    driver.say(peer, wants());
    let frozen = driver.leased(&seeds)[0];
    let other = seeds.into_iter().find(|seed| *seed != frozen).unwrap();
    driver.pass(1600);
    assert_eq!(driver.leased(&seeds), [other]);
    driver.say(other, finished());

    // The same task again, which would go to the same seed.
    let again = |driver: &mut Driver| {
        driver.say(other, dropped());
        driver.say(peer, dropped());
        driver.say(peer, wants());
        driver.leased(&seeds)
    };
    assert_eq!(again(&mut driver), [other]);
    driver.say(frozen, failed(Kind::Cancelled));
    driver.say(other, finished());
    assert_eq!(again(&mut driver), [frozen]);
}

#[test]
fn what_only_a_frozen_host_holds_is_fetched_by_another() {
    let mut driver = Driver::new();
    let (holder, seed, peer) = (driver.peer("holder"), driver.seed("seed"), driver.peer("a"));
    driver.say(holder, finished());
    driver.say(peer, wants());
    assert_eq!(driver.parents(peer), ["holder"]);
    let other = proto::Task { id: "sha256:other".into(), source: Some(source()) };
    let reads = proto::Register { task: Some(other), from_origin: true, ..register() };
    driver.say(holder, said::Message::Register(reads));
    driver.pass(1600);
    let mut fetched: Vec<_> = driver
        .take(seed)
        .into_iter()
        .filter_map(|message| match message {
            says::Message::Fetch(fetch) => fetch.task.map(|task| task.id),
            _ => None,
        })
        .collect();
    fetched.sort();
    assert_eq!(fetched, [TASK, "sha256:other"]);
}

#[test]
fn a_slow_holder_keeps_its_lease_when_there_is_nobody_else() {
    let mut driver = Driver::new();
    let peer = driver.peer("a");
    driver.say(peer, wants());
    assert_eq!(driver.leased(&[peer]), [peer]);
    driver.pass(60_000);
    assert!(driver.take(peer).is_empty());
    let other = driver.peer("b");
    driver.say(other, wants());
    driver.pass(6000);
    assert_eq!(driver.leased(&[peer, other]), [other]);
}

#[test]
fn after_the_origin_refused_a_seed_those_who_want_it_try_themselves() {
    let mut driver = Driver::new();
    let (seeds, peers) = (["s", "t"].map(|id| driver.seed(id)), ["a", "b"].map(|id| driver.peer(id)));
    driver.say(peers[1], wants_with(b"other"));
    driver.say(peers[0], wants());
    let seed = driver.leased(&seeds)[0];
    driver.leased(&peers);
    driver.say(seed, failed(Kind::OriginStatus));
    let first = driver.leased(&[seeds[0], seeds[1], peers[0], peers[1]]);
    assert!(first.len() == 1 && peers.contains(&first[0]));
    driver.say(first[0], failed(Kind::OriginStatus));
    let second = driver.leased(&[seeds[0], seeds[1], peers[0], peers[1]]);
    assert!(second.len() == 1 && peers.contains(&second[0]) && second != first);
    driver.say(second[0], failed(Kind::OriginStatus));
    for peer in peers {
        assert_eq!(driver.failure(peer), None, "each has its own answer");
    }
    driver.say(peers[0], wants());
    assert_eq!(driver.leased(&seeds), [seed], "a new round");
}

fn dropped() -> said::Message {
    said::Message::Dropped(proto::Dropped { tasks: vec![TASK.into()] })
}

/// As [`wants`], with credentials of its own.
fn wants_with(credentials: &'static [u8]) -> said::Message {
    let header = proto::Header { name: "authorization".into(), value: credentials.into() };
    let task =
        proto::Task { id: TASK.into(), source: Some(proto::Source { headers: vec![header], ..source() }) };
    said::Message::Register(proto::Register { task: Some(task), ..Default::default() })
}

#[test]
fn a_crowd_that_would_ask_the_same_is_answered_at_once() {
    let mut driver = Driver::new();
    let crowd: Vec<_> = (0..100).map(|n| driver.peer(&format!("p{n}"))).collect();
    let other = driver.peer("other");
    crowd.iter().for_each(|peer| driver.say(*peer, wants()));
    driver.say(other, wants_with(b"other"));
    let holder = driver.leased(&crowd)[0];
    driver.say(holder, failed(Kind::OriginStatus));
    for peer in crowd.iter().filter(|peer| **peer != holder) {
        assert_eq!(driver.failure(*peer), Some(Kind::OriginStatus));
    }
    assert_eq!(driver.leased(&[other]), [other], "its credentials may be better");
}

#[test]
fn an_unreachable_origin_is_tried_from_a_few_hosts_and_then_all_are_told() {
    let mut driver = Driver::new();
    let peers: Vec<_> = (0..20).map(|n| driver.peer(&format!("p{n}"))).collect();
    for peer in &peers {
        driver.say(*peer, wants());
    }
    let mut failures = Vec::new();
    let mut tried = 0;
    while failures.is_empty() {
        let holder = peers.iter().copied().find(|peer| {
            let inbox = driver.take(*peer);
            failures
                .extend(inbox.iter().filter(|m| matches!(m, says::Message::TaskFailed(_))).map(|_| *peer));
            inbox.iter().any(|m| matches!(m, says::Message::Lease(_)))
        });
        if let Some(holder) = holder {
            tried += 1;
            driver.say(holder, failed(Kind::OriginUnreachable));
        }
    }
    assert_eq!(tried, 8);
    let rest = peers.iter().filter(|peer| driver.failure(**peer) == Some(Kind::OriginUnreachable)).count();
    assert_eq!(tried + rest + failures.len(), 20);
}

#[test]
fn what_has_no_origin_and_no_holder_is_not_found() {
    let mut driver = Driver::new();
    let peer = driver.peer("a");
    let wants = || {
        let task = Some(proto::Task { id: "leaves:aa".into(), source: None });
        said::Message::Register(proto::Register { task, digests_known: true, ..Default::default() })
    };
    driver.say(peer, wants());
    assert_eq!(driver.failure(peer), Some(Kind::NotFound));
    let holder = driver.peer("b");
    let tasks = vec![holding("leaves:aa", LEAVES)];
    driver.say(holder, said::Message::Holdings(proto::Holdings { tasks, layers: vec![] }));
    driver.say(peer, wants());
    assert_eq!(driver.parents(peer), ["b"]);
}

#[test]
fn nobody_is_sent_to_the_origin_before_the_others_could_come_back() {
    let mut driver = Driver::unsettled();
    let (seed, peer) = (driver.seed("seed"), driver.peer("a"));
    driver.say(peer, said::Message::Register(proto::Register { held: 2, ..register() }));
    driver.pass(1900);
    assert!(driver.leased(&[seed]).is_empty());
    let reader = driver.peer("b");
    driver.say(reader, said::Message::Register(proto::Register { held: 3, from_origin: true, ..register() }));
    driver.pass(1000);
    assert!(driver.leased(&[seed, peer, reader]).is_empty(), "the one that fetches has come back");
    driver.close(reader);
    assert_eq!(driver.leased(&[seed, peer]), [seed]);
}

#[test]
fn a_lease_outlives_a_replaced_session_only_in_the_hands_of_its_holder() {
    for claims in [true, false] {
        let mut driver = Driver::new();
        let peers = ["a", "b"].map(|id| driver.peer(id));
        peers.into_iter().for_each(|peer| driver.say(peer, wants()));
        assert_eq!(driver.leased(&peers), [peers[0]]);
        let again = driver.peer("a");
        assert!(driver.closed.contains_key(&peers[0]));
        assert!(driver.leased(&[peers[1], again]).is_empty());
        driver.say(again, said::Message::Register(proto::Register { from_origin: claims, ..register() }));
        assert_eq!(driver.leased(&[peers[1], again]).is_empty(), claims);
    }
}

#[test]
fn a_wrong_whole_is_discarded_everywhere_and_who_still_wants_it_begins_anew() {
    let mut driver = Driver::new();
    let (seed, peers) = (driver.seed("s"), ["a", "b"].map(|id| driver.peer(id)));
    for peer in peers {
        driver.say(peer, wants());
    }
    driver.say(seed, digests_of(0, LEAVES, 0));
    driver.say(peers[0], got(LEAVES));
    driver.leased(&[seed, peers[0], peers[1]]);
    driver.say(seed, failed(Kind::WrongDigest));
    for peer in peers {
        assert!(driver.take(peer).iter().any(|m| matches!(m, says::Message::Discard(_))));
        driver.say(peer, failed(Kind::WrongDigest));
    }
    assert!(driver.leased(&[seed, peers[0], peers[1]]).is_empty());
    driver.say(peers[0], wants());
    assert_eq!(driver.leased(&[seed]), [seed]);
    driver.take(peers[0]);
    driver.say(seed, digests_of(0, LEAVES, 1));
    let told = driver.one(peers[0], |m| match m {
        says::Message::TaskInfo(info) => Some(info.digests),
        _ => None,
    });
    assert_eq!(told.unwrap()[..32], [1; 32]);
}

#[test]
fn a_cancelled_holder_says_nothing_about_the_origin() {
    let mut driver = Driver::new();
    let peers = ["a", "b"].map(|id| driver.peer(id));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    assert_eq!(driver.leased(&peers), [peers[0]]);
    driver.say(peers[0], failed(Kind::Cancelled));
    assert_eq!(driver.leased(&peers), [peers[1]]);
}

#[test]
fn a_child_that_gets_nothing_from_the_only_holder_goes_to_the_origin() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(LEAVES));
    driver.say(child, wants());
    assert!(driver.leased(&[child]).is_empty());
    driver.say(child, reports("a", proto::Fault::WrongLeaf));
    driver.say(child, starves(0));
    assert_eq!(driver.leased(&[child]), [child]);
}

#[test]
fn a_starving_child_of_a_task_without_origin_is_told_in_the_end() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(2));
    let task = Some(proto::Task { id: TASK.into(), source: None });
    driver.say(child, said::Message::Register(proto::Register { task, ..Default::default() }));
    for _ in 0..6 {
        assert_eq!(driver.failure(child), None);
        driver.pass(600);
        driver.say(child, starves(2));
    }
    assert_eq!(driver.failure(child), Some(Kind::NotFound));
}

#[test]
fn a_child_waits_for_a_slow_parent_that_holds_everything() {
    let mut driver = Driver::new();
    let (holder, child) = (driver.peer("a"), driver.peer("b"));
    driver.say(holder, holds(LEAVES));
    let task = Some(proto::Task { id: TASK.into(), source: None });
    driver.say(child, said::Message::Register(proto::Register { task, ..Default::default() }));
    for _ in 0..20 {
        driver.pass(600);
        driver.say(child, starves(0));
    }
    assert_eq!(driver.failure(child), None);
}
