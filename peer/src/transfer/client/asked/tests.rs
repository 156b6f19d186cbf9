// A list of one range is what is meant.
#![allow(clippy::single_range_in_vec_init)]

use std::collections::{BTreeSet, VecDeque};

use proptest::prelude::*;

use super::*;

/// What a parent does with one connection's requests: answers each once, whatever comes between.
#[derive(Debug, Default)]
struct Parent {
    queue: VecDeque<u32>,
    answers: VecDeque<(u32, bool)>,
}

impl Parent {
    fn request(&mut self, leaves: Vec<Range<u32>>) {
        for leaf in leaves.into_iter().flatten() {
            if self.queue.contains(&leaf) {
                self.queue.retain(|other| *other != leaf);
                self.answers.push_back((leaf, false));
            }
            self.queue.push_back(leaf);
        }
    }

    fn cancel(&mut self, leaves: Vec<Range<u32>>) {
        for leaf in leaves.into_iter().flatten() {
            if self.queue.contains(&leaf) {
                self.queue.retain(|other| *other != leaf);
                self.answers.push_back((leaf, false));
            }
        }
    }

    fn serve(&mut self, sends: bool) {
        if let Some(leaf) = self.queue.pop_front() {
            self.answers.push_back((leaf, sends));
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Want(u32, u32, Class),
    Cancel(u32, u32),
    Serve(bool),
    Answer,
}

fn step() -> impl Strategy<Value = Step> {
    let class = prop_oneof![Just(Class::Demand), Just(Class::Stream), Just(Class::Background)];
    prop_oneof![
        (0u32..12, 1u32..5, class).prop_map(|(first, count, class)| Step::Want(first, count, class)),
        (0u32..12, 1u32..5).prop_map(|(first, count)| Step::Cancel(first, count)),
        any::<bool>().prop_map(Step::Serve),
        Just(Step::Answer),
        Just(Step::Answer),
    ]
}

proptest! {
    /// Against a parent that keeps to the protocol: no answer is taken for one that was not asked for, every wanted leaf
    /// comes to exactly one end, and nothing is left behind.
    #[test]
    fn every_wanted_leaf_ends_once(steps in proptest::collection::vec(step(), 0..120)) {
        let (mut asked, mut parent) = (Asked::default(), Parent::default());
        let mut open: BTreeSet<u32> = BTreeSet::new();
        let now = Instant::now();
        let drain = std::iter::repeat_n([Step::Serve(true), Step::Answer, Step::Answer], 300).flatten();
        for step in steps.into_iter().chain(drain) {
            match step {
                Step::Want(first, count, class) => {
                    let call = asked.want(first..first + count, class, now);
                    let excess: Vec<u32> = call.excess.into_iter().flatten().collect();
                    open.extend((first..first + count).filter(|leaf| !excess.contains(leaf)));
                    for leaves in call.send {
                        parent.request(asked.send(leaves, class));
                    }
                }
                Step::Cancel(first, count) => {
                    parent.cancel(asked.cancel(first..first + count));
                    open.retain(|leaf| !(first..first + count).contains(leaf));
                }
                Step::Serve(sends) => parent.serve(sends),
                Step::Answer => match parent.answers.pop_front() {
                    Some((leaf, true)) => {
                        let expected = asked.expects(leaf);
                        prop_assert!(expected.is_ok());
                        let delivered = asked.arrived(leaf, now).is_some();
                        prop_assert_eq!(delivered, expected.unwrap().is_some());
                        prop_assert_eq!(delivered, open.remove(&leaf));
                    }
                    Some((leaf, false)) => {
                        let told = asked.refused(leaf);
                        prop_assert!(told.is_ok());
                        prop_assert!(!told.unwrap() || open.remove(&leaf));
                    }
                    None => {}
                },
            }
        }
        prop_assert!(open.is_empty(), "{open:?} {asked:?}");
        prop_assert_eq!((asked.due(), asked.leaves.len()), (0, 0));
    }
}

#[test]
fn what_was_not_asked_is_noticed() {
    let mut asked = Asked::default();
    assert_eq!(asked.expects(3), Err(NotAsked));
    let call = asked.want(3..5, Class::Stream, Instant::now());
    assert_eq!(call.send, [3..5]);
    assert_eq!(asked.expects(3), Err(NotAsked), "wanted, but not requested yet");
    assert_eq!(asked.send(3..5, Class::Stream), [3..5]);
    assert_eq!(asked.expects(3), Ok(Some(Class::Stream)));
    assert!(asked.arrived(3, Instant::now()).is_some());
    assert_eq!(asked.refused(3), Err(NotAsked), "answered already");
}

#[test]
fn only_more_urgency_asks_again() {
    let mut asked = Asked::default();
    let now = Instant::now();
    for (class, expected) in [
        (Class::Profile, vec![0..4]),
        (Class::Profile, vec![]),
        (Class::Background, vec![]),
        (Class::Demand, vec![0..4]),
    ] {
        let call = asked.want(0..4, class, now);
        assert_eq!(call.send, expected, "{class:?}");
        call.send.into_iter().for_each(|leaves| drop(asked.send(leaves, class)));
    }
}

#[test]
fn a_call_for_everything_is_bounded() {
    let mut asked = Asked::default();
    let all = MAX_ASKED as u32;
    let call = asked.want(0..u32::MAX, Class::Stream, Instant::now());
    assert_eq!((call.send.as_slice(), asked.leaves.len()), ([0..all].as_slice(), MAX_ASKED));
    assert_eq!(call.excess.iter().map(|range| range.len()).sum::<usize>(), (u32::MAX - all) as usize);
}
