//! Makes one entry of a header and the extension headers before it.

use super::{Extensions, header::Header};
use crate::layer::{
    entry::{Attributes, Device, Entry, EntryKind, Extent, Mtime},
    refusal::Refusal,
};

/// Major device numbers have 12 bits on Linux, minor ones 20.
const MAX_MAJOR: u32 = 0xfff;
const MAX_MINOR: u32 = 0xf_ffff;

/// The entry whose data begin at `data` in the raw tar, and how many bytes of data it has there.
pub(super) fn read(header: Header, extensions: Extensions, data: u64) -> Result<(Entry, u64), Refusal> {
    let Extensions { pax, long_name, long_link } = extensions;
    let said = |text: &Vec<u8>| !text.is_empty();
    let path = long_name.filter(said).or(pax.path).unwrap_or(header.name);
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
    let file = || {
        let size = pax.size.unwrap_or(header.size);
        let len = u64::try_from(size).map_err(|_| refuse("has a negative size"))?;
        if pax.sparse {
            return Err(refuse("is a sparse file: its data do not lie in one run"));
        }
        Ok(EntryKind::File(Extent { offset: data, len }))
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
        0 | b'0' => file()?,
        b'1' => EntryKind::HardLink(link),
        b'2' => EntryKind::Symlink(link),
        b'3' => EntryKind::CharDevice(device()?),
        b'4' => EntryKind::BlockDevice(device()?),
        b'5' => EntryKind::Directory,
        b'6' => EntryKind::Fifo,
        b'S' => return Err(refuse("is a sparse file: its data do not lie in one run")),
        _ => return Err(refuse("is of a kind that layers do not have")),
    };
    let len = if let EntryKind::File(extent) = &kind { extent.len } else { 0 };
    Ok((Entry { path, kind, attributes }, len))
}
