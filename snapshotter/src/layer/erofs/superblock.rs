//! The superblock and the device table behind it.

use super::{BLOCK_LEN, Fields, Image, layout::Layout};
use crate::layer::refusal::Refusal;

/// Where the superblock lies, in bytes.
const OFFSET: usize = 1024;
/// Length of the superblock and of a device table entry, in bytes.
const LEN: usize = 128;
/// Where the first inode may lie, in bytes.
pub(super) const END: usize = OFFSET + 2 * LEN;

const MAGIC: u32 = 0xe0f5_e1e2;
/// Compatible features: the superblock has a checksum; inodes have the time of the last change.
const WITH_CHECKSUM: u32 = 1;
const WITH_MTIME: u32 = 2;
/// Incompatible features: files may be cut into chunks; chunks may lie on other devices.
const WITH_CHUNKS: u32 = 4;
const WITH_DEVICES: u32 = 8;

/// Where fields lie in the superblock, in bytes.
const CHECKSUM: usize = 4;
const UUID: usize = 48;

/// Writes the superblock of an image that is otherwise complete.
pub(super) fn write(image: &mut Image, layout: &Layout, raw_blocks: u32) -> Result<(), Refusal> {
    let root = layout.places.first().map_or(0, |root| layout.slot(root.node));
    let fields = Fields::default()
        .u32(MAGIC)
        .zeros(4)
        .u32(WITH_CHECKSUM | WITH_MTIME)
        .u8(BLOCK_LEN.trailing_zeros() as u8)
        .zeros(1)
        // The root is the first inode, so its slot fits.
        .u16(root as u16)
        .u64(layout.places.len() as u64)
        // No build time: it is only used by inodes without a time of their own.
        .zeros(12)
        .u32((image.bytes.len() / BLOCK_LEN) as u32)
        // Inodes are counted from block 0, and no attributes are shared.
        .zeros(8)
        .zeros(16)
        // No volume name.
        .zeros(16)
        .u32(WITH_CHUNKS | WITH_DEVICES)
        .zeros(2)
        .u16(1)
        .u16(((OFFSET + LEN) / LEN) as u16)
        .zeros(LEN - 90);
    // `erofs_deviceslot`: no tag, since the mount option names the device; not part of the image's own addresses.
    let device = Fields::default().zeros(64).u32(raw_blocks).zeros(LEN - 68);
    image.put(OFFSET, &fields.raw(&device.bytes).bytes);
    image.put(OFFSET + UUID, &uuid(&image.bytes));
    let checked = image.bytes.get(OFFSET..OFFSET + BLOCK_LEN).unwrap_or_default();
    image.put(OFFSET + CHECKSUM, &crc32c(checked).to_le_bytes());
    Ok(())
}

/// Made from the image, so that different layers have different ones, which overlayfs wants (RFC 9562, version 8).
fn uuid(image: &[u8]) -> [u8; 16] {
    let digest =
        u128::from_be_bytes(blake3::hash(image).as_bytes().first_chunk().copied().unwrap_or_default());
    let version = (digest & !(0xf << 76)) | 8 << 76;
    let variant = (version & !(0b11 << 62)) | 0b10 << 62;
    variant.to_be_bytes()
}

/// CRC-32C over the rest of the superblock's block with the checksum itself as 0, not inverted at the end
/// (`erofs_superblock_csum_verify`, `fs/erofs/super.c`).
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_known_one() {
        // RFC 3720, B.4: 32 bytes of zeros.
        assert_eq!(!crc32c(&[0; 32]), 0x8a91_36aa);
    }
}
