//! Writes a layer: a tar, compressed or not, with both of its digests.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    path::Path,
};

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use tar::{EntryType, Header};

use super::{Kind, Node};
use crate::digest::Hashing;

/// Longest path and link target that fit in a tar header: POSIX.1, pax, "ustar Interchange Format".
const HEADER_PATH_LEN: usize = 100;
/// Largest id that fits there: seven octal digits.
const HEADER_ID_MAX: u64 = 0o777_7777;

/// How a layer is compressed in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// As a gzip stream.
    Gzip,
}

/// Writes one layer, node by node, to a file.
#[expect(missing_debug_implementations, reason = "the compressor has none")]
pub struct LayerWriter {
    tar: tar::Builder<Hashing<Compressor>>,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digest: String,
    pub(super) len: u64,
    pub(super) diff_id: String,
    pub(super) raw_len: u64,
}

enum Compressor {
    None(Blob),
    Gzip(Box<GzEncoder<Blob>>),
}

type Blob = Hashing<BufWriter<File>>;

// === impl LayerWriter ===

impl LayerWriter {
    pub(super) fn create(path: &Path, compression: Compression) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        let blob = Hashing::new(BufWriter::new(file));
        let compressor = match compression {
            Compression::None => Compressor::None(blob),
            Compression::Gzip => {
                Compressor::Gzip(Box::new(GzEncoder::new(blob, flate2::Compression::new(4))))
            }
        };
        Ok(Self { tar: tar::Builder::new(Hashing::new(compressor)) })
    }

    /// Adds a node.
    pub fn add(&mut self, node: &Node) -> Result<()> {
        let content = match &node.kind {
            Kind::File(content) | Kind::SparseFile { content, .. } => content.as_slice(),
            _ => &[],
        };
        self.add_from(node, content.len() as u64, content)
    }

    /// Adds several nodes.
    pub fn add_all<'a>(&mut self, nodes: impl IntoIterator<Item = &'a Node>) -> Result<()> {
        nodes.into_iter().try_for_each(|node| self.add(node))
    }

    /// Adds a node with `len` bytes of content from a stream instead of the content in `node`.
    pub fn add_from(&mut self, node: &Node, len: u64, content: impl Read) -> Result<()> {
        let mut header = Header::new_ustar();
        header.set_mode(node.mode);
        header.set_uid(node.uid.min(HEADER_ID_MAX));
        header.set_gid(node.gid.min(HEADER_ID_MAX));
        header.set_mtime(node.mtime.try_into().unwrap_or(0));
        header.set_size(len);
        set_kind(&mut header, &node.kind)?;
        let fields = header.as_ustar_mut().context("no ustar header")?;
        fill(&mut fields.name, &node.path);
        if let Some(target) = link_target(&node.kind) {
            fill(&mut fields.linkname, target);
        }
        header.set_cksum();
        let extensions = pax_extensions(node);
        self.tar
            .append_pax_extensions(extensions.iter().map(|(key, value)| (key.as_str(), value.as_slice())))?;
        self.tar.append(&header, content).with_context(|| format!("adding {}", node.path))
    }

    pub(super) fn finish(self) -> Result<Written> {
        let raw = self.tar.into_inner()?;
        let (diff_id, raw_len) = raw.digest();
        let mut blob = match raw.into_inner() {
            Compressor::None(blob) => blob,
            Compressor::Gzip(gzip) => gzip.finish()?,
        };
        blob.flush()?;
        let (digest, len) = blob.digest();
        Ok(Written { digest, len, diff_id, raw_len })
    }
}

fn set_kind(header: &mut Header, kind: &Kind) -> Result<()> {
    header.set_entry_type(match kind {
        Kind::File(_) | Kind::SparseFile { .. } => EntryType::Regular,
        Kind::Dir => EntryType::Directory,
        Kind::Symlink(_) => EntryType::Symlink,
        Kind::HardLink(_) => EntryType::Link,
        Kind::CharDevice(..) => EntryType::Char,
        Kind::BlockDevice(..) => EntryType::Block,
        Kind::Fifo => EntryType::Fifo,
    });
    if let Kind::CharDevice(major, minor) | Kind::BlockDevice(major, minor) = kind {
        header.set_device_major(*major)?;
        header.set_device_minor(*minor)?;
    }
    Ok(())
}

