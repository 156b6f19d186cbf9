//! Random entries, unpacked and mounted, are the same tree.

use std::io;

use darter_peer::MakeError;
use proptest::{collection::vec, prelude::*, sample::select};
use tempfile::TempDir;

use super::{
    archive::{Item, archive, block_device, char_device, directory, fifo, file, hard_link, sparse, symlink},
    make,
    mounted::Mounted,
    oracle,
    seen::{assert_same, walk},
};

/// Few names, so that entries meet.
fn path() -> impl Strategy<Value = String> {
    let plain = select(vec!["a", "b", "c", "d e", "é"]);
    let odd = select(vec!["..", ".", ".wh.a", ".wh.b", ".wh..wh..opq"]);
    vec(prop_oneof![5 => plain, 1 => odd], 1..4).prop_map(|names| names.join("/"))
}

fn item() -> impl Strategy<Value = Item> {
    let kind = (0..13u8, path(), path(), vec(any::<u8>(), 0..2000), 0..300u32);
    let attributes = (0..0o10000u32, (0..70_000u32, 0..70_000u32), 0..2_000_000_000u64);
    let xattrs = vec((select(vec!["user.a", "user.b"]), vec(any::<u8>(), 0..40)), 0..3);
    (kind, attributes, xattrs).prop_map(
        |((kind, path, other, data, number), (mode, owner, mtime), xattrs)| {
            let item = match kind {
                0..4 => file(&path, &data),
                4..7 => directory(&path),
                7 => symlink(&path, &other),
                8 => hard_link(&path, &other),
                9 => char_device(&path, number, 7),
                10 => block_device(&path, 8, number * 100),
                11 => {
                    let version = ["0.0", "0.1", "1.0"][number as usize % 3];
                    let at = (number as usize / 3 % 7) * 512;
                    sparse(&path, version, &[(at, &data)], at + data.len())
                }
                _ => fifo(&path),
            };
            let item = Item { mode, owner, mtime, ..item };
            xattrs.into_iter().fold(item, |item, (name, value)| item.xattr(name, value))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_mounted_layer_is_what_unpacking_gives(items in vec(item(), 0..24)) {
        let mut good = Vec::new();
        let mut unpacked = unpack(&[]).unwrap();
        for item in items {
            good.push(item);
            match unpack(&good) {
                Ok(more) => unpacked = more,
                Err(_) => {
                    prop_assert!(matches!(make(&archive(&good)), Err(MakeError::Refused(_))));
                    good.pop();
                }
            }
        }
        let mounted = Mounted::layer(&archive(&good));
        assert_same(&walk(mounted.path()), &walk(unpacked.path()));
    }
}

fn unpack(items: &[Item]) -> io::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    oracle::unpack(dir.path(), items)?;
    Ok(dir)
}
