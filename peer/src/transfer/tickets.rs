//! Which children may have which tasks: those that show a ticket of a scheduler that this host knows.

use std::{collections::HashMap, sync::Arc, time::Duration};

use darter_proto::{
    scheduler::TicketKey,
    ticket::{LIFE, PublicKey, Ticket},
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::TaskId;

/// Most keys that are remembered of sessions that are over: those of a scheduler that starts again and again.
const MAX_FORMER: usize = 64;

/// The keys of the schedulers that this host has a session with, or had one not longer ago than a ticket holds. Clones
/// share them.
#[derive(Debug, Clone)]
pub struct Keys {
    known: Arc<Mutex<HashMap<PublicKey, Key>>>,
    learned: watch::Sender<()>,
}

#[derive(Debug)]
struct Key {
    /// What the scheduler's clock showed, and when.
    told: (u64, Instant),
    sessions: usize,
    /// When the last of them ended.
    ended: Instant,
}

/// While this lives, the session of a key is up.
#[derive(Debug)]
pub struct KeyInUse {
    keys: Keys,
    key: PublicKey,
}

/// Why a child does not get a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denial {
    #[error("it showed no ticket; a scheduler that this host has a session with gives one")]
    Missing,
    #[error("its ticket cannot be read")]
    Malformed,
    #[error("its ticket is of a scheduler that this host has had no session with lately")]
    UnknownKey,
    #[error("its ticket is not for this host and this task, or is forged")]
    Wrong,
    #[error("its ticket has expired")]
    Expired,
}

impl Default for Keys {
    fn default() -> Self {
        Self { known: Arc::default(), learned: watch::Sender::new(()) }
    }
}

impl Keys {
    /// A session begins whose scheduler signs with this key; `None` if it is none.
    pub fn learn(&self, key: &TicketKey) -> Option<KeyInUse> {
        let public: PublicKey = key.public_key.as_ref().try_into().ok()?;
        let now = Instant::now();
        let mut known = self.known.lock();
        let sessions = known.get(&public).map_or(0, |known| known.sessions);
        known.insert(public, Key { told: (key.now, now), sessions: sessions + 1, ended: now });
        forget(&mut known);
        drop(known);
        self.learned.send_replace(());
        Some(KeyInUse { keys: self.clone(), key: public })
    }

    /// Checks a ticket that `host` shows for `task`.
    pub(super) fn check(&self, host: &str, task: &TaskId, ticket: &[u8]) -> Result<(), Denial> {
        if ticket.is_empty() {
            return Err(Denial::Missing);
        }
        let ticket = Ticket::decode(ticket).ok_or(Denial::Malformed)?;
        let now = self.now(&ticket.key).ok_or(Denial::UnknownKey)?;
        // The signature first: a forged end says nothing.
        if !ticket.is_for(host, task.as_str()) {
            return Err(Denial::Wrong);
        }
        if now > ticket.end { Err(Denial::Expired) } else { Ok(()) }
    }

    /// As [`Self::check`], but a key that is not known yet may become so within `patience`: a scheduler may send a child
    /// here at the very moment in which this host's own session begins.
    pub(super) async fn check_patiently(
        &self,
        host: &str,
        task: &TaskId,
        ticket: &[u8],
        patience: Duration,
    ) -> Result<(), Denial> {
        let mut learned = self.learned.subscribe();
        let decided = async {
            loop {
                learned.mark_unchanged();
                match self.check(host, task, ticket) {
                    Err(Denial::UnknownKey) => {}
                    decided => return decided,
                }
                if learned.changed().await.is_err() {
                    return Err(Denial::UnknownKey);
                }
            }
        };
        tokio::time::timeout(patience, decided).await.unwrap_or(Err(Denial::UnknownKey))
    }

    /// What the clock of a key's scheduler shows; `None` if the key is not known.
    fn now(&self, key: &PublicKey) -> Option<u64> {
        let known = self.known.lock();
        let key = known.get(key).filter(|key| key.is_good())?;
        let (told, at) = key.told;
        Some(told.saturating_add(at.elapsed().as_secs()))
    }
}

impl Key {
    /// Its session is up, or was so lately that a ticket of that time may still hold.
    fn is_good(&self) -> bool {
        self.sessions > 0 || self.ended.elapsed() <= LIFE
    }
}

/// Forgets the keys that are not good any more, and of too many former ones the eldest.
fn forget(known: &mut HashMap<PublicKey, Key>) {
    known.retain(|_, key| key.is_good());
    let mut former: Vec<_> =
        known.iter().filter(|(_, key)| key.sessions == 0).map(|(public, key)| (key.ended, *public)).collect();
    former.sort_unstable();
    for (_, public) in former.iter().rev().skip(MAX_FORMER) {
        known.remove(public);
    }
}

