//! Writes tars by hand, so that they can be as odd as a test wants.

/// One entry to write; fields are set by the methods named like them.
#[derive(Debug, Clone)]
pub(in crate::layer) struct Item {
    pub(in crate::layer) flag: u8,
    pub(in crate::layer) name: Vec<u8>,
    pub(in crate::layer) link: Vec<u8>,
    pub(in crate::layer) data: Vec<u8>,
    pub(in crate::layer) mode: u32,
    pub(in crate::layer) owner: (u32, u32),
    pub(in crate::layer) mtime: u64,
    pub(in crate::layer) device: (u32, u32),
    pub(in crate::layer) pax: Vec<(String, Vec<u8>)>,
    /// What the file holds, if not its data: it is sparse.
    pub(in crate::layer) whole: Option<Vec<u8>>,
}

fn item(flag: u8, name: &str) -> Item {
    Item {
        flag,
        name: name.into(),
        link: Vec::new(),
        data: Vec::new(),
        mode: 0o644,
        owner: (0, 0),
        mtime: 1_700_000_000,
        device: (0, 0),
        pax: Vec::new(),
        whole: None,
    }
}

pub(in crate::layer) fn file(name: &str, data: &[u8]) -> Item {
    Item { data: data.to_vec(), ..item(b'0', name) }
}

/// A file of `len` bytes with data only in these parts, in one of the three ways in which GNU tar writes it with pax.
pub(in crate::layer) fn sparse(name: &str, version: &str, parts: &[(usize, &[u8])], len: usize) -> Item {
    let mut whole = vec![0; len];
    for (at, part) in parts {
        whole[*at..at + part.len()].copy_from_slice(part);
    }
    let data = parts.iter().flat_map(|(_, part)| part.iter().copied()).collect::<Vec<u8>>();
    let count = parts.len().to_string();
    let numbers: Vec<String> =
        parts.iter().flat_map(|(at, part)| [at.to_string(), part.len().to_string()]).collect();
    let made = match version {
        "0.0" => {
            let listed = ["GNU.sparse.offset", "GNU.sparse.numbytes"].into_iter().cycle().zip(&numbers);
            listed.fold(file(name, &data), |item, (key, number)| item.pax(key, number))
        }
        "0.1" => file("GNUSparseFile.0/x", &data)
            .pax("GNU.sparse.name", name)
            .pax("GNU.sparse.map", numbers.join(",")),
        _ => {
            let mut map = format!(
                "{count}\n{}",
                numbers.iter().map(|number| format!("{number}\n")).collect::<String>()
            );
            map.extend(std::iter::repeat_n('\0', map.len().next_multiple_of(512) - map.len()));
            file("GNUSparseFile.0/x", &[map.as_bytes(), &data].concat())
                .pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.name", name)
        }
    };
    let size = if version == "1.0" { "GNU.sparse.realsize" } else { "GNU.sparse.size" };
    let made = made.pax(size, len.to_string()).pax("GNU.sparse.numblocks", count);
    Item { whole: Some(whole), ..made }
}

pub(in crate::layer) fn directory(name: &str) -> Item {
    Item { mode: 0o755, ..item(b'5', name) }
}

pub(in crate::layer) fn symlink(name: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(b'2', name) }
}

pub(in crate::layer) fn hard_link(name: &str, target: &str) -> Item {
    Item { link: target.into(), ..item(b'1', name) }
}

pub(in crate::layer) fn char_device(name: &str, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(b'3', name) }
}

pub(in crate::layer) fn block_device(name: &str, major: u32, minor: u32) -> Item {
    Item { device: (major, minor), ..item(b'4', name) }
}

pub(in crate::layer) fn fifo(name: &str) -> Item {
    item(b'6', name)
}

impl Item {
    pub(in crate::layer) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    pub(in crate::layer) fn owner(self, uid: u32, gid: u32) -> Self {
        Self { owner: (uid, gid), ..self }
    }

    pub(in crate::layer) fn mtime(self, mtime: u64) -> Self {
        Self { mtime, ..self }
    }

    pub(in crate::layer) fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.into(), value.as_ref().to_vec()));
        self
    }

    pub(in crate::layer) fn xattr(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    /// The ustar header, with the pax header before it that it needs.
    pub(in crate::layer) fn headers(&self) -> Vec<u8> {
        let mut pax = self.pax.clone();
        for (key, text) in [("path", &self.name), ("linkpath", &self.link)] {
            if text.len() > 100 {
                pax.push((key.into(), text.clone()));
            }
        }
        let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
        let mut bytes = Vec::new();
        if !records.is_empty() {
            bytes = Self { data: records, ..item(b'x', "pax") }.bytes();
        }
        bytes.extend_from_slice(&self.header());
        bytes
    }

    /// The ustar header alone.
    pub(in crate::layer) fn header(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        put(0, &self.name[..self.name.len().min(100)]);
        put(100, format!("{:07o}\0", self.mode).as_bytes());
        put(108, &base256(self.owner.0));
        put(116, &base256(self.owner.1));
        put(124, format!("{:011o}\0", self.data.len()).as_bytes());
        put(136, format!("{:011o}\0", self.mtime).as_bytes());
        put(156, &[self.flag]);
        put(157, &self.link[..self.link.len().min(100)]);
        put(257, b"ustar\x0000");
        put(329, format!("{:07o}\0", self.device.0).as_bytes());
        put(337, format!("{:07o}\0", self.device.1).as_bytes());
        sign(&mut block);
        block
    }

    pub(in crate::layer) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.headers();
        bytes.extend_from_slice(&self.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

/// Puts the right checksum into a header.
pub(in crate::layer) fn sign(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn base256(number: u32) -> [u8; 8] {
    (u64::from(number) | 1 << 63).to_be_bytes()
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let content = key.len() + value.len() + 3;
    let len =
        (1..).map(|digits| content + digits).find(|len| content + len.to_string().len() == *len).unwrap();
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// A tar of these entries, with its end marker.
pub(in crate::layer) fn archive(items: &[Item]) -> Vec<u8> {
    let mut bytes: Vec<u8> = items.iter().flat_map(Item::bytes).collect();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}
