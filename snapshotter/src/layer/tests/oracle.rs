//! Unpacks entries into a directory as containerd does, with system calls, to compare with.

use std::{
    ffi::CString,
    fs, io,
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, lchown, symlink},
    },
    path::{Component, Path, PathBuf},
};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lremovexattr, lsetxattr, makedev,
    mknodat, utimensat,
};

use super::archive::Item;
use crate::layer::IMPLIED_XATTR;

/// Unpacks all entries; an error if containerd would fail, or if a path leads through something that is no directory.
pub(super) fn unpack(root: &Path, items: &[Item]) -> io::Result<()> {
    fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
    let mut directories = vec![(root.to_path_buf(), 0)];
    for item in items {
        unpack_one(root, item, &mut directories)?;
    }
    // Only the last entry of a path tells its time.
    for (path, mtime) in directories {
        if fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_dir()) {
            set_mtime(&path, mtime)?;
        }
    }
    Ok(())
}

fn unpack_one(root: &Path, item: &Item, directories: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    // A sparse file's own name is in a record.
    let name = item.pax.iter().find(|(key, _)| key == "GNU.sparse.name");
    let path = join(root, name.map_or(&item.name, |(_, name)| name));
    let (Some(parent), Some(name)) = (path.parent().filter(|_| path != root), path.file_name()) else {
        return Ok(());
    };
    make_parents(root, parent, directories)?;
    if name == ".wh..wh..opq" {
        return Ok(lsetxattr(parent, "trusted.overlay.opaque", b"y", XattrFlags::empty())?);
    }
    if let Some(hidden) = name.to_str().and_then(|name| name.strip_prefix(".wh.")) {
        let hidden = parent.join(hidden);
        mknodat(CWD, &hidden, FileType::CharacterDevice, Mode::empty(), 0)?;
        lchown(&hidden, Some(item.owner.0), Some(item.owner.1))?;
        lsetxattr(parent, "trusted.overlay.origin", b"", XattrFlags::empty())?;
        return set_mtime(&hidden, 0);
    }
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_dir() && item.flag == b'5' => _ = lremovexattr(&path, IMPLIED_XATTR),
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(&path)?,
        Ok(_) => fs::remove_file(&path)?,
        Err(_) => {}
    }
    create(root, item, &path)?;
    lchown(&path, Some(item.owner.0), Some(item.owner.1))?;
    for (key, value) in &item.pax {
        let Some(name) = key.strip_prefix("SCHILY.xattr.") else { continue };
        let name = CString::new(name).unwrap();
        match lsetxattr(&path, name.as_c_str(), value, XattrFlags::empty()) {
            // `user.` is for files and directories only.
            Err(rustix::io::Errno::PERM) => {}
            result => result?,
        }
    }
    if !fs::symlink_metadata(&path)?.is_symlink() {
        fs::set_permissions(&path, fs::Permissions::from_mode(item.mode))?;
    }
    if item.flag == b'5' {
        directories.push((path.clone(), item.mtime));
    }
    set_mtime(&path, item.mtime)
}

fn create(root: &Path, item: &Item, path: &Path) -> io::Result<()> {
    let node = |kind| mknodat(CWD, path, kind, Mode::empty(), makedev(item.device.0, item.device.1));
    match item.flag {
        b'5' if path.is_dir() => Ok(()),
        b'5' => fs::create_dir(path),
        b'1' => {
            let target = join(root, &item.link);
            check_parents(root, &target)?;
            fs::hard_link(target, path)
        }
        b'2' => symlink(std::ffi::OsStr::from_bytes(&item.link), path),
        b'3' => Ok(node(FileType::CharacterDevice)?),
        b'4' => Ok(node(FileType::BlockDevice)?),
        b'6' => Ok(node(FileType::Fifo)?),
        _ => fs::write(path, item.whole.as_ref().unwrap_or(&item.data)),
    }
}

/// `..` and `/` lead no further than to the root.
fn join(root: &Path, name: &[u8]) -> PathBuf {
    let mut path = root.to_path_buf();
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir if path != root => _ = path.pop(),
            _ => {}
        }
    }
    path
}

fn make_parents(root: &Path, path: &Path, directories: &mut Vec<(PathBuf, u64)>) -> io::Result<()> {
    if path == root {
        return Ok(());
    }
    make_parents(root, path.parent().unwrap(), directories)?;
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => return Ok(()),
        Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
        Err(_) => fs::create_dir(path)?,
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    directories.push((path.to_path_buf(), 0));
    Ok(lsetxattr(path, IMPLIED_XATTR, b"y", XattrFlags::empty())?)
}

fn check_parents(root: &Path, path: &Path) -> io::Result<()> {
    let parents = path.ancestors().skip(1).take_while(|parent| *parent != root);
    for parent in parents {
        if !fs::symlink_metadata(parent)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
    }
    Ok(())
}

fn set_mtime(path: &Path, seconds: u64) -> io::Result<()> {
    let time = Timespec { tv_sec: seconds as i64, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
