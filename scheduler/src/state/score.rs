//! Which of the possible parents are the best for a child.

use std::time::Duration;

use rand::{Rng, RngExt};

use super::{
    ids::HostKey,
    members::Phase,
    place::{Distance, Place},
    task::Task,
    world::World,
};

/// The parts of a score; each part is between 0 and 1. Chance keeps children that ask at the same time from all
/// getting the same parents.
const LOAD: f64 = 0.6;
const PLACE: f64 = 0.2;
const CONTENT: f64 = 0.2;
const BANDWIDTH: f64 = 0.15;
const RESPONSE: f64 = 0.1;
const CHANCE: f64 = 0.15;
/// Taken off for a seed peer that is not needed: others hold everything too, and it has origins to fetch from.
const SPARE_SEED: f64 = 0.15;

/// A host that serves one child with so many bytes per second, or so fast, scores half of that part.
const HALF_BANDWIDTH: f64 = 100e6;
const HALF_RESPONSE: Duration = Duration::from_millis(20);
/// What a host that has not served yet scores.
const UNKNOWN: f64 = 0.5;

/// Of 16 parents about 10 are of the same rack, 4 of the same zone and 2 from anywhere, so that leaves find their way
/// into and out of every rack.
const SHARES: [(Bucket, u32); 3] = [(Bucket::Rack, 10), (Bucket::Zone, 4), (Bucket::Elsewhere, 2)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bucket {
    Rack,
    Zone,
    Elsewhere,
}

/// A possible parent of a child.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) host: HostKey,
    distance: Distance,
    score: f64,
}

impl Candidate {
    /// Scores a host that passed the filter.
    pub(super) fn new(task: &Task, world: &mut World, place: &Place, host: HostKey) -> Option<Self> {
        let chance = world.rng.random::<f64>();
        let known = world.hosts.get(host)?;
        let distance = place.distance(&known.place);
        let usual =
            if known.is_seed() { known.slots(&world.settings) } else { world.settings.usual_children() };
        let load = f64::from(known.children) / f64::from(known.children + usual.max(1));
        let bandwidth = known.served.bandwidth().map_or(UNKNOWN, |rate| rate / (rate + HALF_BANDWIDTH));
        let half = HALF_RESPONSE.as_secs_f64();
        let response = known.served.response.mean().map_or(UNKNOWN, |seconds| half / (seconds + half));
        let near = match distance {
            Distance::Rack => 1.0,
            Distance::Zone => 0.6,
            Distance::Region => 0.3,
            Distance::Far => 0.0,
        };
        let spare = known.is_seed() && !task.is_leased(host) && task.peers.complete().len() > 1;
        let score = LOAD * (1.0 - load)
            + PLACE * near
            + CONTENT * content(task, host)
            + BANDWIDTH * bandwidth
            + RESPONSE * response
            + CHANCE * chance
            - if spare { SPARE_SEED } else { 0.0 };
        Some(Self { host, distance, score })
    }

    fn bucket(&self) -> Bucket {
        match self.distance {
            Distance::Rack => Bucket::Rack,
            Distance::Zone => Bucket::Zone,
            Distance::Region | Distance::Far => Bucket::Elsewhere,
        }
    }
}

/// Takes the best `count`, most of them near and some not.
pub(super) fn choose(mut candidates: Vec<Candidate>, count: usize, rng: &mut impl Rng) -> Vec<HostKey> {
    candidates.sort_by(|a, b| a.score.total_cmp(&b.score));
    let mut chosen = Vec::new();
    while chosen.len() < count && !candidates.is_empty() {
        let bucket = draw(rng);
        let best = candidates.iter().rposition(|candidate| candidate.bucket() == bucket);
        let candidate = match best {
            Some(at) => candidates.remove(at),
            None => match candidates.pop() {
                Some(candidate) => candidate,
                None => break,
            },
        };
        chosen.push(candidate.host);
    }
    chosen
}

fn draw(rng: &mut impl Rng) -> Bucket {
    let total = SHARES.iter().map(|(_, share)| share).sum();
    let mut at = rng.random_range(0..total);
    for (bucket, share) in SHARES {
        if at < share {
            return bucket;
        }
        at -= share;
    }
    Bucket::Elsewhere
}

/// How much of the task a host has to give: who reads the origin has what nobody else has.
fn content(task: &Task, host: HostKey) -> f64 {
    let Some(peer) = task.peers.get(host) else { return 0.0 };
    let leaves = task.shape.map_or(0, |shape| shape.leaves).max(peer.held).max(1);
    if task.is_leased(host) || peer.phase == Phase::Complete {
        1.0
    } else {
        f64::from(peer.held) / f64::from(leaves)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    fn candidates(near: u64, far: u64) -> Vec<Candidate> {
        let near = (0..near).map(|host| (host, Distance::Rack, 1.0));
        let far = (1000..1000 + far).map(|host| (host, Distance::Far, 0.5));
        near.chain(far)
            .map(|(host, distance, score)| Candidate { host: HostKey(host), distance, score })
            .collect()
    }

    fn near_share(near: u64, far: u64, count: usize) -> f64 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let chosen: Vec<_> = (0..1000).flat_map(|_| choose(candidates(near, far), count, &mut rng)).collect();
        chosen.iter().filter(|host| host.0 < 1000).count() as f64 / chosen.len() as f64
    }

    #[test]
    fn most_parents_are_near_but_not_all() {
        for count in [1, 4, 16] {
            let share = near_share(40, 40, count);
            assert!((0.8..0.95).contains(&share), "{count}: {share}");
        }
    }

    #[test]
    fn whoever_there_is_will_do() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        assert_eq!(choose(candidates(0, 5), 16, &mut rng).len(), 5);
        assert_eq!(choose(candidates(5, 0), 16, &mut rng).len(), 5);
        assert!(choose(vec![], 16, &mut rng).is_empty());
    }
}
