//! Tickets: a scheduler's word that a host may fetch a task from its parents.
//!
//! A ticket is 104 bytes long: the scheduler's public key (32 bytes), the end (8 bytes, little-endian: a second on the
//! scheduler's own clock), and an Ed25519 signature (64 bytes, RFC 8032). Signed are four parts, each behind its length in
//! 8 bytes, little-endian: `darter ticket 1`, the end as above, the host's id, and the task's id. Host and task are not in
//! the ticket: whoever checks it knows who came for what.

use std::time::Duration;

use aws_lc_rs::{
    error::Unspecified,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use bytes::Bytes;

/// How long a ticket holds.
pub const LIFE: Duration = Duration::from_secs(3600);
/// Length of a ticket in bytes.
pub const LEN: usize = KEY_LEN + END_LEN + SIGNATURE_LEN;

const KEY_LEN: usize = 32;
const END_LEN: usize = 8;
const SIGNATURE_LEN: usize = 64;
/// No other signature of the key can be taken for one of a ticket.
const DOMAIN: &[u8] = b"darter ticket 1";

/// The public half of a [`Signer`].
pub type PublicKey = [u8; KEY_LEN];

/// Makes tickets. Its key is never written anywhere.
#[derive(Debug)]
pub struct Signer {
    pair: Ed25519KeyPair,
    public: PublicKey,
}

/// A ticket that was read and not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// Who says that it made the ticket.
    pub key: PublicKey,
    /// When it ends, in seconds on its maker's clock.
    pub end: u64,
    signature: [u8; SIGNATURE_LEN],
}

/// The system gives no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("no key for tickets can be made: the system gives no random numbers")]
pub struct NoKey(#[from] Unspecified);

impl Signer {
    /// One with a new key.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn new() -> Result<Self, NoKey> {
        let pair = Ed25519KeyPair::generate()?;
        let public = *pair.public_key().as_ref().first_chunk().ok_or(Unspecified)?;
        Ok(Self { pair, public })
    }

    /// What its tickets are checked with.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// A ticket that holds until `end`.
    pub fn sign(&self, host: &str, task: &str, end: u64) -> Bytes {
        let signature = self.pair.sign(&signed(host, task, end));
        [&self.public[..], &end.to_le_bytes(), signature.as_ref()].concat().into()
    }
}

impl Ticket {
    /// Reads a ticket; `None` if it is none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (key, rest) = bytes.split_first_chunk()?;
        let (end, signature) = rest.split_first_chunk()?;
        let signature = signature.try_into().ok()?;
        Some(Self { key: *key, end: u64::from_le_bytes(*end), signature })
    }

    /// Whether its key made it, for this host and this task.
    pub fn is_for(&self, host: &str, task: &str) -> bool {
        let key = UnparsedPublicKey::new(&ED25519, self.key);
        key.verify(&signed(host, task, self.end), &self.signature).is_ok()
    }
}

/// What is signed.
fn signed(host: &str, task: &str, end: u64) -> Vec<u8> {
    let parts = [DOMAIN, &end.to_le_bytes(), host.as_bytes(), task.as_bytes()];
    let with_length = |part: &[u8]| [&(part.len() as u64).to_le_bytes(), part].concat();
    parts.into_iter().flat_map(with_length).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    #[test]
    fn is_for_its_host_and_its_task_and_no_other() {
        let signer = Signer::new().unwrap();
        let bytes = signer.sign("host", "sha256:aa", 77);
        assert_eq!(bytes.len(), LEN);
        let ticket = Ticket::decode(&bytes).unwrap();
        assert_eq!((ticket.key, ticket.end), (signer.public_key(), 77));
        assert!(ticket.is_for("host", "sha256:aa"));
        assert!(!ticket.is_for("hos", "tsha256:aa") && !ticket.is_for("host", "sha256:ab"));
        assert!(!ticket.is_for("other", "sha256:aa") && !ticket.is_for("", ""));
    }

    #[test]
    fn a_changed_bit_anywhere_is_noticed() {
        let bytes = Signer::new().unwrap().sign("host", "sha256:aa", 77);
        for at in 0..LEN {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            assert!(!Ticket::decode(&changed).unwrap().is_for("host", "sha256:aa"), "byte {at}");
        }
    }

    #[test]
    fn anothers_key_does_not_fit() {
        let (one, other) = (Signer::new().unwrap(), Signer::new().unwrap());
        assert_ne!(one.public_key(), other.public_key());
        let ticket = Ticket::decode(&one.sign("host", "sha256:aa", 77)).unwrap();
        assert!(!Ticket { key: other.public_key(), ..ticket }.is_for("host", "sha256:aa"));
    }

    #[test]
    fn what_has_another_length_is_none() {
        let bytes = Signer::new().unwrap().sign("host", "sha256:aa", 77);
        for len in 0..LEN {
            assert_eq!(Ticket::decode(&bytes[..len]), None);
        }
        assert_eq!(Ticket::decode(&[&bytes[..], b"x"].concat()), None);
    }
}
