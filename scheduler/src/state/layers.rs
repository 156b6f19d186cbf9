//! Which layers were made, and which seed peer makes the others.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use darter_proto::scheduler::{self as proto, failure::Kind, scheduler_message as says};
use darter_service::rendezvous::weight;
use indexmap::{IndexMap, IndexSet};

use super::{
    State,
    conduct::{Verdict, WITNESSES},
    event::Note,
    hosts::Hosts,
    ids::{HostKey, TaskId},
    message::{Descriptor, Source, Wanted},
    timers::Timer,
    world::failure,
};

/// A layer that was not made after so long is not waited for any longer.
const MAKING: Duration = Duration::from_secs(600);
/// Most layers being made at once.
const MAX_MAKING: usize = 10_000;
/// Most layers that one host may announce.
const MAX_PER_HOST: usize = 16_384;

/// All layers, by the digest of their blob.
#[derive(Debug, Default)]
pub(super) struct Layers {
    known: HashMap<TaskId, Known>,
    making: BTreeMap<TaskId, Making>,
}

/// A layer that somebody has made.
#[derive(Debug)]
struct Known {
    descriptor: Descriptor,
    /// Who announced it.
    holders: IndexSet<HostKey>,
    /// Who got all of it and found that it is wrong.
    accusers: IndexSet<HostKey>,
}

/// A layer that somebody waits for.
#[derive(Debug, Default)]
struct Making {
    /// The seed peer that makes it; `None` until this scheduler has settled.
    seed: Option<HostKey>,
    source: Option<Source>,
    diff_id: String,
    /// Who waits, with the diff id that each expects.
    waiting: IndexMap<HostKey, String>,
    tried: Vec<HostKey>,
    failure: Option<proto::Failure>,
}

impl Layers {
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

impl State {
    /// A host asks for a layer's descriptor.
    pub(super) fn layer_wanted(&mut self, host: HostKey, blob: Wanted, diff_id: String) {
        let Wanted { id, source } = blob;
        if let Some(descriptor) = self.served_layer(&id) {
            self.answer_layer(host, &id, &diff_id, Ok(&descriptor));
            return;
        }
        if self.layers.making.len() >= MAX_MAKING && !self.layers.making.contains_key(&id) {
            let failure = failure(Kind::Local, "the scheduler has too many layers being made");
            self.answer_layer(host, &id, &diff_id, Err(&failure));
            return;
        }
        let making = self.layers.making.entry(id.clone()).or_default();
        making.source = source.or_else(|| making.source.take());
        if making.diff_id.is_empty() {
            making.diff_id.clone_from(&diff_id);
        }
        making.waiting.insert(host, diff_id);
        if making.seed.is_none() {
            self.make_layer(&id);
        }
    }

    /// A host made a layer, or could not.
    pub(super) fn layer_made(
        &mut self,
        host: HostKey,
        blob: &TaskId,
        result: Result<Descriptor, proto::Failure>,
    ) {
        match result {
            Ok(descriptor) => {
                self.add_layer(host, &descriptor);
                if let Some(served) = self.served_layer(blob) {
                    self.finish_layer(blob, Ok(&served));
                }
            }
            Err(failure) => {
                let asked = self.layers.making.get(blob).is_some_and(|making| making.seed == Some(host));
                if asked {
                    self.layer_failed(host, blob, failure);
                }
            }
        }
    }

    /// A host got all of a layer and found it wrong. One alone may itself be the problem; it makes the layer for itself.
    /// When more say so, nobody is given the layer any more, it is discarded wherever it is, and the seed peer that made
    /// it is not used for a while.
    pub(super) fn layer_wrong(&mut self, host: HostKey, descriptor: &Descriptor) {
        let Some(known) = self.layers.known.get_mut(&descriptor.blob) else { return };
        if known.descriptor != *descriptor {
            return;
        }
        known.accusers.insert(host);
        if known.accusers.len() < WITNESSES {
            return;
        }
        let reason = format!("{} hosts found that it is not what its image says", known.accusers.len());
        let maker = known.holders.iter().copied().find(|holder| self.world.hosts.is_seed(*holder));
        for holder in std::mem::take(&mut known.holders) {
            without_layer(&mut self.world.hosts, holder, &descriptor.blob);
        }
        self.layers.known.remove(&descriptor.blob);
        for part in [&descriptor.index, &descriptor.table, &TaskId::of_leaves(&descriptor.table)] {
            self.change(part, |task, world| task.discard(world, host, &reason));
        }
        if let Some(maker) = maker {
            self.eject(maker, Verdict { reason: format!("made layer {}: {reason}", descriptor.blob) });
        }
    }

