//! What must hold after every event, whatever it was.

use std::collections::{BTreeMap, BTreeSet};

use super::super::{filter, ids::HostKey, *};

/// Checks everything that can be seen from inside.
pub(super) fn check(state: &State) {
    let mut children: BTreeMap<HostKey, u32> = BTreeMap::new();
    let mut memory = 0;
    for task in state.tasks.values() {
        check_task(state, task);
        memory += task.digest_bytes();
        for (_, peer) in task.peers.iter() {
            for link in &peer.parents {
                *children.entry(link.parent).or_default() += 1;
            }
        }
    }
    assert_eq!(state.world.digest_bytes, memory);
    for (key, host) in state.world.hosts.iter() {
        assert_eq!(host.children, children.get(&key).copied().unwrap_or(0), "children of {}", host.id);
        assert!(host.session.is_some() || host.tasks.is_empty(), "a dead host takes part");
        for task in &host.tasks {
            assert!(state.tasks[task].peers.get(key).is_some(), "{} is not in {task}", host.id);
        }
    }
}

fn check_task(state: &State, task: &Task) {
    let id = &task.id;
    let granted: Vec<_> = task.leases.iter().filter(|lease| !lease.stalled && !lease.returned).collect();
    let live: BTreeSet<_> = granted.iter().map(|lease| lease.holder).collect();
    assert_eq!(live.len(), granted.len(), "{id}: a host has two leases");
    for lease in &task.leases {
        assert!(
            state.world.hosts.get(lease.holder).is_some_and(|host| host.session.is_some()),
            "{id}: dead lease"
        );
    }
    for (key, peer) in task.peers.iter() {
        let limit = state.world.settings.parents_per_child;
        assert!(peer.parents.len() <= limit, "{id}: {} parents", peer.parents.len());
        assert!(peer.is_child() || peer.parents.is_empty(), "{id}: parents without need");
        let parents: BTreeSet<_> = peer.parents.iter().map(|link| link.parent).collect();
        assert_eq!(parents.len(), peer.parents.len(), "{id}: a parent twice");
        assert!(!parents.contains(&key), "{id}: its own parent");
        for parent in parents {
            let entry =
                task.peers.get(parent).unwrap_or_else(|| panic!("{id}: a parent that is not in the task"));
            assert!(entry.children.contains(&key), "{id}: one-sided");
            assert!(!filter::is_blocked(&state.world, peer, parent), "{id}: a blocked parent");
            assert!(
                state.world.hosts.get(parent).is_some_and(|host| host.session.is_some()),
                "{id}: a dead parent"
            );
        }
        for child in &peer.children {
            assert!(task.peers.get(*child).is_some_and(|child| child.has_parent(key)), "{id}: one-sided");
        }
    }
    let pending = &task.pending;
    assert!(
        pending.needy.is_empty() && pending.news.is_empty() && pending.changes.is_empty(),
        "{id}: undone"
    );
    let waits = task.peers.running().len() > 0 && !task.is_fetched() && !task.is_held(&state.world, None);
    let may = task.peers.running().any(|host| task.peers.get(host).is_some_and(|peer| peer.may_fetch));
    if waits && may && task.is_settled(&state.world) && task.leases.is_empty() {
        panic!("{id}: wanted, and nobody fetches it");
    }
}
