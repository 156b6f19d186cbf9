//! One inode (`erofs_inode_extended`), its attributes and its data.

use super::{
    BLOCK_LEN, Fields, Image,
    directory::{self, Name},
    layout::{Content, Layout, Place},
    xattr,
};
use crate::layer::{
    entry::{Device, Extent},
    refusal::Refusal,
    tree::{Node, NodeKind, Tree},
};

/// Bit 0 of `i_format`: the inode has 64 bytes.
const EXTENDED: u16 = 1;

/// How the data lie, in bits 1 to 3 of `i_format`.
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;

/// In a chunk format: chunks have an 8-byte index, which names their device.
const WITH_INDEXES: u16 = 0x20;
/// A chunk has at most this power of two blocks, which is 1 TiB.
const MAX_CHUNK_BITS: u32 = 31;
/// What a hole has instead of a block.
const NO_BLOCK: u32 = u32::MAX;
/// The raw tar; 0 is the image itself.
const RAW_TAR_DEVICE: u16 = 1;

/// Writes the inode with this number in `layout`.
pub(super) fn write(image: &mut Image, tree: &Tree, layout: &Layout, number: usize) -> Result<(), Refusal> {
    let Some(place) = layout.places.get(number) else { return Ok(()) };
    let node = tree.node(place.node);
    let xattrs = xattr::encode(&node.attributes.xattrs);
    let attributes = &node.attributes;
    let (format, data_address, size) = describe(node, place)?;
    let fields = Fields::default()
        .u16(EXTENDED | format << 1)
        .u16(xattr::count(xattrs.len()))
        .u16(node.kind.file_type_bits() | attributes.mode)
        .zeros(2)
        .u64(size)
        .u32(data_address)
        .u32(number as u32 + 1)
        .u32(attributes.uid)
        .u32(attributes.gid)
        .u64(attributes.mtime.seconds)
        .u32(attributes.mtime.nanos)
        .u32(place.links)
        .zeros(16)
        .raw(&xattrs);
    image.put(place.offset, &fields.bytes);
    match (&node.kind, place.content) {
        (NodeKind::File(extent), Content::RawTar { index, .. }) => {
            image.put(index, &chunk_index(Some(first_block(*extent)?)));
        }
        (NodeKind::Sparse(sparse), Content::RawTar { index, .. }) => {
            let indexes: Vec<u8> = sparse.chunks.iter().flat_map(|block| chunk_index(*block)).collect();
            image.put(index, &indexes);
        }
        (NodeKind::Symlink(target), Content::Image { .. }) => put_data(image, place.content, target),
        (NodeKind::Directory, Content::Image { .. }) => {
            put_data(image, place.content, &directory_data(tree, layout, node, place));
        }
        _ => {}
    }
    Ok(())
}

/// The data layout, what `i_u` says of it, and the size in bytes.
fn describe(node: &Node, place: &Place) -> Result<(u16, u32, u64), Refusal> {
    Ok(match (&node.kind, place.content) {
        (NodeKind::File(extent), Content::RawTar { .. }) => (CHUNK_BASED, chunk_format(*extent)?, extent.len),
        (NodeKind::Sparse(sparse), Content::RawTar { .. }) => {
            (CHUNK_BASED, u32::from(WITH_INDEXES) | sparse.chunk_bits, sparse.len)
        }
        (NodeKind::CharDevice(device) | NodeKind::BlockDevice(device), _) => (FLAT_PLAIN, device.encode(), 0),
        (_, Content::Image { len, first_block, tail }) => {
            let format = if tail.is_some() { FLAT_INLINE } else { FLAT_PLAIN };
            (format, first_block as u32, len as u64)
        }
        _ => (FLAT_PLAIN, 0, 0),
    })
}

/// One chunk, as large as the file or larger.
fn chunk_format(extent: Extent) -> Result<u32, Refusal> {
    let bits = extent.len.div_ceil(BLOCK_LEN as u64).next_power_of_two().trailing_zeros();
    if bits > MAX_CHUNK_BITS {
        return Err(Refusal::TooLarge("it has a file of more than 1 TiB"));
    }
    Ok(u32::from(WITH_INDEXES) | bits)
}

/// Where a file's only chunk begins in the raw tar.
fn first_block(extent: Extent) -> Result<u32, Refusal> {
    u32::try_from(extent.offset / BLOCK_LEN as u64)
        .map_err(|_| Refusal::TooLarge("it has more than 2 TiB uncompressed"))
}

/// `erofs_inode_chunk_index`: where a chunk begins, `None` for a hole.
fn chunk_index(block: Option<u32>) -> Vec<u8> {
    let device = if block.is_some() { RAW_TAR_DEVICE } else { 0 };
    Fields::default().zeros(2).u16(device).u32(block.unwrap_or(NO_BLOCK)).bytes
}

fn put_data(image: &mut Image, content: Content, data: &[u8]) {
    let Content::Image { first_block, tail, .. } = content else { return };
    let in_blocks = if tail.is_some() { data.len() / BLOCK_LEN * BLOCK_LEN } else { data.len() };
    let (blocks, rest) = data.split_at_checked(in_blocks).unwrap_or((data, &[]));
    image.put(first_block * BLOCK_LEN, blocks);
    if let Some(tail) = tail {
        image.put(tail, rest);
    }
}

fn directory_data(tree: &Tree, layout: &Layout, node: &Node, place: &Place) -> Vec<u8> {
    let of_directory = NodeKind::Directory.dirent_type();
    let own = [(&b"."[..], place.node), (b"..", place.parent)];
    let own = own.map(|(name, node)| Name { name, inode: layout.slot(node), file_type: of_directory });
    let children = node.children.iter().map(|(name, child)| Name {
        name,
        inode: layout.slot(*child),
        file_type: tree.node(*child).kind.dirent_type(),
    });
    let mut names: Vec<_> = children.chain(own).collect();
    names.sort_unstable_by_key(|name| name.name);
    directory::encode(&names)
}

impl NodeKind {
    /// The file type in `i_mode`, as `stat(2)` gives it.
    fn file_type_bits(&self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::CharDevice(_) => 0o020_000,
            Self::Directory => 0o040_000,
            Self::BlockDevice(_) => 0o060_000,
            Self::File(_) | Self::Sparse(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
        }
    }

    /// The file type in a directory entry, `EROFS_FT_…`.
    fn dirent_type(&self) -> u8 {
        match self {
            Self::File(_) | Self::Sparse(_) => 1,
            Self::Directory => 2,
            Self::CharDevice(_) => 3,
            Self::BlockDevice(_) => 4,
            Self::Fifo => 5,
            Self::Symlink(_) => 7,
        }
    }
}

impl Device {
    /// As the kernel writes device numbers down (`new_encode_dev`, `include/linux/kdev_t.h`).
    fn encode(self) -> u32 {
        (self.minor & 0xff) | (self.major << 8) | ((self.minor & !0xff) << 12)
    }
}
