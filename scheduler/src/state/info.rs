//! What is known of a task's content: its length, its leaf digests, and whether they are right.
//!
//! Digests come from who reads the origin or from who checked the whole, never from just any parent.

use std::time::Duration;

use bytes::Bytes;
use darter_proto::scheduler::{self as proto, failure::Kind, scheduler_message as says};

use super::{
    digests::{Added, DIGEST_LEN, LeafDigests},
    event::Note,
    ids::HostKey,
    members::Phase,
    message::{Digests, Shape},
    task::Task,
    time::Time,
    timers::Timer,
    world::{World, failure},
};

/// Passing digests on to one host is taken to cost so long, and no more than about half of the time is spent on it; but
/// nobody waits longer than the longest pause.
const TELLING: Duration = Duration::from_micros(125);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pauses shorter than this are none.
const SHORTEST_PAUSE: Duration = Duration::from_millis(5);

/// Digests that were not passed on yet: to very many, they are told in batches.
#[derive(Debug, Default)]
pub(super) struct Untold {
    digests: LeafDigests,
    /// When something was told last.
    told: Option<Time>,
    /// Whether a reminder to tell is under way.
    waits: bool,
}

/// A holder that was asked for digests has so long to send them.
const ANSWER: Duration = Duration::from_secs(3);

impl Task {
    /// Whether the digests of all leaves are known.
    pub(super) fn has_digests(&self) -> bool {
        self.shape.is_some_and(|shape| self.digests.count() >= shape.leaves)
    }

    /// Takes digests that a host sent, if it is one to know them, and passes on what is new.
    pub(super) fn take_digests(&mut self, world: &mut World, host: HostKey, sent: Digests) {
        let complete = self.peers.get(host).is_some_and(|peer| peer.phase == Phase::Complete);
        let leased = self.is_leased(host);
        if !complete && !leased && !sent.verified {
            return;
        }
        let Some(added) = self.add_digests(world, host, &sent) else { return };
        if sent.verified && !complete && !leased {
            // Who checked the whole holds it.
            self.complete(world, host);
        }
        self.silent.retain(|silent| *silent != host);
        let newly_verified = sent.verified && !self.verified && self.has_digests();
        self.verified |= newly_verified;
        if added == Added::News {
            self.lease_progress(world, host);
            self.tell_soon(world, host, &sent);
        } else if newly_verified || sent.digests.is_empty() {
            self.forward_info(world, host, 0, &Bytes::new());
        }
    }

    /// Takes up length and digests. `None` if they are not what is known, and the host is not the one to be right.
    fn add_digests(&mut self, world: &mut World, host: HostKey, sent: &Digests) -> Option<Added> {
        let other_shape = sent.shape.is_some_and(|shape| self.shape.is_some_and(|known| known != shape));
        if other_shape && !self.resolve_conflict(world, host, sent.verified) {
            return None;
        }
        self.shape = sent.shape.or(self.shape);
        let added = self.digests.add(sent.first, &sent.digests);
        if added != Added::Conflict {
            return Some(added);
        }
        if !self.resolve_conflict(world, host, sent.verified) {
            return None;
        }
        self.shape = sent.shape;
        Some(self.digests.add(sent.first, &sent.digests))
    }

    /// If somebody needs digests that nobody is about to send, asks who holds everything, or who came back with a lease.
    pub(super) fn ask_for_digests(&mut self, world: &mut World) {
        let needs = |host| self.peers.get(host).is_some_and(|peer| !peer.digests_known);
        if self.asked.is_some() || self.has_digests() || !self.peers.running().any(needs) {
            return;
        }
        let answers = |host: &HostKey| world.is_available(*host) && !self.silent.contains(host);
        let holder = self.peers.complete().find(answers);
        let returned = self.leases.iter().filter(|lease| lease.returned).map(|lease| lease.holder);
        let Some(host) = holder.or_else(|| returned.into_iter().find(answers)) else { return };
        self.ask(world, host);
    }

    /// Asks a host for the digests that it has.
    pub(super) fn ask(&mut self, world: &mut World, host: HostKey) {
        self.asked = Some(host);
        world.send(host, says::Message::SendDigests(proto::SendDigests { task: self.id.to_string() }));
        world.remind_in(ANSWER, Timer::DigestsAsked(self.id.clone(), host));
    }

