//! Layers mounted by the kernel. Needs root, and a kernel that mounts EROFS from a file (6.12).

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{
    archive::{Item, archive, block_device, char_device, directory, fifo, file, hard_link, sparse, symlink},
    make,
    seen::{Kind, Seen, walk},
};
use crate::lazy::shown::Shown;

/// A mount that ends with its test, however that ends.
pub(super) struct Mounted {
    at: PathBuf,
    /// Holds what is mounted, and goes after the mount.
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// Mounts the layer that a blob makes.
    pub(super) fn layer(blob: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = make(blob).unwrap();
        let (index, raw) = (dir.path().join("index"), dir.path().join("raw"));
        fs::write(&index, &made.layer.index).unwrap();
        fs::write(&raw, &made.raw).unwrap();
        Self::new(dir, &index, "erofs", &format!("device={}", raw.display()))
    }

    fn overlay(lower: &[&Path]) -> Self {
        let lower: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
        let dir = tempfile::tempdir().unwrap();
        Self::new(dir, Path::new("overlay"), "overlay", &format!("lowerdir={}", lower.join(":")))
    }

    fn new(dir: tempfile::TempDir, source: &Path, kind: &str, options: &str) -> Self {
        let at = dir.path().join("mounted");
        fs::create_dir(&at).unwrap();
        let options = CString::new(options).unwrap();
        mount(source, &at, kind, MountFlags::RDONLY, options.as_c_str()).unwrap();
        Self { at, _dir: dir }
    }

    pub(super) fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.at, UnmountFlags::DETACH).unwrap();
    }
}

/// What is seen of a layer, which is the same with both mounts.
fn seen(items: &[Item]) -> BTreeMap<PathBuf, Seen> {
    let blob = archive(items);
    let by_erofs = walk(Mounted::layer(&blob).path());
    let made = make(&blob).unwrap();
    let by_fuse = walk(Shown::new(&made.layer, &made.raw).path());
    super::seen::assert_same(&by_fuse, &by_erofs);
    by_erofs
}

/// What an entry should look like that has neither other names nor extended attributes.
fn plain(kind: Kind, mode: u32, links: u64) -> Seen {
    let mtime = (1_700_000_000, 0);
    Seen { kind, mode, owner: (0, 0), mtime, also: Vec::new(), links, xattrs: BTreeMap::new() }
}

fn content(data: &[u8]) -> Kind {
    Kind::File { len: data.len() as u64, digest: blake3::hash(data).to_string() }
}

#[test]
fn every_kind_of_file_is_there() {
    let seen = seen(&[
        file("file", b"content").mode(0o4755).owner(1000, 4_000_000_000),
        file("empty", b"").mtime(7),
        directory("dir").mode(0o1777).pax("mtime", "12.345678912"),
        symlink("dir/link", "../file").mode(0o600),
        symlink("long", &"t/".repeat(2000)),
        char_device("null", 1, 3).mode(0o666),
        block_device("disk", 259, 1_000_000),
        fifo("fifo").mode(0o600),
    ]);
    let root = Seen { mtime: (0, 0), ..plain(Kind::Directory, 0o755, 3) };
    let link = |target: &str| plain(Kind::Symlink(target.into()), 0o777, 1);
    let expected = [
        ("", root),
        ("dir", Seen { mtime: (12, 345_678_912), ..plain(Kind::Directory, 0o1777, 2) }),
        ("dir/link", link("../file")),
        ("disk", plain(Kind::BlockDevice(rustix::fs::makedev(259, 1_000_000)), 0o644, 1)),
        ("empty", Seen { mtime: (7, 0), ..plain(content(b""), 0o644, 1) }),
        ("fifo", plain(Kind::Fifo, 0o600, 1)),
        ("file", Seen { owner: (1000, 4_000_000_000), ..plain(content(b"content"), 0o4755, 1) }),
        ("long", link(&"t/".repeat(2000))),
        ("null", plain(Kind::CharDevice(rustix::fs::makedev(1, 3)), 0o666, 1)),
    ];
    let expected: BTreeMap<_, _> = expected.into_iter().map(|(path, seen)| (path.into(), seen)).collect();
    super::seen::assert_same(&seen, &expected);
}

