//! Reads a layer's index in place, for kernels that do not mount it themselves.
//!
//! Understands what [`crate::layer`] writes: EROFS with blocks of 512 bytes, 64-byte inodes, directories and symbolic links
//! in the image, files in chunks of the raw tar (`fs/erofs/erofs_fs.h`). The index was checked against its digest, but
//! nothing in it is trusted to lie within it.

use std::{io, ops::Range};

/// Length of a block, in bytes.
const BLOCK_LEN: usize = 512;
/// Inodes are numbered by the slots of this length before them.
const SLOT_LEN: usize = 32;
/// Length of an inode, of a directory's entry and of the header before extended attributes.
const INODE_LEN: usize = 64;
const ENTRY_LEN: usize = 12;
const XATTR_HEADER_LEN: usize = 12;
/// Where the superblock lies.
const SUPERBLOCK: usize = 1024;
const MAGIC: u32 = 0xe0f5_e1e2;
/// Data layouts, bits 1 to 3 of an inode's format; bit 0 says that it has 64 bytes.
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;
/// In a chunk format: the power of two of a chunk's blocks.
const CHUNK_BITS: u32 = 0x1f;
/// Length of a chunk's index, the device in it that is the raw tar, and the block that is none.
const CHUNK_INDEX_LEN: usize = 8;
const RAW_TAR_DEVICE: u16 = 1;
const NO_BLOCK: u32 = u32::MAX;
/// What an attribute's name begins with, by the number in its entry (`EROFS_XATTR_INDEX_…`).
const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// An index in memory.
pub(super) struct Index {
    bytes: Vec<u8>,
}

/// Names an inode in its index.
pub(super) type Nid = u64;

/// One inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Inode {
    /// File type and permissions, as in `stat(2)`.
    pub(super) mode: u32,
    /// Bytes.
    pub(super) size: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    /// Of a device.
    pub(super) device: u32,
    content: Content,
    xattrs: Range<usize>,
}

/// Where an inode's data lie.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Content {
    /// In the raw tar, in chunks of this length; at this place of the index it says where.
    RawTar { chunk_len: u64, indexes: usize },
    /// In these two places of the index, one after the other.
    Image(Range<usize>, Range<usize>),
}

/// Where some bytes of a file lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Where in the raw tar; `None` for zeros that are nowhere.
    pub(super) raw: Option<u64>,
    /// How many.
    len: u64,
}

impl Place {
    /// In the raw tar itself.
    pub(super) fn raw(offset: u64, len: u32) -> Self {
        Self { raw: Some(offset), len: len.into() }
    }

    /// How many bytes; never more than were asked for.
    pub(super) fn len(&self) -> usize {
        usize::try_from(self.len).unwrap_or_default()
    }

    /// Where bytes would lie that go on from here.
    fn end(&self) -> Option<u64> {
        self.raw.map(|raw| raw + self.len)
    }
}

/// One name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) nid: Nid,
}

impl Index {
    pub(super) fn new(bytes: Vec<u8>) -> io::Result<Self> {
        let index = Self { bytes };
        let (magic, block_bits) = (index.u32(SUPERBLOCK)?, index.u8(SUPERBLOCK + 12)?);
        if magic != MAGIC || u32::from(block_bits) != BLOCK_LEN.trailing_zeros() {
            return Err(damaged());
        }
        Ok(index)
    }

    /// The layer's top directory.
    pub(super) fn root(&self) -> io::Result<Nid> {
        Ok(self.u16(SUPERBLOCK + 14)?.into())
    }

    pub(super) fn inode(&self, nid: Nid) -> io::Result<Inode> {
        let at = usize::try_from(nid).ok().and_then(|nid| nid.checked_mul(SLOT_LEN));
        let at = at.filter(|at| *at < self.bytes.len()).ok_or_else(damaged)?;
        let (format, mode) = (self.u16(at)?, u32::from(self.u16(at + 4)?));
        let (size, data) = (self.u64(at + 8)?, self.u32(at + 16)?);
        let xattrs = match self.u16(at + 2)? {
            0 => at + INODE_LEN..at + INODE_LEN,
            // Words behind the header, plus one for the header.
            count => at + INODE_LEN..at + INODE_LEN + XATTR_HEADER_LEN + (usize::from(count) - 1) * 4,
        };
        let is_device = matches!(mode & 0o170_000, 0o020_000 | 0o060_000);
        let content = match format >> 1 {
            _ if format & 1 == 0 => return Err(damaged()),
            CHUNK_BASED => {
                let chunk_len = (BLOCK_LEN as u64) << (data & CHUNK_BITS);
                Content::RawTar { chunk_len, indexes: xattrs.end.next_multiple_of(CHUNK_INDEX_LEN) }
            }
            FLAT_PLAIN if is_device => Content::Image(0..0, 0..0),
            layout @ (FLAT_PLAIN | FLAT_INLINE) => {
                let len = usize::try_from(size).map_err(|_| damaged())?;
                let first = (data as usize).checked_mul(BLOCK_LEN).ok_or_else(damaged)?;
                let tail = if layout == FLAT_INLINE { len % BLOCK_LEN } else { 0 };
                let end = first.checked_add(len - tail).ok_or_else(damaged)?;
                Content::Image(first..end, xattrs.end..xattrs.end + tail)
            }
            _ => return Err(damaged()),
        };
        Ok(Inode {
            mode,
            size,
            uid: self.u32(at + 24)?,
            gid: self.u32(at + 28)?,
            mtime: (self.u64(at + 32)?.cast_signed(), self.u32(at + 40)?),
            links: self.u32(at + 44)?,
            device: if is_device { data } else { 0 },
            content,
            xattrs,
        })
    }

