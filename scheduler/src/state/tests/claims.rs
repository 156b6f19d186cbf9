//! Who is told to bring what over a border.

use std::collections::BTreeMap;

use super::driver::*;

/// What each session was told of its rack last, by what it has heard since it was looked last.
#[derive(Default)]
struct Told(BTreeMap<SessionId, u32>);

impl Told {
    fn listen(&mut self, driver: &mut Driver, sessions: &[SessionId]) -> usize {
        let mut messages = 0;
        for session in sessions {
            for message in driver.take(*session) {
                let says::Message::Parents(parents) = message else { continue };
                messages += 1;
                for claim in
                    parents.claims.iter().filter(|claim| claim.border() == proto::claim::Border::Rack)
                {
                    assert_eq!(claim.classes, 16);
                    self.0.insert(*session, claim.mine);
                }
            }
        }
        messages
    }

    fn of(&self, sessions: &[SessionId]) -> Vec<u32> {
        sessions.iter().filter_map(|session| self.0.get(session).copied()).collect()
    }
}

fn in_rack(driver: &mut Driver, id: &str, rack: &str) -> SessionId {
    let place = Some(proto::Place { rack: rack.into(), ..Default::default() });
    driver.join(proto::Host { place, ..host(id) })
}

/// A seed peer in rack `a`, which has the lease, and eight peers each in `a` and `b`.
fn two_racks() -> (Driver, SessionId, [Vec<SessionId>; 2]) {
    let mut driver = Driver::new();
    let place = Some(proto::Place { rack: "a".into(), ..Default::default() });
    let seed = driver.join(proto::Host { seed: true, place, ..host("seed") });
    let racks = ["a", "b"].map(|rack| {
        let ids = (0..8).map(|n| format!("{rack}{n}"));
        ids.map(|id| in_rack(&mut driver, &id, rack)).collect::<Vec<_>>()
    });
    for peer in racks.iter().flatten() {
        driver.say(*peer, wants());
    }
    (driver, seed, racks)
}

fn shares_all(told: &[u32]) -> bool {
    told.iter().map(|mine| mine.count_ones()).sum::<u32>() == 16
        && told.iter().fold(0, |all, mine| all | mine) == 0xffff
}

#[test]
fn the_peers_of_a_rack_share_what_is_to_be_brought_and_where_the_source_is_nobody_brings_anything() {
    let (mut driver, _, [near, far]) = two_racks();
    let mut told = Told::default();
    told.listen(&mut driver, &near);
    let messages = told.listen(&mut driver, &far);
    assert_eq!(told.of(&near), [0; 8]);
    assert!(shares_all(&told.of(&far)) && told.of(&far).iter().all(|mine| mine.count_ones() == 2));
    assert!(messages <= 8 * 12, "{messages}");
}

#[test]
fn others_take_over_from_whoever_is_gone() {
    let (mut driver, seed, [near, far]) = two_racks();
    let mut told = Told::default();
    told.listen(&mut driver, &far);
    driver.close(far[3]);
    let rest: Vec<_> = far.iter().copied().filter(|peer| *peer != far[3]).collect();
    told.listen(&mut driver, &rest);
    assert!(shares_all(&told.of(&rest)));
    // The source's rack is like any other once the source is gone, until somebody there reads the origin.
    driver.close(seed);
    let lease = driver.state.status().tasks[0].leases.clone();
    told.listen(&mut driver, &near);
    told.listen(&mut driver, &rest);
    let bereft = if lease[0].starts_with('a') { told.of(&rest) } else { told.of(&near) };
    assert!(shares_all(&bereft), "{lease:?} {bereft:?}");
}

#[test]
fn who_stands_nowhere_is_told_nothing() {
    let mut driver = Driver::new();
    let peer = driver.peer("p");
    driver.say(peer, wants());
    let mut told = Told::default();
    told.listen(&mut driver, &[peer]);
    assert!(told.of(&[peer]).is_empty());
}
