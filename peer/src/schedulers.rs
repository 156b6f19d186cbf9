//! The schedulers of this host: a session with each, and which of them a task belongs to.
//!
//! A task belongs to one of the schedulers that can be reached, by rendezvous hashing over what they call themselves, so
//! that all hosts choose alike. All of them hear what this host holds; of a running task only its own does. When a
//! scheduler is lost, its tasks go to the next, and when it comes back, they come back.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use darter_proto::scheduler::{
    Host, PeerMessage, peer_message::Message as Said, scheduler_message::Message as Heard,
};
use darter_service::rendezvous::weight;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{profiles::Profiles, session::Keeper, store::Store, transfer::Keys};

/// A scheduler that takes no message for so long is gone.
const SEND_DEADLINE: Duration = Duration::from_secs(2);
/// So long after a scheduler was lost or came back, other hosts may not have noticed yet.
const LATELY: Duration = Duration::from_secs(5);

/// A handle on the sessions; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Schedulers {
    sessions: watch::Receiver<Sessions>,
}

/// The sessions that are up.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    live: Vec<Live>,
    /// Addresses at which there is or should be a scheduler.
    known: usize,
    /// When a scheduler was last lost or came back.
    shifted: Option<Instant>,
}

/// A session that is up.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    /// Counts the sessions of this process: a new number means that the scheduler must be told everything again.
    pub(crate) generation: u64,
    /// Where the scheduler is.
    pub(crate) address: String,
    /// What the scheduler calls itself.
    pub(crate) scheduler: String,
    /// Whether it left a task unanswered and has said nothing since: nobody else waits for it then.
    silent: Arc<AtomicBool>,
    outgoing: mpsc::Sender<PeerMessage>,
}

/// What keeps a session with each scheduler up.
pub(crate) struct Keepers {
    /// Where the schedulers are, `http://ip:port`.
    pub(crate) addresses: watch::Receiver<Vec<String>>,
    /// How this host introduces itself to a new session.
    pub(crate) host: watch::Receiver<Host>,
    pub(crate) store: Store,
    pub(crate) profiles: Arc<Profiles>,
    /// Learns the schedulers' keys for tickets.
    pub(crate) keys: Keys,
    /// Takes every message of a scheduler.
    pub(crate) inbox: mpsc::Sender<(Live, Heard)>,
    pub(crate) shutdown: CancellationToken,
}

impl Schedulers {
    /// The scheduler that a task, a blob's layer or an image's start profile belongs to, if any can be reached.
    pub(crate) fn of(&self, key: &str) -> Option<Live> {
        self.sessions.borrow().of(key).cloned()
    }

    /// All that can be reached.
    pub(crate) fn live(&self) -> Vec<Live> {
        self.sessions.borrow().live.clone()
    }

    /// Whether tasks belong to other schedulers than a moment ago, which others may not have noticed yet.
    pub(crate) fn shifted_lately(&self) -> bool {
        let sessions = self.sessions.borrow();
        sessions.known > 1 && sessions.shifted.is_some_and(|shifted| shifted.elapsed() < LATELY)
    }

    /// Follows the sessions' coming and going.
    pub(crate) fn watch(&self) -> watch::Receiver<Sessions> {
        self.sessions.clone()
    }

    /// Waits until a session is over.
    pub(crate) async fn until_lost(&self, live: &Live) {
        let mut sessions = self.sessions.clone();
        let lost =
            |sessions: &Sessions| sessions.live.iter().all(|other| other.generation != live.generation);
        // An error means that the keepers have ended, and all sessions with them.
        sessions.wait_for(lost).await.ok();
    }

    /// Tells the scheduler that `key` belongs to; false if there is none or it does not read.
    pub(crate) async fn tell(&self, key: &str, message: Said) -> bool {
        match self.of(key) {
            Some(live) => live.send(message).await,
            None => false,
        }
    }

    /// Tells all schedulers. Who cannot be reached now hears of it, as far as it is about what is held, when it can.
    pub(crate) async fn tell_all(&self, message: &Said) {
        for live in self.live() {
            live.send(message.clone()).await;
        }
    }
}

impl Sessions {
    fn of(&self, key: &str) -> Option<&Live> {
        self.live.iter().max_by_key(|live| (!live.is_silent(), weight(key, &live.scheduler)))
    }

    /// A session is up; the scheduler was `back` if it had been looked for in vain.
    pub(crate) fn add(&mut self, live: Live, back: bool) {
        self.live.push(live);
        if back {
            self.shifted = Some(Instant::now());
        }
    }

    /// A session is over.
    pub(crate) fn remove(&mut self, generation: u64) {
        self.live.retain(|live| live.generation != generation);
        self.shifted = Some(Instant::now());
    }

    /// A session by its number.
    pub(crate) fn with(&self, generation: u64) -> Option<Live> {
        self.live.iter().find(|live| live.generation == generation).cloned()
    }

