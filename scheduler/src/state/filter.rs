//! Which hosts may be a parent of which child at all.

use super::{
    ids::HostKey,
    members::{BlockEnds, Peer, Phase},
    message::Class,
    task::Task,
    world::World,
};

/// Whether `candidate` may become a parent of `child` in this task.
pub(super) fn admits(task: &Task, world: &World, child: HostKey, candidate: HostKey) -> bool {
    let (Some(peer), Some(parent)) = (task.peers.get(child), task.peers.get(candidate)) else { return false };
    child != candidate
        && !peer.has_parent(candidate)
        && world.is_available(candidate)
        && !is_blocked(world, peer, candidate)
        && is_useful(task, child, candidate, parent)
}

/// Whether the child gave this parent up.
pub(super) fn is_blocked(world: &World, child: &Peer, parent: HostKey) -> bool {
    child.blocked.iter().filter(|block| block.parent == parent).any(|block| match block.ends {
        BlockEnds::Never => true,
        BlockEnds::At(end, session) => {
            world.now < end && world.hosts.get(parent).is_some_and(|host| host.session == session)
        }
    })
}

/// Whether a host serves fewer children than it has slots for. A quarter of the slots is not for children in the
/// background.
pub(super) fn has_slot(world: &World, host: HostKey, class: Class) -> bool {
    let Some(host) = world.hosts.get(host) else { return false };
    let slots = host.slots(&world.settings);
    let reserved = if class == Class::Background { slots / 4 } else { 0 };
    host.children < slots - reserved
}

/// Whether the parent has leaves or is about to. One that fetches from the origin wants only leaves that are there.
fn is_useful(task: &Task, child: HostKey, candidate: HostKey, parent: &Peer) -> bool {
    let has_leaves = parent.held > 0 || parent.phase == Phase::Complete;
    let will_have = task.is_leased(candidate) || parent.phase == Phase::Running;
    has_leaves || (will_have && !task.is_leased(child))
}
