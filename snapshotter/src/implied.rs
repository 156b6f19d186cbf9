//! Directories that a lazy layer puts files into without having an entry for them.
//!
//! containerd gives such a directory the attributes that it has in the nearest layer below (`mkparent` in its
//! `pkg/archive/tar.go`). A layer's index is made of that layer alone and only marks it. So right above the layer one
//! more lower directory is stacked that has nothing but these directories, with the right attributes: overlayfs takes a
//! merged directory's attributes from the topmost layer that has it. Most layers need none, because a directory without
//! an entry is root's and has mode 0755, which is also what it mostly is below.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs,
    io::{self, ErrorKind},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{
        Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags, fchmod, fchown,
        fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, open, openat2,
    },
    io::Errno,
};

use crate::layer::IMPLIED_XATTR;

/// Linux's limit on all names of a file's extended attributes, and on the value of one, in bytes.
const MAX_XATTR_LEN: usize = 65536;

/// What overlayfs shows of a directory.
#[derive(Clone)]
struct Attributes {
    mode: Mode,
    owner: (Uid, Gid),
    times: Timestamps,
    /// Without those that concern one layer only.
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Makes the directory `into` for `layer` on the layers `below`, nearest first; it stays empty if the layer's own
/// attributes are right. It is there as a whole or not at all.
pub(crate) fn describe(layer: &Path, below: &[PathBuf], into: &Path) -> io::Result<()> {
    let own = open_top(layer)?;
    let below = below.iter().map(|dir| open_top(dir)).collect::<io::Result<Vec<_>>>()?;
    let described = differing(&own, &below)?;
    let making = into.with_extension("making");
    match fs::remove_dir_all(&making) {
        Err(err) if err.kind() != ErrorKind::NotFound => return Err(err),
        _ => fs::create_dir_all(&making)?,
    }
    write(&open_top(&making)?, &described)?;
    fs::rename(&making, into)
}

/// Whether anything was described in a directory that [`describe`] made.
pub(crate) fn is_needed(described: &Path) -> io::Result<bool> {
    Ok(fs::read_dir(described)?.next().is_some())
}

/// The directories to write, with those that they are in.
fn differing(own: &OwnedFd, below: &[OwnedFd]) -> io::Result<BTreeMap<PathBuf, Attributes>> {
    let mut described = BTreeMap::new();
    // A directory comes before what is in it.
    for path in implied(own)? {
        let is = Attributes::of(&open_inside(own, &path)?)?;
        let right = match nearest(below, &path)? {
            Some(right) => right,
            None => is.clone().made_in(&effective(own, &described, path.parent().unwrap_or(Path::new("")))?),
        };
        if !right.looks_like(&is) {
            described.insert(path, right);
        }
    }
    let paths: Vec<PathBuf> = described.keys().cloned().collect();
    // The top directory comes with them: it covers the layer's own one too.
    let around = paths.iter().flat_map(|path| path.ancestors().skip(1));
    for path in around {
        if !described.contains_key(path) {
            let path = path.to_owned();
            let attributes = Attributes::of(&open_inside(own, &path)?)?;
            described.insert(path, attributes);
        }
    }
    Ok(described)
}

/// What a directory of the layer looks like with what is described so far.
fn effective(
    own: &OwnedFd,
    described: &BTreeMap<PathBuf, Attributes>,
    path: &Path,
) -> io::Result<Attributes> {
    match described.get(path) {
        Some(attributes) => Ok(attributes.clone()),
        None => Attributes::of(&open_inside(own, path)?),
    }
}

/// The marked directories, as paths from the layer's top.
fn implied(own: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(path) = pending.pop() {
        let dir = open_inside(own, &path)?;
        match fgetxattr(&dir, IMPLIED_XATTR, &mut [0u8; 8][..]) {
            Ok(_) => found.push(path.clone()),
            Err(Errno::NODATA) => {}
            Err(err) => return Err(err.into()),
        }
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if entry.file_type() == FileType::Directory && !matches!(name, b"." | b"..") {
                pending.push(path.join(OsStr::from_bytes(name)));
            }
        }
    }
    Ok(found)
}

