use proptest::{collection::vec, prelude::*};

use super::*;
use crate::layer::{
    entry::{Device, EntryKind, Extent, Mtime},
    erofs,
    tests::archive::{Item, archive, char_device, directory, fifo, file, hard_link, sign, sparse, symlink},
    tree::Tree,
};

/// Reads a tar that arrives in parts of `step` bytes.
fn read(bytes: &[u8], step: usize) -> Result<Vec<Entry>, Refusal> {
    let mut reader = Reader::default();
    let mut entries = Vec::new();
    for part in bytes.chunks(step) {
        reader.feed(part, &mut |entry| {
            entries.push(entry);
            Ok(())
        })?;
    }
    assert_eq!(reader.finish()?, bytes.len() as u64);
    Ok(entries)
}

fn only(bytes: &[u8]) -> Entry {
    let mut entries = read(bytes, usize::MAX).unwrap();
    assert_eq!(entries.len(), 1);
    entries.remove(0)
}

fn refused(bytes: &[u8]) -> String {
    read(bytes, usize::MAX).unwrap_err().to_string()
}

#[test]
fn a_ustar_entry() {
    let bytes = archive(&[file("a", &[7; 1000]).mode(0o4755).owner(3, 4_000_000_000).mtime(5)]);
    let entry = only(&bytes);
    assert_eq!(entry.path, b"a");
    assert_eq!(entry.kind, EntryKind::File(Extent { offset: 512, len: 1000 }));
    let attributes = entry.attributes;
    assert_eq!((attributes.mode, attributes.uid, attributes.gid), (0o4755, 3, 4_000_000_000));
    assert_eq!(attributes.mtime, Mtime { seconds: 5, nanos: 0 });
}

#[test]
fn a_ustar_prefix_stands_before_the_name() {
    let mut block = file("name", b"").header();
    block[345..351].copy_from_slice(b"prefix");
    sign(&mut block);
    assert_eq!(only(&block).path, b"prefix/name");
    // GNU tar has times there, and only old versions of Go a prefix.
    block[257..265].copy_from_slice(b"ustar  \0");
    sign(&mut block);
    assert_eq!(only(&block).path, b"prefix/name");
    block[345..369].copy_from_slice(b"12345670123\x0012345670123\0");
    sign(&mut block);
    assert_eq!(only(&block).path, b"name");
}

#[test]
fn pax_records_override_the_header() {
    let bytes = archive(&[
        file("short", &[7; 700])
            .pax("path", "long/path")
            .pax("size", "600")
            .pax("uid", "9")
            .pax("mtime", "1.25")
            .xattr("user.a", b"\0\n"),
        file("after", b"x"),
    ]);
    let entries = read(&bytes, usize::MAX).unwrap();
    assert_eq!(entries[0].path, b"long/path");
    assert_eq!(entries[0].kind, EntryKind::File(Extent { offset: 1536, len: 600 }));
    assert_eq!(entries[0].attributes.uid, 9);
    assert_eq!(entries[0].attributes.mtime, Mtime { seconds: 1, nanos: 250_000_000 });
    assert_eq!(entries[0].attributes.xattrs[&b"user.a"[..]], b"\0\n");
    // They are gone for the next one.
    assert_eq!(entries[1].path, b"after");
    assert_eq!(entries[1].attributes.uid, 0);
}

#[test]
fn global_pax_records_change_nothing() {
    let global =
        Item { flag: b'g', data: b"19 path=everywhere\n9 uid=77\n".to_vec(), ..file("pax_global", b"") };
    assert_eq!(read(&archive(&[global, file("a", b"")]), 100).unwrap()[0].path, b"a");
    let malformed = Item { flag: b'g', data: b"x".to_vec(), ..file("pax_global", b"") };
    assert!(refused(&archive(&[malformed])).contains("malformed"));
}

#[test]
fn gnu_long_names_as_the_tar_crate_writes_them() {
    let (long, target) = ("d/".repeat(150) + "name", "t/".repeat(150) + "target");
    let mut builder = ::tar::Builder::new(Vec::new());
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, &long, &target).unwrap();
    let entry = only(&builder.into_inner().unwrap());
    assert_eq!(entry.path, long.as_bytes());
    assert_eq!(entry.kind, EntryKind::Symlink(target.into_bytes()));
}

#[test]
fn all_kinds_of_entries() {
    let items = [
        directory("dir/"),
        Item { flag: 0, ..file("old-dir/", b"") },
        Item { flag: 0, ..file("old-file", b"12") },
        hard_link("link", "old-file"),
        char_device("null", 1, 3),
        fifo("fifo"),
    ];
    let kinds: Vec<_> = read(&archive(&items), 999).unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(
        kinds,
        [
            EntryKind::Directory,
            EntryKind::Directory,
            EntryKind::File(Extent { offset: 1536, len: 2 }),
            EntryKind::HardLink(b"old-file".to_vec()),
            EntryKind::CharDevice(Device { major: 1, minor: 3 }),
            EntryKind::Fifo,
        ]
    );
}

#[test]
fn links_have_no_data_whatever_they_claim() {
    let mut block = Item { data: vec![0; 5000], ..hard_link("link", "a") }.header().to_vec();
    block.extend(archive(&[file("next", b"x")]));
    assert_eq!(read(&block, 77).unwrap().len(), 2);
}

