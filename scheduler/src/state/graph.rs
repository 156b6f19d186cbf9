//! Who serves whom: the parent sets of a task.
//!
//! Two peers may be parents of each other: leaves only flow from who has one to who has not, so for every leaf the
//! graph is acyclic whatever the sets are.

use std::time::Duration;

use darter_proto::scheduler::{self as proto, scheduler_message as says};

use super::{
    filter::{admits, has_slot},
    ids::{HostKey, KeySet},
    members::{Block, BlockEnds, Link},
    place::Place,
    score::{Candidate, choose},
    task::Task,
    world::World,
};

/// In a task with no more peers than this all of them are looked at, otherwise a sample.
const LOOK_AT_ALL: usize = 64;
/// Size of the sample: from the child's rack, its zone, from everywhere, and of those that hold everything. If only one
/// parent is looked for, a smaller one will do.
const SAMPLE: [usize; 4] = [24, 16, 24, 4];
const SMALL_SAMPLE: [usize; 4] = [8, 4, 8, 2];
/// Fewer parents than this, and hosts without a free slot are taken too.
const FEW_PARENTS: usize = 4;
/// A host that is new in a task is offered to so many others.
const OFFERS: usize = 8;
/// A parent is replaced each time a child got so much more of the task: 1/16, but at least so many bytes.
const ROTATIONS: u64 = 16;
const ROTATE_BYTES: u64 = 8 << 20;
/// A parent that a child could not reach, or that stalled, may be tried again after so long.
const REST: Duration = Duration::from_secs(30);
/// Most parents that a child's blocks are kept of.
const MAX_BLOCKS: usize = 64;

/// What a child has to be told about its parents.
#[derive(Debug, Default)]
pub(super) struct Change {
    add: KeySet,
    remove: KeySet,
    /// Sent even if there is nothing in it: the child has just asked, or has other claims.
    answer: bool,
}

impl Task {
    /// Gives parents to those who need some, offers what is new, and tells all whose parents have changed.
    pub(super) fn tend_graph(&mut self, world: &mut World) {
        for child in std::mem::take(&mut self.pending.needy) {
            self.fill(world, child);
        }
        for parent in std::mem::take(&mut self.pending.news) {
            self.offer(world, parent);
        }
        for (child, change) in std::mem::take(&mut self.pending.changes) {
            self.tell(world, child, change);
        }
    }

    /// The child has just registered: it will be told its whole set.
    pub(super) fn answer_with_parents(&mut self, child: HostKey) {
        let parents = self.peers.get(child).into_iter().flat_map(|peer| &peer.parents);
        let add = parents.map(|link| link.parent).collect();
        self.pending.changes.insert(child, Change { add, remove: KeySet::default(), answer: true });
        self.pending.needy.insert(child);
        self.pending.news.insert(child);
    }

    /// The child will be told its claims, even if its parents do not change.
    pub(super) fn tell_claims(&mut self, child: HostKey) {
        self.pending.changes.entry(child).or_default().answer = true;
    }

    /// A child told what a parent brought.
    pub(super) fn count_bytes(&mut self, child: HostKey, parent: HostKey, bytes: u64) {
        let links = self.peers.get_mut(child).into_iter().flat_map(|peer| &mut peer.parents);
        for link in links.filter(|link| link.parent == parent) {
            link.kib = link.kib.saturating_add(u32::try_from(bytes >> 10).unwrap_or(u32::MAX));
        }
    }

    /// A child gave a parent up: for good after a wrong leaf, else for a while.
    pub(super) fn block(&mut self, world: &mut World, child: HostKey, parent: HostKey, for_good: bool) {
        self.unlink(world, child, parent);
        let session = world.hosts.get(parent).and_then(|host| host.session);
        let ends = if for_good { BlockEnds::Never } else { BlockEnds::At(world.now.after(REST), session) };
        let Some(peer) = self.peers.get_mut(child) else { return };
        let never = peer.blocked.iter().any(|b| b.parent == parent && b.ends == BlockEnds::Never);
        if !never {
            peer.blocked.retain(|block| block.parent != parent);
            peer.blocked.push(Block { parent, ends });
        }
        if peer.blocked.len() > MAX_BLOCKS {
            let passing = peer.blocked.iter().position(|block| block.ends != BlockEnds::Never);
            peer.blocked.remove(passing.unwrap_or(0));
        }
        self.pending.needy.insert(child);
    }

