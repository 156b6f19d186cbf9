//! Whatever peers send, the machine neither panics nor loses its invariants.

use darter_proto::scheduler::peer_message as said;
use proptest::prelude::*;

use super::{super::*, driver, invariants};

fn id() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => (0..4u8).prop_map(|n| format!("sha256:{n}")),
        2 => (0..3u8).prop_map(|n| format!("leaves:{n}")),
        2 => (0..3u8).prop_map(|n| format!("blake3:{n}")),
        1 => "[a-z:]{0,6}",
    ]
}

fn host_id() -> impl Strategy<Value = String> {
    prop_oneof![9 => (0..6u8).prop_map(|n| format!("h{n}")), 1 => ".{0,4}"]
}

/// A length and a number of leaves, mostly the right ones.
fn shape() -> impl Strategy<Value = (u64, u32)> {
    prop_oneof![6 => Just((40, 4)), 2 => Just((0, 0)), 1 => Just((50, 5)), 1 => any::<(u64, u32)>()]
}

fn held() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..=4u32, 1 => any::<u32>()]
}

fn task() -> impl Strategy<Value = Option<proto::Task>> {
    let task = (id(), any::<bool>())
        .prop_map(|(id, has_source)| Some(proto::Task { id, source: has_source.then(driver::source) }));
    prop_oneof![19 => task, 1 => Just(None)]
}

fn failure() -> impl Strategy<Value = proto::Failure> {
    (0..9i32).prop_map(|kind| proto::Failure { kind, status: 404, reason: "r".into() })
}

fn descriptor() -> impl Strategy<Value = proto::LayerDescriptor> {
    (id(), 0..3u8, 0..3u8).prop_map(|(blob, index, table)| proto::LayerDescriptor {
        blob,
        diff_id: "sha256:d".into(),
        index: format!("blake3:{index}"),
        table: format!("blake3:{table}"),
        ..Default::default()
    })
}

fn parent_report() -> impl Strategy<Value = proto::ParentReport> {
    (host_id(), any::<u64>(), any::<u64>(), any::<u32>(), prop_oneof![9 => Just(0), 1 => 0..6i32]).prop_map(
        |(host, bytes, busy_us, leaves, fault)| proto::ParentReport {
            host,
            bytes,
            busy_us,
            leaves,
            fault,
            reason: String::new(),
        },
    )
}

fn task_progress() -> impl Strategy<Value = proto::TaskProgress> {
    let parents = proptest::collection::vec(parent_report(), 0..4);
    (id(), held(), any::<u64>(), parents, any::<bool>()).prop_map(|(task, held, bytes, parents, starving)| {
        proto::TaskProgress { task, held, from_origin: bytes, from_peers: bytes, parents, starving }
    })
}

fn holdings() -> impl Strategy<Value = said::Message> {
    let holding =
        (id(), shape(), any::<bool>(), held()).prop_map(|(task, (length, leaves), verified, held)| {
            proto::Holding { task, length, leaves, verified, held }
        });
    let (tasks, layers) =
        (proptest::collection::vec(holding, 0..4), proptest::collection::vec(descriptor(), 0..2));
    (tasks, layers).prop_map(|(tasks, layers)| said::Message::Holdings(proto::Holdings { tasks, layers }))
}

fn digests() -> impl Strategy<Value = said::Message> {
    let bytes = prop_oneof![9 => (0..5usize).prop_map(|n| n * 32), 1 => 0..200usize];
    (id(), shape(), prop_oneof![9 => 0..4u32, 1 => any::<u32>()], bytes, any::<bool>(), 0..2u8).prop_map(
        |(task, (length, leaves), first, bytes, verified, value)| {
            let digests = vec![value; bytes].into();
            said::Message::Digests(proto::Digests { task, length, leaves, first, digests, verified })
        },
    )
}

fn message() -> impl Strategy<Value = said::Message> {
    let register = (task(), held(), 0..5u32, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(task, held, class, digests_known, from_origin, moved)| {
            let register = proto::Register { task, held, class, digests_known, from_origin, moved };
            said::Message::Register(register)
        },
    );
    let moved = id().prop_map(|task| said::Message::Moved(proto::Moved { task }));
    let progress = proptest::collection::vec(task_progress(), 0..3);
    let progress = progress.prop_map(|tasks| said::Message::Progress(proto::Progress { tasks }));
    let finished = (id(), shape()).prop_map(|(task, (length, leaves))| {
        said::Message::Finished(proto::Finished { task, length, leaves })
    });
    let failed = (id(), failure())
        .prop_map(|(task, failure)| said::Message::Failed(proto::Failed { task, failure: Some(failure) }));
    let dropped = proptest::collection::vec(id(), 0..3);
    let dropped = dropped.prop_map(|tasks| said::Message::Dropped(proto::Dropped { tasks }));
    let wanted = task()
        .prop_map(|blob| said::Message::LayerWanted(proto::LayerWanted { blob, diff_id: String::new() }));
    let made = (descriptor(), failure(), any::<bool>()).prop_map(|(layer, failure, good)| {
        let blob = layer.blob.clone();
        let result = if good {
            proto::layer_made::Result::Layer(layer)
        } else {
            proto::layer_made::Result::Failure(failure)
        };
        said::Message::LayerMade(proto::LayerMade { blob, result: Some(result) })
    });
    prop_oneof![
        6 => register,
        6 => progress,
        4 => holdings(),
        4 => digests(),
        3 => finished,
        3 => failed,
        1 => dropped,
        1 => moved,
        1 => wanted,
        1 => made,
        1 => Just(said::Message::Leave(proto::Leave {})),
    ]
}

#[derive(Debug, Clone)]
enum Step {
    Open(u64, String, bool),
    Close(u64),
    Say(u64, Option<said::Message>),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..8u64, host_id(), any::<bool>()).prop_map(|(session, id, seed)| Step::Open(session, id, seed)),
        1 => (0..8u64).prop_map(Step::Close),
        30 => (0..8u64, message()).prop_map(|(session, message)| Step::Say(session, Some(message))),
        1 => (0..8u64).prop_map(|session| Step::Say(session, None)),
        2 => prop_oneof![4 => 0..2000u64, 1 => 0..400_000u64].prop_map(Step::Pass),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]
    #[test]
    fn rubbish_is_survived(steps in proptest::collection::vec(step(), 1..120)) {
        let mut state = State::new(Settings::default(), 1, Time::default());
        let mut now = 0;
        for step in steps {
            let events = match step {
                Step::Open(session, id, seed) => {
                    let host = Some(proto::Host { seed, ..driver::host(&id) });
                    let announce = said::Message::Announce(proto::Announce { host });
                    let announce = proto::PeerMessage { message: Some(announce) };
                    let session = SessionId(session);
                    vec![Event::Closed(session), Event::Opened(session), Event::Message(session, Box::new(announce))]
                }
                Step::Close(session) => vec![Event::Closed(SessionId(session))],
                Step::Say(session, message) => {
                    vec![Event::Message(SessionId(session), Box::new(proto::PeerMessage { message }))]
                }
                Step::Pass(millis) => {
                    now += millis;
                    vec![Event::Tick]
                }
            };
            for event in events {
                state.on(Time::from_millis(now), event);
                invariants::check(&state);
            }
            prop_assert!(state.status().tasks.len() <= 20);
        }
    }
}
