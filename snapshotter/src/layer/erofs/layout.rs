//! Where everything lies in the image: the superblock, all inodes from the root downwards, then the data of directories
//! and symbolic links.

use super::{BLOCK_LEN, SLOT_LEN, directory, superblock, xattr};
use crate::layer::{
    refusal::Refusal,
    tree::{NodeId, NodeKind, Tree},
};

/// Length of an `erofs_inode_extended`, in bytes.
pub(super) const INODE_LEN: usize = 64;
/// Length of an `erofs_inode_chunk_index`, in bytes; it is aligned to that too.
pub(super) const CHUNK_INDEX_LEN: usize = 8;

/// Where everything lies in the image.
pub(super) struct Layout {
    /// One for each inode, the root's first.
    pub(super) places: Vec<Place>,
    /// Where each node's inode lies; 0 for a node that no name leads to.
    offsets: Vec<usize>,
}

/// Where one inode lies, and what belongs to it.
pub(super) struct Place {
    pub(super) node: NodeId,
    /// The directory that a directory is in; the root is in itself.
    pub(super) parent: NodeId,
    /// In bytes from the start of the image.
    pub(super) offset: usize,
    /// How many names lead to it.
    pub(super) links: u32,
    pub(super) content: Content,
}

/// Where a file's data lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// There are none.
    Empty,
    /// In the raw tar; the indexes of so many chunks stand at this offset.
    RawTar { index: usize, chunks: usize },
    /// In the image: whole blocks, the first of which is given, and behind the inode, at this offset, what is left.
    Image { len: usize, first_block: usize, tail: Option<usize> },
}

impl Layout {
    pub(super) fn of(tree: &Tree) -> Result<Self, Refusal> {
        let mut places = places(tree);
        let mut offsets = vec![0; tree.len()];
        let mut end = superblock::END;
        for place in &mut places {
            end = place.fit(tree, end);
            if let Some(offset) = offsets.get_mut(place.node.index()) {
                *offset = place.offset;
            }
        }
        let mut block = end.div_ceil(BLOCK_LEN);
        for place in &mut places {
            block = place.give_blocks(block);
        }
        if u32::try_from(block).is_err() {
            return Err(Refusal::TooLarge("its index would have more than 2 TiB"));
        }
        Ok(Self { places, offsets })
    }

    /// The number of slots before a node's inode, by which directories know it.
    pub(super) fn slot(&self, node: NodeId) -> u64 {
        (self.offsets.get(node.index()).copied().unwrap_or_default() / SLOT_LEN) as u64
    }
}

impl Place {
    /// Finds room for the inode and what stands behind it, not before `start`; says where that ends.
    fn fit(&mut self, tree: &Tree, start: usize) -> usize {
        let node = tree.node(self.node);
        let len = INODE_LEN + xattr::encode(&node.attributes.xattrs).len();
        self.offset = start.next_multiple_of(SLOT_LEN);
        match &mut self.content {
            Content::Empty => self.offset + len,
            Content::RawTar { index, chunks } => {
                *index = (self.offset + len).next_multiple_of(CHUNK_INDEX_LEN);
                *index + *chunks * CHUNK_INDEX_LEN
            }
            Content::Image { len: data_len, tail, .. } => {
                let tail_len = *data_len % BLOCK_LEN;
                match room_for_tail(self.offset, len, tail_len) {
                    Some(offset) => {
                        self.offset = offset;
                        *tail = Some(offset + len);
                        offset + len + tail_len
                    }
                    None => self.offset + len,
                }
            }
        }
    }

    /// Takes the blocks that the data need, from `block` on; says which one is free then.
    fn give_blocks(&mut self, block: usize) -> usize {
        let Content::Image { len, first_block, tail } = &mut self.content else { return block };
        *first_block = block;
        block + if tail.is_some() { *len / BLOCK_LEN } else { len.div_ceil(BLOCK_LEN) }
    }
}

/// The first offset from `start` on where an inode of `len` bytes can have its tail behind it: a tail must not cross
/// into another block. `None` if there is no tail, or no such offset.
fn room_for_tail(start: usize, len: usize, tail_len: usize) -> Option<usize> {
    let fits = |offset: &usize| (offset + len) % BLOCK_LEN + tail_len <= BLOCK_LEN;
    (tail_len > 0).then(|| (start..start + BLOCK_LEN).step_by(SLOT_LEN).find(fits))?
}

/// All nodes that names lead to, each directory's together, with offsets still to be found.
fn places(tree: &Tree) -> Vec<Place> {
    let mut links = vec![0u32; tree.len()];
    let mut order = vec![(tree.root(), tree.root())];
    add_link(&mut links, tree.root());
    let mut next = 0;
    while let Some((directory, parent)) = order.get(next).copied() {
        next += 1;
        if tree.node(directory).is_directory() {
            // Its own `.`, and its `..` in its parent.
            add_link(&mut links, directory);
            if next > 1 {
                add_link(&mut links, parent);
            }
        }
        for child in tree.node(directory).children.values() {
            if add_link(&mut links, *child) == 1 {
                order.push((*child, directory));
            }
        }
    }
    let place = |(node, parent): (NodeId, NodeId)| {
        let links = links.get(node.index()).copied().unwrap_or_default();
        Place { node, parent, offset: 0, links, content: content(tree, node) }
    };
    order.into_iter().map(place).collect()
}

/// Counts one more name of a node; says how many it has now.
fn add_link(links: &mut [u32], node: NodeId) -> u32 {
    let Some(count) = links.get_mut(node.index()) else { return 0 };
    *count += 1;
    *count
}

fn content(tree: &Tree, node: NodeId) -> Content {
    let node = tree.node(node);
    let in_image = |len| Content::Image { len, first_block: 0, tail: None };
    match &node.kind {
        NodeKind::Directory => in_image(directory::len(names(node.children.keys().map(AsRef::as_ref)))),
        NodeKind::Symlink(target) => in_image(target.len()),
        NodeKind::File(extent) if extent.len > 0 => Content::RawTar { index: 0, chunks: 1 },
        NodeKind::Sparse(sparse) if sparse.len > 0 => {
            Content::RawTar { index: 0, chunks: sparse.chunks.len() }
        }
        _ => Content::Empty,
    }
}

/// A directory's names, sorted, with the two that every directory has.
fn names<'a>(children: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut names: Vec<&[u8]> = children.chain([&b"."[..], b".."]).collect();
    names.sort_unstable();
    names.into_iter()
}
