use super::driver::*;

const BLOB: &str = "sha256:b10b";

fn descriptor() -> proto::LayerDescriptor {
    proto::LayerDescriptor {
        format: 1,
        blob: BLOB.into(),
        diff_id: "sha256:d1ff".into(),
        raw_len: 100,
        index: "blake3:1d".into(),
        index_len: 10,
        table: "blake3:7ab1e".into(),
        table_len: 10,
    }
}

fn wants_layer(diff_id: &str) -> said::Message {
    let blob = Some(proto::Task { id: BLOB.into(), source: Some(source()) });
    said::Message::LayerWanted(proto::LayerWanted { blob, diff_id: diff_id.into() })
}

fn made(layer: proto::LayerDescriptor) -> said::Message {
    let result = Some(proto::layer_made::Result::Layer(layer));
    said::Message::LayerMade(proto::LayerMade { blob: BLOB.into(), result })
}

fn not_made(kind: Kind) -> said::Message {
    let failure = proto::Failure { kind: kind.into(), status: 0, reason: String::new() };
    let result = Some(proto::layer_made::Result::Failure(failure));
    said::Message::LayerMade(proto::LayerMade { blob: BLOB.into(), result })
}

fn held_by_restart() -> said::Message {
    let tasks = ["blake3:1d", "blake3:7ab1e", "leaves:7ab1e"].map(|task| holding(task, LEAVES));
    said::Message::Holdings(proto::Holdings { tasks: tasks.into(), layers: vec![descriptor()] })
}

/// What a session was answered: the descriptor, or why there is none.
fn answer(driver: &mut Driver, session: SessionId) -> Option<Result<proto::LayerDescriptor, Kind>> {
    driver.one(session, |m| match m {
        says::Message::Layer(proto::Layer { result: Some(result), .. }) => Some(match result {
            proto::layer::Result::Layer(layer) => Ok(layer),
            proto::layer::Result::Failure(failure) => Err(failure.kind()),
        }),
        _ => None,
    })
}

fn asked_to_make(driver: &mut Driver, seeds: &[SessionId]) -> Vec<SessionId> {
    let make = |m: &says::Message| matches!(m, says::Message::MakeLayer(_));
    seeds.iter().copied().filter(|seed| driver.take(*seed).iter().any(make)).collect()
}

#[test]
fn one_seed_makes_a_layer_for_all_who_ask() {
    let mut driver = Driver::new();
    let (seeds, peers) = (["s", "t"].map(|id| driver.seed(id)), ["a", "b"].map(|id| driver.peer(id)));
    peers.into_iter().for_each(|peer| driver.say(peer, wants_layer("")));
    let maker = asked_to_make(&mut driver, &seeds);
    assert_eq!(maker.len(), 1);
    driver.say(maker[0], made(descriptor()));
    for peer in peers {
        assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));
    }
    let late = driver.peer("c");
    driver.say(late, wants_layer("sha256:d1ff"));
    assert_eq!(answer(&mut driver, late), Some(Ok(descriptor())));
    driver.say(late, wants_layer("sha256:other"));
    assert_eq!(answer(&mut driver, late), Some(Err(Kind::LayerRefused)));
    let task = Some(proto::Task { id: "leaves:7ab1e".into(), source: None });
    driver.say(
        late,
        said::Message::Register(proto::Register { task, digests_known: true, ..Default::default() }),
    );
    assert_eq!(driver.parents(late).len(), 1, "the maker holds the leaves");
}

#[test]
fn another_seed_goes_on_when_one_dies_and_without_any_all_are_told() {
    let mut driver = Driver::new();
    let (seeds, peer) = (["s", "t"].map(|id| driver.seed(id)), driver.peer("a"));
    driver.say(peer, wants_layer(""));
    let first = asked_to_make(&mut driver, &seeds);
    driver.close(first[0]);
    let second = asked_to_make(&mut driver, &seeds);
    assert!(second.len() == 1 && first != second);
    assert_eq!(answer(&mut driver, peer), None);
    driver.say(second[0], said::Message::Leave(proto::Leave {}));
    assert_eq!(answer(&mut driver, peer), Some(Err(Kind::NotFound)));
}

#[test]
fn a_refused_blob_is_not_tried_again_but_a_full_disk_is() {
    let mut driver = Driver::new();
    let (seeds, peer) = (["s", "t"].map(|id| driver.seed(id)), driver.peer("a"));
    driver.say(peer, wants_layer(""));
    let first = asked_to_make(&mut driver, &seeds);
    driver.say(first[0], not_made(Kind::Local));
    let second = asked_to_make(&mut driver, &seeds);
    assert!(second.len() == 1 && first != second);
    driver.say(first[0], not_made(Kind::Local));
    assert_eq!(answer(&mut driver, peer), None, "it was not asked any more");
    driver.say(second[0], not_made(Kind::LayerRefused));
    assert_eq!(answer(&mut driver, peer), Some(Err(Kind::LayerRefused)));
}

