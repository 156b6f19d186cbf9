//! Follows the headers of a raw tar while its bytes stream by. File data are passed over; only where they lie is kept.
//!
//! Reads what containerd reads, which unpacks with Go's `archive/tar`: POSIX ustar and pax (IEEE Std 1003.1-2017,
//! `pax`, "pax Interchange Format"), GNU tar ("Basic Tar Format" in its manual) and star, and tars older than those.
//! As there, a global pax header changes nothing, and links and devices have no data whatever size they claim.

mod entry;
mod header;
mod number;
mod pax;
mod sparse;
#[cfg(test)]
mod tests;

use self::{entry::Data, header::Header, pax::Pax, sparse::Map};
use super::{entry::Entry, refusal::Refusal};

/// Length of a header, and what everything in a tar is padded to, in bytes.
pub(super) const BLOCK_LEN: usize = 512;

/// A pax header or a long name may not be longer, in bytes; Go's limit.
const MAX_EXTENSION_LEN: u64 = 1024 * 1024;

/// Reads one tar, fed in parts of any length.
#[derive(Debug)]
pub(super) struct Reader {
    /// How many bytes have been read.
    offset: u64,
    state: State,
    /// Of the next entry, from the headers before it.
    extensions: Extensions,
}

/// What the next bytes belong to.
#[derive(Debug)]
enum State {
    /// A header, with these bytes already there.
    Header(Vec<u8>),
    /// The block after one of zeros, with these bytes already there: another block of zeros ends the tar.
    End(Vec<u8>),
    /// The data of an extension, with these bytes already there.
    Extension { kind: ExtensionKind, data: Vec<u8>, len: usize },
    /// The map of a sparse file, with these blocks of it already there.
    SparseMap { entry: Box<(Header, Extensions)>, blocks: Vec<u8>, block: Vec<u8> },
    /// The rest of a file's data.
    Data { left: u64, padding: u64 },
    /// The rest of what fills up a block.
    Padding { left: u64 },
    /// What stands after the end of the tar; it means nothing.
    After,
}

#[derive(Debug, Clone, Copy)]
enum ExtensionKind {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

/// What extension headers say of the entry after them.
#[derive(Debug, Default)]
struct Extensions {
    pax: Pax,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { offset: 0, state: State::Header(Vec::new()), extensions: Extensions::default() }
    }
}

