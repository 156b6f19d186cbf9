use super::*;
use crate::layer::{
    tar,
    tests::archive::{Item, archive, directory, file, symlink},
};

fn index(items: &[Item]) -> Vec<u8> {
    let raw = archive(items);
    let mut tree = Tree::default();
    tar::Reader::default().feed(&raw, &mut |entry| tree.apply(entry)).unwrap();
    write(&tree, raw.len() as u64).unwrap()
}

#[test]
fn the_order_of_entries_is_not_in_the_index_but_their_places_are() {
    let (a, b) = (directory("a"), symlink("b", "a"));
    assert_eq!(index(&[a.clone(), b.clone()]), index(&[b, a]));
    let (a, b) = (file("a", b"1"), file("b", b"2"));
    assert_ne!(index(&[a.clone(), b.clone()]), index(&[b, a]));
}

#[test]
fn different_layers_have_different_uuids() {
    let uuid = |items: &[Item]| index(items)[1024 + 48..1024 + 64].to_vec();
    assert_ne!(uuid(&[directory("a")]), uuid(&[directory("b")]));
}

#[test]
fn an_index_is_small() {
    let items: Vec<_> =
        (0..1000).map(|number| file(&format!("dir/some-file-{number}"), &[1; 2000])).collect();
    assert!(index(&items).len() < 1000 * 130);
}

#[test]
fn layers_that_no_address_reaches_are_refused() {
    let tree = Tree::default();
    assert!(write(&tree, 512 * u64::from(u32::MAX)).is_ok());
    assert!(write(&tree, 512 * u64::from(u32::MAX) + 1).is_err());
}
