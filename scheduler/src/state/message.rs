//! What a peer said, checked: past this module nothing a peer sends is longer, larger or stranger than it may be.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use darter_proto::scheduler::{self as proto, peer_message as said};

use super::{
    digests::DIGEST_LEN,
    ids::{HostId, TaskId},
};

/// Most leaves of a task: 1 TiB in leaves of 256 KiB.
pub(super) const MAX_LEAVES: u32 = 1 << 22;
/// Longest name, version or part of a place in bytes.
const MAX_NAME: usize = 256;
/// Longest URL in bytes.
const MAX_URL: usize = 16 * 1024;
/// Most request headers of a source, and the length of all their names and values in bytes.
const MAX_HEADERS: usize = 128;
const MAX_HEADER_BYTES: usize = 64 * 1024;
/// Most parents reported on at once for one task.
const MAX_REPORTS: usize = 1024;
/// Longest start profile in bytes.
const MAX_PROFILE: usize = 64 * 1024;
/// Longest reason in characters; the rest is cut off.
const MAX_REASON: usize = 512;

/// A checked message.
#[derive(Debug)]
pub(super) enum Message {
    Announce(Announce),
    Holdings { tasks: Vec<Holding>, layers: Vec<Descriptor> },
    Register(Register),
    Progress(Vec<Progress>),
    Digests(Digests),
    Finished { task: TaskId, shape: Shape },
    Failed { task: TaskId, failure: proto::Failure },
    Dropped(Vec<TaskId>),
    LayerWanted { blob: Wanted, diff_id: String },
    LayerMade { blob: TaskId, result: Result<Descriptor, proto::Failure> },
    LayerWrong(Descriptor),
    Moved(TaskId),
    ProfileWanted { image: String },
    StartProfile(proto::StartProfile),
    Leave,
}

#[derive(Debug)]
pub(super) struct Announce {
    pub(super) id: HostId,
    pub(super) host: proto::Host,
}

#[derive(Debug)]
pub(super) struct Holding {
    pub(super) task: TaskId,
    pub(super) shape: Option<Shape>,
    pub(super) verified: bool,
    pub(super) held: u32,
}

#[derive(Debug)]
pub(super) struct Register {
    pub(super) task: Wanted,
    pub(super) held: u32,
    pub(super) class: Class,
    pub(super) digests_known: bool,
    pub(super) from_origin: bool,
    pub(super) moved: bool,
}

/// A task, and its origin if it has one.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) id: TaskId,
    pub(super) source: Option<Source>,
}

/// An origin's URL and the request headers for it, credentials among them.
#[derive(Clone)]
pub(super) struct Source(Arc<proto::Source>);

/// Tells requests to origins apart without keeping them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(u64);

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) task: TaskId,
    pub(super) held: u32,
    pub(super) from_origin: u64,
    pub(super) from_peers: u64,
    pub(super) parents: Vec<ParentReport>,
    pub(super) starving: bool,
}

#[derive(Debug)]
pub(super) struct ParentReport {
    pub(super) host: HostId,
    pub(super) bytes: u64,
    pub(super) busy: Duration,
    pub(super) leaves: u32,
    pub(super) fault: Option<proto::Fault>,
    pub(super) reason: String,
}

#[derive(Debug)]
pub(super) struct Digests {
    pub(super) task: TaskId,
    /// `None` while the origin has not said the length.
    pub(super) shape: Option<Shape>,
    pub(super) first: u32,
    pub(super) digests: Bytes,
    pub(super) verified: bool,
}

/// Length of a content in bytes, and the number of leaves it is cut into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) length: u64,
    pub(super) leaves: u32,
}

/// A layer's descriptor, and the tasks it names.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Descriptor {
    pub(super) blob: TaskId,
    pub(super) index: TaskId,
    pub(super) table: TaskId,
    pub(super) wire: proto::LayerDescriptor,
}

/// Why a task is wanted, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Demand,
    Stream,
    Profile,
    Background,
}

