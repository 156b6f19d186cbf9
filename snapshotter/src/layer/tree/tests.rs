use super::*;
use crate::layer::tests::archive::{Item, archive, directory, file, hard_link, symlink};

/// The tree that these entries make.
fn tree(items: &[Item]) -> Result<Tree, Refusal> {
    let mut tree = Tree::default();
    let mut reader = crate::layer::tar::Reader::default();
    reader.feed(&archive(items), &mut |entry| tree.apply(entry))?;
    Ok(tree)
}

fn find<'a>(tree: &'a Tree, path: &str) -> Option<&'a Node> {
    let components = path::components(path.as_bytes()).unwrap();
    let id = components.iter().try_fold(tree.root(), |directory, name| tree.child(directory, name))?;
    Some(tree.node(id))
}

fn attributes<'a>(tree: &'a Tree, path: &str) -> &'a Attributes {
    &find(tree, path).unwrap().attributes
}

fn refused(items: &[Item]) -> String {
    tree(items).unwrap_err().to_string()
}

#[test]
fn the_last_of_two_entries_holds() {
    let tree =
        tree(&[file("a/b", b"1"), file("a", b"2").mode(0o600), directory("c/d"), file("c", b"3")]).unwrap();
    assert!(matches!(find(&tree, "a").unwrap().kind, NodeKind::File(Extent { len: 1, .. })));
    assert_eq!(attributes(&tree, "a").mode, 0o600);
    assert!(find(&tree, "a/b").is_none() && find(&tree, "c/d").is_none());
}

#[test]
fn a_directory_twice_keeps_its_children() {
    let tree = tree(&[
        directory("d").xattr("user.a", b"1").xattr("user.b", b"1"),
        file("d/f", b""),
        directory("./d/").mode(0o700).mtime(5).xattr("user.b", b"2"),
    ])
    .unwrap();
    assert!(find(&tree, "d/f").is_some());
    let attributes = attributes(&tree, "d");
    assert_eq!((attributes.mode, attributes.mtime.seconds), (0o700, 5));
    let xattrs: Vec<_> = attributes.xattrs.values().map(|value| value[0]).collect();
    assert_eq!(xattrs, b"12");
}

#[test]
fn missing_parents_are_marked_until_their_entry_comes() {
    let implied = IMPLIED_XATTR.as_bytes();
    let before = tree(&[file("a/b/c", b"")]).unwrap();
    for path in ["a", "a/b"] {
        let attributes = attributes(&before, path);
        assert_eq!((attributes.mode, attributes.mtime), (0o755, Default::default()));
        assert_eq!(attributes.xattrs[implied], b"y");
    }
    let after = tree(&[file("a/b/c", b""), directory("a/b").mode(0o711)]).unwrap();
    assert!(attributes(&after, "a/b").xattrs.is_empty());
    assert!(!attributes(&after, "a").xattrs.is_empty());
}

#[test]
fn missing_parents_get_the_group_of_a_setgid_directory() {
    let tree = tree(&[directory("a").mode(0o2755).owner(1, 2), file("a/b/c/d", b"")]).unwrap();
    let owner = |path| (attributes(&tree, path).uid, attributes(&tree, path).gid);
    assert_eq!((owner("a/b"), owner("a/b/c")), ((0, 2), (0, 0)));
}

#[test]
fn the_root_is_no_part_of_a_layer() {
    let tree = tree(&[directory("./").mode(0o700), directory("/").mode(0o701), file("..", b"x")]).unwrap();
    assert_eq!((attributes(&tree, "").mode, tree.len()), (0o755, 1));
}

#[test]
fn a_hard_link_takes_capabilities_away_unless_it_has_them() {
    let cap = "security.capability";
    let first = file("a", b"").xattr(cap, b"1").xattr("user.a", b"1");
    let without = tree(&[first.clone(), hard_link("b", "a")]).unwrap();
    assert_eq!(attributes(&without, "a").xattrs.len(), 1);
    let with = tree(&[first, hard_link("b", "a").xattr(cap, b"2")]).unwrap();
    assert_eq!(attributes(&with, "a").xattrs[cap.as_bytes()], b"2");
}