    /// Where `len` bytes of a file from `offset` on lie, in their order; fewer where the file ends.
    pub(super) fn places(&self, file: &Inode, offset: u64, len: usize) -> io::Result<Vec<Place>> {
        let end = offset.saturating_add(len as u64).min(file.size);
        let Content::RawTar { chunk_len, indexes } = file.content else { return Ok(Vec::new()) };
        let mut places: Vec<Place> = Vec::new();
        let mut at = offset;
        while at < end {
            let (chunk, skip) = (at / chunk_len, at % chunk_len);
            let index = usize::try_from(chunk).ok().and_then(|chunk| chunk.checked_mul(CHUNK_INDEX_LEN));
            let index = index.and_then(|index| index.checked_add(indexes)).ok_or_else(damaged)?;
            let (device, block) = (self.u16(index + 2)?, self.u32(index + 4)?);
            let raw = match (device, block) {
                (_, NO_BLOCK) => None,
                (RAW_TAR_DEVICE, block) => Some(u64::from(block) * BLOCK_LEN as u64 + skip),
                _ => return Err(damaged()),
            };
            let len = (chunk_len - skip).min(end - at);
            match places.last_mut().filter(|last| last.end() == raw) {
                Some(last) => last.len += len,
                None => places.push(Place { raw, len }),
            }
            at += len;
        }
        Ok(places)
    }

    /// What a symbolic link points to.
    pub(super) fn target(&self, link: &Inode) -> io::Result<Vec<u8>> {
        let Content::Image(blocks, tail) = &link.content else { return Err(damaged()) };
        Ok([self.get(blocks.clone())?, self.get(tail.clone())?].concat())
    }

