//! Drives a [`State`] and keeps what it said.

use std::collections::BTreeMap;

pub(super) use darter_proto::scheduler::{failure::Kind, peer_message as said};

pub(super) use super::super::*;
use super::invariants;

/// A state machine, its clock, and its peers' inboxes.
pub(super) struct Driver {
    pub(super) state: State,
    pub(super) now: u64,
    pub(super) notes: Vec<Note>,
    pub(super) closed: BTreeMap<SessionId, String>,
    inboxes: BTreeMap<SessionId, Vec<says::Message>>,
    sessions: u64,
}

impl Driver {
    /// One that has settled already.
    pub(super) fn new() -> Self {
        let mut driver = Self::unsettled();
        driver.pass(2000);
        driver
    }

    pub(super) fn unsettled() -> Self {
        Self {
            state: State::new(Settings::default(), 7, Time::default()),
            now: 0,
            notes: Vec::new(),
            closed: BTreeMap::new(),
            inboxes: BTreeMap::new(),
            sessions: 0,
        }
    }

    pub(super) fn on(&mut self, event: Event) {
        for action in self.state.on(Time::from_millis(self.now), event) {
            match action {
                Action::Send(session, message) => {
                    self.inboxes.entry(session).or_default().extend(message.message);
                }
                Action::Close(session, reason) => drop(self.closed.insert(session, reason)),
                Action::Note(note) => self.notes.push(note),
            }
        }
        invariants::check(&self.state);
    }

    /// Lets time pass in ticks of 100 ms.
    pub(super) fn pass(&mut self, millis: u64) {
        for _ in 0..millis.div_ceil(100) {
            self.now += 100;
            self.on(Event::Tick);
        }
    }

    pub(super) fn open(&mut self) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.on(Event::Opened(session));
        session
    }

    pub(super) fn close(&mut self, session: SessionId) {
        self.on(Event::Closed(session));
    }

    pub(super) fn say(&mut self, session: SessionId, message: said::Message) {
        let message = proto::PeerMessage { message: Some(message) };
        self.on(Event::Message(session, Box::new(message)));
    }

    /// Opens a session and announces a host.
    pub(super) fn join(&mut self, host: proto::Host) -> SessionId {
        let session = self.open();
        self.say(session, said::Message::Announce(proto::Announce { host: Some(host) }));
        let inbox = self.inboxes.get_mut(&session).unwrap();
        assert!(matches!(inbox.remove(0), says::Message::Welcome(_)));
        session
    }

    pub(super) fn peer(&mut self, id: &str) -> SessionId {
        self.join(host(id))
    }

    pub(super) fn seed(&mut self, id: &str) -> SessionId {
        self.join(proto::Host { seed: true, ..host(id) })
    }

    /// Takes out what was sent to a session.
    pub(super) fn take(&mut self, session: SessionId) -> Vec<says::Message> {
        self.inboxes.remove(&session).unwrap_or_default()
    }

    /// The only message to a session of the kind that `choose` knows.
    pub(super) fn one<T>(
        &mut self,
        session: SessionId,
        choose: impl Fn(says::Message) -> Option<T>,
    ) -> Option<T> {
        let mut chosen: Vec<_> = self.take(session).into_iter().filter_map(choose).collect();
        assert!(chosen.len() < 2, "more than one");
        chosen.pop()
    }

    /// Which of these sessions was told to fetch, by Fetch or Lease.
    pub(super) fn leased(&mut self, sessions: &[SessionId]) -> Vec<SessionId> {
        let fetches = |m: &says::Message| matches!(m, says::Message::Fetch(_) | says::Message::Lease(_));
        let told =
            |session: &SessionId| self.inboxes.get(session).is_some_and(|inbox| inbox.iter().any(fetches));
        let leased = sessions.iter().copied().filter(told).collect();
        sessions.iter().for_each(|session| drop(self.take(*session)));
        leased
    }

    /// Adds up the parents that a session was told of.
    pub(super) fn parents(&mut self, session: SessionId) -> Vec<String> {
        let mut parents = Vec::new();
        for message in self.take(session) {
            if let says::Message::Parents(change) = message {
                parents.retain(|parent| !change.remove.contains(parent));
                parents.extend(change.add.into_iter().map(|parent| parent.host));
            }
        }
        parents
    }

    /// The failure that a session was told.
    pub(super) fn failure(&mut self, session: SessionId) -> Option<Kind> {
        let failed = self.one(session, |m| match m {
            says::Message::TaskFailed(failed) => failed.failure,
            _ => None,
        });
        failed.map(|failure| failure.kind())
    }
}

pub(super) fn host(id: &str) -> proto::Host {
    proto::Host {
        id: id.into(),
        name: id.into(),
        transfer_address: "127.0.0.1:7400".into(),
        ..Default::default()
    }
}

pub(super) const TASK: &str = "sha256:aa";

pub(super) fn source() -> proto::Source {
    let headers = vec![proto::Header { name: "authorization".into(), value: b"secret".to_vec().into() }];
    proto::Source { url: "https://registry/v2/blob".into(), headers }
}

/// Wants [`TASK`] and knows its origin.
pub(super) fn register() -> proto::Register {
    let task = Some(proto::Task { id: TASK.into(), source: Some(source()) });
    proto::Register { task, ..Default::default() }
}

pub(super) fn wants() -> said::Message {
    said::Message::Register(register())
}

pub(super) fn failed(kind: Kind) -> said::Message {
    let failure = Some(proto::Failure { kind: kind.into(), status: 0, reason: "because".into() });
    said::Message::Failed(proto::Failed { task: TASK.into(), failure })
}

/// The content of [`TASK`] has four leaves of 10 bytes.
pub(super) const LENGTH: u64 = 40;
pub(super) const LEAVES: u32 = 4;

pub(super) fn digests_of(first: u32, count: u32, salt: u8) -> said::Message {
    let digests = (first..first + count).flat_map(|leaf| [u8::try_from(leaf).unwrap() ^ salt; 32]);
    said::Message::Digests(proto::Digests {
        task: TASK.into(),
        length: LENGTH,
        leaves: LEAVES,
        first,
        digests: digests.collect(),
        verified: false,
    })
}

pub(super) fn finished() -> said::Message {
    said::Message::Finished(proto::Finished { task: TASK.into(), length: LENGTH, leaves: LEAVES })
}

pub(super) fn holding(task: &str, held: u32) -> proto::Holding {
    proto::Holding { task: task.into(), length: LENGTH, leaves: LEAVES, verified: held == LEAVES, held }
}

pub(super) fn holds(held: u32) -> said::Message {
    said::Message::Holdings(proto::Holdings { tasks: vec![holding(TASK, held)], layers: vec![] })
}

pub(super) fn progress(report: proto::TaskProgress) -> said::Message {
    let report = proto::TaskProgress { task: TASK.into(), ..report };
    said::Message::Progress(proto::Progress { tasks: vec![report] })
}

pub(super) fn got(held: u32) -> said::Message {
    progress(proto::TaskProgress { held, ..Default::default() })
}

pub(super) fn starves(held: u32) -> said::Message {
    progress(proto::TaskProgress { held, starving: true, ..Default::default() })
}

pub(super) fn reports(parent: &str, fault: proto::Fault) -> said::Message {
    let report = proto::ParentReport { host: parent.into(), fault: fault.into(), ..Default::default() };
    progress(proto::TaskProgress { parents: vec![report], ..Default::default() })
}