#[test]
fn links_that_no_index_can_express_are_refused() {
    let lower = refused(&[hard_link("a", "usr/bin/lower")]);
    assert!(lower.contains("\"a\"") && lower.contains("usr/bin/lower"), "{lower}");
    for items in [
        vec![directory("d"), hard_link("a", "d")],
        vec![file("a", b""), hard_link("a", "a")],
        vec![file("d/a", b""), symlink("l", "d"), hard_link("b", "l/a")],
        vec![hard_link("a", "/")],
    ] {
        assert!(refused(&items).contains("hard link"));
    }
}

#[test]
fn paths_through_anything_but_directories_are_refused() {
    let through_link = refused(&[directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/a", b"")]);
    assert_eq!(through_link, "entry \"lib/a\" leads through \"lib\", which is no directory in this layer");
    assert!(refused(&[file("a", b""), file("a/b", b"")]).contains("leads through"));
    // But a directory may take the place of anything.
    assert!(tree(&[symlink("lib", "usr/lib"), directory("lib"), file("lib/a", b"")]).is_ok());
}

#[test]
fn whiteouts_are_for_the_layers_below() {
    let tree = tree(&[file("d/.wh.a", b"").owner(1, 2), file(".wh.b", b""), file("b", b"again")]).unwrap();
    let whiteout = find(&tree, "d/a").unwrap();
    assert_eq!(whiteout.kind, NodeKind::CharDevice(Device { major: 0, minor: 0 }));
    assert_eq!((whiteout.attributes.mode, whiteout.attributes.uid, whiteout.attributes.gid), (0, 1, 2));
    assert!(matches!(find(&tree, "b").unwrap().kind, NodeKind::File(_)));
    for path in ["d", ""] {
        assert_eq!(attributes(&tree, path).xattrs[ORIGIN_XATTR], b"", "{path}");
    }
    assert!(refused(&[file("a", b""), file(".wh.a", b"")]).contains("this very layer"));
    for name in [".wh.", ".wh..", "d/.wh..."] {
        assert!(refused(&[file(name, b"")]).contains("whiteout of no name"), "{name}");
    }
}

#[test]
fn opaque_markers_mark_their_directory() {
    let tree = tree(&[file("d/.wh..wh..opq", b""), directory("d"), file(".wh..wh..opq", b"")]).unwrap();
    for path in ["d", ""] {
        assert_eq!(attributes(&tree, path).xattrs[OPAQUE_XATTR], b"y", "{path}");
    }
    assert_eq!(tree.len(), 2);
}

#[test]
fn notes_of_aufs_are_left_out() {
    let tree = tree(&[directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2", b"x"), file(".wh..wh.aufs", b"")])
        .unwrap();
    assert_eq!(tree.len(), 1);
}

#[test]
fn attributes_that_containerd_leaves_out_are_left_out() {
    let tree = tree(&[
        file("f", b"").xattr("trusted.overlay.opaque", b"y").xattr("system.x", b"1").xattr("odd", b"1"),
        symlink("s", "f").xattr("user.a", b"1").xattr("security.a", b"1").mode(0o600),
    ])
    .unwrap();
    assert!(attributes(&tree, "f").xattrs.is_empty());
    assert_eq!(attributes(&tree, "s").xattrs.len(), 1);
    assert_eq!(attributes(&tree, "s").mode, 0o777);
}

#[test]
fn too_much_is_refused() {
    let many = (0..4).fold(file("f", b""), |item, number| item.xattr(&format!("user.{number}"), [0; 40_000]));
    assert!(refused(&[many]).contains("128 KiB"));
    assert!(refused(&[file("f", b"").xattr("user.a", [0; 65_536])]).contains("65535"));
    assert!(refused(&[symlink("s", &"x".repeat(5000))]).contains("4095"));
    let mut tree = Tree { text_len: MAX_TEXT_LEN, ..Tree::default() };
    assert!(tree.name(tree.root(), b"a", tree.root()).is_err());
    let mut tree = Tree { names: MAX_NAMES, ..Tree::default() };
    assert!(tree.name(tree.root(), b"a", tree.root()).is_err());
}