/// Why a message is refused; its session is closed with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Invalid {
    #[error("the message is empty")]
    Empty,
    #[error("{what} is missing")]
    Missing { what: &'static str },
    #[error("{what} is not valid: {value:?}")]
    Value { what: &'static str, value: String },
    #[error("{what} is over the limit of {limit}")]
    Limit { what: &'static str, limit: usize },
    #[error("{length} bytes in {leaves} leaves is not a content")]
    Shape { length: u64, leaves: u32 },
    #[error("{bytes} bytes of leaf digests from leaf {first} do not fit the content")]
    Digests { bytes: usize, first: u32 },
}

impl TryFrom<proto::PeerMessage> for Message {
    type Error = Invalid;

    fn try_from(message: proto::PeerMessage) -> Result<Self, Invalid> {
        Ok(match message.message.ok_or(Invalid::Empty)? {
            said::Message::Announce(m) => Self::Announce(announce(m)?),
            said::Message::Holdings(m) => Self::Holdings {
                tasks: m.tasks.into_iter().map(holding).collect::<Result<_, _>>()?,
                layers: m.layers.into_iter().map(Descriptor::parse).collect::<Result<_, _>>()?,
            },
            said::Message::Register(m) => Self::Register(register(m)?),
            said::Message::Progress(m) => {
                Self::Progress(m.tasks.into_iter().map(progress).collect::<Result<_, _>>()?)
            }
            said::Message::Digests(m) => Self::Digests(digests(m)?),
            said::Message::Finished(m) => {
                Self::Finished { task: task_id(&m.task)?, shape: Shape::parse(m.length, m.leaves)? }
            }
            said::Message::Failed(m) => Self::Failed { task: task_id(&m.task)?, failure: failure(m.failure) },
            said::Message::Dropped(m) => {
                Self::Dropped(m.tasks.iter().map(|task| task_id(task)).collect::<Result<_, _>>()?)
            }
            said::Message::LayerWanted(m) => {
                Self::LayerWanted { blob: wanted(m.blob)?, diff_id: diff_id(m.diff_id)? }
            }
            said::Message::LayerMade(m) => layer_made(m)?,
            said::Message::LayerWrong(m) => {
                let layer = m.layer.ok_or(Invalid::Missing { what: "the layer" })?;
                Self::LayerWrong(Descriptor::parse(layer)?)
            }
            said::Message::Moved(m) => Self::Moved(task_id(&m.task)?),
            said::Message::ProfileWanted(m) => Self::ProfileWanted { image: image(m.image)? },
            said::Message::StartProfile(m) => Self::StartProfile(profile(m)?),
            said::Message::Leave(_) => Self::Leave,
        })
    }
}

fn announce(message: proto::Announce) -> Result<Announce, Invalid> {
    let mut host = message.host.ok_or(Invalid::Missing { what: "the host" })?;
    let id = HostId::parse(&host.id).ok_or_else(|| value("the host id", &host.id))?;
    let place = host.place.get_or_insert_default();
    for name in [&place.region, &place.zone, &place.rack, &host.name, &host.version] {
        limit("a host's name, version or place", name.len(), MAX_NAME)?;
    }
    let address: Option<SocketAddr> = host.transfer_address.parse().ok();
    if !address.is_some_and(|a| a.port() != 0 && !a.ip().is_unspecified() && !a.ip().is_multicast()) {
        return Err(value("the transfer address", &host.transfer_address));
    }
    Ok(Announce { id, host })
}

fn holding(message: proto::Holding) -> Result<Holding, Invalid> {
    let proto::Holding { task, length, leaves, verified, held } = message;
    Ok(Holding { task: task_id(&task)?, shape: maybe_shape(length, leaves, verified)?, verified, held })
}

fn register(message: proto::Register) -> Result<Register, Invalid> {
    let proto::Register { task, held, class, digests_known, from_origin, moved } = message;
    let class = match class {
        0 => Class::Demand,
        1 => Class::Stream,
        2 => Class::Profile,
        3 => Class::Background,
        other => return Err(value("the class", &other.to_string())),
    };
    Ok(Register { task: wanted(task)?, held, class, digests_known, from_origin, moved })
}

fn progress(message: proto::TaskProgress) -> Result<Progress, Invalid> {
    let proto::TaskProgress { task, held, from_origin, from_peers, parents, starving } = message;
    limit("the number of reported parents", parents.len(), MAX_REPORTS)?;
    let parents = parents.into_iter().map(parent_report).collect::<Result<_, _>>()?;
    Ok(Progress { task: task_id(&task)?, held, from_origin, from_peers, parents, starving })
}

fn parent_report(message: proto::ParentReport) -> Result<ParentReport, Invalid> {
    let fault = match message.fault() {
        proto::Fault::None => None,
        fault => Some(fault),
    };
    let proto::ParentReport { host, bytes, busy_us, leaves, reason, .. } = message;
    let host = HostId::parse(&host).ok_or_else(|| value("a parent's host id", &host))?;
    Ok(ParentReport {
        host,
        bytes,
        busy: Duration::from_micros(busy_us),
        leaves,
        fault,
        reason: cut(&reason),
    })
}

fn digests(message: proto::Digests) -> Result<Digests, Invalid> {
    let proto::Digests { task, length, leaves, first, digests, verified } = message;
    let task = task_id(&task)?;
    let shape = maybe_shape(length, leaves, verified)?;
    let wrong = Invalid::Digests { bytes: digests.len(), first };
    let count = u32::try_from(digests.len() / DIGEST_LEN).map_err(|_| wrong.clone())?;
    let leaves = shape.map_or(MAX_LEAVES, |shape| shape.leaves);
    let fits = first.checked_add(count).is_some_and(|end| end <= leaves);
    if digests.len() % DIGEST_LEN != 0 || !fits {
        return Err(wrong);
    }
    Ok(Digests { task, shape, first, digests, verified })
}

fn layer_made(message: proto::LayerMade) -> Result<Message, Invalid> {
    let blob = task_id(&message.blob)?;
    let result = match message.result.ok_or(Invalid::Missing { what: "the layer or the failure" })? {
        proto::layer_made::Result::Layer(layer) => Ok(Descriptor::parse(layer)?),
        proto::layer_made::Result::Failure(reported) => Err(failure(Some(reported))),
    };
    if result.as_ref().is_ok_and(|layer| layer.blob != blob) {
        return Err(value("the blob of the layer", &message.blob));
    }
    Ok(Message::LayerMade { blob, result })
}

fn wanted(task: Option<proto::Task>) -> Result<Wanted, Invalid> {
    let proto::Task { id, source } = task.ok_or(Invalid::Missing { what: "the task" })?;
    Ok(Wanted { id: task_id(&id)?, source: source.map(Source::parse).transpose()?.flatten() })
}

fn diff_id(text: String) -> Result<String, Invalid> {
    if text.is_empty() || TaskId::parse(&text).is_some() {
        Ok(text)
    } else {
        Err(value("the diff id", &text))
    }
}

fn image(text: String) -> Result<String, Invalid> {
    if TaskId::parse(&text).is_some() { Ok(text) } else { Err(value("the image", &text)) }
}

fn profile(profile: proto::StartProfile) -> Result<proto::StartProfile, Invalid> {
    limit("the length of a start profile", profile.reads.len(), MAX_PROFILE)?;
    Ok(proto::StartProfile { image: image(profile.image)?, reads: profile.reads })
}

fn task_id(text: &str) -> Result<TaskId, Invalid> {
    TaskId::parse(text).ok_or_else(|| value("the task id", text))
}

fn failure(failure: Option<proto::Failure>) -> proto::Failure {
    let mut failure = failure.unwrap_or_default();
    failure.reason = cut(&failure.reason);
    failure
}

/// No length and no leaves mean "not known yet", unless the sender checked that the content is empty.
fn maybe_shape(length: u64, leaves: u32, verified: bool) -> Result<Option<Shape>, Invalid> {
    let known = verified || length != 0 || leaves != 0;
    known.then(|| Shape::parse(length, leaves)).transpose()
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_REASON).collect()
}

fn value(what: &'static str, value: &str) -> Invalid {
    Invalid::Value { what, value: value.chars().take(80).collect() }
}

fn limit(what: &'static str, size: usize, limit: usize) -> Result<(), Invalid> {
    if size > limit { Err(Invalid::Limit { what, limit }) } else { Ok(()) }
}

impl Shape {
    /// Every leaf has at least one byte.
    fn parse(length: u64, leaves: u32) -> Result<Self, Invalid> {
        limit("the number of leaves", leaves as usize, MAX_LEAVES as usize)?;
        if (length == 0) != (leaves == 0) || u64::from(leaves) > length {
            return Err(Invalid::Shape { length, leaves });
        }
        Ok(Self { length, leaves })
    }
}

impl Source {
    /// `None` for a source without a URL: the content has no origin.
    fn parse(source: proto::Source) -> Result<Option<Self>, Invalid> {
        limit("the URL's length", source.url.len(), MAX_URL)?;
        limit("the number of headers", source.headers.len(), MAX_HEADERS)?;
        let bytes = source.headers.iter().map(|header| header.name.len() + header.value.len()).sum();
        limit("the length of the headers", bytes, MAX_HEADER_BYTES)?;
        Ok((!source.url.is_empty()).then(|| Self(Arc::new(source))))
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let mut hasher = blake3::Hasher::new();
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
        };
        part(self.0.url.as_bytes());
        for header in &self.0.headers {
            part(header.name.as_bytes());
            part(&header.value);
        }
        let digest = hasher.finalize();
        Fingerprint(digest.as_bytes().first_chunk().copied().map_or(0, u64::from_le_bytes))
    }

    pub(super) fn to_wire(&self) -> proto::Source {
        self.0.as_ref().clone()
    }
}

impl fmt::Debug for Source {
    /// Says nothing: URLs and headers hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl Descriptor {
    fn parse(wire: proto::LayerDescriptor) -> Result<Self, Invalid> {
        diff_id(wire.diff_id.clone())?;
        Ok(Self {
            blob: task_id(&wire.blob)?,
            index: task_id(&wire.index)?,
            table: task_id(&wire.table)?,
            wire,
        })
    }
}

#[cfg(test)]
mod tests;