    /// A host says which layers it has; their index, table and leaves it reports like any other task.
    pub(super) fn layers_held(&mut self, host: HostKey, layers: Vec<Descriptor>) {
        for descriptor in layers {
            self.know_layer(host, &descriptor);
            let blob = &descriptor.blob;
            let waited_for = self.layers.making.contains_key(blob);
            if waited_for && let Some(served) = self.served_layer(blob) {
                self.finish_layer(blob, Ok(&served));
            }
        }
    }

    /// A host is gone: what it announced, made and waited for.
    pub(super) fn host_left_layers(&mut self, host: HostKey) {
        let Some(known) = self.world.hosts.get_mut(host) else { return };
        for blob in std::mem::take(&mut known.layers) {
            if let Some(known) = self.layers.known.get_mut(&blob) {
                known.holders.swap_remove(&host);
                if known.holders.is_empty() {
                    self.layers.known.remove(&blob);
                }
            }
        }
        let mut orphans = Vec::new();
        self.layers.making.retain(|blob, making| {
            making.waiting.swap_remove(&host);
            if making.seed == Some(host) {
                orphans.push(blob.clone());
            }
            making.seed.is_some() || !making.waiting.is_empty()
        });
        for blob in orphans {
            self.layer_failed(
                host,
                &blob,
                failure(Kind::NotFound, "the seed peer that made the layer is gone"),
            );
        }
    }

    /// Looks again at layers that no seed peer makes yet.
    pub(super) fn make_waiting_layers(&mut self) {
        let waiting = self.layers.making.iter().filter(|(_, making)| making.seed.is_none());
        for blob in waiting.map(|(blob, _)| blob.clone()).collect::<Vec<_>>() {
            self.make_layer(&blob);
        }
    }

    /// The layer should have been made by now.
    pub(super) fn check_layer(&mut self, blob: &TaskId, seed: HostKey) {
        if self.layers.making.get(blob).is_some_and(|making| making.seed == Some(seed)) {
            self.layer_failed(seed, blob, failure(Kind::NotFound, "making the layer took too long"));
        }
    }

    /// Asks the next seed peer to make the layer.
    fn make_layer(&mut self, blob: &TaskId) {
        let Some(making) = self.layers.making.get_mut(blob) else { return };
        let untried = self.world.hosts.seeds(self.world.now).filter(|(key, _)| !making.tried.contains(key));
        let seed =
            untried.max_by_key(|(_, host)| weight(blob.as_str(), host.id.as_str())).map(|(key, _)| key);
        let Some(seed) = seed else {
            if self.world.is_settled() {
                let none = || failure(Kind::NotFound, "there is no seed peer to make the layer");
                let failure = making.failure.take().unwrap_or_else(none);
                self.finish_layer(blob, Err(&failure));
            }
            return;
        };
        making.seed = Some(seed);
        making.tried.push(seed);
        let source = making.source.as_ref().map(Source::to_wire);
        let task = Some(proto::Task { id: blob.to_string(), source });
        let message = proto::MakeLayer { blob: task, diff_id: making.diff_id.clone() };
        self.world.send(seed, says::Message::MakeLayer(message));
        self.world.remind_in(MAKING, Timer::Making(blob.clone(), seed));
    }