#[test]
fn without_a_seed_the_answer_is_no_at_once_but_not_before_seeds_could_come_back() {
    let mut driver = Driver::new();
    let peer = driver.peer("a");
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), Some(Err(Kind::NotFound)));

    let mut driver = Driver::unsettled();
    let peers = ["a", "b"].map(|id| driver.peer(id));
    driver.say(peers[0], wants_layer(""));
    assert_eq!(answer(&mut driver, peers[0]), None);
    let seed = driver.seed("s");
    assert_eq!(asked_to_make(&mut driver, &[seed]), [seed]);
    driver.close(seed);
    driver.pass(2000);
    assert_eq!(answer(&mut driver, peers[0]), Some(Err(Kind::NotFound)));
}

#[test]
fn a_restarted_scheduler_learns_layers_again_and_serves_them_only_with_all_their_parts() {
    let mut driver = Driver::new();
    let (seed, peer) = (driver.seed("s"), driver.peer("a"));
    driver.say(seed, held_by_restart());
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));
    driver.say(seed, said::Message::Dropped(proto::Dropped { tasks: vec!["leaves:7ab1e".into()] }));
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), None);
    assert_eq!(asked_to_make(&mut driver, &[seed]), [seed]);
    driver.close(seed);
    assert_eq!(driver.state.counts().layers, 0);
}

#[test]
fn a_seeds_word_on_a_layer_counts_more() {
    let mut driver = Driver::new();
    let (seed, liar, peer) = (driver.seed("s"), driver.peer("l"), driver.peer("a"));
    let lie = proto::LayerDescriptor { index: "blake3:bad".into(), ..descriptor() };
    driver.say(liar, made(lie.clone()));
    driver.say(seed, held_by_restart());
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));
    driver.say(liar, made(lie));
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));
}

#[test]
fn a_layer_that_takes_too_long_is_not_waited_for() {
    let mut driver = Driver::new();
    let (seed, peer) = (driver.seed("s"), driver.peer("a"));
    driver.say(peer, wants_layer(""));
    assert_eq!(asked_to_make(&mut driver, &[seed]), [seed]);
    driver.pass(601_000);
    assert_eq!(answer(&mut driver, peer), Some(Err(Kind::NotFound)));
}

#[test]
fn a_layer_that_two_hosts_find_wrong_is_discarded_and_its_maker_not_used() {
    let mut driver = Driver::new();
    let (seeds, peers) = (["s", "t"].map(|id| driver.seed(id)), ["a", "b"].map(|id| driver.peer(id)));
    driver.say(peers[0], wants_layer(""));
    let maker = asked_to_make(&mut driver, &seeds)[0];
    driver.say(maker, made(descriptor()));
    assert_eq!(answer(&mut driver, peers[0]), Some(Ok(descriptor())));
    let wrong = said::Message::LayerWrong(proto::LayerWrong { layer: Some(descriptor()) });
    for _ in 0..3 {
        driver.say(peers[0], wrong.clone());
    }
    driver.say(peers[1], wants_layer(""));
    assert_eq!(answer(&mut driver, peers[1]), Some(Ok(descriptor())), "one host alone is not believed");
    driver.say(peers[1], wrong);
    let discarded = |message: &says::Message| matches!(message, says::Message::Discard(_));
    assert_eq!(driver.take(maker).iter().filter(|message| discarded(message)).count(), 3);
    driver.say(peers[1], wants_layer(""));
    let other = asked_to_make(&mut driver, &seeds);
    assert!(other.len() == 1 && other[0] != maker);
}

#[test]
fn seeds_of_two_versions_make_two_layers_and_the_one_that_is_served_counts() {
    let mut driver = Driver::new();
    let (seeds, peer) = (["s", "t"].map(|id| driver.seed(id)), driver.peer("a"));
    driver.say(peer, wants_layer(""));
    let newer = asked_to_make(&mut driver, &seeds)[0];
    let older = if newer == seeds[0] { seeds[1] } else { seeds[0] };
    driver.say(older, held_by_restart());
    assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));
    let (index, table) = ("blake3:2d".into(), "blake3:7ab1f".into());
    let other = proto::LayerDescriptor { format: 2, index, table, ..descriptor() };
    driver.say(newer, made(other.clone()));
    driver.say(peer, wants_layer(""));
    assert_eq!(answer(&mut driver, peer), Some(Ok(descriptor())));

    driver.say(older, said::Message::Dropped(proto::Dropped { tasks: vec!["leaves:7ab1e".into()] }));
    driver.say(peer, wants_layer(""));
    assert_eq!(asked_to_make(&mut driver, &seeds), [newer]);
    driver.say(newer, made(other.clone()));
    assert_eq!(answer(&mut driver, peer), Some(Ok(other)));
}
