//! Makes one entry of a header and the extension headers before it.

use super::{
    Extensions,
    header::Header,
    sparse::{Map, Version},
};
use crate::layer::{
    entry::{Attributes, Device, Entry, EntryKind, Extent, Mtime},
    refusal::Refusal,
};

/// Major device numbers have 12 bits on Linux, minor ones 20.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// Where an entry's data are in the raw tar.
#[derive(Debug)]
pub(super) struct Data {
    /// Where they begin, in bytes.
    pub(super) offset: u64,
    /// What stood before them, if that was the map of a sparse file; with its length in bytes.
    pub(super) map: Option<(Map, u64)>,
}

/// Whether the entry's data begin with the map of a sparse file.
pub(super) fn has_map(header: &Header, extensions: &Extensions) -> bool {
    matches!(header.flag, 0 | b'0') && extensions.pax.sparse.version() == Some(Version::InData)
}

/// The path of an entry as the tar gives it.
pub(super) fn path(header: &Header, extensions: &Extensions) -> Vec<u8> {
    let Extensions { pax, long_name, .. } = extensions;
    let sparse = pax.sparse.name.as_ref().filter(|_| pax.sparse.version().is_some());
    let long_name = long_name.as_ref().filter(|text| !text.is_empty());
    sparse.or(long_name).or(pax.path.as_ref()).unwrap_or(&header.name).clone()
}

/// The length of an entry's data as it claims it, in bytes.
pub(super) fn claimed_len(header: &Header, extensions: &Extensions) -> Result<u64, &'static str> {
    u64::try_from(extensions.pax.size.unwrap_or(header.size)).map_err(|_| "has a negative size")
}

/// The entry with these data, and how many bytes of them it has.
pub(super) fn read(header: Header, extensions: Extensions, data: Data) -> Result<(Entry, u64), Refusal> {
    let path = path(&header, &extensions);
    let claimed_len = claimed_len(&header, &extensions);
    let Extensions { pax, long_link, .. } = extensions;
    let said = |text: &Vec<u8>| !text.is_empty();
    let link = long_link.filter(said).or(pax.link).unwrap_or(header.link);
    let refuse = |why: &'static str| Refusal::entry(&path, why);
    let owner = |id: i64| u32::try_from(id).map_err(|_| refuse("has an owner that is no 32-bit number"));
    let (seconds, nanos) = pax.mtime.unwrap_or((header.mtime, 0));
    let attributes = Attributes {
        mode: (header.mode & 0o7777) as u16,
        uid: owner(pax.uid.unwrap_or(header.uid))?,
        gid: owner(pax.gid.unwrap_or(header.gid))?,
        mtime: Mtime::bounded(seconds, nanos),
        xattrs: pax.xattrs,
    };
    let mut data_len = 0;
    let file = || -> Result<EntryKind, &'static str> {
        let len = claimed_len?;
        data_len = len;
        let Some(version) = pax.sparse.version() else {
            return Ok(EntryKind::File(Extent { offset: data.offset, len }));
        };
        let (map, map_len) = match version {
            Version::InHeader => (pax.sparse.map().ok_or("is a sparse file with a malformed map")?, 0),
            Version::InData => data.map.ok_or("is a sparse file without a map")?,
        };
        data_len = len.checked_sub(map_len).ok_or("is a sparse file whose map is longer than its data")?;
        let whole = pax.sparse.size().map_or(Ok(len), u64::try_from).map_err(|_| "has a negative size")?;
        Ok(EntryKind::Sparse(map.place(data.offset, data_len, whole)?))
    };
    let device = || {
        let number = |number: i64, max: u32| u32::try_from(number).ok().filter(|number| *number <= max);
        number(header.device_major, MAX_MAJOR)
            .zip(number(header.device_minor, MAX_MINOR))
            .map(|(major, minor)| Device { major, minor })
            .ok_or_else(|| refuse("has a device number that Linux does not have"))
    };
    let kind = match header.flag {
        // Tars older than POSIX knew a directory by the slash alone.
        0 if path.ends_with(b"/") => EntryKind::Directory,
        0 | b'0' => file().map_err(refuse)?,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err(refuse("is a sparse file in a format that containerd does not unpack")),
        _ => return Err(refuse("is of a kind that layers do not have")),
    };
    if pax.sparse.version().is_some() && !matches!(kind, EntryKind::Sparse(_)) {
        return Err(refuse("is said to be a sparse file, but is no file"));
    }
    Ok((Entry { path, kind, attributes }, data_len))
}
