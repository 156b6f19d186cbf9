//! What children report while they fetch: how far they are, and how their parents serve them.

use std::time::Duration;

use darter_proto::scheduler::{self as proto, failure::Kind, scheduler_message as says};

use super::{
    State,
    conduct::{Verdict, is_suspect},
    event::Note,
    history::Normal,
    ids::{HostKey, TaskId},
    members::Phase,
    message::{ParentReport, Progress},
    task::Task,
    world::{World, failure},
};

/// A child's starving is acted on at most this often.
const STARVING_EVERY: Duration = Duration::from_millis(500);
/// After so many starving reports without a leaf in between, a busy holder must serve the child.
const STRIKES_TO_FORCE: u32 = 2;
/// After so many the holders are not believed any more.
const STRIKES_TO_DOUBT: u32 = 6;

impl State {
    pub(super) fn progress(&mut self, child: HostKey, reports: Vec<Progress>) {
        for report in reports {
            let mut verdicts = Vec::new();
            self.change(&report.task, |task, world| {
                if task.peers.get(child).is_some_and(|peer| peer.is_child()) {
                    verdicts = task.progress(world, child, &report);
                }
            });
            for (host, verdict) in verdicts {
                self.eject(host, verdict);
            }
        }
    }

    pub(super) fn eject(&mut self, key: HostKey, verdict: Verdict) {
        let now = self.world.now;
        let Some(host) = self.world.hosts.get_mut(key).filter(|host| !host.conduct.is_ejected(now)) else {
            return;
        };
        let (id, duration) = (host.id.clone(), host.conduct.eject(now));
        let tasks: Vec<TaskId> = host.tasks.iter().cloned().collect();
        self.world.counters.ejections += 1;
        self.world.note(Note::Ejected { host: id, duration, reason: verdict.reason });
        for task in tasks {
            self.change(&task, |task, world| task.ejected(world, key));
        }
    }
}

impl Task {
    /// Returns the parents that are to be ejected.
    fn progress(&mut self, world: &mut World, child: HostKey, report: &Progress) -> Vec<(HostKey, Verdict)> {
        let counters = &mut world.counters;
        counters.bytes_from_origin = counters.bytes_from_origin.saturating_add(report.from_origin);
        counters.bytes_from_peers = counters.bytes_from_peers.saturating_add(report.from_peers);
        let held = self.shape.map_or(report.held, |shape| report.held.min(shape.leaves));
        let Some(peer) = self.peers.get_mut(child) else { return Vec::new() };
        let first_leaf = peer.held == 0 && held > 0;
        let further = held > peer.held;
        peer.held = held;
        if further {
            peer.strikes = 0;
        }
        if further || report.from_origin > 0 {
            self.lease_progress(world, child);
        } else {
            self.lease_alive(world, child);
        }
        if first_leaf {
            self.pending.news.insert(child);
        }
        let parents = report.parents.iter();
        let verdicts = parents.filter_map(|parent| self.parent_report(world, child, parent)).collect();
        self.rotate_with_progress(world, child);
        if report.starving {
            self.starving(world, child);
            // An answer in any case: so the child knows that this scheduler lives.
            let task = self.id.to_string();
            world.send(child, says::Message::Parents(proto::Parents { task, ..proto::Parents::default() }));
        }
        verdicts
    }

    fn parent_report(
        &mut self,
        world: &mut World,
        child: HostKey,
        report: &ParentReport,
    ) -> Option<(HostKey, Verdict)> {
        let parent = world.hosts.key(&report.host).filter(|parent| *parent != child)?;
        let mut verdict = None;
        if self.peers.get(child)?.has_parent(parent) {
            self.count_bytes(child, parent, report.bytes);
            // The others are looked up only if they may matter: there are many reports, and few slow parents.
            let suspect = is_suspect(&world.hosts.get(parent)?.served, report);
            let siblings = if suspect { self.siblings(world, child, parent) } else { Vec::new() };
            let host = world.hosts.get_mut(parent)?;
            verdict = host.conduct.served(&mut host.served, child, report, &siblings);
        }
        let Some(fault) = report.fault else { return verdict.map(|verdict| (parent, verdict)) };
        let wrong_leaf = fault == proto::Fault::WrongLeaf;
        self.block(world, child, parent, wrong_leaf);
        if let Some(child) = world.host_id(child) {
            let (task, parent, reason) = (self.id.clone(), report.host.clone(), report.reason.clone());
            world.note(Note::GivenUp { task, child, parent, fault, reason });
        }
        if wrong_leaf && self.peers.get(parent).is_some() {
            verdict = world.hosts.get_mut(parent)?.conduct.wrong_leaf(child).or(verdict);
        }
        verdict.map(|verdict| (parent, verdict))
    }

    /// How the child's other parents have served.
    fn siblings(&self, world: &World, child: HostKey, parent: HostKey) -> Vec<Normal> {
        let links = self.peers.get(child).into_iter().flat_map(|peer| &peer.parents);
        let others = links.map(|link| link.parent).filter(|other| *other != parent);
        others.filter_map(|other| Some(world.hosts.get(other)?.served.response)).collect()
    }

    /// Nothing that the child misses comes from its parents: it gets another parent, and if nobody who holds
    /// everything helps either, the origin.
    fn starving(&mut self, world: &mut World, child: HostKey) {
        let Some(peer) = self.peers.get_mut(child) else { return };
        if peer.strikes > 0 && world.now.since(peer.starved) < STARVING_EVERY {
            return;
        }
        peer.starved = world.now;
        peer.strikes = peer.strikes.saturating_add(1);
        let (strikes, alone) = (peer.strikes, !peer.may_fetch && self.source.is_none());
        if strikes >= STRIKES_TO_FORCE && self.is_held(world, Some(child)) {
            self.force_holder(world, child);
        } else {
            self.rotate(world, child);
        }
        if self.is_fetched() || !self.is_settled(world) {
            return;
        }
        let held = self.is_held(world, Some(child)) && strikes < STRIKES_TO_DOUBT;
        if held {
            return;
        }
        self.grant_to_child(world, child);
        if alone && strikes >= STRIKES_TO_DOUBT && !self.has_complete_parent(child) {
            let reason = "nobody has the missing leaves, and there is no origin";
            self.fail(world, child, failure(Kind::NotFound, reason));
        }
    }

    /// Whether a parent of the child holds everything. It may be slow; one that stands still is given up by the child.
    fn has_complete_parent(&self, child: HostKey) -> bool {
        let mut parents = self.peers.get(child).into_iter().flat_map(|peer| &peer.parents);
        parents.any(|link| self.peers.get(link.parent).is_some_and(|peer| peer.phase == Phase::Complete))
    }
}
