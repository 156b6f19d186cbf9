//! What entries do to a node's attributes.

use super::{IMPLIED_XATTR, NodeKind};
use crate::layer::entry::{Attributes, Xattrs};

const SETGID: u16 = 0o2000;

/// Linux's limit on a name, in bytes.
const MAX_XATTR_NAME_LEN: usize = 255;
/// One less than Linux's limit on a value, in bytes: EROFS writes the length as 16 bits.
const MAX_XATTR_VALUE_LEN: usize = 0xffff;
/// All of a node's names and values together, in bytes; EROFS can express a little less than twice that.
const MAX_XATTRS_LEN: usize = 128 * 1024;

/// The root has these, whatever the tar says: to containerd it is no part of a layer.
pub(super) fn of_root() -> Attributes {
    Attributes { mode: 0o755, ..Attributes::default() }
}

/// A directory that no entry has described yet; in a setgid directory it gets the group of that, as always in Linux.
pub(super) fn of_implied_directory(parent: &Attributes) -> Attributes {
    let xattrs = Xattrs::from([(IMPLIED_XATTR.as_bytes().to_vec(), b"y".to_vec())]);
    let gid = if parent.mode & SETGID == 0 { 0 } else { parent.gid };
    Attributes { mode: 0o755, gid, xattrs, ..Attributes::default() }
}

/// Sets `attributes` of a node to what an entry says. Extended ones are added to those that are there.
pub(super) fn change(
    kind: &NodeKind,
    attributes: &mut Attributes,
    said: Attributes,
) -> Result<(), &'static str> {
    let mut xattrs = std::mem::take(&mut attributes.xattrs);
    for (name, value) in said.xattrs {
        if is_kept(kind, &name) {
            check_xattr(&name, &value)?;
            xattrs.insert(name, value);
        }
    }
    if xattrs.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_XATTRS_LEN {
        return Err("has more than 128 KiB of extended attributes");
    }
    // Linux does not let anyone change a symbolic link's mode.
    let mode = if matches!(kind, NodeKind::Symlink(_)) { 0o777 } else { said.mode };
    *attributes = Attributes { mode, xattrs, ..said };
    Ok(())
}

/// Whether containerd would set the attribute: it leaves out `trusted.`, and what Linux would not set.
fn is_kept(kind: &NodeKind, name: &[u8]) -> bool {
    let of_content = matches!(kind, NodeKind::Directory | NodeKind::File(_) | NodeKind::Sparse(_));
    match name {
        b"system.posix_acl_access" => !matches!(kind, NodeKind::Symlink(_)),
        b"system.posix_acl_default" => *kind == NodeKind::Directory,
        name if name.starts_with(b"user.") => of_content,
        name => name.starts_with(b"security."),
    }
}

fn check_xattr(name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    if name.ends_with(b".") || name.len() > MAX_XATTR_NAME_LEN {
        return Err("has an extended attribute whose name is empty or longer than 255 bytes");
    }
    if value.len() > MAX_XATTR_VALUE_LEN {
        return Err("has an extended attribute of more than 65535 bytes");
    }
    Ok(())
}