    /// A child got further: after each sixteenth of the task one parent is replaced.
    pub(super) fn rotate_with_progress(&mut self, world: &mut World, child: HostKey) {
        let Some(shape) = self.shape else { return };
        let bytes = (shape.length / ROTATIONS).max(ROTATE_BYTES);
        let leaves = bytes.saturating_mul(u64::from(shape.leaves)) / shape.length.max(1);
        let step = u32::try_from(leaves).unwrap_or(u32::MAX).max(1);
        let Some(peer) = self.peers.get_mut(child) else { return };
        if peer.held < peer.rotate_at {
            return;
        }
        let first = peer.rotate_at == 0;
        peer.rotate_at = peer.held.saturating_add(step);
        if !first {
            self.rotate(world, child);
        }
    }

    /// Replaces the parent that was of least use, or adds some if there is room.
    pub(super) fn rotate(&mut self, world: &mut World, child: HostKey) {
        let Some(peer) = self.peers.get(child) else { return };
        if peer.parents.len() < world.settings.parents_per_child {
            self.pending.needy.insert(child);
            return;
        }
        if world.settings.rotate
            && let Some(least) = self.least_useful(child, true)
            && let Some(better) = self.pick(world, child, 1).pop()
        {
            self.unlink(world, child, least);
            self.link(world, child, better);
        }
        for link in self.peers.get_mut(child).into_iter().flat_map(|peer| &mut peer.parents) {
            (link.old, link.kib) = (true, 0);
        }
    }

    /// Makes a host that holds everything a parent of the child, however busy it is.
    pub(super) fn force_holder(&mut self, world: &mut World, child: HostKey) {
        let mut holders = KeySet::default();
        self.peers.sample_complete(LOOK_AT_ALL, &mut world.rng, &mut holders);
        let holder = holders.into_iter().find(|holder| admits(self, world, child, *holder));
        let Some(holder) = holder else { return };
        let full = self.peers.get(child).is_some_and(|p| p.parents.len() >= world.settings.parents_per_child);
        if full {
            let Some(least) = self.least_useful(child, false) else { return };
            self.unlink(world, child, least);
        }
        self.link(world, child, holder);
    }

    /// The host is nobody's child here any more. It is not told: it has finished, has given up or is gone.
    pub(super) fn drop_parents(&mut self, world: &mut World, child: HostKey) {
        let parents = self.peers.get(child).into_iter().flat_map(|peer| &peer.parents);
        for parent in parents.map(|link| link.parent).collect::<Vec<_>>() {
            self.unlink(world, child, parent);
        }
        self.pending.changes.remove(&child);
        self.pending.needy.swap_remove(&child);
    }

    /// The host is nobody's parent here any more; its children get others.
    pub(super) fn drop_children(&mut self, world: &mut World, parent: HostKey) {
        let children = self.peers.get(parent).map(|peer| peer.children.clone()).unwrap_or_default();
        for child in children {
            self.unlink(world, child, parent);
            self.pending.needy.insert(child);
        }
        self.pending.news.swap_remove(&parent);
    }

    /// Gives a child as many parents as it may have.
    fn fill(&mut self, world: &mut World, child: HostKey) {
        let Some(peer) = self.peers.get(child).filter(|peer| peer.is_child()) else { return };
        let wanted = world.settings.parents_per_child.saturating_sub(peer.parents.len());
        if wanted == 0 {
            return;
        }
        for parent in self.pick(world, child, wanted) {
            self.link(world, child, parent);
        }
    }

    /// Makes a host a parent of some who have room for one, or whose parents have far more to do than it.
    fn offer(&mut self, world: &mut World, parent: HostKey) {
        let Some(host) = world.hosts.get(parent) else { return };
        let (place, idle) = (host.place, host.children < world.settings.usual_children() / 2);
        let mut left = OFFERS;
        for child in self.sample(world, place, SAMPLE) {
            let Some(peer) = self.peers.get(child).filter(|peer| peer.is_child() && left > 0) else {
                continue;
            };
            let room = peer.parents.len() < world.settings.parents_per_child
                && (peer.parents.len() < FEW_PARENTS || has_slot(world, parent, peer.class));
            let relieved = if room || !idle { None } else { self.busiest(world, child, place) };
            if (room || relieved.is_some()) && admits(self, world, child, parent) {
                if let Some(busiest) = relieved {
                    self.unlink(world, child, busiest);
                }
                self.link(world, child, parent);
                left -= 1;
            }
        }
    }

    /// The parent of a child that serves most, if that is too much, and another at `place` would be as near.
    fn busiest(&self, world: &World, child: HostKey, place: Place) -> Option<HostKey> {
        let here = world.hosts.get(child)?.place;
        let parents = self.peers.get(child)?.parents.iter().filter(|link| !self.is_leased(link.parent));
        let known = parents.filter_map(|link| Some((world.hosts.get(link.parent)?, link.parent)));
        let replaceable = known.filter(|(host, _)| {
            !host.is_seed()
                && host.children > world.settings.usual_children()
                && here.distance(&host.place) == here.distance(&place)
        });
        replaceable.max_by_key(|(host, parent)| (host.children, *parent)).map(|(_, parent)| parent)
    }

