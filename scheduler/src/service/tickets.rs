//! Puts on what is sent to a peer what it shows its parents. The state decides who fetches from whom and knows of no key.

use bytes::Bytes;
use darter_proto::{
    scheduler::{SchedulerMessage, TicketKey, scheduler_message::Message},
    ticket::{LIFE, NoKey, Signer},
};
use tokio::time::Instant;

/// Makes this scheduler's tickets.
#[derive(Debug)]
pub(crate) struct Issuer {
    signer: Signer,
    /// When the clock that tickets end by showed 0.
    since: Instant,
}

impl Issuer {
    /// A new key; the tickets of an earlier one stay good where it is remembered.
    pub(crate) fn new() -> Result<Self, NoKey> {
        Ok(Self { signer: Signer::new()?, since: Instant::now() })
    }

    /// Adds the key to a Welcome, and a ticket to what names parents. `host` is the receiver.
    pub(super) fn stamp(&self, host: &str, message: &mut SchedulerMessage) {
        match &mut message.message {
            Some(Message::Welcome(welcome)) => {
                let public_key = Bytes::copy_from_slice(&self.signer.public_key());
                welcome.tickets = Some(TicketKey { public_key, now: self.now() });
            }
            Some(Message::Parents(parents)) if !parents.add.is_empty() => {
                parents.ticket = self.signer.sign(host, &parents.task, self.now() + LIFE.as_secs());
            }
            _ => {}
        }
    }

    fn now(&self) -> u64 {
        self.since.elapsed().as_secs()
    }
}
