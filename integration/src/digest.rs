//! SHA-256 as registries write it: `sha256:` and 64 hexadecimal digits.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Counts and digests what passes through it.
pub(crate) struct Hashing<W> {
    inner: W,
    sha256: Sha256,
    len: u64,
}

/// The digest of a file, and its length.
pub(crate) fn of_file(path: &Path) -> Result<(String, u64)> {
    let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut hashing = Hashing::new(io::sink());
    io::copy(&mut file, &mut hashing)?;
    Ok(hashing.digest())
}

/// The digest of these bytes.
pub(crate) fn of(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Self {
        Self { inner, sha256: Sha256::new(), len: 0 }
    }

    /// The digest of all that was written, and its length.
    pub(crate) fn digest(&self) -> (String, u64) {
        (format!("sha256:{}", hex::encode(self.sha256.clone().finalize())), self.len)
    }

    pub(crate) fn into_inner(self) -> W {
        self.inner
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sha256.update(bytes.split_at(written).0);
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
