//! The file tree that a layer's entries leave behind, in the form that overlayfs stacks.
//!
//! Applies entries as containerd does (`pkg/archive/tar.go`, `applyNaive` with `OverlayConvertWhiteout`): a later entry
//! replaces an earlier one of the same path, save that a directory on a directory only sets its attributes; whiteouts
//! become character devices 0:0 in a directory with an attribute, and opaque markers an attribute; entries for the layer's root change nothing; missing
//! parents are made. Where containerd would take the present time, it is 1970 here.

mod attributes;
mod path;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::{
    entry::{Attributes, Device, Entry, EntryKind, Extent, Sparse},
    refusal::{Refusal, shown},
};

/// Marks a directory that the layer has no entry for, only entries in it; its value is `y`.
///
/// containerd gives such a directory the attributes that it has in the layers below, which a layer's index cannot know;
/// it has mode 0755 and owner 0:0 there, as in a lowest layer.
pub const IMPLIED_XATTR: &str = "trusted.darter.implied";

/// Makes overlayfs hide what the layers below have in a directory.
const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";
/// Makes overlayfs look for whiteouts in a directory that only one layer has (`ovl_get_inode`); else it would list them,
/// as names that lead to nothing. Empty, it says that the directory was copied up from somewhere.
const ORIGIN_XATTR: &[u8] = b"trusted.overlay.origin";
const CAPABILITY_XATTR: &[u8] = b"security.capability";

/// More names are refused; a layer of a million files is a large one.
const MAX_NAMES: usize = 4 * 1024 * 1024;
/// More bytes of names, link targets, extended attributes and maps of sparse files together are refused.
const MAX_TEXT_LEN: usize = 256 * 1024 * 1024;

/// A file tree.
#[derive(Debug)]
pub(super) struct Tree {
    /// The root is the first. Nodes that no name leads to any more stay.
    nodes: Vec<Node>,
    /// How many names were ever given.
    names: usize,
    /// How many bytes of names, link targets, extended attributes and maps of sparse files were ever taken.
    text_len: usize,
}

/// A node of one tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(usize);

/// A file of any kind. Several names may lead to it, unless it is a directory.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) attributes: Attributes,
    /// What is in a directory, sorted by the names' bytes; empty for all other kinds.
    pub(super) children: BTreeMap<Box<[u8]>, NodeId>,
}

/// What kind of file a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NodeKind {
    Directory,
    File(Extent),
    Sparse(Sparse),
    Symlink(Vec<u8>),
    CharDevice(Device),
    BlockDevice(Device),
    Fifo,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node::new(NodeKind::Directory, attributes::of_root());
        Self { nodes: vec![root], names: 0, text_len: 0 }
    }
}

impl Tree {
    /// The top directory.
    pub(super) fn root(&self) -> NodeId {
        NodeId(0)
    }

