//! What a task is made of: its id, and how its content is cut into leaves and pieces.

use std::{fmt, ops::Range, sync::Arc};

use url::Url;

use crate::{Digest, LeafTable, origin::OriginHead};

/// Length of a blob's leaf in bytes; the last leaf of a blob may be shorter.
pub const LEAF_LEN: u32 = 256 * 1024;

/// Aimed-at length of a piece in bytes. A piece is a run of leaves that begins where the last one reached this.
pub const PIECE_LEN: u64 = 4 * 1024 * 1024;

/// Names one content being distributed; equal ids mean equal bytes, in the whole cluster.
///
/// `sha256:…`, `sha512:…` and `blake3:…` are contents known by their digest, those of registries with a `-` and the
/// pool that they came from behind it; `leaves:…` are the leaves of a layer, named by their leaf table's root; `url:…`
/// is a URL's content in the version its origin described.
/// Only letters, digits, `:` and `-` occur, [`MAX_ID_LEN`] characters at most.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(Arc<str>);

/// Longest task id: a SHA-512 digest in a pool has 168 characters.
const MAX_ID_LEN: usize = 200;
/// Hexadecimal digits that stand for a pool in a task id: 128 bits, so that nobody finds a second name for a pool.
const POOL_LEN: usize = 32;

/// A string that is not a task id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a task id")]
pub struct InvalidTaskId(String);

impl TaskId {
    /// Checks a task id that came from outside.
    pub fn parse(id: &str) -> Result<Self, InvalidTaskId> {
        let invalid = || InvalidTaskId(id.chars().take(MAX_ID_LEN).collect());
        let (kind, rest) = id.split_once(':').ok_or_else(invalid)?;
        let known = matches!(kind, "sha256" | "sha512" | "blake3" | "leaves" | "url");
        let plain = rest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        if !known || rest.is_empty() || id.len() > MAX_ID_LEN || !plain {
            return Err(invalid());
        }
        Ok(Self(id.into()))
    }

    /// The task of a content known by its digest.
    pub fn of_digest(digest: &Digest) -> Self {
        Self(digest.to_string().into())
    }

    /// The task of a content known by its digest that came from a registry of `pool`. What came from another pool is
    /// another task, so that nobody gets it who only knows its digest.
    pub fn in_pool(pool: &str, digest: &Digest) -> Self {
        let tag = blake3::hash(pool.as_bytes()).to_hex();
        Self(format!("{digest}-{}", tag.get(..POOL_LEN).unwrap_or(&tag)).into())
    }

    /// The task of a layer's leaves, `root` being the BLAKE3 digest of its encoded leaf table.
    pub fn of_leaves(root: &Digest) -> Self {
        Self(format!("leaves:{}", root.hex()).into())
    }

    /// The task of what `url` holds in the version that `validator` (entity tag, time and length) names.
    pub fn of_url(url: &str, validator: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(url.len() as u64).to_le_bytes()).update(url.as_bytes()).update(validator.as_bytes());
        Self(format!("url:{}", hasher.finalize().to_hex()).into())
    }

    /// The id of a file in the version that its origin described: it ignores the URL's fragment and the named query
    /// parameters, as those of a signature. Files under other labels are other contents.
    pub fn of_file(url: &Url, ignored_query: &[String], labels: [&str; 2], described: &OriginHead) -> Self {
        let [tag, application] = labels;
        let version = match (&described.validator, described.len) {
            (Some(validator), Some(len)) => format!("{validator:?} {len}"),
            (validator, len) => format!("{validator:?} {len:?}"),
        };
        Self::of_url(&format!("{} {tag} {application}", identity(url, ignored_query)), &version)
    }

    /// The digest of the whole content, if the id is one.
    pub fn digest(&self) -> Option<Digest> {
        self.0.split_once('-').map_or(&*self.0, |(digest, _)| digest).parse().ok()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
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

/// Why bytes are wanted, most urgent first: a more urgent class is served before a less urgent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A container waits in a read.
    Demand = 0,
    /// A runtime or a user waits for a stream.
    Stream = 1,
    /// Leaves that a container's start is known to need.
    Profile = 2,
    /// Filling a layer to completeness.
    Background = 3,
}

/// How a task's content is cut: where each leaf lies in the stored file, and which leaves make a piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Geometry {
    /// A blob of `len` bytes, cut into leaves of [`LEAF_LEN`] bytes; the last may be shorter.
    Fixed {
        /// Length of the blob in bytes.
        len: u64,
    },
    /// A layer's leaves, as long as their table says.
    Table(Arc<LeafTable>),
}

