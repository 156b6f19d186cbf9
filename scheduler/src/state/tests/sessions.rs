use super::driver::*;

#[test]
fn the_first_message_is_the_announcement_and_there_is_only_one_host() {
    let mut driver = Driver::new();
    let silent = driver.open();
    let rude = driver.open();
    driver.say(rude, wants());
    assert!(driver.closed.contains_key(&rude));
    let twice = driver.peer("a");
    driver.say(twice, said::Message::Announce(proto::Announce { host: Some(host("b")) }));
    assert!(driver.closed.contains_key(&twice));
    driver.pass(11_000);
    assert!(driver.closed.contains_key(&silent));
}

#[test]
fn a_second_session_of_a_host_replaces_the_first() {
    let mut driver = Driver::new();
    let old = driver.peer("a");
    driver.say(old, holds(LEAVES));
    let new = driver.peer("a");
    assert!(driver.closed.contains_key(&old));
    driver.say(old, finished());
    driver.close(old);
    assert_eq!(driver.state.counts().hosts, 1);
    let child = driver.peer("b");
    driver.say(child, wants());
    assert!(driver.parents(child).is_empty(), "it has to say again what it holds");
    driver.say(new, holds(LEAVES));
    assert_eq!(driver.parents(child), ["a"]);
}

#[test]
fn a_peer_becomes_a_seed_and_back() {
    let mut driver = Driver::new();
    let (first, second, child) = (driver.peer("a"), driver.peer("b"), driver.peer("c"));
    let announce = |seed| {
        let host = proto::Host { seed, ..host("a") };
        said::Message::Announce(proto::Announce { host: Some(host) })
    };
    driver.say(first, announce(true));
    driver.say(child, wants());
    assert_eq!(driver.leased(&[first, second, child]), [first]);
    driver.say(first, announce(false));
    let other = proto::Task { id: "sha256:bb".into(), source: Some(source()) };
    driver.say(second, said::Message::Register(proto::Register { task: Some(other), ..Default::default() }));
    assert_eq!(driver.leased(&[first, second, child]), [second], "it has to fetch by itself");
    assert!(driver.closed.is_empty());
}

#[test]
fn new_rates_reach_all() {
    let mut driver = Driver::new();
    let (peer, silent) = (driver.peer("a"), driver.open());
    let rates = proto::Config { upload_bytes_per_second: 7, ..Default::default() };
    let settings = Settings { rates, ..Settings::default() };
    driver.on(Event::Settings(Box::new(settings.clone())));
    assert_eq!(driver.take(peer), [says::Message::Config(rates)]);
    driver.on(Event::Settings(Box::new(settings)));
    assert!(driver.take(peer).is_empty() && driver.take(silent).is_empty());
}

#[test]
fn secrets_do_not_show() {
    let mut driver = Driver::new();
    let (seed, peer) = (driver.seed("s"), driver.peer("a"));
    let message = proto::PeerMessage { message: Some(wants()) };
    let event = Event::Message(peer, Box::new(message));
    assert!(!format!("{event:?}").contains("115, 101"), "bytes of the header");
    let actions = driver.state.on(Time::from_millis(driver.now), event);
    assert!(actions.iter().any(|action| matches!(action, Action::Send(to, _) if *to == seed)));
    assert!(!format!("{actions:?} {:?}", driver.state).contains("registry/v2"));
}

#[test]
fn one_host_cannot_take_part_in_everything() {
    let mut driver = Driver::new();
    let greedy = driver.peer("a");
    let tasks = |held| (0..70_000).map(move |n| holding(&format!("sha256:{n}"), held)).collect();
    driver.say(greedy, said::Message::Holdings(proto::Holdings { tasks: tasks(0), layers: vec![] }));
    assert_eq!(driver.state.counts().tasks, 0, "holding nothing is nothing");
    driver.say(greedy, said::Message::Holdings(proto::Holdings { tasks: tasks(1), layers: vec![] }));
    assert_eq!(driver.state.counts().tasks, MAX_TASKS_PER_HOST);
    assert!(driver.notes.iter().any(|note| matches!(note, Note::OverLimit { .. })));
    let task = Some(proto::Task { id: "sha256:new".into(), source: Some(source()) });
    driver.say(greedy, said::Message::Register(proto::Register { task, ..Default::default() }));
    assert_eq!(driver.failure(greedy), Some(Kind::Local));
}

#[test]
fn a_peers_part_in_a_task_is_small() {
    let links = 16 * (size_of::<members::Link>() + size_of::<HostKey>());
    assert!(size_of::<members::Peer>() + links < 800);
}

#[test]
fn a_task_that_comes_from_another_scheduler_waits_for_who_fetches_it() {
    let mut driver = Driver::new();
    let peers = ["a", "b", "c"].map(|id| driver.peer(id));
    let moved = || proto::Register { moved: true, ..register() };
    driver.say(peers[0], said::Message::Register(moved()));
    driver.pass(1000);
    driver.say(peers[1], said::Message::Register(moved()));
    driver.pass(900);
    assert!(driver.leased(&peers).is_empty(), "who fetches it may be on its way");
    driver.say(peers[2], said::Message::Register(proto::Register { from_origin: true, ..moved() }));
    driver.pass(1000);
    assert!(driver.leased(&peers).is_empty(), "it came");
}

#[test]
fn nobody_waits_long_for_one_that_does_not_come_from_another_scheduler() {
    let mut driver = Driver::new();
    let peers = ["a", "b"].map(|id| driver.peer(id));
    let moved = said::Message::Register(proto::Register { moved: true, ..register() });
    driver.say(peers[0], moved.clone());
    driver.pass(1500);
    driver.say(peers[1], moved);
    driver.pass(600);
    assert_eq!(driver.leased(&peers).len(), 1, "late ones do not put it off");
}

#[test]
fn who_goes_to_another_scheduler_takes_its_lease_along() {
    let mut driver = Driver::new();
    let peers = ["a", "b"].map(|id| driver.peer(id));
    peers.into_iter().for_each(|peer| driver.say(peer, wants()));
    assert_eq!(driver.leased(&peers), [peers[0]]);
    driver.say(peers[0], said::Message::Moved(proto::Moved { task: TASK.into() }));
    driver.pass(1900);
    assert!(driver.leased(&peers).is_empty(), "the other one will follow");
    driver.pass(200);
    assert_eq!(driver.leased(&peers), [peers[1]], "it did not");
}
