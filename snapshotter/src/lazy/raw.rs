//! A layer's raw tar on disk: a sparse file that is filled leaf by leaf, and a note of which leaves are in it.
//!
//! The note, `raw.bits`, is written only after the leaves that it names are on disk, so after a crash it may name too
//! few, never too many. It is `DRTRAW01`, the leaf table's root (32 bytes), a byte that is 1 once the whole layer was
//! found right, the number of runs of leaves, each run's start and end (u32, little-endian all), and the BLAKE3 of all
//! that. Anything else counts as no note.

use std::{
    fs::{self, File},
    io::{self, Write},
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use darter_peer::{LeafSet, LeafTable};
use parking_lot::Mutex;

const MAGIC: &[u8; 8] = b"DRTRAW01";
/// How much of the complete file is read at once, in bytes.
const PART_LEN: usize = 1024 * 1024;
/// The kernel reads whole blocks of the index's block size.
const BLOCK_LEN: u64 = 512;

/// The raw tar of one layer. Methods block.
#[derive(Debug)]
pub(super) struct Raw {
    file: File,
    bits: PathBuf,
    table: Arc<LeafTable>,
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    held: LeafSet,
    /// The whole file was read, and the layer is right.
    verified: bool,
    /// `raw.bits` does not say all this yet.
    unsaved: bool,
}

impl Raw {
    /// Opens the file in `dir`, or makes an empty one.
    pub(super) fn open(dir: &Path, table: Arc<LeafTable>) -> io::Result<Self> {
        let file =
            File::options().read(true).write(true).create(true).truncate(false).open(dir.join("raw"))?;
        let bits = dir.join("raw.bits");
        let len = file_len(&table);
        let mut state = State { held: LeafSet::new(table.leaves()), verified: false, unsaved: false };
        if file.metadata()?.len() == len {
            let note = fs::read(&bits).ok();
            state = note.and_then(|note| decode(&note, &table)).unwrap_or(state);
        } else {
            // A note beside a new file is not about it.
            fs::remove_file(&bits).or_else(ignore_missing)?;
            file.set_len(0)?;
            file.set_len(len)?;
        }
        Ok(Self { file, bits, table, state: Mutex::new(state) })
    }

    /// Length of the file in bytes: whole blocks, zeros after the tar.
    pub(super) fn len(&self) -> u64 {
        file_len(&self.table)
    }

    pub(super) fn has(&self, leaf: u32) -> bool {
        self.state.lock().held.contains(leaf)
    }

    /// Those of `leaves` that are not in the file.
    pub(super) fn missing(&self, leaves: Range<u32>) -> Vec<u32> {
        let state = self.state.lock();
        leaves.filter(|leaf| !state.held.contains(*leaf)).collect()
    }

    pub(super) fn is_complete(&self) -> bool {
        self.state.lock().held.is_full()
    }

    pub(super) fn is_verified(&self) -> bool {
        self.state.lock().verified
    }

    /// Bytes of the tar that are in the file.
    pub(super) fn held_bytes(&self) -> u64 {
        let ranges = self.state.lock().held.ranges();
        let len = |leaf| self.table.raw_range(leaf).map_or(0, |range| range.end - range.start);
        ranges.into_iter().flatten().map(len).sum()
    }

    /// How many of `len` bytes from `offset` on are before the end of the file.
    pub(super) fn len_at(&self, offset: u64, len: usize) -> usize {
        let left = usize::try_from(self.len().saturating_sub(offset)).unwrap_or(usize::MAX);
        len.min(left)
    }

    /// Bytes from the file, as they are; `len` stops at its end.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; self.len_at(offset, len)];
        self.file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer)
    }

    /// Puts a leaf's raw bytes into the file.
    pub(super) fn write(&self, leaf: u32, raw: &[u8]) -> io::Result<()> {
        let range = self.table.raw_range(leaf).ok_or(io::ErrorKind::InvalidInput)?;
        if range.end - range.start != raw.len() as u64 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(raw, range.start)?;
        let mut state = self.state.lock();
        state.unsaved |= state.held.insert(leaf);
        Ok(())
    }

    /// Makes what is held durable.
    pub(super) fn save(&self) -> io::Result<()> {
        let state = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.unsaved) {
                return Ok(());
            }
            state.clone()
        };
        self.save_state(&state).inspect_err(|_| self.state.lock().unsaved = true)
    }

    fn save_state(&self, state: &State) -> io::Result<()> {
        self.file.sync_data()?;
        let new = self.bits.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(&encode(state, &self.table))?;
        file.sync_data()?;
        fs::rename(&new, &self.bits)
    }

    /// Hands on the complete tar, in order and in parts.
    pub(super) fn read_all(&self, part: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut offset = 0;
        while offset < self.table.raw_len() {
            let left = usize::try_from(self.table.raw_len() - offset).unwrap_or(usize::MAX);
            let bytes = self.read(offset, PART_LEN.min(left))?;
            part(&bytes);
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// Notes that the whole file was read and is right.
    pub(super) fn set_verified(&self) {
        let mut state = self.state.lock();
        (state.verified, state.unsaved) = (true, true);
    }
}

fn file_len(table: &LeafTable) -> u64 {
    table.raw_len().next_multiple_of(BLOCK_LEN)
}

fn encode(state: &State, table: &LeafTable) -> Vec<u8> {
    let ranges = state.held.ranges();
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(table.root().bytes());
    out.push(u8::from(state.verified));
    out.extend_from_slice(&u32::try_from(ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
    for range in ranges {
        out.extend_from_slice(&range.start.to_le_bytes());
        out.extend_from_slice(&range.end.to_le_bytes());
    }
    let check = blake3::hash(&out);
    out.extend_from_slice(check.as_bytes());
    out
}

fn decode(note: &[u8], table: &LeafTable) -> Option<State> {
    let (content, check) = note.split_last_chunk::<32>()?;
    if blake3::hash(content).as_bytes() != check {
        return None;
    }
    let rest = content.strip_prefix(MAGIC)?.strip_prefix(table.root().bytes())?;
    let (verified, rest) = rest.split_first()?;
    let (count, rest) = rest.split_first_chunk::<4>()?;
    let (ranges, tail) = rest.as_chunks::<8>();
    if ranges.len() != u32::from_le_bytes(*count) as usize || !tail.is_empty() {
        return None;
    }
    let mut held = LeafSet::new(table.leaves());
    for range in ranges {
        let (start, end) = range.split_first_chunk::<4>()?;
        held.insert_range(u32::from_le_bytes(*start)..u32::from_le_bytes(*end.first_chunk()?));
    }
    Some(State { held, verified: *verified == 1, unsaved: false })
}

fn ignore_missing(err: io::Error) -> io::Result<()> {
    if err.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(err) }
}

#[cfg(test)]
mod tests {
    use darter_peer::{digest::leaf_digest, layer::LeafEntry};

    use super::*;

    fn table(lens: &[u32]) -> Arc<LeafTable> {
        let entry = |len: &u32| LeafEntry {
            raw_len: *len,
            stored_len: *len,
            digest: leaf_digest(&len.to_le_bytes()),
        };
        Arc::new(LeafTable::new(lens.iter().map(entry).collect()).unwrap())
    }

    #[test]
    fn remembers_after_a_restart_exactly_what_was_saved() {
        let dir = tempfile::tempdir().unwrap();
        let table = table(&[1000, 3000, 500]);
        let raw = Raw::open(dir.path(), table.clone()).unwrap();
        assert_eq!(raw.len(), 4608);
        raw.write(1, &[7; 3000]).unwrap();
        raw.save().unwrap();
        raw.write(0, &[8; 1000]).unwrap();
        assert_eq!(raw.held_bytes(), 4000);
        drop(raw);
        let raw = Raw::open(dir.path(), table).unwrap();
        assert_eq!(raw.missing(0..3), [0, 2]);
        assert_eq!(raw.read(1000, 3000).unwrap(), [7; 3000]);
        assert_eq!(raw.read(4500, 4096).unwrap(), [0; 108]);
    }

    #[test]
    fn a_damaged_note_or_another_table_or_a_truncated_file_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fill = |lens: &[u32]| {
            let raw = Raw::open(dir.path(), table(lens)).unwrap();
            raw.write(0, &vec![1; lens[0] as usize]).unwrap();
            raw.save().unwrap();
        };
        let held = |lens: &[u32]| Raw::open(dir.path(), table(lens)).unwrap().held_bytes();
        fill(&[600, 400]);
        assert_eq!(held(&[600, 400]), 600);
        assert_eq!(held(&[400, 600]), 0);
        let mut note = fs::read(dir.path().join("raw.bits")).unwrap();
        note[50] ^= 1;
        fs::write(dir.path().join("raw.bits"), note).unwrap();
        assert_eq!(held(&[600, 400]), 0);
        fill(&[600, 400]);
        File::options().write(true).open(dir.path().join("raw")).unwrap().set_len(512).unwrap();
        assert_eq!(held(&[600, 400]), 0);
    }

    #[test]
    fn hands_on_the_tar_without_the_padding() {
        let dir = tempfile::tempdir().unwrap();
        let raw = Raw::open(dir.path(), table(&[3, 4])).unwrap();
        raw.write(0, b"abc").unwrap();
        raw.write(1, b"defg").unwrap();
        let mut all = Vec::new();
        raw.read_all(&mut |part| all.extend_from_slice(part)).unwrap();
        assert_eq!(all, b"abcdefg");
        assert!(raw.is_complete());
        assert!(raw.write(0, b"ab").is_err());
    }
}
