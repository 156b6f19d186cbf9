//! The image that is read: a long file, a large binary and many small files above another layer.

use std::path::{Path, PathBuf};

use anyhow::Result;
use darter_integration::{
    Image,
    image::{Compression, Format, ImageBuilder, LayerWriter, Node},
};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

/// What is read from the beginning to the end, and at random places.
pub(crate) const LONG: &str = "long";
/// What is mapped into memory.
pub(crate) const BINARY: &str = "binary";
/// What is walked and packed.
pub(crate) const TREE: &str = "tree";

/// Lengths in bytes.
const LONG_LEN: usize = 512 << 20;
const BINARY_LEN: usize = 128 << 20;
/// Lengths of small files are spread evenly on a scale of powers of two between these.
const SMALL_LEN: [f64; 2] = [7.0, 15.0];
const DIRS: usize = 500;
const FILES_OF_DIR: usize = 40;

/// Makes the image in a new directory.
pub(crate) fn make(dir: &Path) -> Result<Image> {
    let mut rng = SmallRng::seed_from_u64(1);
    let builder = ImageBuilder::new(dir, Format::Oci)?;
    let builder = builder.layer(Compression::None, |layer| layer.add(&Node::file("below", "below")))?;
    builder.layer(Compression::None, |layer| fill(layer, &mut rng))?.finish()
}

fn fill(layer: &mut LayerWriter, rng: &mut SmallRng) -> Result<()> {
    layer.add(&Node::file(LONG, bytes(rng, LONG_LEN)))?;
    layer.add(&Node::file(BINARY, bytes(rng, BINARY_LEN)).mode(0o755))?;
    layer.add(&Node::dir(TREE))?;
    for dir in 0..DIRS {
        // Ten beside each other, as deep as packages mostly are.
        let (outer, dir) = (format!("{TREE}/{}", dir / 10), format!("{TREE}/{}/{}", dir / 10, dir % 10));
        if dir.ends_with("/0") {
            layer.add(&Node::dir(outer))?;
        }
        layer.add(&Node::dir(&dir))?;
        for file in 0..FILES_OF_DIR {
            let [least, most] = SMALL_LEN;
            let len = rng.random_range(least..most).exp2() as usize;
            layer.add(&Node::file(path(&dir, file), bytes(rng, len)))?;
        }
    }
    Ok(())
}

fn path(dir: &str, file: usize) -> String {
    PathBuf::from(dir).join(format!("file-{file}.txt")).display().to_string()
}

/// Bytes that nothing compresses.
fn bytes(rng: &mut SmallRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}
