//! Sparse files as pax headers describe them (GNU tar manual, "Storing Sparse Files"): versions 0.0 and 0.1, with the
//! map in the header, and 1.0, with the map before the data.
//!
//! As in Go, records of another version mean nothing. GNU tar's older format has a kind of entry of its own, which
//! containerd does not unpack.

use super::{super::entry::Sparse, BLOCK_LEN, number};

/// A map in front of the data may not be longer, in bytes; Go's limit.
const MAX_MAP_LEN: usize = 1024 * 1024;
/// A file that needs more chunks is refused; 8 bytes each in the index.
const MAX_CHUNKS: u64 = 1024 * 1024;
/// A chunk has at most this power of two blocks, which is 1 TiB.
const MAX_CHUNK_BITS: u32 = 31;

/// The records of one pax header that begin with `GNU.sparse.`.
#[derive(Debug, Default)]
pub(super) struct Records {
    major: Vec<u8>,
    minor: Vec<u8>,
    pub(super) name: Option<Vec<u8>>,
    /// Length of the file with its holes, in bytes.
    size: Option<i64>,
    real_size: Option<i64>,
    parts: Option<i64>,
    /// The map of version 0.1.
    map: Vec<u8>,
    /// The map of version 0.0: offsets and lengths in turns, each in a record of its own.
    listed: Vec<i64>,
}

/// How a sparse file is described.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    /// By a map in the pax header.
    InHeader,
    /// By a map in front of the data.
    InData,
}

/// Which parts of a file have data, in order; the rest is holes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    at: u64,
    len: u64,
}

impl Records {
    /// Takes a record whose key goes on like this after `GNU.sparse.`; `None` if its value is malformed.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let number =
            |value: &[u8]| if value.is_empty() { Some(None) } else { number::decimal(value).map(Some) };
        match key {
            b"major" => self.major = value.to_vec(),
            b"minor" => self.minor = value.to_vec(),
            b"name" => self.name = (!value.is_empty()).then(|| value.to_vec()),
            b"size" => self.size = number(value)?,
            b"realsize" => self.real_size = number(value)?,
            b"numblocks" => self.parts = number(value)?,
            b"map" => self.map = value.to_vec(),
            b"offset" | b"numbytes" => {
                if (key == b"offset") != self.listed.len().is_multiple_of(2) {
                    return None;
                }
                self.listed.push(number::decimal(value)?);
            }
            _ => {}
        }
        Some(())
    }

    /// `None` if the file is not sparse.
    pub(super) fn version(&self) -> Option<Version> {
        match (self.major.as_slice(), self.minor.as_slice()) {
            (b"0", b"0" | b"1") => Some(Version::InHeader),
            (b"1", b"0") => Some(Version::InData),
            (b"", b"") if !self.map.is_empty() || !self.listed.is_empty() => Some(Version::InHeader),
            _ => None,
        }
    }

    /// Length of the file with its holes, if it differs from that of its data.
    pub(super) fn size(&self) -> Option<i64> {
        self.size.or(self.real_size)
    }

    /// The map that is in the header.
    pub(super) fn map(&self) -> Option<Map> {
        let numbers = if self.listed.is_empty() {
            let numbers = self.map.split(|byte| *byte == b',').filter(|_| !self.map.is_empty());
            numbers.map(number::decimal).collect::<Option<Vec<_>>>()?
        } else {
            self.listed.clone()
        };
        let parts = usize::try_from(self.parts?).ok()?;
        Map::of(&numbers).filter(|map| map.0.len() == parts)
    }
}

impl Map {
    /// Of offsets and lengths in turns.
    fn of(numbers: &[i64]) -> Option<Self> {
        let (pairs, rest) = numbers.as_chunks::<2>();
        let parts = pairs
            .iter()
            .map(|[at, len]| Some(Part { at: u64::try_from(*at).ok()?, len: u64::try_from(*len).ok()? }));
        rest.is_empty().then_some(())?;
        parts.collect::<Option<Vec<_>>>().map(Self)
    }

