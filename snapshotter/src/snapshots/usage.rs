//! How much disk a directory takes, as `du` counts it.

use std::{collections::HashSet, fs, io, os::unix::fs::MetadataExt, path::Path};

use super::Usage;

/// Unit of `st_blocks` (inode(7)).
const BLOCK_LEN: u64 = 512;

/// Adds up everything below and including `dir`, each inode once. What vanishes meanwhile is not counted.
pub(crate) fn of_dir(dir: &Path) -> io::Result<Usage> {
    let mut usage = Usage::default();
    let mut seen = HashSet::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = match fs::symlink_metadata(&path) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        if seen.insert((meta.dev(), meta.ino())) {
            usage.size += meta.blocks() * BLOCK_LEN;
            usage.inodes += 1;
        }
        if meta.is_dir() {
            match fs::read_dir(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                entries => {
                    for entry in entries? {
                        pending.push(entry?.path());
                    }
                }
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hard_link_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("sub")).unwrap();
        fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
        let before = of_dir(dir.path()).unwrap();
        fs::hard_link(dir.path().join("file"), dir.path().join("sub/link")).unwrap();
        std::os::unix::fs::symlink("/", dir.path().join("root")).unwrap();
        let after = of_dir(dir.path()).unwrap();
        assert_eq!(before.inodes, 3);
        assert!(before.size >= 100_000);
        assert_eq!(after.inodes, 4);
        assert!(after.size < before.size + 50_000);
    }
}