impl Reader {
    /// Reads the next bytes and hands each entry whose header is complete to `emit`.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        emit: &mut dyn FnMut(Entry) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        while !bytes.is_empty() {
            let before = bytes.len();
            self.step(&mut bytes, emit)?;
            self.offset += (before - bytes.len()) as u64;
        }
        Ok(())
    }

    /// Checks that the tar ends where it may; says how many bytes it had.
    ///
    /// Go also takes a tar whose last block is not filled up. The kernel cannot read the data in such a block.
    pub(super) fn finish(self) -> Result<u64, Refusal> {
        match &self.state {
            State::Header(block) | State::End(block) if block.is_empty() => Ok(self.offset),
            State::After => Ok(self.offset),
            _ => Err(self.refuse("it ends too early")),
        }
    }

    /// Takes bytes off the front of `bytes`, until they or the current state end.
    fn step(
        &mut self,
        bytes: &mut &[u8],
        emit: &mut dyn FnMut(Entry) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let next = match &mut self.state {
            State::Header(block) => {
                let Some(block) = fill(block, BLOCK_LEN, bytes) else { return Ok(()) };
                self.header(&block, emit)?
            }
            State::End(block) => {
                let Some(block) = fill(block, BLOCK_LEN, bytes) else { return Ok(()) };
                if !is_zero(&block) {
                    return Err(self.refuse("a header follows a block of zeros"));
                }
                State::After
            }
            State::Extension { kind, data, len } => {
                let Some(data) = fill(data, *len, bytes) else { return Ok(()) };
                let (kind, left) = (*kind, padding(data.len() as u64));
                self.extensions.add(kind, &data).map_err(|why| self.refuse(why))?;
                after_data(0, left)
            }
            State::SparseMap { entry, blocks, block } => {
                let Some(block) = fill(block, BLOCK_LEN, bytes) else { return Ok(()) };
                blocks.extend_from_slice(&block);
                let entry = std::mem::take(entry.as_mut());
                let blocks = std::mem::take(blocks);
                self.sparse_map(entry, blocks, emit)?
            }
            State::Data { left, padding } => after_data(skip(*left, bytes), *padding),
            State::Padding { left } => after_data(0, skip(*left, bytes)),
            State::After => {
                *bytes = &[];
                State::After
            }
        };
        self.state = next;
        Ok(())
    }

    /// Reads a whole header; says what follows it.
    fn header(
        &mut self,
        block: &[u8],
        emit: &mut dyn FnMut(Entry) -> Result<(), Refusal>,
    ) -> Result<State, Refusal> {
        if is_zero(block) {
            return Ok(State::End(Vec::new()));
        }
        let header = Header::parse(block).map_err(|why| self.refuse(why))?;
        if let Some(kind) = ExtensionKind::of(header.flag) {
            return self.extension(kind, header.size);
        }
        let extensions = std::mem::take(&mut self.extensions);
        if entry::has_map(&header, &extensions) {
            return self.sparse_map((header, extensions), Vec::new(), emit);
        }
        self.entry(header, extensions, None, emit)
    }

    /// Reads on in the map of a sparse file, of which these blocks are there; says what follows.
    fn sparse_map(
        &mut self,
        (header, extensions): (Header, Extensions),
        blocks: Vec<u8>,
        emit: &mut dyn FnMut(Entry) -> Result<(), Refusal>,
    ) -> Result<State, Refusal> {
        let refuse = |why: &'static str| Refusal::entry(&entry::path(&header, &extensions), why);
        if let Some(map) = Map::parse(&blocks).map_err(refuse)? {
            return self.entry(header, extensions, Some((map, blocks.len() as u64)), emit);
        }
        if blocks.len() as u64 >= entry::claimed_len(&header, &extensions).map_err(refuse)? {
            return Err(refuse("is a sparse file whose map is longer than its data"));
        }
        Ok(State::SparseMap { entry: Box::new((header, extensions)), blocks, block: Vec::new() })
    }

    /// Makes an entry whose headers are complete; says what follows them.
    fn entry(
        &self,
        header: Header,
        extensions: Extensions,
        map: Option<(Map, u64)>,
        emit: &mut dyn FnMut(Entry) -> Result<(), Refusal>,
    ) -> Result<State, Refusal> {
        // `self.offset` stands before the last part of what was read, and data begin with the next block.
        let data = (self.offset / BLOCK_LEN as u64 + 1) * BLOCK_LEN as u64;
        let (entry, len) = entry::read(header, extensions, Data { offset: data, map })?;
        if data.checked_add(len).is_none_or(|end| end > i64::MAX as u64) {
            return Err(Refusal::entry(&entry.path, "claims more data than any tar can hold"));
        }
        emit(entry)?;
        Ok(after_data(len, padding(len)))
    }

    fn extension(&self, kind: ExtensionKind, size: i64) -> Result<State, Refusal> {
        let len =
            u64::try_from(size).map_err(|_| self.refuse("an extension header has a negative length"))?;
        if len > MAX_EXTENSION_LEN {
            return Err(self.refuse("an extension header is longer than 1 MiB"));
        }
        Ok(State::Extension { kind, data: Vec::new(), len: len as usize })
    }

    fn refuse(&self, why: &'static str) -> Refusal {
        Refusal::Tar { offset: self.offset, why }
    }
}

impl ExtensionKind {
    fn of(flag: u8) -> Option<Self> {
        match flag {
            b'x' => Some(Self::Pax),
            b'g' => Some(Self::GlobalPax),
            b'L' => Some(Self::LongName),
            b'K' => Some(Self::LongLink),
            _ => None,
        }
    }
}

impl Extensions {
    fn add(&mut self, kind: ExtensionKind, data: &[u8]) -> Result<(), &'static str> {
        match kind {
            ExtensionKind::Pax => self.pax = Pax::parse(data)?,
            // Go takes it for an entry of its own, so that it also ends what was said before it.
            ExtensionKind::GlobalPax => {
                Pax::parse(data)?;
                *self = Self::default();
            }
            ExtensionKind::LongName => self.long_name = Some(header::text(data).to_vec()),
            ExtensionKind::LongLink => self.long_link = Some(header::text(data).to_vec()),
        }
        Ok(())
    }
}

/// What comes after `left` bytes of data and their `padding`.
fn after_data(left: u64, padding: u64) -> State {
    match (left, padding) {
        (0, 0) => State::Header(Vec::new()),
        (0, left) => State::Padding { left },
        (left, padding) => State::Data { left, padding },
    }
}

/// Moves bytes from `bytes` to `block` until that has `len` of them; then they are returned.
fn fill(block: &mut Vec<u8>, len: usize, bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let missing = len.saturating_sub(block.len());
    let (taken, rest) = bytes.split_at_checked(missing).unwrap_or((bytes, &[]));
    block.extend_from_slice(taken);
    *bytes = rest;
    (block.len() == len).then(|| std::mem::take(block))
}

/// Passes over up to `left` bytes; says how many of them are still to come.
fn skip(left: u64, bytes: &mut &[u8]) -> u64 {
    let len = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = bytes.get(len..).unwrap_or_default();
    left - len as u64
}

/// How many bytes fill up the last block of `len` bytes of data.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK_LEN as u64
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}