#[test]
fn files_of_all_lengths_have_their_bytes() {
    let lengths = [1, 511, 512, 513, 4095, 4096, 4097, 10_000, 131_073, 3_000_000];
    let data = |len: usize| (0..len).map(|at| (at * 31 + at / 251 + len) as u8).collect::<Vec<u8>>();
    let items: Vec<_> = lengths.iter().map(|len| file(&len.to_string(), &data(*len))).collect();
    let seen = seen(&items);
    for len in lengths {
        assert_eq!(seen[Path::new(&len.to_string())].kind, content(&data(len)), "{len}");
    }
}

#[test]
fn sparse_files_have_their_holes() {
    let (one, two) = ([1; 8192], [2; 5000]);
    let parts: [(usize, &[u8]); 3] = [(4096, &one), (1 << 20, &one), (3 << 20, &two)];
    let fine: Vec<(usize, &[u8])> = (0..3000).map(|at| (at * 1024 + 512, &one[..512])).collect();
    let mut items = Vec::new();
    for version in ["0.0", "0.1", "1.0"] {
        items.push(sparse(&format!("data-{version}"), version, &parts, (3 << 20) + 5000));
        items.push(sparse(&format!("hole-{version}"), version, &[(512, &one)], 50 << 20));
        items.push(sparse(&format!("empty-{version}"), version, &[(1 << 20, b"")], 1 << 20));
        items.push(sparse(&format!("fine-{version}"), version, &fine, 4 << 20));
        items.push(file(&format!("after-{version}"), b"after"));
    }
    let seen = seen(&items);
    for item in &items {
        let name =
            item.pax.iter().find(|(key, _)| key == "GNU.sparse.name").map_or(&item.name, |(_, name)| name);
        let path = Path::new(std::str::from_utf8(name).unwrap());
        assert_eq!(seen[path].kind, content(item.whole.as_ref().unwrap_or(&item.data)), "{path:?}");
    }
}

#[test]
fn extended_attributes_are_there() {
    let capability = b"\x01\0\0\x02\x00\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let long = vec![7; 60_000];
    let seen = seen(&[
        file("file", b"x").xattr("security.capability", capability).xattr("user.empty", b""),
        file("long", b"x").xattr("user.long", &long).xattr("user.b", b"2"),
        directory("dir").xattr("user.dir", b"d").xattr("trusted.overlay.redirect", b"/evil"),
        symlink("link", "x").xattr("user.link", b"l").xattr("security.link", b"s"),
    ]);
    let xattrs = |path: &str| {
        let xattrs = seen[Path::new(path)].xattrs.iter();
        xattrs.map(|(name, value)| (name.as_str(), value.clone())).collect::<Vec<_>>()
    };
    assert_eq!(xattrs("file"), [("security.capability", capability.to_vec()), ("user.empty", vec![])]);
    assert_eq!(xattrs("long"), [("user.b", b"2".to_vec()), ("user.long", long)]);
    assert_eq!(xattrs("dir"), [("user.dir", b"d".to_vec())]);
    assert_eq!(xattrs("link"), [("security.link", b"s".to_vec())]);
}

#[test]
fn hard_links_share_an_inode() {
    let seen = seen(&[
        file("a", b"one"),
        hard_link("b", "./a").mode(0o600),
        hard_link("d/c", "/b").owner(5, 6).mode(0o640),
        file("a", b"two"),
    ]);
    let b = &seen[Path::new("b")];
    assert_eq!((b.links, &b.kind, b.mode, b.owner), (2, &content(b"one"), 0o640, (5, 6)));
    assert_eq!(b.also, [PathBuf::from("d/c")]);
    assert_eq!((seen[Path::new("a")].links, &seen[Path::new("a")].kind), (1, &content(b"two")));
}

