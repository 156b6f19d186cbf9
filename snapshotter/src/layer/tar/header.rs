//! The 512 bytes before each entry.

use super::number;

/// A header's fields; those that its dialect does not have are empty or 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Header {
    pub(super) name: Vec<u8>,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    /// Length of the data in bytes.
    pub(super) size: i64,
    /// In seconds since 1970.
    pub(super) mtime: i64,
    /// What kind of entry it is.
    pub(super) flag: u8,
    pub(super) link: Vec<u8>,
    pub(super) device_major: i64,
    pub(super) device_minor: i64,
}

/// Which tar wrote the header; they differ in what stands in its last 167 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// Before POSIX.1-1988.
    V7,
    /// POSIX ustar, and pax, which is built on it.
    Ustar,
    Star,
    Gnu,
}

/// Where the fields lie: start and length in bytes.
type Field = (usize, usize);
const NAME: Field = (0, 100);
const MODE: Field = (100, 8);
const UID: Field = (108, 8);
const GID: Field = (116, 8);
const SIZE: Field = (124, 12);
const MTIME: Field = (136, 12);
const CHECKSUM: Field = (148, 8);
const FLAG: Field = (156, 1);
const LINK: Field = (157, 100);
const MAGIC_AND_VERSION: Field = (257, 8);
const DEVICE_MAJOR: Field = (329, 8);
const DEVICE_MINOR: Field = (337, 8);
const USTAR_PREFIX: Field = (345, 155);
const STAR_PREFIX: Field = (345, 131);
const STAR_TRAILER: Field = (508, 4);
const GNU_ATIME: Field = (345, 12);
const GNU_CTIME: Field = (357, 12);

impl Header {
    /// Checks the checksum and reads the fields.
    pub(super) fn parse(block: &[u8]) -> Result<Self, &'static str> {
        if !checksum_fits(block) {
            return Err("a header has a wrong checksum");
        }
        Self::fields(block).ok_or("a header has a field that is no number")
    }

    fn fields(block: &[u8]) -> Option<Self> {
        let number = |place: Field| number::field(field(block, place));
        let mut header = Self {
            name: text(field(block, NAME)).to_vec(),
            mode: number(MODE)?,
            uid: number(UID)?,
            gid: number(GID)?,
            size: number(SIZE)?,
            mtime: number(MTIME)?,
            flag: field(block, FLAG).first().copied()?,
            link: text(field(block, LINK)).to_vec(),
            ..Self::default()
        };
        let dialect = Dialect::of(block);
        if dialect != Dialect::V7 {
            header.device_major = number(DEVICE_MAJOR)?;
            header.device_minor = number(DEVICE_MINOR)?;
        }
        let prefix = text(dialect.prefix(block));
        if !prefix.is_empty() {
            header.name = [prefix, header.name.as_slice()].join(&b'/');
        }
        Some(header)
    }
}

impl Dialect {
    fn of(block: &[u8]) -> Self {
        match field(block, MAGIC_AND_VERSION) {
            b"ustar  \0" => Self::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if field(block, STAR_TRAILER) == b"tar\0" => Self::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Self::Ustar,
            _ => Self::V7,
        }
    }

    /// What stands before the name and a slash.
    fn prefix(self, block: &[u8]) -> &[u8] {
        match self {
            Self::V7 => &[],
            Self::Ustar => field(block, USTAR_PREFIX),
            Self::Star => field(block, STAR_PREFIX),
            Self::Gnu => gnu_prefix(block),
        }
    }
}

/// GNU tar has two times where ustar has the prefix. Go before 1.8, and so old versions of docker, wrote a prefix
/// there all the same; Go still reads it if the bytes are no times but text.
fn gnu_prefix(block: &[u8]) -> &[u8] {
    let is_time = |place: Field| {
        let time = field(block, place);
        time.first() == Some(&0) || number::field(time).is_some()
    };
    let prefix = field(block, USTAR_PREFIX);
    if (is_time(GNU_ATIME) && is_time(GNU_CTIME)) || !text(prefix).is_ascii() { &[] } else { prefix }
}

/// The sum of all bytes with the checksum taken as spaces; some tars took the bytes as signed.
fn checksum_fits(block: &[u8]) -> bool {
    let (start, len) = CHECKSUM;
    let in_sum = |(at, byte): (usize, &u8)| if (start..start + len).contains(&at) { b' ' } else { *byte };
    let unsigned: i64 = block.iter().enumerate().map(in_sum).map(i64::from).sum();
    let signed: i64 = block.iter().enumerate().map(in_sum).map(|byte| i64::from(byte.cast_signed())).sum();
    number::octal(field(block, CHECKSUM)).is_some_and(|sum| sum == unsigned || sum == signed)
}

fn field(block: &[u8], (start, len): Field) -> &[u8] {
    block.get(start..start + len).unwrap_or_default()
}

/// What stands before the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}
