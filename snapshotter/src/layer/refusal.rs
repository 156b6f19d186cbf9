//! Why a raw tar does not become a layer.

use std::borrow::Cow;

use darter_peer::MakeError;

/// Names longer than this are cut in messages.
const SHOWN_NAME_LEN: usize = 256;

/// Why a raw tar does not become a layer, in words for whoever asked for it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The bytes are no tar.
    #[error("no valid tar at byte {offset} of the uncompressed layer: {why}")]
    Tar {
        /// Where in the raw tar, in bytes.
        offset: u64,
        /// What is wrong there.
        why: &'static str,
    },
    /// One entry cannot be expressed in an index, or must not be unpacked.
    #[error("entry {name:?} {why}")]
    Entry {
        /// The entry's path as the tar gives it.
        name: String,
        /// A phrase whose subject is the entry.
        why: Cow<'static, str>,
    },
    /// The layer is larger than an index may be.
    #[error("{0}")]
    TooLarge(&'static str),
}

impl Refusal {
    /// Refuses the entry with path `name`; `why` is a phrase whose subject is the entry.
    pub(super) fn entry(name: &[u8], why: impl Into<Cow<'static, str>>) -> Self {
        Self::Entry { name: shown(name), why: why.into() }
    }
}

impl From<Refusal> for MakeError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

/// A name from a tar, fit for a message: text, and not too long.
pub(super) fn shown(name: &[u8]) -> String {
    match name.get(..SHOWN_NAME_LEN) {
        Some(start) if name.len() > SHOWN_NAME_LEN => format!("{}…", String::from_utf8_lossy(start)),
        _ => String::from_utf8_lossy(name).into_owned(),
    }
}
