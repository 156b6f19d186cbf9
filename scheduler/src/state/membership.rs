//! How hosts come into a task, and how they leave it.

use bytes::Bytes;
use darter_proto::scheduler::{self as proto, failure::Kind};

use super::{
    ids::HostKey,
    members::Phase,
    message::{Holding, Register, Shape, Source},
    task::Task,
    world::World,
};

impl Task {
    /// A host wants the task.
    pub(super) fn register(&mut self, world: &mut World, host: HostKey, register: Register) {
        let Register { task, held, class, digests_known, from_origin, moved } = register;
        // The first one of many: the others must not put it off.
        if moved && self.peers.running().len() == 0 {
            self.unsettle(world);
        }
        let request = task.source.as_ref().map(Source::fingerprint);
        self.source = task.source.or_else(|| self.source.take());
        let held = self.at_most_all(held);
        let Some(peer) = self.set_phase(world, host, Phase::Running) else { return };
        peer.held = held;
        peer.class = class;
        peer.may_fetch = request.is_some();
        peer.request = request;
        peer.digests_known = digests_known;
        peer.told = None;
        self.enter_claims(world, host);
        if from_origin {
            self.accept_lease(world, host);
        } else {
            self.unclaimed_lease(world, host);
        }
        if !digests_known {
            self.send_info(world, host);
        }
        self.answer_with_parents(host);
    }

    /// A host says what it has on disk.
    pub(super) fn hold(&mut self, world: &mut World, host: HostKey, holding: &Holding) {
        if holding.shape.is_some_and(|shape| self.shape.is_some_and(|known| known != shape)) {
            // Not the same content; whichever is wrong, they must not be mixed.
            return;
        }
        self.shape = holding.shape.or(self.shape);
        let complete = holding.verified && holding.shape.is_some_and(|shape| holding.held >= shape.leaves);
        let held = self.at_most_all(holding.held);
        let phase = self.peers.get(host).map(|peer| peer.phase);
        if complete {
            self.complete(world, host);
        } else if held > 0 {
            let phase = phase.filter(|phase| *phase != Phase::Complete).unwrap_or(Phase::Partial);
            self.set_phase(world, host, phase);
            self.pending.news.insert(host);
        }
        if let Some(peer) = self.peers.get_mut(host) {
            peer.held = held;
        }
    }

    /// A host holds everything and has checked it.
    pub(super) fn finished(&mut self, world: &mut World, host: HostKey, shape: Shape) {
        let leased = self.is_leased(host);
        let differs = self.shape.is_some_and(|known| known != shape);
        if differs && !(leased && self.resolve_conflict(world, host, true)) {
            self.remove(world, host);
            return;
        }
        self.shape = Some(shape);
        self.complete(world, host);
        if let Some(peer) = self.peers.get_mut(host) {
            peer.held = shape.leaves;
        }
        if leased && self.has_digests() && !self.verified {
            self.verified = true;
            self.forward_info(world, host, 0, &Bytes::new());
        }
        if leased {
            self.lease_fulfilled(host);
        }
    }

    /// A host gives the task up.
    pub(super) fn failed(&mut self, world: &mut World, host: HostKey, failure: proto::Failure) {
        let wrong = failure.kind() == Kind::WrongDigest;
        if self.peers.get(host).is_none() {
            return;
        }
        if self.is_leased(host) {
            self.lease_failed(world, host, failure);
        }
        if !wrong {
            self.stop(world, host);
            return;
        }
        self.remove(world, host);
        // Without a lease the digests were somebody else's, who is to find out by itself if it still reads the origin.
        if !self.verified && !self.is_fetched() {
            self.discard(world, host, "the whole does not have the digest that it is named by");
        }
    }

    /// A host goes on under another scheduler; the others will, unless they cannot reach it.
    pub(super) fn moved(&mut self, world: &mut World, host: HostKey) {
        if self.is_leased(host) {
            self.lease_abandoned(world, host, "it went to another scheduler");
            self.unsettle(world);
        }
        self.stop(world, host);
    }

    /// A host holds the task no longer.
    pub(super) fn dropped(&mut self, world: &mut World, host: HostKey) {
        self.lease_abandoned(world, host, "it dropped the content");
        self.remove(world, host);
    }

    /// A host is gone.
    pub(super) fn lost(&mut self, world: &mut World, host: HostKey) {
        self.lease_abandoned(world, host, "its session is over");
        self.remove(world, host);
    }

    /// A host's session was replaced by a newer one. What it holds it will say again; if it was under lease, it may
    /// well be fetching still.
    pub(super) fn replaced(&mut self, world: &mut World, host: HostKey) {
        self.lease_progress(world, host);
        self.remove(world, host);
    }

    /// A bad node is not used any more.
    pub(super) fn ejected(&mut self, world: &mut World, host: HostKey) {
        self.lease_abandoned(world, host, "it was ejected");
        self.drop_children(world, host);
        let place = world.hosts.get(host).map(|host| host.place).unwrap_or_default();
        self.leave_claims(world, host, &place);
    }

    /// The host holds everything.
    pub(super) fn complete(&mut self, world: &mut World, host: HostKey) {
        self.drop_parents(world, host);
        self.set_phase(world, host, Phase::Complete);
        self.pending.news.insert(host);
    }

    fn at_most_all(&self, held: u32) -> u32 {
        self.shape.map_or(held, |shape| held.min(shape.leaves))
    }
}