    /// Reads the map in front of the data, of which these whole blocks are there; `None` if more are needed.
    pub(super) fn parse(blocks: &[u8]) -> Result<Option<Self>, &'static str> {
        let malformed = "is a sparse file with a malformed map";
        if blocks.len() > MAX_MAP_LEN {
            return Err("is a sparse file with a map of more than 1 MiB");
        }
        let mut lines = blocks.split(|byte| *byte == b'\n');
        // What stands after the last line end is no line yet.
        let complete = blocks.iter().filter(|byte| **byte == b'\n').count();
        if complete == 0 {
            return Ok(None);
        }
        let count = lines.next().and_then(number::decimal).and_then(|count| usize::try_from(count).ok());
        let needed = count.and_then(|count| count.checked_mul(2)).ok_or(malformed)?;
        if complete - 1 < needed {
            return Ok(None);
        }
        let numbers = lines.take(needed).map(number::decimal).collect::<Option<Vec<_>>>().ok_or(malformed)?;
        Self::of(&numbers).map(Some).ok_or(malformed)
    }

    /// Where a file with this map has its bytes, if its `data_len` bytes of data begin at `data` in the raw tar and it
    /// has `len` bytes with its holes.
    pub(super) fn place(&self, data: u64, data_len: u64, len: u64) -> Result<Sparse, &'static str> {
        let mut end = 0;
        let mut sum = 0;
        for part in &self.0 {
            let part_end = part.at.checked_add(part.len).filter(|end| *end <= len);
            end = part_end.filter(|_| part.at >= end).ok_or("is a sparse file with an impossible map")?;
            sum += part.len;
        }
        if sum != data_len {
            return Err("is a sparse file with more or less data than its map says");
        }
        let parts: Vec<Part> = self.0.iter().copied().filter(|part| part.len > 0).collect();
        let chunk_bits = chunk_bits(&parts, len)?;
        let chunk_len = (BLOCK_LEN as u64) << chunk_bits;
        let count = len.div_ceil(chunk_len);
        if count > MAX_CHUNKS {
            return Err("is a sparse file of too many pieces");
        }
        let mut chunks = vec![None; count as usize];
        let mut place = data;
        for part in &parts {
            for number in part.at / chunk_len..(part.at + part.len).div_ceil(chunk_len) {
                let block = (place + number * chunk_len - part.at) / BLOCK_LEN as u64;
                let block = u32::try_from(block).ok().filter(|block| *block < u32::MAX);
                let block = block.ok_or("lies more than 2 TiB behind the start of the layer")?;
                if let Some(chunk) = chunks.get_mut(number as usize) {
                    *chunk = Some(block);
                }
            }
            place += part.len;
        }
        Ok(Sparse { len, chunk_bits, chunks })
    }
}

