//! What the state machine takes in and gives out.

use std::{fmt, time::Duration};

use darter_proto::scheduler as proto;

use super::{
    ids::{HostId, SessionId, TaskId},
    settings::Settings,
};

/// Something that happened.
pub enum Event {
    /// A peer opened a session.
    Opened(SessionId),
    /// A session is over, whoever ended it.
    Closed(SessionId),
    /// A peer said something.
    Message(SessionId, Box<proto::PeerMessage>),
    /// The operator changed the settings.
    Settings(Box<Settings>),
    /// Time has passed; due every 100 to 250 ms.
    Tick,
}

/// Something that is to be done.
pub enum Action {
    /// Send this through a session.
    Send(SessionId, Box<proto::SchedulerMessage>),
    /// End a session, for this reason. Its [`Event::Closed`] may follow and changes nothing.
    Close(SessionId, String),
    /// Tell people.
    Note(Note),
}

/// What people may want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A host may fetch a task from its origin.
    Leased {
        /// The task.
        task: TaskId,
        /// The host under lease.
        host: HostId,
    },
    /// A host lost its lease.
    LeaseLost {
        /// The task.
        task: TaskId,
        /// The host; `None` if it is gone.
        host: Option<HostId>,
        /// Why.
        reason: String,
    },
    /// Those who waited for a task were told that nobody can fetch it.
    TaskFailed {
        /// The task.
        task: TaskId,
        /// Number of peers that waited.
        waiting: usize,
        /// Why.
        reason: String,
    },
    /// A task's digests turned out to be wrong; all who hold it were told to forget it.
    Discarded {
        /// The task.
        task: TaskId,
        /// Why.
        reason: String,
    },
    /// A child gave a parent up.
    GivenUp {
        /// The task.
        task: TaskId,
        /// The child.
        child: HostId,
        /// The parent.
        parent: HostId,
        /// What the child saw.
        fault: proto::Fault,
        /// More about it.
        reason: String,
    },
    /// A host is not used for a while.
    Ejected {
        /// The host.
        host: HostId,
        /// For how long.
        duration: Duration,
        /// Why.
        reason: String,
    },
    /// Something that a host said was left aside because a limit was reached.
    OverLimit {
        /// The host.
        host: HostId,
        /// What there is too much of.
        what: &'static str,
    },
}

/// Sums since the start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that peers fetched from origins.
    pub bytes_from_origin: u64,
    /// Bytes that peers fetched from each other.
    pub bytes_from_peers: u64,
    /// Leases given.
    pub leases: u64,
    /// Hosts ejected.
    pub ejections: u64,
}

/// How much there is right now.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Hosts with a session.
    pub hosts: usize,
    /// Tasks that somebody holds or wants.
    pub tasks: usize,
    /// Layers with a known descriptor.
    pub layers: usize,
    /// Images with a known start profile.
    pub profiles: usize,
    /// Memory for leaf digests in bytes.
    pub digest_bytes: usize,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leased { task, host } => write!(f, "{host} fetches {task} from its origin"),
            Self::LeaseLost { task, host, reason } => {
                let host = host.as_ref().map_or("a host that is gone", HostId::as_str);
                write!(f, "{host} lost its lease of {task}: {reason}")
            }
            Self::TaskFailed { task, waiting, reason } => {
                write!(f, "nobody can fetch {task}, {waiting} peers waited: {reason}")
            }
            Self::Discarded { task, reason } => write!(f, "{task} was discarded everywhere: {reason}"),
            Self::GivenUp { task, child, parent, fault, reason } => {
                write!(f, "{child} gave up its parent {parent} of {task}: {} {reason}", fault.as_str_name())
            }
            Self::Ejected { host, duration, reason } => {
                write!(f, "{host} is not used for {} s: {reason}", duration.as_secs())
            }
            Self::OverLimit { host, what } => write!(f, "{host} has too many {what}; the rest is left aside"),
        }
    }
}

impl fmt::Debug for Event {
    /// Leaves the messages out: they hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Opened(session) => f.debug_tuple("Opened").field(session).finish(),
            Self::Closed(session) => f.debug_tuple("Closed").field(session).finish(),
            Self::Message(session, _) => f.debug_tuple("Message").field(session).finish_non_exhaustive(),
            Self::Settings(settings) => f.debug_tuple("Settings").field(settings).finish(),
            Self::Tick => f.write_str("Tick"),
        }
    }
}

impl fmt::Debug for Action {
    /// Leaves the messages out: they hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Send(session, _) => f.debug_tuple("Send").field(session).finish_non_exhaustive(),
            Self::Close(session, reason) => f.debug_tuple("Close").field(session).field(reason).finish(),
            Self::Note(note) => f.debug_tuple("Note").field(note).finish(),
        }
    }
}