#[test]
fn sparse_files_that_cannot_be_are_refused_by_name() {
    let old = Item { flag: b'S', ..file("core", b"") };
    let odd = sparse("core", "0.1", &[(7, b"data")], 4096);
    let whole = sparse("core", "1.0", &[(512, &[7; 512])], 4096);
    let no_map = Item { data: b"9\n1\n".to_vec(), ..whole.clone() };
    let less_data = Item { data: [&whole.data[..], &[0; 512]].concat(), ..whole.clone() };
    let directory = Item { flag: b'5', ..sparse("core", "0.1", &[], 0) };
    let directory = directory.pax("GNU.sparse.major", "0").pax("GNU.sparse.minor", "1");
    for item in [old, odd, no_map, less_data, directory] {
        let why = refused(&archive(&[item]));
        assert!(why.contains("core") && why.contains("sparse"), "{why}");
    }
    assert!(matches!(only(&archive(&[whole])).kind, EntryKind::Sparse(_)));
}

#[test]
fn records_of_an_unknown_sparse_format_mean_nothing() {
    let item = file("a", b"x").pax("GNU.sparse.major", "2").pax("GNU.sparse.name", "b");
    let entry = only(&archive(&[item]));
    assert_eq!(
        (entry.path.as_slice(), entry.kind),
        (&b"a"[..], EntryKind::File(Extent { offset: 1536, len: 1 }))
    );
}

#[test]
fn what_is_no_entry_of_a_layer_is_refused() {
    for (item, why) in [
        (Item { flag: b'7', ..file("a", b"") }, "kind"),
        (char_device("a", 4096, 0), "device number"),
        (file("a", b"").pax("uid", "-1"), "owner"),
        (file("a", b"").pax("size", "-1"), "negative"),
        (file("a", b"").pax("size", "9223372036854775807"), "more data"),
        (file("a", b"").pax("path", vec![b'a'; 1024 * 1024]), "longer than 1 MiB"),
    ] {
        let refusal = refused(&archive(&[item]));
        assert!(refusal.contains(why), "{refusal}");
    }
}

#[test]
fn tars_may_end_without_a_marker_but_not_in_the_middle() {
    let bytes = file("a", &[7; 700]).bytes();
    assert_eq!(bytes.len(), 1536);
    assert_eq!(read(&bytes, 300).unwrap().len(), 1);
    for end in [1535, 1212, 1211, 513, 511, 1] {
        assert!(refused(&bytes[..end]).contains("too early"), "{end}");
    }
    let one_zero_block = [&bytes[..], &[0; 512]].concat();
    assert_eq!(read(&one_zero_block, 512).unwrap().len(), 1);
    let header_after_it = [&one_zero_block[..], &bytes].concat();
    assert!(refused(&header_after_it).contains("block of zeros"));
    let rubbish_after_the_end = [&archive(&[file("a", b"")])[..], b"rubbish"].concat();
    assert_eq!(read(&rubbish_after_the_end, 512).unwrap().len(), 1);
}

#[test]
fn a_wrong_checksum_is_refused_with_its_place() {
    let mut bytes = archive(&[file("a", b""), file("b", b"")]);
    bytes[513] ^= 1;
    assert_eq!(
        refused(&bytes),
        "no valid tar at byte 512 of the uncompressed layer: a header has a wrong checksum"
    );
}

/// A tar with something of everything.
fn everything() -> Vec<u8> {
    archive(&[
        directory("d").mode(0o1777),
        file("d/f", &[1; 1500]).xattr("user.a", b"value").pax("mtime", "1.5"),
        symlink("d/s", "f"),
        hard_link("h", "d/f"),
        char_device("c", 1, 3),
        file(".wh.x", b""),
        file("d/.wh..wh..opq", b""),
        file(&"long/".repeat(40), &[2; 100]),
        Item { flag: b'L', data: b"gnu\0".to_vec(), ..file("././@LongLink", b"") },
        sparse("sparse", "0.1", &[(512, &[3; 512])], 2048),
        sparse("sparse-1.0", "1.0", &[(512, &[3; 512]), (2048, &[3; 100])], 2148),
        fifo("p"),
    ])
}

proptest! {
    #[test]
    fn parts_of_any_length_read_the_same(step in 1usize..3000) {
        prop_assert_eq!(read(&everything(), step), read(&everything(), usize::MAX));
    }

    /// Changes bytes of a tar and mends the checksums, so that the changes are looked at.
    #[test]
    fn rubbish_neither_panics_nor_breaks_an_index(
        changes in vec((0usize..20_000, prop_oneof![any::<u8>(), Just(b'/'), Just(b'7'), Just(0x80), Just(0)]), 1..12),
        mend: bool,
        end in 0usize..20_000,
    ) {
        let mut bytes = everything();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        if mend {
            bytes.chunks_mut(512).filter(|block| block[257..262] == *b"ustar").for_each(sign);
        }
        bytes.truncate(end.max(512));
        let mut tree = Tree::default();
        let mut reader = Reader::default();
        let fed = reader.feed(&bytes, &mut |entry| tree.apply(entry));
        if fed.and_then(|()| reader.finish()).is_ok() {
            let index = erofs::write(&tree, bytes.len() as u64).unwrap();
            prop_assert!(index.len() < 100_000);
        }
    }

    #[test]
    fn noise_is_no_tar(bytes in vec(any::<u8>(), 1..3000)) {
        prop_assume!(bytes.iter().take(512).any(|byte| *byte != 0));
        prop_assert!(read(&bytes, 512).is_err());
    }
}