    /// The host should have sent its digests by now.
    pub(super) fn check_answer(&mut self, host: HostKey) {
        if self.asked != Some(host) {
            return;
        }
        self.asked = None;
        if !self.has_digests() {
            self.silent.push(host);
        }
    }

    /// Sends a host everything that is known of length and digests.
    pub(super) fn send_info(&self, world: &mut World, host: HostKey) {
        if self.digests.count() == 0 {
            world.send(host, self.info(0, Bytes::new()));
        }
        for (first, digests) in self.digests.runs() {
            world.send(host, self.info(first, digests));
        }
    }

    /// Passes new digests on, now or together with what comes next.
    fn tell_soon(&mut self, world: &mut World, except: HostKey, sent: &Digests) {
        let pause = TELLING.saturating_mul(2 * u32::try_from(self.peers.len()).unwrap_or(u32::MAX));
        if pause < SHORTEST_PAUSE && !self.untold.waits {
            self.forward_info(world, except, sent.first, &sent.digests);
            return;
        }
        self.untold.digests.add(sent.first, &sent.digests);
        if !self.untold.waits {
            self.untold.waits = true;
            let since = self.untold.told.map_or(LONGEST_PAUSE, |told| world.now.since(told));
            world.remind_in(pause.min(LONGEST_PAUSE).saturating_sub(since), Timer::Untold(self.id.clone()));
        }
    }

    /// Passes on what was gathered.
    pub(super) fn tell_untold(&mut self, world: &mut World) {
        let Untold { digests, .. } =
            std::mem::replace(&mut self.untold, Untold { told: Some(world.now), ..Untold::default() });
        for (first, digests) in digests.runs() {
            for (host, peer) in self.peers.iter() {
                if peer.is_child() && !peer.digests_known && !self.is_leased(host) {
                    world.send(host, self.info(first, digests.clone()));
                }
            }
        }
    }

    /// Sends all who need it a part of the digests.
    pub(super) fn forward_info(&self, world: &mut World, except: HostKey, first: u32, digests: &Bytes) {
        for (host, peer) in self.peers.iter() {
            if peer.is_child() && !peer.digests_known && host != except {
                world.send(host, self.info(first, digests.clone()));
            }
        }
    }

    /// Forgets the digests, and whether they were right.
    pub(super) fn forget_digests(&mut self) {
        self.digests = LeafDigests::default();
        self.untold.digests = LeafDigests::default();
        self.verified = false;
        self.asked = None;
        self.silent.clear();
    }

    /// Memory for the digests in bytes.
    pub(super) fn digest_bytes(&self) -> usize {
        self.digests.count() as usize * DIGEST_LEN
    }

    /// The digests turned out to be wrong, and so are all leaves that passed under them: everybody but `except` forgets
    /// the content and begins anew, if it is still wanted.
    pub(super) fn discard(&mut self, world: &mut World, except: HostKey, reason: &str) {
        world.note(Note::Discarded { task: self.id.clone(), reason: reason.to_owned() });
        self.forget_digests();
        self.shape = None;
        self.leases.retain(|lease| lease.holder == except);
        let hosts: Vec<_> = self.peers.iter().map(|(host, _)| host).filter(|host| *host != except).collect();
        for host in hosts {
            let discard = proto::Discard { task: self.id.to_string(), reason: reason.to_owned() };
            world.send(host, says::Message::Discard(discard));
            self.remove(world, host);
        }
    }

    /// A host says something about the content that differs from what is known. Who checked the whole is right; among
    /// those who did not, the only one that reads the origin is. Returns whether the host is right; what was known is
    /// then forgotten. Otherwise the host has no lease any more.
    pub(super) fn resolve_conflict(&mut self, world: &mut World, host: HostKey, verified: bool) -> bool {
        let only_reader = self.leases.iter().all(|lease| lease.holder == host || lease.stalled);
        let right = !self.verified && (verified || only_reader);
        if right {
            self.discard(world, host, "another length or other leaf digests came from the origin");
        } else if self.is_leased(host) {
            let differs = failure(Kind::WrongDigest, "the origin's content differs from what others got");
            self.lease_failed(world, host, differs);
        }
        right
    }

    fn info(&self, first: u32, digests: Bytes) -> says::Message {
        let Shape { length, leaves } = self.shape.unwrap_or(Shape { length: 0, leaves: 0 });
        says::Message::TaskInfo(proto::TaskInfo {
            task: self.id.to_string(),
            length,
            leaves,
            first,
            digests,
            verified: self.verified,
        })
    }
}
