//! Extended attributes, which stand behind their inode.

use super::Fields;
use crate::layer::entry::Xattrs;

/// `erofs_xattr_ibody_header`.
const HEADER_LEN: usize = 12;
/// Attributes are padded to this, in bytes.
const ALIGNMENT: usize = 4;

/// The prefix of a name is not written but numbered (`EROFS_XATTR_INDEX_…`).
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// What stands behind the inode: a header and an `erofs_xattr_entry` for each attribute; nothing if there are none.
pub(super) fn encode(xattrs: &Xattrs) -> Vec<u8> {
    if xattrs.is_empty() {
        return Vec::new();
    }
    let mut fields = Fields::default().zeros(HEADER_LEN);
    for (name, value) in xattrs {
        for (prefix, index) in PREFIXES {
            let Some(rest) = name.strip_prefix(prefix) else { continue };
            // The tree lets no longer names and values in.
            let (name_len, value_len) = (rest.len() as u8, value.len() as u16);
            fields = fields.u8(name_len).u8(index).u16(value_len).raw(rest).raw(value);
            let padding = fields.bytes.len().next_multiple_of(ALIGNMENT) - fields.bytes.len();
            fields = fields.zeros(padding);
        }
    }
    fields.bytes
}

/// How the inode counts `len` bytes of attributes: words behind the header, plus one for the header.
pub(super) fn count(len: usize) -> u16 {
    len.checked_sub(HEADER_LEN).map_or(0, |entries| (entries / ALIGNMENT + 1) as u16)
}