    /// Whether there is a session with a scheduler of this name already.
    pub(crate) fn has(&self, scheduler: &str) -> bool {
        self.live.iter().any(|live| live.scheduler == scheduler)
    }
}

impl Live {
    pub(crate) fn new(
        generation: u64,
        address: &str,
        scheduler: String,
        outgoing: mpsc::Sender<PeerMessage>,
    ) -> Self {
        Self { generation, address: address.to_owned(), scheduler, silent: Arc::default(), outgoing }
    }

    /// Sends a message; false if the session went down or its scheduler does not read.
    pub(crate) async fn send(&self, message: Said) -> bool {
        let message = PeerMessage { message: Some(message) };
        matches!(timeout(SEND_DEADLINE, self.outgoing.send(message)).await, Ok(Ok(())))
    }

    /// Whether it left a task unanswered and has said nothing since.
    pub(crate) fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    /// It left a task unanswered, or said something.
    pub(crate) fn set_silent(&self, silent: bool) {
        self.silent.store(silent, Ordering::Relaxed);
    }
}

impl Keepers {
    /// Starts keeping sessions up until shutdown; the returned future must be run by the caller's tracker.
    pub(crate) fn start(self) -> (Schedulers, impl Future<Output = ()> + Send + use<>) {
        let (sender, sessions) = watch::channel(Sessions::default());
        (Schedulers { sessions }, self.run(sender))
    }

    async fn run(mut self, sessions: watch::Sender<Sessions>) {
        let generations = Arc::<AtomicU64>::default();
        let mut keeping = JoinSet::new();
        let mut listed: HashMap<String, CancellationToken> = HashMap::new();
        loop {
            let addresses = self.addresses.borrow_and_update().clone();
            listed.retain(|address, unlisted| {
                let stays = addresses.contains(address);
                if !stays {
                    unlisted.cancel();
                }
                stays
            });
            for address in addresses {
                if listed.contains_key(&address) {
                    continue;
                }
                let unlisted = CancellationToken::new();
                listed.insert(address.clone(), unlisted.clone());
                let keeper = Keeper {
                    address,
                    unlisted,
                    generations: generations.clone(),
                    sessions: sessions.clone(),
                    host: self.host.clone(),
                    store: self.store.clone(),
                    profiles: self.profiles.clone(),
                    keys: self.keys.clone(),
                    inbox: self.inbox.clone(),
                    shutdown: self.shutdown.clone(),
                };
                keeping.spawn(keeper.run());
            }
            sessions.send_modify(|sessions| sessions.known = listed.len());
            tokio::select! {
                Some(_) = keeping.join_next() => {}
                Ok(()) = self.addresses.changed() => {}
                () = self.shutdown.cancelled() => break,
            }
        }
        while keeping.join_next().await.is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sessions(names: &[&str]) -> Sessions {
        let live = (0..).zip(names).map(|(generation, name)| {
            Live::new(generation, "http://h:1", (*name).to_owned(), mpsc::channel(1).0)
        });
        Sessions { live: live.collect(), known: names.len(), shifted: None }
    }

    fn choices(sessions: &Sessions) -> Vec<String> {
        let of = |n| sessions.of(&format!("sha256:{n}")).unwrap().scheduler.clone();
        (0..200).map(of).collect()
    }

    #[test]
    fn all_hosts_choose_alike_and_only_the_tasks_of_a_lost_scheduler_move() {
        let all = choices(&sessions(&["a", "b", "c"]));
        assert_eq!(all, choices(&sessions(&["c", "a", "b"])));
        let mut without = sessions(&["a", "b", "c"]);
        without.remove(1);
        for (before, after) in all.iter().zip(choices(&without)) {
            assert!(*before == after || before == "b", "{before} lost a task to {after}");
            assert_ne!(after, "b");
        }
    }

    #[test]
    fn a_silent_scheduler_is_the_last_choice() {
        let two = sessions(&["a", "b"]);
        two.live[0].set_silent(true);
        assert!(choices(&two).iter().all(|choice| choice == "b"));
        two.live[1].set_silent(true);
        assert!(choices(&two).iter().any(|choice| choice == "a"), "none is better than the other");
    }

    #[test]
    fn tasks_shift_when_a_scheduler_is_lost_or_comes_back_and_there_are_others() {
        let other = || Live::new(9, "http://h:2", "b".to_owned(), mpsc::channel(1).0);
        let shifted = |known, change: &dyn Fn(&mut Sessions)| {
            let mut sessions = Sessions { known, ..sessions(&["a"]) };
            change(&mut sessions);
            Schedulers { sessions: watch::channel(sessions).1 }.shifted_lately()
        };
        assert!(!shifted(2, &|sessions| sessions.add(other(), false)), "it was just not connected yet");
        assert!(shifted(2, &|sessions| sessions.add(other(), true)));
        assert!(shifted(2, &|sessions| sessions.remove(0)));
        assert!(!shifted(1, &|sessions| sessions.remove(0)));
    }
}
