//! What a layer can contain.

/// A file, directory or anything else in a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Relative to the root of the layer.
    pub path: String,
    /// What it is.
    pub kind: Kind,
    /// Permissions, with set-uid, set-gid and sticky bits.
    pub mode: u32,
    /// User id.
    pub uid: u64,
    /// Group id.
    pub gid: u64,
    /// Seconds since 1970; may be negative.
    pub mtime: i64,
    /// Nanoseconds to add to `mtime`.
    pub mtime_nanos: u32,
    /// Extended attributes, with their full names.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// What a [`Node`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A file with this content.
    File(Vec<u8>),
    /// A file of zeros, this long, with this content at an offset; stored without the zeros.
    SparseFile {
        /// In bytes.
        len: u64,
        /// In bytes.
        offset: u64,
        /// What lies there.
        content: Vec<u8>,
    },
    /// A directory.
    Dir,
    /// A symbolic link to this target.
    Symlink(String),
    /// One more name of the node at this path of the same layer.
    HardLink(String),
    /// A character device with its major and minor number.
    CharDevice(u32, u32),
    /// A block device with its major and minor number.
    BlockDevice(u32, u32),
    /// A named pipe.
    Fifo,
}

// === impl Node ===

impl Node {
    /// A node of any kind, owned by root, with the mode that is usual for its kind.
    pub fn new(path: impl Into<String>, kind: Kind) -> Self {
        let mode = match kind {
            Kind::Dir => 0o755,
            Kind::Symlink(_) => 0o777,
            _ => 0o644,
        };
        let mtime = 1_700_000_000;
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime, mtime_nanos: 0, xattrs: Vec::new() }
    }

    /// A file.
    pub fn file(path: impl Into<String>, content: impl Into<Vec<u8>>) -> Self {
        Self::new(path, Kind::File(content.into()))
    }

    /// A directory.
    pub fn dir(path: impl Into<String>) -> Self {
        Self::new(path, Kind::Dir)
    }

    /// A symbolic link.
    pub fn symlink(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::Symlink(target.into()))
    }

    /// One more name of the node at `target`.
    pub fn hard_link(path: impl Into<String>, target: impl Into<String>) -> Self {
        Self::new(path, Kind::HardLink(target.into()))
    }

    /// Removes what the layers below have at `path`: OCI image specification, "Whiteouts".
    pub fn whiteout(path: &str) -> Self {
        match path.rsplit_once('/') {
            Some((dir, name)) => Self::file(format!("{dir}/.wh.{name}"), ""),
            None => Self::file(format!(".wh.{path}"), ""),
        }
    }

    /// Hides what the layers below have in the directory `dir`: OCI image specification, "Opaque Whiteout".
    pub fn opaque(dir: &str) -> Self {
        Self::file(format!("{dir}/.wh..wh..opq"), "")
    }

    /// With these permissions.
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Owned by this user and group.
    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Modified at this time: seconds since 1970 and nanoseconds.
    pub fn mtime(mut self, seconds: i64, nanos: u32) -> Self {
        (self.mtime, self.mtime_nanos) = (seconds, nanos);
        self
    }

    /// With an extended attribute.
    pub fn xattr(mut self, name: &str, value: impl Into<Vec<u8>>) -> Self {
        self.xattrs.push((name.to_owned(), value.into()));
        self
    }
}
