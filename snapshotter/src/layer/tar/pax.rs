//! The records of a pax header (IEEE Std 1003.1-2017, `pax`, "pax Extended Header").

use super::{super::entry::Xattrs, number, sparse};

/// What a pax header says of the entry after it; an empty value leaves the entry's header in force.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: Option<(i64, u32)>,
    /// From `SCHILY.xattr.` records, as star, GNU tar and Go write them.
    pub(super) xattrs: Xattrs,
    /// Which parts of the file have data, if it has holes.
    pub(super) sparse: sparse::Records,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

impl Pax {
    /// Reads all records; of two for the same key the later holds.
    pub(super) fn parse(mut data: &[u8]) -> Result<Self, &'static str> {
        let mut pax = Self::default();
        while !data.is_empty() {
            let record = Record::split_off(&mut data).ok_or("a pax header has a malformed record")?;
            pax.set(&record).ok_or("a pax header has a record with a malformed value")?;
        }
        Ok(pax)
    }

    fn set(&mut self, record: &Record<'_>) -> Option<()> {
        match record.key {
            b"path" => self.path = record.text()?,
            b"linkpath" => self.link = record.text()?,
            b"size" => self.size = record.parsed(number::decimal)?,
            b"uid" => self.uid = record.parsed(number::decimal)?,
            b"gid" => self.gid = record.parsed(number::decimal)?,
            b"mtime" => self.mtime = record.parsed(number::time)?,
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    self.xattrs.insert(name.to_vec(), record.value.to_vec());
                }
                if let Some(key) = key.strip_prefix(SPARSE) {
                    self.sparse.set(key, record.value)?;
                }
            }
        }
        Some(())
    }
}

/// `length key=value\n`, the length in bytes being that of the whole record.
struct Record<'a> {
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Record<'a> {
    fn split_off(data: &mut &'a [u8]) -> Option<Self> {
        let digits = data.split(|byte| *byte == b' ').next()?;
        let len = usize::try_from(number::decimal(digits)?).ok()?;
        let (record, rest) = data.split_at_checked(len)?;
        let content = record.get(digits.len() + 1..)?.strip_suffix(b"\n")?;
        let equals = content.iter().position(|byte| *byte == b'=')?;
        let (key, value) = content.split_at_checked(equals)?;
        if key.is_empty() || key.contains(&0) {
            return None;
        }
        *data = rest;
        Some(Self { key, value: value.get(1..)? })
    }

    /// `Some(None)` if the value is empty, `None` if it is not text.
    fn text(&self) -> Option<Option<Vec<u8>>> {
        self.parsed(|value| (!value.contains(&0)).then(|| value.to_vec()))
    }

    /// `Some(None)` if the value is empty, `None` if it is malformed.
    fn parsed<T>(&self, parse: impl Fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
        if self.value.is_empty() { Some(None) } else { parse(self.value).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records() {
        let pax = Pax::parse(
            b"12 path=a/b\n19 mtime=12.000001\n29 SCHILY.xattr.user.a=b=c\n\n\n8 uid=7\n8 uid=8\n7 gid=\n",
        );
        let pax = pax.unwrap();
        assert_eq!(pax.path.unwrap(), b"a/b");
        assert_eq!(pax.mtime, Some((12, 1000)));
        assert_eq!(pax.xattrs, Xattrs::from([(b"user.a".to_vec(), b"b=c\n\n".to_vec())]));
        assert_eq!((pax.uid, pax.gid, pax.size), (Some(8), None, None));
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            "12 path=a/b",
            "11 path=a/b\n",
            "13 path=a/b\n",
            "x path=a\n",
            "-1 a=b\n",
            "6 =bc\n",
            "9 uid=1a\n",
            "9 path=\0\n",
            "99999999999999999999 a=b\n",
            "0 ",
            " ",
            "3 \n",
        ] {
            assert!(Pax::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
