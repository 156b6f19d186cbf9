use darter_integration::scenario::ScenarioKind;

use super::{figures::Figures, memory::Memory, scenario::Scenario, sim};

/// A thousand peers and 16 MiB in leaves of 256 KiB.
fn thousand(kind: ScenarioKind) -> Scenario {
    Scenario {
        kind,
        peers: 1000,
        with_seed: true,
        bytes: 16 << 20,
        unit: 256 << 10,
        rate: 12_500_000,
        uploads: 2,
        racks: if kind == ScenarioKind::Racks { 2 } else { 1 },
        seed_apart: false,
        seed: 1,
    }
}

fn figures(scenario: &Scenario) -> Figures {
    let counts = sim::run(scenario).unwrap();
    Figures::new(scenario, &counts, std::time::Duration::ZERO, Memory::default(), 0)
}

#[test]
fn a_thousand_peers_get_everything_soon_and_the_origin_is_asked_once() {
    let figures = figures(&thousand(ScenarioKind::AtOnce));
    // Best possible is 1.16: 64 leaves, and ten doublings until a thousand peers have the last one.
    assert!(figures.last_over_bound < 4.5, "{figures:?}");
    assert_eq!(figures.origin_copies, 1.0);
    assert!(figures.messages_per_peer < 130.0 && figures.duplicates < 0.02, "{figures:?}");
}

#[test]
fn whoever_dies_the_others_get_everything_and_the_origin_is_asked_once() {
    for with_seed in [true, false] {
        let figures = figures(&Scenario { peers: 200, with_seed, ..thousand(ScenarioKind::Churn) });
        // Without a seed peer the one that reads the origin may be among those that die.
        assert!(figures.origin_copies <= if with_seed { 1.0 } else { 2.0 }, "{figures:?}");
    }
}

#[test]
fn what_a_rack_lacks_crosses_into_it_about_once() {
    for seed_apart in [false, true] {
        let racks = Scenario { peers: 64, seed_apart, ..thousand(ScenarioKind::Racks) };
        let figures = figures(&racks);
        assert!(figures.cross_copies <= 1.2, "{figures:?}");
    }
}

#[test]
fn whoever_dies_others_bring_what_it_should_have_brought() {
    let racks = Scenario { peers: 64, racks: 2, ..thousand(ScenarioKind::Churn) };
    let figures = figures(&racks);
    assert!(figures.cross_copies <= 1.5, "{figures:?}");
}

#[test]
fn equal_seeds_give_equal_runs() {
    let scenario = Scenario { peers: 50, ..thousand(ScenarioKind::Churn) };
    let [first, second] = [&scenario, &scenario].map(|scenario| sim::run(scenario).unwrap());
    assert_eq!(first.times, second.times);
    assert_eq!(first.messages_up, second.messages_up);
}
