//! Rendezvous hashing (Thaler and Ravishankar, 1996): all who know the same candidates pick the same one for a key, and
//! when a candidate leaves, only its own keys move.

/// The weight of a candidate for a key; the candidate with the highest weight is the one. Neither may hold a zero byte.
pub fn weight(key: &str, candidate: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    // With a zero byte between them the pair is unambiguous.
    hasher.update(key.as_bytes()).update(&[0]).update(candidate.as_bytes());
    let digest = hasher.finalize();
    digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick<'a>(key: &str, candidates: &'a [String]) -> &'a String {
        candidates.iter().max_by_key(|candidate| weight(key, candidate)).unwrap()
    }

    #[test]
    fn keys_spread_over_candidates_and_only_those_of_a_lost_one_move() {
        let candidates: Vec<_> = (0..4).map(|n| format!("seed-{n}")).collect();
        let keys: Vec<_> = (0..1000).map(|n| format!("sha256:{n}")).collect();
        for candidate in &candidates {
            let own = keys.iter().filter(|key| pick(key, &candidates) == candidate).count();
            assert!((150..350).contains(&own), "{candidate} has {own} of 1000 keys");
        }
        for key in &keys {
            let (before, after) = (pick(key, &candidates), pick(key, &candidates[1..]));
            assert!(*before == candidates[0] || before == after);
        }
    }
}