    /// Up to `count` good parents for a child.
    fn pick(&self, world: &mut World, child: HostKey, count: usize) -> Vec<HostKey> {
        let Some(place) = world.hosts.get(child).map(|host| host.place) else { return Vec::new() };
        let Some(peer) = self.peers.get(child) else { return Vec::new() };
        let size = if count > 1 { SAMPLE } else { SMALL_SAMPLE };
        let sample = self.sample(world, place, size);
        let admitted = sample.into_iter().filter(|host| admits(self, world, child, *host));
        let (free, full): (Vec<_>, Vec<_>) = admitted.partition(|host| has_slot(world, *host, peer.class));
        let mut rank = |hosts: Vec<HostKey>, count| {
            let candidates = hosts.into_iter().filter_map(|host| Candidate::new(self, world, &place, host));
            choose(candidates.collect(), count, &mut world.rng)
        };
        let mut parents = rank(free, count);
        let few = FEW_PARENTS.min(count).saturating_sub(peer.parents.len() + parents.len());
        parents.extend(rank(full, few));
        parents
    }

    /// Hosts to look at for one that stands at `place`.
    fn sample(&self, world: &mut World, place: Place, size: [usize; 4]) -> KeySet {
        let mut chosen = KeySet::default();
        if self.peers.len() <= LOOK_AT_ALL {
            chosen.extend(self.peers.iter().map(|(host, _)| host));
            return chosen;
        }
        let [near, in_zone, anywhere, complete] = size;
        for (scope, count) in [(place.rack, near), (place.zone, in_zone)] {
            if scope.is_some() {
                self.peers.sample(scope, count, &mut world.rng, &mut chosen);
            }
        }
        self.peers.sample(None, anywhere, &mut world.rng, &mut chosen);
        self.peers.sample_complete(complete, &mut world.rng, &mut chosen);
        chosen.extend(self.leases.iter().map(|lease| lease.holder));
        chosen
    }

    /// The parent that brought least since the last rotation; who reads the origin is never the one.
    fn least_useful(&self, child: HostKey, only_old: bool) -> Option<HostKey> {
        let parents = self.peers.get(child).into_iter().flat_map(|peer| &peer.parents);
        let replaceable = parents.filter(|link| (link.old || !only_old) && !self.is_leased(link.parent));
        replaceable.min_by_key(|link| link.kib).map(|link| link.parent)
    }

    fn link(&mut self, world: &mut World, child: HostKey, parent: HostKey) {
        if let Some(peer) = self.peers.get_mut(child) {
            peer.parents.push(Link { parent, kib: 0, old: false });
        }
        if let Some(peer) = self.peers.get_mut(parent) {
            peer.children.push(child);
        }
        if let Some(host) = world.hosts.get_mut(parent) {
            host.children += 1;
        }
        let change = self.pending.changes.entry(child).or_default();
        if !change.remove.swap_remove(&parent) {
            change.add.insert(parent);
        }
    }

    fn unlink(&mut self, world: &mut World, child: HostKey, parent: HostKey) {
        let Some(peer) = self.peers.get_mut(child).filter(|peer| peer.has_parent(parent)) else { return };
        peer.parents.retain(|link| link.parent != parent);
        if let Some(peer) = self.peers.get_mut(parent) {
            peer.children.retain(|other| *other != child);
        }
        if let Some(host) = world.hosts.get_mut(parent) {
            host.children = host.children.saturating_sub(1);
        }
        let change = self.pending.changes.entry(child).or_default();
        if !change.add.swap_remove(&parent) {
            change.remove.insert(parent);
        }
    }

    fn tell(&mut self, world: &mut World, child: HostKey, change: Change) {
        if change.add.is_empty() && change.remove.is_empty() && !change.answer {
            return;
        }
        let known = |hosts: KeySet| hosts.into_iter().filter_map(|host| world.hosts.get(host));
        let add = known(change.add).map(|host| proto::Parent {
            host: host.id.to_string(),
            transfer_address: host.announced.transfer_address.clone(),
            seed: host.is_seed(),
            place: host.announced.place.clone(),
        });
        let add = add.collect();
        let remove = known(change.remove).map(|host| host.id.to_string()).collect();
        let claims = self.news_of_claims(world, child);
        let task = self.id.to_string();
        let parents = proto::Parents { task, add, remove, claims, ..proto::Parents::default() };
        world.send(child, says::Message::Parents(parents));
    }
}
