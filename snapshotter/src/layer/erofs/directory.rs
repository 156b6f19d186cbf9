//! Directory data: in each block first the `erofs_dirent`s, then their names, sorted over all blocks.

use super::{BLOCK_LEN, Fields};

const ENTRY_LEN: usize = 12;

/// One name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name<'a> {
    pub(super) name: &'a [u8],
    /// What it leads to, as the number of slots before that inode.
    pub(super) inode: u64,
    /// `EROFS_FT_…`.
    pub(super) file_type: u8,
}

/// How long the data of a directory are that has these names, in the order of their bytes; in bytes.
pub(super) fn len<'a>(names: impl Iterator<Item = &'a [u8]>) -> usize {
    let (full, last) = names.fold((0, 0), |(full, used), name| {
        let needed = ENTRY_LEN + name.len();
        if used + needed > BLOCK_LEN { (full + BLOCK_LEN, needed) } else { (full, used + needed) }
    });
    full + last
}

/// The data of a directory that has these names, in the order of their bytes.
pub(super) fn encode(names: &[Name<'_>]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = names;
    while !rest.is_empty() {
        let (block, after) = rest.split_at_checked(fitting(rest)).unwrap_or((rest, &[]));
        data.resize(data.len().next_multiple_of(BLOCK_LEN), 0);
        data.extend(encode_block(block));
        rest = after;
    }
    data
}

/// How many of the names fit into one block.
fn fitting(names: &[Name<'_>]) -> usize {
    let mut used = 0;
    let fits = |name: &&Name<'_>| {
        used += ENTRY_LEN + name.name.len();
        used <= BLOCK_LEN
    };
    names.iter().take_while(fits).count().max(1)
}

fn encode_block(names: &[Name<'_>]) -> Vec<u8> {
    let mut name_offset = names.len() * ENTRY_LEN;
    let mut fields = Fields::default();
    for name in names {
        fields = fields.u64(name.inode).u16(name_offset as u16).u8(name.file_type).zeros(1);
        name_offset += name.name.len();
    }
    names.iter().fold(fields, |fields, name| fields.raw(name.name)).bytes
}