    /// The seed peer that made a layer could not: another one may, unless the blob or the request is at fault.
    fn layer_failed(&mut self, seed: HostKey, blob: &TaskId, failure: proto::Failure) {
        let at_fault = matches!(failure.kind(), Kind::LayerRefused | Kind::OriginStatus | Kind::WrongDigest);
        let Some(making) = self.layers.making.get_mut(blob).filter(|making| making.seed == Some(seed)) else {
            return;
        };
        if at_fault || making.waiting.is_empty() {
            self.finish_layer(blob, Err(&failure));
            return;
        }
        making.seed = None;
        making.failure = Some(failure);
        self.make_layer(blob);
    }

    /// Answers all who wait.
    fn finish_layer(&mut self, blob: &TaskId, result: Result<&Descriptor, &proto::Failure>) {
        let Some(making) = self.layers.making.remove(blob) else { return };
        for (host, diff_id) in making.waiting {
            self.answer_layer(host, blob, &diff_id, result);
        }
    }

    fn answer_layer(
        &mut self,
        host: HostKey,
        blob: &TaskId,
        diff_id: &str,
        result: Result<&Descriptor, &proto::Failure>,
    ) {
        let result = match result {
            Ok(layer) if diff_id.is_empty() || layer.wire.diff_id == diff_id => {
                proto::layer::Result::Layer(layer.wire.clone())
            }
            Ok(_) => {
                let reason = "the blob holds another layer than the image's config says";
                proto::layer::Result::Failure(failure(Kind::LayerRefused, reason))
            }
            Err(failure) => proto::layer::Result::Failure(failure.clone()),
        };
        let layer = proto::Layer { blob: blob.to_string(), result: Some(result) };
        self.world.send(host, says::Message::Layer(layer));
    }

    /// The descriptor of a layer whose parts can all be fetched right now.
    fn served_layer(&self, blob: &TaskId) -> Option<Descriptor> {
        let descriptor = &self.layers.known.get(blob)?.descriptor;
        let parts = [&descriptor.index, &descriptor.table, &TaskId::of_leaves(&descriptor.table)];
        let held = |id| self.tasks.get(id).is_some_and(|task| task.is_held(&self.world, None));
        parts.into_iter().all(held).then(|| descriptor.clone())
    }

    /// A host has just made a layer, so it holds all parts of it.
    fn add_layer(&mut self, host: HostKey, descriptor: &Descriptor) {
        if !self.know_layer(host, descriptor) {
            return;
        }
        let leaves = TaskId::of_leaves(&descriptor.table);
        for part in [&descriptor.index, &descriptor.table, &leaves] {
            self.join(host, part, |task, world| task.complete(world, host));
        }
    }

    /// Takes a descriptor up. Making a layer is deterministic, so all who made it say the same, unless they have other
    /// versions; then a seed peer's word counts more than another's, as long as what it said is served. Returns whether
    /// the descriptor is in force.
    fn know_layer(&mut self, key: HostKey, descriptor: &Descriptor) -> bool {
        let served = self.served_layer(&descriptor.blob).is_some();
        let Some(host) = self.world.hosts.get_mut(key) else { return false };
        if host.layers.len() >= MAX_PER_HOST && !host.layers.contains(&descriptor.blob) {
            let host = host.id.clone();
            self.world.note(Note::OverLimit { host, what: "layers" });
            return false;
        }
        host.layers.insert(descriptor.blob.clone());
        let new =
            || Known { descriptor: descriptor.clone(), holders: IndexSet::new(), accusers: IndexSet::new() };
        let known = self.layers.known.entry(descriptor.blob.clone()).or_insert_with(new);
        if known.descriptor != *descriptor {
            let hosts = &self.world.hosts;
            let by_seed = known.holders.iter().any(|holder| hosts.is_seed(*holder));
            if !hosts.is_seed(key) || (served && by_seed) {
                without_layer(&mut self.world.hosts, key, &descriptor.blob);
                return false;
            }
            for holder in std::mem::take(&mut known.holders) {
                without_layer(&mut self.world.hosts, holder, &descriptor.blob);
            }
            known.descriptor = descriptor.clone();
            known.accusers.clear();
        }
        known.holders.insert(key);
        true
    }
}

fn without_layer(hosts: &mut Hosts, key: HostKey, blob: &TaskId) {
    if let Some(host) = hosts.get_mut(key) {
        host.layers.swap_remove(blob);
    }
}