#[test]
fn large_directories_can_be_listed_and_searched() {
    let name = |number: usize| format!("dir/{number:05}{}", "n".repeat(number % 240));
    let items: Vec<_> = (0..5000).map(|number| file(&name(number), name(number).as_bytes())).collect();
    let mounted = Mounted::layer(&archive(&items));
    assert_eq!(fs::read_dir(mounted.path().join("dir")).unwrap().count(), 5000);
    for number in 0..5000 {
        let name = name(number);
        assert_eq!(fs::read(mounted.path().join(&name)).unwrap(), name.as_bytes());
    }
    assert!(!mounted.path().join("dir/00000n").exists());
}

#[test]
fn data_in_the_index_are_whole_wherever_they_fall() {
    let target = |number: usize| format!("{number}/{}", "t".repeat(number % 1100));
    let name = |number: usize| format!("{number}{}", "n".repeat(number * 7 % 250));
    let items = (0..1500).flat_map(|number| {
        let link =
            symlink(&format!("link{number}"), &target(number)).xattr("security.a", "x".repeat(number % 97));
        let value = "v".repeat(number * 11 % 1300);
        [link, file(&format!("dir{number}/{}", name(number)), b"").xattr("user.a", value)]
    });
    let seen = seen(&items.collect::<Vec<_>>());
    for number in 0..1500 {
        let link = &seen[Path::new(&format!("link{number}"))];
        assert_eq!(link.kind, Kind::Symlink(target(number).into()));
        let file = &seen[&Path::new(&format!("dir{number}")).join(name(number))];
        assert_eq!(file.xattrs["user.a"].len(), number * 11 % 1300);
    }
}

#[test]
fn names_sort_around_the_dots() {
    let names = ["!first", "-", "..a", ".a", "0", "\u{e9}t\u{e9}", "\n"];
    let items: Vec<_> = names.iter().map(|name| file(name, name.as_bytes())).collect();
    let mounted = Mounted::layer(&archive(&items));
    for name in names {
        assert_eq!(fs::read(mounted.path().join(name)).unwrap(), name.as_bytes(), "{name:?}");
    }
}

#[test]
fn an_empty_layer_is_an_empty_directory() {
    for blob in [&b""[..], &[0; 1024]] {
        assert_eq!(walk(Mounted::layer(blob).path()).len(), 1);
    }
}

#[test]
fn a_tar_may_end_without_a_marker() {
    let blob = file("last", &[7; 700]).bytes();
    let seen = walk(Mounted::layer(&blob).path());
    assert_eq!(seen[Path::new("last")].kind, content(&[7; 700]));
}

#[test]
fn overlayfs_hides_what_the_layer_deletes() {
    let lower = Mounted::layer(&archive(&[
        file("gone", b"1"),
        file("dir/gone", b"2"),
        file("dir/kept", b"3"),
        file("opaque/old", b"4"),
        file("tree/file", b"5"),
    ]));
    let upper = Mounted::layer(&archive(&[
        file(".wh.gone", b"").owner(3, 4),
        file("dir/.wh.gone", b""),
        file("opaque/new", b"6"),
        file("opaque/.wh..wh..opq", b""),
        file(".wh.tree", b""),
        file("dir/.wh..wh.plnk", b""),
    ]));
    let whiteout = fs::symlink_metadata(upper.path().join("gone")).unwrap();
    assert!(whiteout.file_type().is_char_device());
    assert_eq!((whiteout.rdev(), whiteout.uid(), whiteout.gid()), (0, 3, 4));
    let both = Mounted::overlay(&[upper.path(), lower.path()]);
    let paths: Vec<_> = walk(both.path()).into_keys().collect();
    assert_eq!(paths, ["", "dir", "dir/kept", "opaque", "opaque/new"].map(PathBuf::from));
    assert_eq!(fs::read(both.path().join("opaque/new")).unwrap(), b"6");
    assert_eq!(fs::read(both.path().join("dir/kept")).unwrap(), b"3");
}
