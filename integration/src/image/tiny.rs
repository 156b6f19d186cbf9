//! The image with one of everything.

use anyhow::{Context, Result};

use super::{Compression, Image, ImageBuilder, Kind, Node, busybox, noise};

const APPLETS: [&str; 12] =
    ["sh", "echo", "cat", "ls", "find", "stat", "sha256sum", "sleep", "touch", "rm", "mkdir", "readlink"];
/// File capabilities: linux/capability.h, `struct vfs_cap_data` revision 2, CAP_NET_BIND_SERVICE effective and permitted.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(super) fn build(builder: ImageBuilder) -> Result<Image> {
    let base = base().context("the base of the tiny image")?;
    builder
        .layer(Compression::Gzip, |layer| layer.add_all(&base))?
        .layer(Compression::Gzip, |layer| layer.add_all(&node_table()))?
        .layer(Compression::None, |layer| layer.add_all(&changes()))?
        .finish()
}

/// A shell, some data, and what the layers above change or remove.
fn base() -> Result<Vec<Node>> {
    let mut nodes = busybox(&APPLETS)?;
    nodes.extend(["dev", "etc", "proc", "root", "sys"].map(Node::dir));
    nodes.extend([
        Node::dir("tmp").mode(0o1777),
        Node::file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Node::file("etc/group", "root:x:0:\n"),
        Node::dir("data"),
        Node::file("data/random", noise("base", 2 << 20)),
        Node::dir("changed"),
        Node::file("changed/removed", "removed by a whiteout"),
        Node::file("changed/kept", "kept"),
        Node::dir("changed/removed-dir"),
        Node::file("changed/removed-dir/inside", "gone with its directory"),
        Node::dir("changed/opaque"),
        Node::file("changed/opaque/hidden", "hidden by the opaque directory"),
        Node::file("changed/file-to-dir", "becomes a directory"),
        Node::dir("changed/dir-to-file"),
        Node::file("changed/dir-to-file/inside", "gone"),
        Node::file("changed/content", "before"),
        Node::file("changed/mode", "the mode changes"),
    ]);
    Ok(nodes)
}

/// One of everything that a layer can contain.
fn node_table() -> Vec<Node> {
    let mut nodes = vec![Node::dir("nodes")];
    nodes.extend(sizes());
    nodes.extend(names());
    nodes.extend(links());
    nodes.extend(attributes());
    nodes
}

/// Files around the sizes of tar blocks and pages, and one of several leaves.
fn sizes() -> Vec<Node> {
    let lens = [0, 1, 511, 512, 513, 4095, 4096, 4097, 1 << 20, (1 << 20) + 1, 3 << 20];
    let file = |len: usize| Node::file(format!("nodes/size-{len}"), noise(format!("size {len}"), len));
    lens.into_iter().map(file).collect()
}

fn names() -> Vec<Node> {
    let deep = (0..12).map(|depth| format!("directory-{depth}")).collect::<Vec<_>>().join("/");
    let parents =
        deep.match_indices('/').map(|(end, _)| Node::dir(format!("nodes/{}", deep.split_at(end).0)));
    let mut nodes: Vec<_> = parents.collect();
    nodes.extend([
        Node::dir(format!("nodes/{deep}")),
        Node::file(format!("nodes/{deep}/file"), "far down"),
        Node::file(format!("nodes/{}", "n".repeat(255)), "the longest name"),
        Node::file("nodes/with space\tand\\backslash", "spaces"),
        Node::file("nodes/größe-大きさ", "not ASCII"),
        Node::file("nodes/-dash", "not an option"),
    ]);
    let many = (0..300).map(|number| Node::file(format!("nodes/many/{number:03}"), number.to_string()));
    nodes.push(Node::dir("nodes/many"));
    nodes.extend(many);
    nodes
}

fn links() -> Vec<Node> {
    vec![
        Node::file("nodes/linked", "three names"),
        Node::hard_link("nodes/linked-again", "nodes/linked"),
        Node::dir("nodes/elsewhere"),
        Node::hard_link("nodes/elsewhere/linked", "nodes/linked"),
        Node::symlink("nodes/relative", "../data/random"),
        Node::symlink("nodes/absolute", "/data/random"),
        Node::symlink("nodes/dangling", "nowhere"),
        Node::symlink("nodes/long-target", "t/".repeat(150)),
    ]
}

fn attributes() -> Vec<Node> {
    vec![
        Node::file("nodes/set-uid", "").mode(0o4755),
        Node::file("nodes/set-gid", "").mode(0o2755).owner(0, 5),
        Node::dir("nodes/sticky").mode(0o1777),
        Node::file("nodes/unreadable", "secret").mode(0),
        Node::file("nodes/owned", "").owner(1000, 1001),
        Node::file("nodes/owned-high", "").owner(70_000, 4_000_000_000),
        Node::symlink("nodes/owned-link", "owned").owner(1000, 1000),
        Node::new("nodes/null", Kind::CharDevice(1, 3)).mode(0o666),
        Node::new("nodes/block", Kind::BlockDevice(7, 300)).mode(0o660),
        Node::new("nodes/pipe", Kind::Fifo).mode(0o600),
        Node::file("nodes/at-1970", "").mtime(0, 0),
        Node::file("nodes/before-1970", "").mtime(-86_400, 0),
        Node::file("nodes/with-nanoseconds", "").mtime(1_234_567_890, 987_654_321),
        Node::file("nodes/after-2038", "").mtime(4_200_000_000, 0),
        Node::dir("nodes/old-directory").mtime(1, 0),
        Node::file("nodes/xattrs", "")
            .xattr("user.text", "value")
            .xattr("user.empty", "")
            .xattr("user.binary", *b"\0\n=\xff")
            .xattr("user.long", noise("xattr", 1024)),
        Node::file("nodes/capable", "").mode(0o755).xattr("security.capability", CAPABILITY),
        Node::dir("nodes/xattr-dir").xattr("user.on.directory", "yes"),
        Node::file("nodes/xattr-shared-1", "").xattr("user.shared", "the same"),
        Node::file("nodes/xattr-shared-2", "").xattr("user.shared", "the same"),
    ]
}

/// Every way to change what lies below, and data of its own. Directories that a layer has no entry for get the time at
/// which it is unpacked, so it has one for each.
fn changes() -> Vec<Node> {
    vec![
        Node::dir("data"),
        Node::dir("changed"),
        Node::whiteout("changed/removed"),
        Node::whiteout("changed/removed-dir"),
        Node::dir("changed/opaque"),
        Node::opaque("changed/opaque"),
        Node::file("changed/opaque/new", "the only one here"),
        Node::dir("changed/file-to-dir"),
        Node::file("changed/file-to-dir/inside", "new"),
        Node::file("changed/dir-to-file", "new"),
        Node::file("changed/content", "after"),
        Node::file("changed/mode", "the mode changes").mode(0o600),
        Node::file("data/random-too", noise("changes", 2 << 20)),
    ]
}