/// What the nearest layer that has this path says of it, if that is a directory there. As in containerd, symbolic links
/// are followed, each layer by itself.
fn nearest(below: &[OwnedFd], path: &Path) -> io::Result<Option<Attributes>> {
    for top in below {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        match openat2(top, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS) {
            Ok(dir) => return Attributes::of(&dir).map(Some),
            Err(Errno::NOENT) => {}
            // Something else took its place, a whiteout for example.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(None)
}

fn write(top: &OwnedFd, described: &BTreeMap<PathBuf, Attributes>) -> io::Result<()> {
    // Sorted, so that a directory comes before what is in it.
    for path in described.keys().filter(|path| **path != Path::new("")) {
        mkdirat(top, path, Mode::RWXU)?;
    }
    // What is inside first, because it changes the time of what it is in.
    for (path, attributes) in described.iter().rev() {
        attributes.set(&open_inside(top, path)?)?;
    }
    Ok(())
}

fn open_top(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// A directory that is really there, on no way around.
fn open_inside(top: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let path = if path == Path::new("") { Path::new(".") } else { path };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(openat2(top, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?)
}

impl Attributes {
    fn of(dir: &OwnedFd) -> io::Result<Self> {
        let stat = fstat(dir)?;
        let time = rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ };
        Ok(Self {
            mode: Mode::from_raw_mode(stat.st_mode & 0o7777),
            owner: (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid)),
            times: Timestamps { last_access: time, last_modification: time },
            xattrs: xattrs(dir)?,
        })
    }

    /// As always in Linux, what is made in a setgid directory gets its group.
    fn made_in(mut self, parent: &Self) -> Self {
        let (_, group) = parent.owner;
        self.owner.1 = if parent.mode.contains(Mode::SGID) { group } else { Gid::ROOT };
        self
    }

    /// Apart from the time: that of an unpacked directory without an entry is when it was unpacked.
    fn looks_like(&self, other: &Self) -> bool {
        self.mode == other.mode && self.owner == other.owner && self.xattrs == other.xattrs
    }

    fn set(&self, dir: &OwnedFd) -> io::Result<()> {
        let (uid, gid) = self.owner;
        fchown(dir, Some(uid), Some(gid))?;
        fchmod(dir, self.mode)?;
        for (name, value) in &self.xattrs {
            match fsetxattr(dir, name.as_slice(), value, XattrFlags::empty()) {
                // As containerd does where the file system has no such attributes.
                Err(Errno::NOTSUP) => {}
                set => set?,
            }
        }
        Ok(futimens(dir, &self.times)?)
    }
}

fn xattrs(dir: &OwnedFd) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut buffer = vec![0u8; MAX_XATTR_LEN];
    let len = flistxattr(dir, buffer.as_mut_slice())?;
    let names: Vec<Vec<u8>> = buffer
        .get(..len)
        .unwrap_or_default()
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty() && *name != IMPLIED_XATTR.as_bytes())
        .filter(|name| !name.starts_with(b"trusted.overlay."))
        .map(<[u8]>::to_vec)
        .collect();
    let mut xattrs = BTreeMap::new();
    for name in names {
        let len = fgetxattr(dir, name.as_slice(), buffer.as_mut_slice())?;
        xattrs.insert(name, buffer.get(..len).unwrap_or_default().to_vec());
    }
    Ok(xattrs)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

    use rustix::fs::lsetxattr;

    use super::*;

    /// Lower layers and one on top, as directories; what is marked has no entry.
    struct Stack {
        dir: tempfile::TempDir,
        layers: Vec<PathBuf>,
    }

    impl Stack {
        fn new(layers: usize) -> Self {
            // On disk also where /tmp is a tmpfs.
            let dir = tempfile::tempdir_in("/var/tmp").unwrap();
            let layers: Vec<_> = (0..layers).map(|number| dir.path().join(number.to_string())).collect();
            layers.iter().for_each(|layer| fs::create_dir(layer).unwrap());
            Self { dir, layers }
        }

        /// Makes a directory in a layer, with its parents.
        fn make(&self, layer: usize, path: &str, mode: u32, owner: u32) {
            let path = self.layers[layer].join(path);
            fs::create_dir_all(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            chown(&path, Some(owner), Some(owner)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }

        /// Makes a directory in the top layer that has no entry.
        fn imply(&self, path: &str) {
            let top = self.layers.len() - 1;
            self.make(top, path, 0o755, 0);
            lsetxattr(self.layers[top].join(path), IMPLIED_XATTR, b"y", XattrFlags::empty()).unwrap();
        }

        /// What is described for the top layer: path, mode, owner.
        fn described(&self) -> Vec<(String, u32, u32)> {
            let (top, below) = self.layers.split_last().unwrap();
            let below: Vec<_> = below.iter().rev().cloned().collect();
            let into = self.dir.path().join("described");
            describe(top, &below, &into).unwrap();
            let mut found = Vec::new();
            let mut pending = vec![into.clone()];
            while let Some(dir) = pending.pop() {
                let meta = fs::metadata(&dir).unwrap();
                let path = dir.strip_prefix(&into).unwrap().display().to_string();
                found.push((path, meta.mode() & 0o7777, meta.uid()));
                pending.extend(fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()));
            }
            found.sort();
            assert_eq!(is_needed(&into).unwrap(), found.len() > 1);
            found.retain(|(path, ..)| !path.is_empty());
            found
        }
    }

    #[test]
    fn only_what_differs_is_described_with_what_it_is_in() {
        let stack = Stack::new(2);
        stack.make(0, "tmp", 0o1777, 0);
        stack.make(0, "usr/share", 0o755, 0);
        stack.make(0, "home/user/data", 0o700, 1000);
        stack.make(1, "home", 0o711, 5);
        for path in ["tmp", "tmp/new", "usr", "usr/share", "home/user", "home/user/data", "nowhere"] {
            stack.imply(path);
        }
        let expected = [
            ("home", 0o711, 5),
            ("home/user", 0o755, 0),
            ("home/user/data", 0o700, 1000),
            ("tmp", 0o1777, 0),
        ];
        assert_eq!(stack.described(), expected.map(|(path, mode, owner)| (path.to_owned(), mode, owner)));
    }

    #[test]
    fn what_no_layer_has_gets_the_group_of_a_setgid_directory() {
        let stack = Stack::new(2);
        stack.make(0, "shared", 0o2770, 7);
        for path in ["shared", "shared/new", "shared/new/deeper"] {
            stack.imply(path);
        }
        let expected = [("shared", 0o2770, 7), ("shared/new", 0o755, 0)];
        assert_eq!(stack.described(), expected.map(|(path, mode, owner)| (path.to_owned(), mode, owner)));
        let new = fs::metadata(stack.dir.path().join("described/shared/new")).unwrap();
        assert_eq!(new.gid(), 7);
    }

    #[test]
    fn nothing_is_described_where_nothing_differs() {
        let stack = Stack::new(2);
        stack.make(0, "usr", 0o755, 0);
        stack.imply("usr");
        assert_eq!(stack.described(), []);
    }

    #[test]
    fn the_nearest_layer_that_has_it_counts_until_something_else_took_its_place() {
        let stack = Stack::new(4);
        stack.make(0, "a", 0o700, 1);
        stack.make(1, "a", 0o701, 2);
        stack.make(0, "gone", 0o700, 1);
        fs::write(stack.layers[1].join("gone"), "a file").unwrap();
        stack.make(0, "real", 0o702, 3);
        symlink("/real", stack.layers[0].join("link")).unwrap();
        for path in ["a", "gone", "link"] {
            stack.imply(path);
        }
        let expected = [("a", 0o701, 2), ("link", 0o702, 3)];
        assert_eq!(stack.described(), expected.map(|(path, mode, owner)| (path.to_owned(), mode, owner)));
    }

    #[test]
    fn extended_attributes_are_taken_over_unless_they_concern_one_layer_only() {
        let stack = Stack::new(2);
        stack.make(0, "a", 0o755, 0);
        let below = stack.layers[0].join("a");
        lsetxattr(&below, "user.note", b"a note", XattrFlags::empty()).unwrap();
        lsetxattr(&below, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
        stack.imply("a");
        stack.described();
        let dir = open_top(&stack.dir.path().join("described/a")).unwrap();
        assert_eq!(xattrs(&dir).unwrap(), BTreeMap::from([(b"user.note".to_vec(), b"a note".to_vec())]));
        assert!(fgetxattr(&dir, "trusted.overlay.opaque", &mut [0u8; 8][..]).is_err());
    }
}
