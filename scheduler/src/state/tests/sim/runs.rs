use proptest::prelude::*;

use super::{Plan, run};

fn calm() -> Plan {
    Plan {
        peers: 100,
        seeds: 1,
        leaves: 200,
        arrive_within: 10,
        deaths: 0.0,
        poisoners: 0,
        restart_at: None,
        seed: 1,
    }
}

#[test]
fn a_thousand_peers_finish_soon_after_the_seed_and_the_origin_sends_each_leaf_once() {
    let outcome = run(Plan { peers: 1000, ..calm() });
    assert_eq!(outcome.origin_leaves, 200);
    // 200 leaves at 8 a step take 25 steps, and the last peer comes in step 10.
    assert!(outcome.steps < 40, "{} steps", outcome.steps);
    assert!(outcome.messages < 1000 * 40, "{} messages", outcome.messages);
}

#[test]
fn without_a_seed_it_is_one_of_them_that_reads_the_origin() {
    let outcome = run(Plan { seeds: 0, ..calm() });
    assert_eq!(outcome.origin_leaves, 200);
}

#[test]
fn a_restarted_scheduler_sends_nobody_to_the_origin_again() {
    for restart_at in [3, 12, 20, 30] {
        let outcome = run(Plan { restart_at: Some(restart_at), ..calm() });
        assert_eq!(outcome.origin_leaves, 200, "restarted in step {restart_at}");
    }
}

#[test]
fn poison_stops_at_the_first_hop() {
    let outcome = run(Plan { poisoners: 20, ..calm() });
    assert_eq!(outcome.origin_leaves, 200);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let plan = Plan { deaths: 0.3, restart_at: Some(15), ..calm() };
    let [first, second] = [plan.clone(), plan].map(run);
    assert_eq!((first.steps, first.messages), (second.steps, second.messages));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn everybody_who_lives_gets_everything(
        peers in 1usize..200,
        seeds in 0usize..3,
        leaves in 1u32..300,
        arrive_within in 0usize..60,
        deaths in 0.0..0.7f64,
        poisoned in any::<bool>(),
        restart_at in proptest::option::of(1usize..60),
        seed in any::<u64>(),
    ) {
        let poisoners = if poisoned { peers / 5 } else { 0 };
        let plan = Plan { peers, seeds, leaves, arrive_within, deaths, poisoners, restart_at, seed };
        run(plan);
    }
}
