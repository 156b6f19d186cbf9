use super::driver::*;

fn parents_of(driver: &Driver, id: &str) -> Vec<String> {
    let status = driver.state.status();
    let peer = status.tasks[0].peers.iter().find(|peer| peer.host == id).unwrap();
    peer.parents.clone()
}

#[test]
fn peers_of_one_task_serve_each_other() {
    let mut driver = Driver::new();
    driver.seed("seed");
    let peers = ["a", "b", "c"].map(|id| driver.peer(id));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    for (peer, others) in peers.into_iter().zip([["b", "c"], ["a", "c"], ["a", "b"]]) {
        let mut parents = driver.parents(peer);
        parents.sort();
        assert_eq!(parents, [others[0], others[1], "seed"]);
    }
}

#[test]
fn there_are_no_more_parents_than_wanted_and_most_are_near() {
    let mut driver = Driver::new();
    let mut near = 0;
    for n in 0..200 {
        let place = Some(proto::Place {
            zone: format!("z{}", n % 2),
            rack: format!("{}", n % 8),
            ..Default::default()
        });
        let peer = driver.join(proto::Host { place, ..host(&format!("p{n}")) });
        driver.say(peer, holds(1));
        if n >= 150 {
            driver.say(peer, wants());
            let parents = driver.parents(peer);
            assert_eq!(parents.len(), 16);
            near += parents.iter().filter(|id| id[1..].parse::<u32>().unwrap() % 8 == n % 8).count();
        }
    }
    assert!((400..700).contains(&near), "{near} of 800 parents are in the same rack");
}

#[test]
fn dead_and_leaving_parents_are_replaced() {
    let mut driver = Driver::new();
    let parents = ["a", "b"].map(|id| driver.peer(id));
    parents.into_iter().for_each(|parent| driver.say(parent, holds(LEAVES)));
    let child = driver.peer("c");
    driver.say(child, wants());
    let late = driver.peer("d");
    driver.say(late, holds(LEAVES));
    assert_eq!(driver.parents(child).len(), 3);
    driver.close(parents[0]);
    driver.say(parents[1], said::Message::Leave(proto::Leave {}));
    assert_eq!(parents_of(&driver, "c"), ["d"]);
    let removed = driver.take(child).into_iter().filter_map(|m| match m {
        says::Message::Parents(change) => Some(change.remove),
        _ => None,
    });
    assert_eq!(removed.flatten().collect::<Vec<_>>(), ["a", "b"]);
}

#[test]
fn who_loses_a_parent_gets_another_at_once() {
    let mut driver = Driver::new();
    let holders: Vec<_> = (0..40).map(|n| driver.peer(&format!("p{n}"))).collect();
    holders.iter().for_each(|holder| driver.say(*holder, holds(1)));
    let child = driver.peer("c");
    driver.say(child, wants());
    let first = parents_of(&driver, "c");
    for name in &first {
        driver.close(holders[name[1..].parse::<usize>().unwrap()]);
    }
    let second = parents_of(&driver, "c");
    assert_eq!((first.len(), second.len()), (16, 16));
    driver.say(child, reports(&second[0], proto::Fault::Stalled));
    assert_eq!(parents_of(&driver, "c").len(), 16);
}

#[test]
fn what_was_dropped_is_not_served() {
    let mut driver = Driver::new();
    let (parent, other, child) = (driver.peer("a"), driver.peer("b"), driver.peer("c"));
    driver.say(parent, holds(LEAVES));
    driver.say(other, holds(LEAVES));
    driver.say(child, wants());
    driver.say(parent, said::Message::Dropped(proto::Dropped { tasks: vec![TASK.into()] }));
    assert_eq!(parents_of(&driver, "c"), ["b"]);
}

#[test]
fn a_parent_that_sent_a_wrong_leaf_never_comes_back() {
    let mut driver = Driver::new();
    let mut parent = driver.peer("a");
    driver.say(parent, holds(LEAVES));
    let child = driver.peer("c");
    driver.say(child, wants());
    driver.say(child, reports("a", proto::Fault::WrongLeaf));
    for _ in 0..3 {
        driver.pass(60_000);
        driver.close(parent);
        parent = driver.peer("a");
        driver.say(parent, holds(LEAVES));
        driver.say(child, wants());
        driver.say(child, starves(0));
        assert!(parents_of(&driver, "c").is_empty());
    }
}

#[test]
fn a_parent_that_was_unreachable_may_be_tried_again_later_or_when_it_comes_back() {
    for comes_back in [true, false] {
        let mut driver = Driver::new();
        let parent = driver.peer("a");
        driver.say(parent, holds(LEAVES));
        let child = driver.peer("c");
        driver.say(child, wants());
        driver.say(child, reports("a", proto::Fault::Unreachable));
        assert!(parents_of(&driver, "c").is_empty());
        if comes_back {
            driver.close(parent);
            let parent = driver.peer("a");
            driver.say(parent, holds(LEAVES));
        } else {
            driver.pass(31_000);
            driver.say(child, starves(0));
        }
        assert_eq!(parents_of(&driver, "c"), ["a"]);
    }
}

