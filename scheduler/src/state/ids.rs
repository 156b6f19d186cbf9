//! Names: of sessions, hosts and tasks.

use std::{
    borrow::Borrow,
    fmt,
    hash::{BuildHasherDefault, Hasher},
    sync::Arc,
};

use indexmap::{IndexMap, IndexSet};

/// Longest host id in bytes.
const MAX_HOST_ID: usize = 128;
/// Longest task id in bytes.
const MAX_TASK_ID: usize = 160;

/// One stream between a peer and this scheduler; never used twice by the one who drives the state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// A host inside this scheduler; the same host id keeps its key while it is remembered, and no key is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct HostKey(pub(super) u64);

/// By host. The keys are numbers of this scheduler's own, so nobody can choose ones that collide, and hashing one need
/// not cost more than the look at what it stands for.
pub(super) type KeyMap<T> = IndexMap<HostKey, T, BuildHasherDefault<KeyHasher>>;
/// A set of hosts.
pub(super) type KeySet = IndexSet<HostKey, BuildHasherDefault<KeyHasher>>;

/// Spreads consecutive numbers (Fibonacci hashing: Knuth, volume 3, section 6.4).
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The upper half is the one that is well mixed.
        self.0 = product ^ (product >> 32);
    }
}

/// The id that a host's store chose for itself.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(Arc<str>);

/// Names one content being distributed: `kind:value`, as `TaskId` of the peer defines it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

impl HostId {
    /// Checks a host id: 1 to 128 letters, digits, `-`, `_` and `.`.
    pub(super) fn parse(id: &str) -> Option<Self> {
        let plain = id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        (plain && !id.is_empty() && id.len() <= MAX_HOST_ID).then(|| Self(id.into()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TaskId {
    /// Checks a task id: a known kind, `:`, then letters, digits and `-`; 160 bytes at most.
    pub(super) fn parse(id: &str) -> Option<Self> {
        let (kind, rest) = id.split_once(':')?;
        let known = matches!(kind, "sha256" | "sha512" | "blake3" | "leaves" | "url");
        let plain = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        (known && plain && !rest.is_empty() && id.len() <= MAX_TASK_ID).then(|| Self(id.into()))
    }

    /// The task of a layer's leaves; `table` is the task of its encoded leaf table, whose digest is the table's root.
    pub(super) fn of_leaves(table: &Self) -> Self {
        let root = table.0.split_once(':').map_or("", |(_, root)| root);
        Self(format!("leaves:{root}").into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for HostId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TaskId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