fn link_target(kind: &Kind) -> Option<&str> {
    match kind {
        Kind::Symlink(target) | Kind::HardLink(target) => Some(target),
        _ => None,
    }
}

/// As much of `text` as fits; the whole of it is then in a pax extension.
fn fill(field: &mut [u8; HEADER_PATH_LEN], text: &str) {
    for (byte, value) in field.iter_mut().zip(text.bytes()) {
        *byte = value;
    }
}

/// What does not fit in the header: POSIX.1, pax, "pax Header Block". The names for extended attributes are Schily's, those
/// for sparse files GNU tar's ("Storing Sparse Files", version 0.1).
fn pax_extensions(node: &Node) -> Vec<(String, Vec<u8>)> {
    let mut extensions = Vec::new();
    let mut add = |key: &str, value: &[u8]| extensions.push((key.to_owned(), value.to_owned()));
    if node.path.len() > HEADER_PATH_LEN {
        add("path", node.path.as_bytes());
    }
    if let Some(target) = link_target(&node.kind).filter(|target| target.len() > HEADER_PATH_LEN) {
        add("linkpath", target.as_bytes());
    }
    for (key, id) in [("uid", node.uid), ("gid", node.gid)] {
        if id > HEADER_ID_MAX {
            add(key, id.to_string().as_bytes());
        }
    }
    if node.mtime < 0 || node.mtime_nanos > 0 {
        add("mtime", decimal_seconds(node.mtime, node.mtime_nanos).as_bytes());
    }
    if let Kind::SparseFile { len, offset, content } = &node.kind {
        add("GNU.sparse.size", len.to_string().as_bytes());
        add("GNU.sparse.numblocks", b"1");
        add("GNU.sparse.map", format!("{offset},{}", content.len()).as_bytes());
    }
    for (name, value) in &node.xattrs {
        add(&format!("SCHILY.xattr.{name}"), value);
    }
    extensions
}

/// Seconds and nanoseconds as one decimal number; nanoseconds always count forwards.
fn decimal_seconds(seconds: i64, nanos: u32) -> String {
    match (seconds, nanos) {
        (_, 0) => seconds.to_string(),
        (0.., _) => format!("{seconds}.{nanos:09}"),
        _ => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

// === impl Compressor ===

impl Write for Compressor {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(blob) => blob.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::None(blob) => blob.flush(),
            Self::Gzip(gzip) => gzip.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_count_forwards() {
        assert_eq!(decimal_seconds(5, 0), "5");
        assert_eq!(decimal_seconds(5, 7), "5.000000007");
        assert_eq!(decimal_seconds(-1, 0), "-1");
        assert_eq!(decimal_seconds(-1, 250_000_000), "-0.750000000");
        assert_eq!(decimal_seconds(-2, 250_000_000), "-1.750000000");
    }

    #[test]
    fn what_does_not_fit_in_a_header_is_read_back() {
        let long = "d/".repeat(90) + "file";
        let dir = tempfile::tempdir().unwrap();
        let mut writer = LayerWriter::create(&dir.path().join("blob"), Compression::None).unwrap();
        let node = Node::file(&long, "content").owner(3_000_000, 5).xattr("user.a", *b"\0=\xff");
        writer.add_all([&node, &Node::symlink("link", &long)]).unwrap();
        let written = writer.finish().unwrap();
        assert_eq!(written.digest, written.diff_id);

        let mut archive = tar::Archive::new(File::open(dir.path().join("blob")).unwrap());
        let mut entries = archive.entries().unwrap();
        let mut file = entries.next().unwrap().unwrap();
        assert_eq!(file.path().unwrap(), Path::new(&long));
        let extensions: Vec<_> = file.pax_extensions().unwrap().unwrap().map(Result::unwrap).collect();
        let value_of = |key| extensions.iter().find(|pax| pax.key() == Ok(key)).map(|pax| pax.value_bytes());
        assert_eq!(value_of("uid"), Some(&b"3000000"[..]));
        assert_eq!(value_of("SCHILY.xattr.user.a"), Some(&b"\0=\xff"[..]));
        assert_eq!(io::read_to_string(&mut file).unwrap(), "content");
        let link = entries.next().unwrap().unwrap();
        assert_eq!(link.link_name().unwrap().unwrap(), Path::new(&long));
    }
}