impl Drop for KeyInUse {
    fn drop(&mut self) {
        if let Some(key) = self.keys.known.lock().get_mut(&self.key) {
            key.sessions = key.sessions.saturating_sub(1);
            key.ended = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use darter_proto::ticket::Signer;
    use tokio::time::advance;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn task(id: &str) -> TaskId {
        TaskId::parse(id).unwrap()
    }

    fn learn(keys: &Keys, signer: &Signer, now: u64) -> KeyInUse {
        let public_key = Bytes::copy_from_slice(&signer.public_key());
        keys.learn(&TicketKey { public_key, now }).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn is_good_for_its_host_and_task_until_its_end() {
        let (keys, signer) = (Keys::default(), Signer::new().unwrap());
        let _session = learn(&keys, &signer, 1000);
        let ticket = signer.sign("child", "url:1", 1060);
        let check = |host, id, ticket: &[u8]| keys.check(host, &task(id), ticket);
        assert_eq!(check("child", "url:1", &ticket), Ok(()));
        assert_eq!(check("other", "url:1", &ticket), Err(Denial::Wrong));
        assert_eq!(check("child", "url:2", &ticket), Err(Denial::Wrong));
        assert_eq!(check("child", "url:1", b""), Err(Denial::Missing));
        assert_eq!(check("child", "url:1", &ticket[1..]), Err(Denial::Malformed));
        // With an end that would be later.
        let mut forged = ticket.to_vec();
        forged[33] ^= 1;
        assert_eq!(check("child", "url:1", &forged), Err(Denial::Wrong));
        let stranger = Signer::new().unwrap().sign("child", "url:1", 1060);
        assert_eq!(check("child", "url:1", &stranger), Err(Denial::UnknownKey));
        advance(60 * SECOND).await;
        assert_eq!(check("child", "url:1", &ticket), Ok(()));
        advance(SECOND).await;
        assert_eq!(check("child", "url:1", &ticket), Err(Denial::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_former_key_is_known_as_long_as_its_tickets_may_hold() {
        let (keys, old, new) = (Keys::default(), Signer::new().unwrap(), Signer::new().unwrap());
        let first = learn(&keys, &old, 0);
        let again = learn(&keys, &old, 0);
        let _current = learn(&keys, &new, 0);
        let endless = |signer: &Signer| signer.sign("child", "url:1", u64::MAX);
        let check = |signer| keys.check("child", &task("url:1"), &endless(signer));
        drop(first);
        advance(2 * LIFE).await;
        assert_eq!(check(&old), Ok(()), "one of its two sessions is up");
        drop(again);
        advance(LIFE).await;
        assert_eq!((check(&old), check(&new)), (Ok(()), Ok(())));
        advance(SECOND).await;
        assert_eq!((check(&old), check(&new)), (Err(Denial::UnknownKey), Ok(())));
    }

    #[tokio::test(start_paused = true)]
    async fn former_keys_are_forgotten_and_those_in_use_are_not() {
        let (keys, current) = (Keys::default(), Signer::new().unwrap());
        let _session = learn(&keys, &current, 0);
        for _ in 0..2 * MAX_FORMER {
            advance(SECOND).await;
            drop(learn(&keys, &Signer::new().unwrap(), 0));
        }
        let last = Signer::new().unwrap();
        drop(learn(&keys, &last, 0));
        assert_eq!(keys.known.lock().len(), MAX_FORMER + 2);
        for signer in [&current, &last] {
            assert_eq!(keys.check("child", &task("url:1"), &signer.sign("child", "url:1", 9999)), Ok(()));
        }
        advance(LIFE + SECOND).await;
        drop(learn(&keys, &Signer::new().unwrap(), 0));
        assert_eq!(keys.known.lock().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_may_come_a_little_later_than_its_tickets() {
        let (keys, signer) = (Keys::default(), Signer::new().unwrap());
        let (ticket, task) = (signer.sign("child", "url:1", 60), task("url:1"));
        let learned = async {
            tokio::time::sleep(SECOND).await;
            learn(&keys, &signer, 0)
        };
        let check = || keys.check_patiently("child", &task, &ticket, 2 * SECOND);
        assert_eq!(check().await, Err(Denial::UnknownKey));
        assert_eq!(tokio::join!(check(), learned).0, Ok(()));
    }
}
