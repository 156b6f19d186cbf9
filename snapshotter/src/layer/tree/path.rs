//! Paths of a tar, and the names in them that have a meaning of their own.

use crate::layer::refusal::Refusal;

/// `PATH_MAX` of Linux without the final NUL, in bytes.
const MAX_PATH_LEN: usize = 4095;
/// `NAME_MAX` of Linux, and the longest name that EROFS has, in bytes.
const MAX_NAME_LEN: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const AUFS_METADATA: &[u8] = b".wh..wh.";

/// A name that says something of the layers below (OCI image specification, `layer.md`, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Marker<'a> {
    /// What they have in this directory is gone.
    Opaque,
    /// What they have under this name is gone.
    Whiteout(&'a [u8]),
}

/// The names on the way from the layer's root; `.`, `..` and `/` are resolved, and nothing leads out of the root.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refusal> {
    if path.len() > MAX_PATH_LEN {
        return Err(Refusal::entry(path, "has a path of more than 4095 bytes"));
    }
    let mut components = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(components.pop()),
            name if name.len() > MAX_NAME_LEN => {
                return Err(Refusal::entry(path, "has a name of more than 255 bytes in its path"));
            }
            name => components.push(name),
        }
    }
    Ok(components)
}

pub(super) fn marker(name: &[u8]) -> Option<Marker<'_>> {
    match name {
        OPAQUE => Some(Marker::Opaque),
        name => name.strip_prefix(WHITEOUT).map(Marker::Whiteout),
    }
}

/// AUFS kept notes under such names; they are no part of a layer.
pub(super) fn is_aufs_metadata(name: &[u8]) -> bool {
    name.starts_with(AUFS_METADATA) && name != OPAQUE
}

pub(super) fn check_symlink(path: &[u8], target: &[u8]) -> Result<(), Refusal> {
    match target.len() {
        0 => Err(Refusal::entry(path, "is a symbolic link to nothing")),
        len if len > MAX_PATH_LEN => Err(Refusal::entry(path, "is a symbolic link to more than 4095 bytes")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_leaves_the_root() {
        for (path, names) in [
            ("a/b", vec!["a", "b"]),
            ("./a//b/", vec!["a", "b"]),
            ("/../../a", vec!["a"]),
            ("a/../../b/./c/..", vec!["b"]),
            ("..", vec![]),
            ("", vec![]),
        ] {
            let names: Vec<_> = names.iter().map(|name| name.as_bytes()).collect();
            assert_eq!(components(path.as_bytes()).unwrap(), names, "{path}");
        }
    }

    #[test]
    fn long_paths_are_refused() {
        assert!(components(&[b'a'; 255]).is_ok());
        assert!(components(&[b'a'; 256]).is_err());
        assert!(components(&b"a/".repeat(2047)).is_ok());
        assert!(components(&b"a/".repeat(2048)).is_err());
    }

    #[test]
    fn markers() {
        assert_eq!(marker(b".wh..wh..opq"), Some(Marker::Opaque));
        assert_eq!(marker(b".wh.a"), Some(Marker::Whiteout(b"a")));
        assert_eq!(marker(b".who"), None);
        assert!(is_aufs_metadata(b".wh..wh.plnk") && !is_aufs_metadata(b".wh..wh..opq"));
    }
}