    /// A directory's entries in the order of their names, from the `skip`th on; `.` and `..` among them.
    pub(super) fn entries<'a>(
        &'a self,
        directory: &Inode,
        skip: usize,
    ) -> io::Result<impl Iterator<Item = io::Result<Entry<'a>>>> {
        let blocks = self.blocks(directory)?;
        let mut skip = skip;
        let mut begun = Vec::new();
        for block in blocks {
            let count = count(block)?;
            if skip < count {
                begun.push((block, skip..count));
            }
            skip = skip.saturating_sub(count);
        }
        Ok(begun.into_iter().flat_map(|(block, range)| range.map(move |at| entry(block, at))))
    }

    /// What a name in a directory leads to.
    pub(super) fn lookup(&self, directory: &Inode, name: &[u8]) -> io::Result<Option<Nid>> {
        let blocks = self.blocks(directory)?;
        let first = |block: &&[u8]| entry(block, 0).is_ok_and(|first| first.name <= name);
        let Some(block) = blocks.partition_point(first).checked_sub(1).and_then(|at| blocks.get(at)) else {
            return Ok(None);
        };
        let (mut low, mut high) = (0, count(block)?);
        while low < high {
            let middle = low + (high - low) / 2;
            let found = entry(block, middle)?;
            match found.name.cmp(name) {
                std::cmp::Ordering::Equal => return Ok(Some(found.nid)),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }

    /// All extended attributes of an inode, with their full names.
    pub(super) fn xattrs<'a>(&'a self, inode: &Inode) -> io::Result<Vec<(Vec<u8>, &'a [u8])>> {
        let mut found = Vec::new();
        let mut at = inode.xattrs.start + XATTR_HEADER_LEN;
        while at < inode.xattrs.end {
            let (name_len, number) = (usize::from(self.u8(at)?), self.u8(at + 1)?);
            let value_at = at + 4 + name_len;
            let end = value_at + usize::from(self.u16(at + 2)?);
            let prefix = XATTR_PREFIXES.iter().find(|(known, _)| *known == number).ok_or_else(damaged)?.1;
            found.push(([prefix, self.get(at + 4..value_at)?].concat(), self.get(value_at..end)?));
            at = end.next_multiple_of(4);
        }
        Ok(found)
    }

    fn blocks(&self, directory: &Inode) -> io::Result<Vec<&[u8]>> {
        let Content::Image(blocks, tail) = &directory.content else { return Err(damaged()) };
        let tail = Some(self.get(tail.clone())?).filter(|tail| !tail.is_empty());
        Ok(self.get(blocks.clone())?.chunks(BLOCK_LEN).chain(tail).collect())
    }

    fn get(&self, range: Range<usize>) -> io::Result<&[u8]> {
        self.bytes.get(range).ok_or_else(damaged)
    }

    fn u8(&self, at: usize) -> io::Result<u8> {
        self.bytes.get(at).copied().ok_or_else(damaged)
    }

    fn u16(&self, at: usize) -> io::Result<u16> {
        array(&self.bytes, at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> io::Result<u32> {
        array(&self.bytes, at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> io::Result<u64> {
        array(&self.bytes, at).map(u64::from_le_bytes)
    }
}

/// How many entries a block of a directory has: the first name stands right behind them.
fn count(block: &[u8]) -> io::Result<usize> {
    let names = usize::from(u16::from_le_bytes(array(block, 8)?));
    if names < ENTRY_LEN || names > block.len() { Err(damaged()) } else { Ok(names / ENTRY_LEN) }
}

fn entry(block: &[u8], number: usize) -> io::Result<Entry<'_>> {
    let (count, at) = (count(block)?, number * ENTRY_LEN);
    let name_at =
        |number: usize| array(block, number * ENTRY_LEN + 8).map(u16::from_le_bytes).map(usize::from);
    let end = if number + 1 < count { name_at(number + 1)? } else { block.len() };
    let name = block.get(name_at(number)?..end).ok_or_else(damaged)?;
    // In a block that is not the last one, zeros follow the last name.
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(Entry { name, nid: u64::from_le_bytes(array(block, at)?) })
}

fn array<const LEN: usize>(bytes: &[u8], at: usize) -> io::Result<[u8; LEN]> {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    bytes.copied().ok_or_else(damaged)
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the index is damaged")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::lazy::open_layer;

    fn index(names: &[(String, usize)]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, len) in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(*len as u64);
            header.set_mode(0o640);
            tar.append_data(&mut header, name, vec![1; *len].as_slice()).unwrap();
        }
        open_layer(&tar.into_inner().unwrap()).unwrap().1.index.to_vec()
    }

    #[test]
    fn every_name_is_listed_once_and_found() {
        let name = |number: usize| format!("d/{number:04}{}", "n".repeat(number * 7 % 200));
        let names: Vec<_> = (0..2000).map(|number| (name(number), number)).collect();
        let index = Index::new(index(&names)).unwrap();
        let root = index.inode(index.root().unwrap()).unwrap();
        let directory = index.inode(index.lookup(&root, b"d").unwrap().unwrap()).unwrap();
        let listed: Vec<_> = index.entries(&directory, 0).unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), 2002);
        assert!(listed.is_sorted_by_key(|entry| entry.name));
        for (name, len) in &names {
            let nid = index.lookup(&directory, &name.as_bytes()[2..]).unwrap().unwrap();
            let inode = index.inode(nid).unwrap();
            assert_eq!((inode.size, inode.mode, inode.links), (*len as u64, 0o100_640, 1));
        }
        for skip in [1, 17, 500, 2001, 2002, 9999] {
            let rest: Vec<_> = index.entries(&directory, skip).unwrap().map(Result::unwrap).collect();
            assert_eq!(rest, listed[skip.min(2002)..]);
        }
        for missing in ["", "0", "0000x", "zzz"] {
            assert_eq!(index.lookup(&directory, missing.as_bytes()).unwrap(), None, "{missing}");
        }
    }

    proptest! {
        #[test]
        fn a_damaged_index_is_an_error_and_never_a_panic(at in 1024usize..4000, byte: u8, cut in 1024usize..6000) {
            let mut bytes = index(&[("a/b".into(), 5), ("a/long".repeat(30), 0)]);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes.truncate(cut);
            let Ok(index) = Index::new(bytes) else { return Ok(()) };
            let mut pending: Vec<Nid> = index.root().into_iter().collect();
            for _ in 0..50 {
                let Some(inode) = pending.pop().and_then(|nid| index.inode(nid).ok()) else { continue };
                index.xattrs(&inode).ok();
                index.target(&inode).ok();
                index.places(&inode, 1, 1 << 20).ok();
                index.lookup(&inode, b"b").ok();
                if let Ok(entries) = index.entries(&inode, 1) {
                    pending.extend(entries.flatten().map(|entry| entry.nid));
                }
            }
        }
    }
}