/// The largest chunks that are either in one part or in none, as a power of two of blocks.
fn chunk_bits(parts: &[Part], len: u64) -> Result<u32, &'static str> {
    let boundaries = parts.iter().flat_map(|part| [part.at, part.at + part.len]);
    // The last chunk may be longer than the file.
    let bits = boundaries.filter(|boundary| *boundary != len).fold(0, |bits, boundary| bits | boundary);
    if bits % BLOCK_LEN as u64 != 0 {
        return Err("is a sparse file whose data do not lie in whole blocks");
    }
    let whole = len.div_ceil(BLOCK_LEN as u64).next_power_of_two().trailing_zeros().min(MAX_CHUNK_BITS);
    Ok((bits / BLOCK_LEN as u64).trailing_zeros().min(whole))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn map(parts: &[(u64, u64)]) -> Map {
        Map(parts.iter().map(|(at, len)| Part { at: *at, len: *len }).collect())
    }

    #[test]
    fn maps_in_headers() {
        let mut records = Records::default();
        for (key, value) in [("size", "4096"), ("numblocks", "2"), ("map", "512,512,2048,5")] {
            records.set(key.as_bytes(), value.as_bytes()).unwrap();
        }
        assert_eq!((records.version(), records.size()), (Some(Version::InHeader), Some(4096)));
        assert_eq!(records.map(), Some(map(&[(512, 512), (2048, 5)])));
        records.set(b"numblocks", b"1").unwrap();
        assert_eq!(records.map(), None);

        let mut records = Records::default();
        for (key, value) in [("numblocks", "1"), ("offset", "512"), ("numbytes", "3")] {
            records.set(key.as_bytes(), value.as_bytes()).unwrap();
        }
        assert_eq!(records.map(), Some(map(&[(512, 3)])));
        assert_eq!(records.set(b"numbytes", b"3"), None);
        records.set(b"major", b"7").unwrap();
        assert_eq!(records.version(), None);
    }

    #[test]
    fn maps_in_front_of_the_data() {
        assert_eq!(Map::parse(b"2\n0\n512\n1024\n7\n\0\0").unwrap(), Some(map(&[(0, 512), (1024, 7)])));
        assert_eq!(Map::parse(b"0\n\0").unwrap(), Some(map(&[])));
        for more in [&b""[..], b"1", b"2\n0\n512\n1024\n", b"1\n0\n51"] {
            assert_eq!(Map::parse(more).unwrap(), None);
        }
        for bad in [&b"x\n"[..], b"-1\n", b"1\n0\n-5\n", b"99999999999999999999\n", b"1\n\n1\n"] {
            assert!(Map::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn chunks_are_as_large_as_the_holes_allow() {
        let placed = map(&[(4096, 8192), (20480, 100)]).place(1024, 8292, 20580).unwrap();
        let expected = [None, Some(2), Some(10), None, None, Some(18)];
        assert_eq!((placed.chunk_bits, placed.chunks.as_slice()), (3, &expected[..]));
        let hole = map(&[]).place(512, 0, 1 << 40).unwrap();
        assert_eq!((hole.chunk_bits, hole.chunks.as_slice()), (31, &[None][..]));
        assert_eq!(map(&[]).place(512, 0, 0).unwrap().chunks, []);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (parts, data_len, len) in [
            (&[(0, 100), (50, 100)][..], 200, 1000),
            (&[(0, 1001)], 1001, 1000),
            (&[(u64::MAX, 1)], 1, 1000),
            (&[(0, 100)], 99, 1000),
            (&[(0, 100)], 100, 1000),
            (&[(100, 900)], 900, 1000),
            (&[(512, 512)], 512, 1 << 40),
        ] {
            assert!(map(parts).place(512, data_len, len).is_err(), "{parts:?}");
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_where_the_map_says(
            lens in vec((0u64..6, 0u64..6), 1..8), tail in 0u64..2, unit in prop_oneof![Just(512u64), Just(4096)],
        ) {
            let (mut parts, mut at, mut data_len) = (Vec::new(), 0, 0);
            for (hole, len) in lens {
                at += hole * unit;
                parts.push((at, len * unit));
                at += len * unit;
                data_len += len * unit;
            }
            let len = at + tail * unit;
            let placed = map(&parts).place(5120, data_len, len).unwrap();
            let chunk_len = 512u64 << placed.chunk_bits;
            let mut expected = vec![None; (len / 512) as usize];
            let mut block = 10u32;
            for (at, len) in parts {
                for number in at / 512..(at + len) / 512 {
                    expected[number as usize] = Some(block);
                    block += 1;
                }
            }
            for (number, expected) in (0u64..).zip(expected) {
                let chunk = placed.chunks[(number * 512 / chunk_len) as usize];
                let within = (number * 512 % chunk_len / 512) as u32;
                prop_assert_eq!(chunk.map(|block| block + within), expected);
            }
        }
    }
}