impl Geometry {
    /// Length of the stored content in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Fixed { len } => *len,
            Self::Table(table) => table.stored_len(),
        }
    }

    /// Whether the content has no bytes, hence no leaves.
    pub fn is_empty(&self) -> bool {
        self.leaves() == 0
    }

    /// Number of leaves.
    pub fn leaves(&self) -> u32 {
        match self {
            // A blob has at most u32::MAX leaves (1 PiB); `new_fixed` callers never get near it.
            Self::Fixed { len } => u32::try_from(len.div_ceil(u64::from(LEAF_LEN))).unwrap_or(u32::MAX),
            Self::Table(table) => table.leaves(),
        }
    }

    /// Where a leaf lies in the stored content; `None` if there is no such leaf.
    pub fn leaf_range(&self, leaf: u32) -> Option<Range<u64>> {
        match self {
            Self::Fixed { len } => {
                let start = u64::from(leaf) * u64::from(LEAF_LEN);
                (start < *len).then(|| start..(start + u64::from(LEAF_LEN)).min(*len))
            }
            Self::Table(table) => table.stored_range(leaf),
        }
    }

    /// The leaf that holds the stored byte at `offset`; `None` past the end.
    pub fn leaf_at(&self, offset: u64) -> Option<u32> {
        match self {
            Self::Fixed { len } => {
                (offset < *len).then(|| u32::try_from(offset / u64::from(LEAF_LEN)).unwrap_or(u32::MAX))
            }
            Self::Table(table) => table.leaf_at_stored(offset),
        }
    }

    /// Number of pieces.
    pub fn pieces(&self) -> u32 {
        match self {
            Self::Fixed { len } => u32::try_from(len.div_ceil(PIECE_LEN)).unwrap_or(u32::MAX),
            Self::Table(table) => table.pieces(),
        }
    }

    /// The leaves of a piece; empty if there is no such piece.
    pub fn piece_leaves(&self, piece: u32) -> Range<u32> {
        match self {
            Self::Fixed { .. } => {
                let per_piece = u32::try_from(PIECE_LEN / u64::from(LEAF_LEN)).unwrap_or(1);
                let leaves = self.leaves();
                let start = piece.saturating_mul(per_piece).min(leaves);
                start..start.saturating_add(per_piece).min(leaves)
            }
            Self::Table(table) => table.piece_leaves(piece),
        }
    }

    /// The piece that a leaf belongs to; `None` if there is no such leaf.
    pub fn piece_of(&self, leaf: u32) -> Option<u32> {
        if leaf >= self.leaves() {
            return None;
        }
        match self {
            Self::Fixed { .. } => Some(leaf / u32::try_from(PIECE_LEN / u64::from(LEAF_LEN)).unwrap_or(1)),
            Self::Table(table) => table.piece_of(leaf),
        }
    }
}

/// A URL without what does not tell one file from another.
fn identity(url: &Url, ignored_query: &[String]) -> Url {
    let mut identity = url.clone();
    identity.set_fragment(None);
    if !ignored_query.is_empty() && url.query().is_some() {
        let kept = url.query_pairs().filter(|(name, _)| !ignored_query.iter().any(|ignored| ignored == name));
        let kept: Vec<_> = kept.collect();
        identity.query_pairs_mut().clear().extend_pairs(kept);
    }
    if identity.query() == Some("") {
        identity.set_query(None);
    }
    identity
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;

    #[test]
    fn signatures_do_not_tell_files_from_each_other() {
        let of = |url: &str| identity(&url.parse().unwrap(), &["sig".into(), "exp".into()]).to_string();
        assert_eq!(of("https://h/a?v=1&sig=x&exp=2"), of("https://h/a?v=1&sig=y&exp=3"));
        assert_eq!(of("https://h/a?sig=x#part"), "https://h/a");
        assert_ne!(of("https://h/a?v=1"), of("https://h/a?v=2"));
    }

    #[test]
    fn a_file_s_id_is_the_same_in_every_version_of_this_program() {
        let of = |validator: Option<&str>, len, labels| {
            let described = OriginHead {
                status: 200,
                len,
                ranges: true,
                validator: validator.map(str::to_owned),
                content_type: None,
                headers: HeaderMap::new(),
            };
            let url = "https://h/a?v=1&sig=x".parse().unwrap();
            TaskId::of_file(&url, &["sig".into()], labels, &described).to_string()
        };
        for (validator, len, labels, id) in [
            (
                Some("\"tag\""),
                Some(5),
                ["", ""],
                "url:36cd941ce27593da332c47ec77c24049e2611f96abd9b059b83ea747e8097002",
            ),
            (
                Some("\"tag\""),
                Some(5),
                ["t", "a"],
                "url:2e406cf4b6aa535846651157a333bae207e0aa02a6fa7480a69c53797ac7c619",
            ),
            (
                Some("\"tag\""),
                None,
                ["", ""],
                "url:f46712bb6fa54e591152937f8a1ebd0bcf1120207c6de2c1c4645128a0fedf43",
            ),
            (None, Some(5), ["", ""], "url:9cb97aa20a609609d22c0963c9c3f791f226ef5366fc832b9c65e070cd17e520"),
        ] {
            assert_eq!(of(validator, len, labels), id);
        }
    }

    #[test]
    fn ids_from_outside_are_checked() {
        let good = TaskId::of_digest(&Digest::sha256(b"x"));
        assert_eq!(TaskId::parse(good.as_str()).unwrap(), good);
        let digest: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
        let pooled = TaskId::in_pool("docker.io", &digest);
        assert_eq!(TaskId::parse(pooled.as_str()).unwrap(), pooled);
        assert_eq!(pooled.digest(), Some(digest.clone()));
        assert_ne!(pooled, TaskId::in_pool("evil.example", &digest));
        for bad in
            ["", "sha256", "sha256:", "path:x", "url:../x", "url:a b", &format!("url:{}", "a".repeat(200))]
        {
            assert!(TaskId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn fixed_leaves_cover_the_blob_once() {
        for len in [0, 1, u64::from(LEAF_LEN), u64::from(LEAF_LEN) + 1, PIECE_LEN, 3 * PIECE_LEN + 17] {
            let geometry = Geometry::Fixed { len };
            let mut end = 0;
            for leaf in 0..geometry.leaves() {
                let range = geometry.leaf_range(leaf).unwrap();
                assert_eq!(range.start, end);
                assert_eq!(geometry.leaf_at(range.start), Some(leaf));
                assert_eq!(geometry.leaf_at(range.end - 1), Some(leaf));
                assert!(geometry.piece_leaves(geometry.piece_of(leaf).unwrap()).contains(&leaf));
                end = range.end;
            }
            assert_eq!(end, len);
            assert_eq!(geometry.leaf_at(len), None);
            let in_pieces: u32 = (0..geometry.pieces()).map(|p| geometry.piece_leaves(p).len() as u32).sum();
            assert_eq!(in_pieces, geometry.leaves());
        }
    }
}
