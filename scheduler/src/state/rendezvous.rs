//! Rendezvous hashing (Thaler and Ravishankar, 1996): every scheduler that knows the same hosts picks the same one for
//! a task, and when a host leaves, only its own tasks move.

use super::ids::{HostId, TaskId};

/// The weight of a host for a task; the host with the highest weight is the one.
pub(super) fn weight(task: &TaskId, host: &HostId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    // A zero byte occurs in neither id, so the pair is unambiguous.
    hasher.update(task.as_str().as_bytes()).update(&[0]).update(host.as_str().as_bytes());
    let digest = hasher.finalize();
    digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(task: &TaskId, hosts: &[HostId]) -> HostId {
        hosts.iter().max_by_key(|host| weight(task, host)).cloned().unwrap()
    }

    #[test]
    fn tasks_spread_over_hosts_and_only_those_of_a_lost_host_move() {
        let hosts: Vec<_> = (0..4).map(|n| HostId::parse(&format!("seed-{n}")).unwrap()).collect();
        let tasks: Vec<_> = (0..1000).map(|n| TaskId::parse(&format!("sha256:{n}")).unwrap()).collect();
        for host in &hosts {
            let own = tasks.iter().filter(|task| pick(task, &hosts) == *host).count();
            assert!((150..350).contains(&own), "{host} has {own} of 1000 tasks");
        }
        for task in &tasks {
            let (before, after) = (pick(task, &hosts), pick(task, &hosts[1..]));
            assert!(before == hosts[0] || before == after);
        }
    }
}