#[test]
fn two_children_with_wrong_leaves_eject_the_parent_for_all() {
    let mut driver = Driver::new();
    let (bad, good) = (driver.peer("bad"), driver.peer("good"));
    driver.say(bad, holds(LEAVES));
    driver.say(good, holds(LEAVES));
    let children = ["a", "b", "c"].map(|id| driver.peer(id));
    children.into_iter().for_each(|child| driver.say(child, wants()));
    driver.say(children[0], reports("bad", proto::Fault::WrongLeaf));
    assert!(parents_of(&driver, "c").contains(&"bad".to_owned()));
    driver.say(children[1], reports("bad", proto::Fault::WrongLeaf));
    assert!(!parents_of(&driver, "c").contains(&"bad".to_owned()));
    let ejected = |note: &Note| matches!(note, Note::Ejected { host, .. } if host.as_str() == "bad");
    assert!(driver.notes.iter().any(ejected));
    driver.close(bad);
    let bad = driver.peer("bad");
    driver.say(bad, holds(LEAVES));
    let late = driver.peer("d");
    driver.say(late, wants());
    assert!(!parents_of(&driver, "d").contains(&"bad".to_owned()), "a new session does not help it");
    driver.pass(31_000);
    driver.say(late, starves(0));
    assert!(parents_of(&driver, "d").contains(&"bad".to_owned()), "it has another chance");
}

#[test]
fn a_parent_far_slower_than_before_and_than_the_others_is_ejected() {
    let mut driver = Driver::new();
    let names = ["p0", "p1", "p2", "p3", "p4"];
    for name in names {
        let parent = driver.peer(name);
        driver.say(parent, holds(LEAVES));
    }
    let children = ["a", "b"].map(|id| driver.peer(id));
    children.into_iter().for_each(|child| driver.say(child, wants()));
    let mut report = |millis: [u64; 5]| {
        for child in children {
            let parents = names.iter().zip(millis).map(|(name, millis)| proto::ParentReport {
                host: (*name).into(),
                bytes: 1 << 18,
                busy_us: millis * 1000,
                leaves: 1,
                ..Default::default()
            });
            let parents = parents.collect();
            driver.say(child, progress(proto::TaskProgress { parents, ..Default::default() }));
        }
        driver.notes.drain(..).filter(|note| matches!(note, Note::Ejected { .. })).count()
    };
    for n in 0..30 {
        assert_eq!(report([10 + n % 3, 12 - n % 2, 9 + n % 3, 11, 10]), 0);
    }
    assert_eq!(report([100; 5]), 0, "everybody is slow");
    assert_eq!(report([500, 10, 11, 10, 12]) + report([500, 10, 11, 10, 12]), 1);
}

#[test]
fn a_starving_child_with_a_full_set_gets_another_parent() {
    let mut driver = Driver::new();
    for n in 0..40 {
        let peer = driver.peer(&format!("p{n}"));
        driver.say(peer, holds(1));
    }
    let child = driver.peer("c");
    driver.say(child, wants());
    let mut before = parents_of(&driver, "c");
    let mut changes = 0;
    for _ in 0..5 {
        driver.say(child, starves(0));
        driver.pass(600);
        let after = parents_of(&driver, "c");
        assert_eq!(after.len(), 16);
        changes += after.iter().filter(|parent| !before.contains(parent)).count();
        before = after;
    }
    assert!((3..=5).contains(&changes), "{changes}");
}

#[test]
fn busy_parents_are_taken_only_if_there_are_few_others() {
    let mut driver = Driver::new();
    let busy = driver.join(proto::Host { upload_slots: 1, ..host("busy") });
    driver.say(busy, holds(LEAVES));
    let children = ["a", "b", "c", "d", "e", "f"].map(|id| driver.peer(id));
    children.into_iter().for_each(|child| driver.say(child, wants()));
    let has = |id: &str| parents_of(&driver, id).contains(&"busy".to_owned());
    assert!(has("a") && has("b"), "better a busy parent than none");
    assert!(!has("f"), "it has the others");
}

#[test]
fn parents_are_replaced_with_progress_unless_that_is_switched_off() {
    for rotate in [true, false] {
        let mut driver = Driver::new();
        driver.on(Event::Settings(Box::new(Settings { rotate, ..Settings::default() })));
        let held =
            proto::Holding { task: TASK.into(), length: 1 << 28, leaves: 1024, verified: false, held: 1 };
        for n in 0..40 {
            let peer = driver.peer(&format!("p{n}"));
            let tasks = vec![held.clone()];
            driver.say(peer, said::Message::Holdings(proto::Holdings { tasks, layers: vec![] }));
        }
        let child = driver.peer("c");
        driver.say(child, wants());
        let before = parents_of(&driver, "c");
        for held in [100, 200, 300, 400] {
            driver.say(child, got(held));
        }
        assert_eq!(parents_of(&driver, "c") != before, rotate);
    }
}

#[test]
fn children_spread_over_all_who_take_part() {
    let mut driver = Driver::new();
    let peers: Vec<_> = (0..300).map(|n| driver.peer(&format!("p{n}"))).collect();
    peers.iter().for_each(|peer| driver.say(*peer, wants()));
    let status = driver.state.status();
    let mut children: Vec<_> = status.hosts.iter().map(|host| host.children).collect();
    children.sort_unstable();
    let (few, many) = (children[children.len() / 10], children[children.len() * 9 / 10]);
    assert!(few >= 8 && many <= 24, "a tenth has {few} or fewer children, a tenth {many} or more");
}