    #[allow(clippy::indexing_slicing, reason = "`add` alone makes ids, and no node is ever taken away")]
    pub(super) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    #[allow(clippy::indexing_slicing, reason = "`add` alone makes ids, and no node is ever taken away")]
    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id.0]
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Applies the next entry of the tar.
    pub(super) fn apply(&mut self, entry: Entry) -> Result<(), Refusal> {
        let Entry { path, kind, attributes } = entry;
        let components = path::components(&path)?;
        if components.iter().any(|name| path::is_aufs_metadata(name)) {
            return Ok(());
        }
        let Some((name, parents)) = components.split_last() else { return Ok(()) };
        let parent = self.make_parents(&path, parents)?;
        match path::marker(name) {
            None => self.place(parent, name, &path, kind, attributes),
            Some(path::Marker::Opaque) => {
                let xattrs = &mut self.node_mut(parent).attributes.xattrs;
                xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
                Ok(())
            }
            Some(path::Marker::Whiteout(hidden)) => self.white_out(parent, hidden, &path, attributes),
        }
    }

    /// The directory with path `parents`, made where it is missing, for the entry `path`.
    fn make_parents(&mut self, path: &[u8], parents: &[&[u8]]) -> Result<NodeId, Refusal> {
        let mut directory = self.root();
        for name in parents {
            directory = match self.child(directory, name) {
                Some(child) if self.node(child).is_directory() => child,
                Some(_) => {
                    let why = format!("leads through {:?}, which is no directory in this layer", shown(name));
                    return Err(Refusal::entry(path, why));
                }
                None => {
                    let implied = attributes::of_implied_directory(&self.node(directory).attributes);
                    self.add(directory, name, Node::new(NodeKind::Directory, implied))?
                }
            };
        }
        Ok(directory)
    }

    /// Makes what the entry `path` describes, under `name` in `parent`.
    fn place(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        kind: EntryKind,
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        let kind = match kind {
            EntryKind::Directory => match self.child(parent, name) {
                Some(there) if self.node(there).is_directory() => {
                    let directory = &mut self.node_mut(there).attributes;
                    directory.xattrs.remove(IMPLIED_XATTR.as_bytes());
                    return self.change(there, path, attributes);
                }
                _ => NodeKind::Directory,
            },
            EntryKind::HardLink(target) => return self.hard_link(parent, name, path, &target, attributes),
            EntryKind::Symlink(target) => {
                path::check_symlink(path, &target)?;
                self.take_text(target.len())?;
                NodeKind::Symlink(target)
            }
            EntryKind::File(extent) => NodeKind::File(extent),
            EntryKind::Sparse(sparse) => {
                self.take_text(sparse.chunks.len() * size_of::<u64>())?;
                NodeKind::Sparse(sparse)
            }
            EntryKind::CharDevice(device) => NodeKind::CharDevice(device),
            EntryKind::BlockDevice(device) => NodeKind::BlockDevice(device),
            EntryKind::Fifo => NodeKind::Fifo,
        };
        let id = self.add(parent, name, Node::new(kind, Attributes::default()))?;
        self.change(id, path, attributes)
    }

    /// Gives the node that `target` names another name. As always with links, both then have the link's attributes.
    fn hard_link(
        &mut self,
        parent: NodeId,
        name: &[u8],
        path: &[u8],
        target: &[u8],
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        // What stands in the way goes first: a link to itself has no target.
        self.node_mut(parent).children.remove(name);
        let components = path::components(target)?;
        let found = components.iter().try_fold(self.root(), |directory, name| self.child(directory, name));
        let Some(id) = found.filter(|id| !self.node(*id).is_directory()) else {
            let why =
                format!("is a hard link to {:?}, which is no file before it in this layer", shown(target));
            return Err(Refusal::entry(path, why));
        };
        self.name(parent, name, id)?;
        // Linux takes capabilities away when a file's owner is set, which containerd does for a link too.
        self.node_mut(id).attributes.xattrs.remove(CAPABILITY_XATTR);
        self.change(id, path, attributes)
    }

    /// Deletes `hidden` in `parent` from the layers below, as the entry `path` says.
    fn white_out(
        &mut self,
        parent: NodeId,
        hidden: &[u8],
        path: &[u8],
        attributes: Attributes,
    ) -> Result<(), Refusal> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Refusal::entry(path, "is a whiteout of no name"));
        }
        if self.child(parent, hidden).is_some() {
            return Err(Refusal::entry(path, "deletes what this very layer has made"));
        }
        let kind = NodeKind::CharDevice(Device { major: 0, minor: 0 });
        let attributes = Attributes { uid: attributes.uid, gid: attributes.gid, ..Default::default() };
        self.add(parent, hidden, Node::new(kind, attributes))?;
        self.node_mut(parent).attributes.xattrs.insert(ORIGIN_XATTR.to_vec(), Vec::new());
        Ok(())
    }

    /// Sets a node's attributes as an entry says; extended ones that it does not name stay.
    fn change(&mut self, id: NodeId, path: &[u8], attributes: Attributes) -> Result<(), Refusal> {
        self.take_text(attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum())?;
        let node = self.node_mut(id);
        attributes::change(&node.kind, &mut node.attributes, attributes)
            .map_err(|why| Refusal::entry(path, why))
    }

    /// Adds a node under `name` in `parent`, in place of what is there.
    fn add(&mut self, parent: NodeId, name: &[u8], node: Node) -> Result<NodeId, Refusal> {
        let id = NodeId(self.nodes.len());
        self.nodes.push(node);
        self.name(parent, name, id)?;
        Ok(id)
    }

    fn name(&mut self, parent: NodeId, name: &[u8], id: NodeId) -> Result<(), Refusal> {
        self.names += 1;
        if self.names > MAX_NAMES {
            return Err(Refusal::TooLarge("it has more than 4 Mi entries"));
        }
        self.take_text(name.len())?;
        self.node_mut(parent).children.insert(name.into(), id);
        Ok(())
    }

    fn take_text(&mut self, len: usize) -> Result<(), Refusal> {
        self.text_len += len;
        if self.text_len > MAX_TEXT_LEN {
            return Err(Refusal::TooLarge(
                "it has more than 256 MiB of names, links, extended attributes and maps of sparse files",
            ));
        }
        Ok(())
    }

    fn child(&self, directory: NodeId, name: &[u8]) -> Option<NodeId> {
        self.node(directory).children.get(name).copied()
    }
}

impl NodeId {
    /// Counts the nodes from the root's 0 upwards.
    pub(super) fn index(self) -> usize {
        self.0
    }
}

impl Node {
    fn new(kind: NodeKind, attributes: Attributes) -> Self {
        Self { kind, attributes, children: BTreeMap::new() }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == NodeKind::Directory
    }
}
