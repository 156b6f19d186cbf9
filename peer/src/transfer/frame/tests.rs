// A list of one range is what is meant.
#![allow(clippy::single_range_in_vec_init)]

use proptest::prelude::*;

use super::*;

fn range() -> impl Strategy<Value = Range<u32>> {
    (0..u32::MAX - MAX_LEAVES, 1..=MAX_LEAVES).prop_map(|(first, count)| first..first + count)
}

fn ranges() -> impl Strategy<Value = Vec<Range<u32>>> {
    proptest::collection::vec((1u32..1000, 1u32..1000), 0..50).prop_map(|steps| {
        let mut at = 0;
        let ranges = steps.into_iter().map(|(gap, len)| {
            let start = at + gap;
            at = start + len;
            start..at
        });
        ranges.collect()
    })
}

fn class() -> impl Strategy<Value = Class> {
    prop_oneof![Just(Class::Demand), Just(Class::Stream), Just(Class::Profile), Just(Class::Background)]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![Just(Refusal::Busy), Just(Refusal::NotHeld), Just(Refusal::Cancelled)]
}

fn frame() -> impl Strategy<Value = Frame> {
    let stream = 1..u32::MAX;
    prop_oneof![
        (stream.clone(), "[a-z0-9-]{1,64}", proptest::collection::vec(any::<u8>(), 0..257)).prop_map(
            |(stream, rest, ticket)| Frame::Subscribe {
                stream,
                task: TaskId::parse(&format!("url:{rest}")).unwrap(),
                ticket: ticket.into(),
            }
        ),
        (stream.clone(), ranges()).prop_map(|(stream, leaves)| Frame::Have { stream, leaves }),
        (stream.clone(), range(), class()).prop_map(|(stream, leaves, class)| Frame::Request {
            stream,
            leaves,
            class
        }),
        (stream.clone(), any::<u32>(), 1..=MAX_LEAF_LEN).prop_map(|(stream, leaf, len)| Frame::Leaf {
            stream,
            leaf,
            len
        }),
        (stream.clone(), range(), refusal()).prop_map(|(stream, leaves, refusal)| Frame::Refused {
            stream,
            leaves,
            refusal
        }),
        (stream.clone(), range()).prop_map(|(stream, leaves)| Frame::Cancel { stream, leaves }),
        (stream.clone(), "[^\\p{Cc}]{0,40}").prop_map(|(stream, reason)| Frame::Denied { stream, reason }),
        stream.prop_map(|stream| Frame::Unsubscribe { stream }),
        (any::<u32>(), "[^\\p{Cc}]{0,40}").prop_map(|(stream, reason)| Frame::Gone { stream, reason }),
        Just(Frame::Ping),
        Just(Frame::Pong),
    ]
}

fn decode(bytes: &[u8]) -> Result<(Frame, usize), FrameError> {
    let header = Header::decode(*bytes.first_chunk().unwrap())?;
    let end = HEADER_LEN + header.payload_len();
    let mut payload = bytes.to_vec();
    payload.resize(end.max(bytes.len()), b'a');
    Ok((Frame::decode(header, &payload[HEADER_LEN..end])?, end))
}

proptest! {
    #[test]
    fn decodes_what_it_encodes(frame in frame()) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        prop_assert_eq!(decode(&bytes), Ok((frame, bytes.len())));
    }

    /// Whatever comes: no panic, and no payload longer than the longest frame's.
    #[test]
    fn rubbish_is_refused_or_bounded(kind in 0u8..12, rest in proptest::collection::vec(any::<u8>(), 15..400)) {
        let mut bytes = vec![kind];
        bytes.extend(rest);
        if let Ok(header) = Header::decode(*bytes.first_chunk().unwrap()) {
            prop_assert!(header.payload_len() <= 8 * MAX_RANGES as usize);
        }
        decode(&bytes).ok();
        // The same with a plausible header, so that payloads are reached too.
        bytes[1..12].fill(0);
        bytes[4] = 1;
        bytes[13..16].fill(0);
        decode(&bytes).ok();
    }
}

#[test]
fn lengths_over_the_limit_are_refused() {
    let raw = |kind: Kind, second: u32| {
        let mut bytes = Vec::new();
        Header { kind, detail: 0, stream: 1, first: 0, second }.encode(&mut bytes);
        decode(&bytes)
    };
    for (kind, limit) in [
        (Kind::Have, MAX_RANGES),
        (Kind::Request, MAX_LEAVES),
        (Kind::Leaf, MAX_LEAF_LEN),
        (Kind::Cancel, MAX_LEAVES),
        (Kind::Gone, MAX_REASON_LEN),
        (Kind::Subscribe, MAX_TASK_ID_LEN),
    ] {
        for len in [limit + 1, u32::MAX] {
            assert!(matches!(raw(kind, len), Err(FrameError::TooLong { .. })), "{kind:?} {len}");
        }
    }
    assert!(raw(Kind::Leaf, MAX_LEAF_LEN).is_ok());
    assert!(raw(Kind::Leaf, 0).is_err());
    assert!(raw(Kind::Request, 0).is_err());
}

#[test]
fn a_long_reason_is_cut_at_a_character() {
    let mut bytes = Vec::new();
    Frame::Gone { stream: 7, reason: "ü".repeat(400) }.encode(&mut bytes);
    let (frame, _) = decode(&bytes).unwrap();
    assert_eq!(frame, Frame::Gone { stream: 7, reason: "ü".repeat(256) });
}

#[test]
fn ranges_that_touch_or_fall_are_refused() {
    for ranges in [[0..2, 2..3], [5..6, 1..2], [0..3, 1..4]] {
        let mut bytes = Vec::new();
        Frame::Have { stream: 1, leaves: ranges.to_vec() }.encode(&mut bytes);
        assert!(decode(&bytes).is_err(), "{ranges:?}");
    }
}
