//! Writes a tree as an EROFS image: all metadata, and for each file where its bytes lie in the raw tar.
//!
//! The format is the kernel's (`fs/erofs/erofs_fs.h`, <https://erofs.docs.kernel.org/en/latest/core_ondisk.html>).
//! The image uses the smallest part of it that can point into a tar, where files begin at any multiple of 512:
//! blocks of 512 bytes (Linux 6.4 and later), 64-byte inodes, and files of a single chunk on a second device, which is
//! the raw tar. Directories and symbolic links hold their data in the image, extended attributes follow their inode.
//!
//! Mount it with `mount(2)`: type `erofs`, source the image, option `device=` the raw tar.

mod directory;
mod inode;
mod layout;
mod superblock;
#[cfg(test)]
mod tests;
mod xattr;

use self::layout::Layout;
use super::{refusal::Refusal, tree::Tree};

/// Length of a block, in bytes. All addresses count blocks.
const BLOCK_LEN: usize = 512;

/// Inodes begin at multiples of this and are known by the number of such slots before them, in bytes.
const SLOT_LEN: usize = 32;

/// The index of a tree whose raw tar has `raw_len` bytes.
pub(super) fn write(tree: &Tree, raw_len: u64) -> Result<Vec<u8>, Refusal> {
    let raw_blocks = u32::try_from(raw_len.div_ceil(BLOCK_LEN as u64))
        .map_err(|_| Refusal::TooLarge("it has more than 2 TiB uncompressed"))?;
    let layout = Layout::of(tree)?;
    let mut image = Image::default();
    for number in 0..layout.places.len() {
        inode::write(&mut image, tree, &layout, number)?;
    }
    image.pad();
    superblock::write(&mut image, &layout, raw_blocks)?;
    Ok(image.bytes)
}

/// The bytes of an image; what was not put there is 0.
#[derive(Default)]
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let end = at + bytes.len();
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        if let Some(place) = self.bytes.get_mut(at..end) {
            place.copy_from_slice(bytes);
        }
    }

    /// Fills up the last block.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK_LEN), 0);
    }
}

/// Joins the fields of an on-disk structure: little-endian numbers and bytes.
#[derive(Default)]
struct Fields {
    bytes: Vec<u8>,
}

impl Fields {
    fn u8(mut self, value: u8) -> Self {
        self.bytes.push(value);
        self
    }

    fn u16(self, value: u16) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn u64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    fn zeros(mut self, len: usize) -> Self {
        self.bytes.resize(self.bytes.len() + len, 0);
        self
    }
}
