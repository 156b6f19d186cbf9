//! What a plan asks, of whom, and what never happens.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::LEAF_LEN;

fn plan(leaves: u32) -> Plan {
    let geometry = Geometry::Fixed { len: u64::from(leaves) * u64::from(LEAF_LEN) };
    Plan::new(geometry, LeafSet::new(leaves))
}

/// A plan for leaves whose digests are all known.
fn known(leaves: u32) -> Plan {
    let mut plan = plan(leaves);
    (0..leaves).for_each(|leaf| plan.know(leaf));
    plan
}

/// An ordinary parent joins that has these leaves.
fn join(plan: &mut Plan, key: Key, has: Range<u32>) {
    plan.add_parent(key, false, None);
    plan.parent_has(key, &[has]);
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn asks_only_for_leaves_with_a_known_digest() {
    let mut plan = plan(8);
    let mut rng = SmallRng::seed_from_u64(1);
    plan.fill(Class::Stream);
    join(&mut plan, 1, 0..8);
    assert_eq!(plan.pick(at(0), false, &mut rng), []);
    plan.know(3);
    assert_eq!(
        plan.pick(at(0), false, &mut rng),
        [Request { parent: 1, leaves: 3..4, class: Class::Stream }]
    );
}

#[test]
fn what_a_container_waits_for_comes_first_and_is_hedged() {
    let mut plan = known(64);
    let mut rng = SmallRng::seed_from_u64(1);
    plan.fill(Class::Background);
    for parent in [1, 2] {
        join(&mut plan, parent, 0..64);
    }
    plan.demand(40..41, Class::Demand);
    let first = plan.pick(at(0), false, &mut rng).remove(0);
    assert_eq!((first.leaves.clone(), first.class), (40..41, Class::Demand));
    let again = plan.pick(at(300), false, &mut rng).remove(0);
    assert_eq!(again.leaves, 40..41);
    assert_ne!(again.parent, first.parent);
}

#[test]
fn what_was_asked_for_in_the_background_is_asked_for_again_once_a_container_waits_for_it() {
    let mut plan = known(4);
    let mut rng = SmallRng::seed_from_u64(1);
    join(&mut plan, 1, 0..4);
    plan.fill(Class::Background);
    let leaf = plan.pick(at(0), false, &mut rng)[0].leaves.start;
    plan.demand(leaf..leaf + 1, Class::Demand);
    assert_eq!(plan.pick(at(10), true, &mut rng), [], "it may be on the wire");
    let urgent = Request { parent: 1, leaves: leaf..leaf + 1, class: Class::Demand };
    assert_eq!(plan.pick(at(30), true, &mut rng), [urgent]);
    assert_eq!(plan.pick(at(60), true, &mut rng), [], "once");
}

#[test]
fn background_work_is_held_while_a_container_waits_for_something() {
    let mut plan = known(64);
    let mut rng = SmallRng::seed_from_u64(1);
    join(&mut plan, 1, 0..64);
    plan.fill(Class::Background);
    plan.demand(5..6, Class::Background);
    plan.demand(9..10, Class::Demand);
    let asked = plan.pick(at(0), true, &mut rng);
    assert_eq!(asked, [Request { parent: 1, leaves: 9..10, class: Class::Demand }]);
    plan.landed(9);
    assert!(!plan.pick(at(1), false, &mut rng).is_empty());
}

#[test]
fn what_a_lost_parent_owed_is_asked_of_another() {
    let mut plan = known(4);
    let mut rng = SmallRng::seed_from_u64(1);
    plan.fill(Class::Stream);
    join(&mut plan, 1, 0..4);
    while !plan.pick(at(0), false, &mut rng).is_empty() {}
    assert!(plan.is_waiting());
    plan.remove_parent(1);
    assert!(!plan.is_waiting());
    join(&mut plan, 2, 0..4);
    let asked: u32 = plan.pick(at(0), false, &mut rng).iter().map(|r| r.leaves.len() as u32).sum();
    assert_eq!(asked, 4);
}

#[test]
fn what_only_a_source_shows_is_asked_for_at_once() {
    let mut plan = known(64);
    let mut rng = SmallRng::seed_from_u64(1);
    plan.fill(Class::Stream);
    join(&mut plan, 1, 0..32);
    // As many as there may be on their way.
    while !plan.pick(at(0), false, &mut rng).is_empty() {}
    plan.add_parent(2, true, None);
    plan.parent_has(2, std::slice::from_ref(&(40..44)));
    let asked = plan.pick(at(1), false, &mut rng);
    assert_eq!(asked, [Request { parent: 2, leaves: 40..44, class: Class::Stream }]);
}

#[test]
fn a_source_is_asked_for_what_a_container_waits_for_even_unshown() {
    let mut plan = known(64);
    let mut rng = SmallRng::seed_from_u64(1);
    plan.add_parent(1, false, None);
    plan.add_parent(2, true, None);
    plan.demand(7..8, Class::Stream);
    assert_eq!(plan.pick(at(0), false, &mut rng), []);
    plan.demand(7..8, Class::Demand);
    let asked = plan.pick(at(0), false, &mut rng);
    assert_eq!(asked, [Request { parent: 2, leaves: 7..8, class: Class::Demand }]);
}

#[test]
fn without_room_only_what_is_waited_for_is_asked_for() {
    let mut plan = known(64);
    let mut rng = SmallRng::seed_from_u64(1);
    join(&mut plan, 1, 0..64);
    plan.pass();
    plan.fill(Class::Stream);
    assert_eq!(plan.pick(at(0), false, &mut rng), []);
    plan.demand(7..9, Class::Stream);
    assert_eq!(plan.covered().first_missing(0), Some(7));
    let asked = plan.pick(at(0), false, &mut rng);
    assert_eq!(asked, [Request { parent: 1, leaves: 7..9, class: Class::Stream }]);
    assert!(plan.covered().is_full());
    plan.landed(7);
    plan.lost(7);
    assert_eq!(plan.pick(at(1), false, &mut rng), []);
    plan.demand(7..8, Class::Stream);
    assert_eq!(plan.pick(at(1), false, &mut rng).len(), 1);
}

/// A plan that wants everything, with a near parent and one beyond the rack's border that has everything.
fn behind_a_border(leaves: u32, claim: Claim) -> Plan {
    let mut plan = plan(leaves);
    (0..leaves).for_each(|leaf| plan.know(leaf));
    plan.fill(Class::Stream);
    plan.claim(Border::Rack, claim);
    plan.add_parent(1, false, None);
    plan.add_parent(2, false, Some(Border::Rack));
    plan.parent_has(2, std::slice::from_ref(&(0..leaves)));
    plan
}

/// What is asked of which parent until nothing is, with answers that come at once.
fn asked_of(plan: &mut Plan, millis: u64, parent: Key) -> BTreeSet<u32> {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut leaves = BTreeSet::new();
    loop {
        let requests = plan.pick(at(millis), false, &mut rng);
        if requests.is_empty() {
            return leaves;
        }
        for request in requests {
            for leaf in request.leaves {
                plan.arrived(leaf, request.parent, at(millis));
                plan.landed(leaf);
                leaves.extend((request.parent == parent).then_some(leaf));
            }
        }
    }
}

#[test]
fn only_what_it_is_to_bring_is_asked_for_beyond_a_border() {
    let mut plan = behind_a_border(16, Claim { classes: 4, mine: 0b10 });
    plan.parent_has(1, std::slice::from_ref(&(4..8)));
    assert_eq!(asked_of(&mut plan, 0, 2), BTreeSet::from([1, 9, 13]));
    assert_eq!(plan.held().ranges(), [1..2, 4..8, 9..10, 13..14]);
    // Without a claim everything is.
    let mut plan = behind_a_border(16, Claim::default());
    assert_eq!(asked_of(&mut plan, 0, 2).len(), 16);
}

#[test]
fn what_a_container_waits_for_comes_from_anywhere() {
    let mut plan = behind_a_border(16, Claim { classes: 4, mine: 0 });
    plan.demand(3..4, Class::Demand);
    plan.demand(5..6, Class::Stream);
    assert_eq!(asked_of(&mut plan, 0, 2), BTreeSet::from([3]));
}

#[test]
fn what_nobody_brings_is_asked_for_after_a_while() {
    let mut plan = behind_a_border(16, Claim { classes: 4, mine: 0 });
    for millis in (0..2500).step_by(100) {
        let asked = asked_of(&mut plan, millis, 2);
        assert!(millis >= 700 || asked.is_empty(), "{millis}: {asked:?}");
    }
    assert!(plan.held().is_full());
}

#[test]
fn what_a_near_parent_loses_may_be_brought_again() {
    let mut plan = behind_a_border(4, Claim { classes: 4, mine: 0b1111 });
    plan.parent_has(1, std::slice::from_ref(&(0..4)));
    plan.remove_parent(1);
    assert_eq!(asked_of(&mut plan, 0, 2).len(), 4);
}

proptest! {
    /// Whatever parents come, refuse and go: every leaf that some steady parent has arrives, none twice at once.
    #[test]
    fn finishes_with_flaky_parents(seed in any::<u64>(), leaves in 1u32..200, flaky in 0u64..5) {
        let mut plan = plan(leaves);
        let mut rng = SmallRng::seed_from_u64(seed);
        (0..leaves).for_each(|leaf| plan.know(leaf));
        plan.fill(Class::Stream);
        let whole = 0..leaves;
        for key in 0..=flaky {
            join(&mut plan, key, whole.clone());
        }
        let mut rounds = 0;
        while plan.wants() {
            rounds += 1;
            prop_assert!(rounds < 10_000);
            for request in plan.pick(at(rounds), false, &mut rng) {
                for leaf in request.leaves {
                    prop_assert!(!plan.held().contains(leaf));
                    if request.parent == 0 || rng.random_bool(0.5) {
                        plan.arrived(leaf, request.parent, at(rounds));
                        plan.landed(leaf);
                    } else if rng.random_bool(0.5) {
                        plan.lacks(request.parent, leaf..leaf + 1);
                    } else {
                        plan.busy(request.parent, leaf..leaf + 1, at(rounds));
                    }
                }
            }
            if rng.random_bool(0.05) {
                plan.remove_parent(rng.random_range(1..=flaky.max(1)));
            }
        }
        prop_assert!(plan.held().is_full());
        prop_assert!(!plan.is_waiting());
    }

    /// While parents answer within two seconds, few leaves are asked of a second parent and none of a third, and no more
    /// are on their way than the window holds.
    #[test]
    fn a_leaf_is_asked_for_once(seed in any::<u64>(), leaves in 1u32..300, parents in 1u64..8) {
        let mut plan = plan(leaves);
        let mut rng = SmallRng::seed_from_u64(seed);
        (0..leaves).for_each(|leaf| plan.know(leaf));
        plan.fill(Class::Stream);
        for key in 0..parents {
            join(&mut plan, key, 0..leaves);
        }
        let mut due: BTreeMap<(u64, u64, u32), ()> = BTreeMap::new();
        let mut asked = vec![0u32; leaves as usize];
        let mut now = 0;
        while plan.wants() {
            now += 10;
            prop_assert!(now < 10_000_000);
            let later = due.split_off(&(now, 0, 0));
            for (_, key, leaf) in std::mem::replace(&mut due, later).into_keys() {
                plan.arrived(leaf, key, at(now));
                plan.landed(leaf);
            }
            for request in plan.pick(at(now), false, &mut rng) {
                for leaf in request.leaves {
                    asked[leaf as usize] += 1;
                    due.insert((now + rng.random_range(1..1500), request.parent, leaf), ());
                }
            }
        }
        let twice: u32 = asked.iter().map(|asked| asked - 1).sum();
        prop_assert!(asked.iter().all(|asked| *asked <= 2) && twice <= (leaves / HEDGED).max(1), "{asked:?}");
    }
}
