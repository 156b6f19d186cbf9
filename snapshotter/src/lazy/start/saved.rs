//! Start profiles on disk: `profiles/<chainID>`, those of the images that this node saw start.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use darter_peer::Digest;

/// Most profiles that are kept.
const MAX_SAVED: usize = 256;

/// The directory of the profiles. Methods block.
#[derive(Debug, Clone)]
pub(super) struct Saved(PathBuf);

impl Saved {
    pub(super) fn below(root: &Path) -> Self {
        Self(root.join("profiles"))
    }

    /// An image's profile, if it is here and can be read.
    pub(super) fn get(&self, image: &Digest) -> Option<Vec<u8>> {
        fs::read(self.0.join(image.hex())).ok()
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> io::Result<Vec<(Digest, Vec<u8>)>> {
        let mut all = Vec::new();
        for (_, path) in self.by_age()? {
            let image = path.file_name().and_then(|name| format!("sha256:{}", name.to_str()?).parse().ok());
            all.extend(image.zip(fs::read(&path).ok()));
        }
        Ok(all)
    }

    /// Keeps a profile. It is a hint: after a crash it may be gone or damaged, and nothing depends on it.
    pub(super) fn put(&self, image: &Digest, profile: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let path = self.0.join(image.hex());
        fs::write(path.with_extension("new"), profile)?;
        fs::rename(path.with_extension("new"), path)?;
        let by_age = self.by_age()?;
        let excess = by_age.len().saturating_sub(MAX_SAVED);
        by_age.into_iter().take(excess).try_for_each(|(_, path)| fs::remove_file(path))
    }

    fn by_age(&self) -> io::Result<Vec<(SystemTime, PathBuf)>> {
        let entries = match fs::read_dir(&self.0) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut files = Vec::new();
        for entry in entries {
            let entry = entry?;
            files.push((entry.metadata()?.modified()?, entry.path()));
        }
        files.sort();
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_latest() {
        let dir = tempfile::tempdir().unwrap();
        let saved = Saved::below(dir.path());
        assert!(saved.all().unwrap().is_empty());
        let image = |number: usize| Digest::sha256(&number.to_le_bytes());
        for number in 0..MAX_SAVED + 3 {
            saved.put(&image(number), &number.to_le_bytes()).unwrap();
        }
        assert_eq!(saved.all().unwrap().len(), MAX_SAVED);
        let newest = MAX_SAVED + 2;
        assert_eq!(saved.get(&image(newest)), Some(newest.to_le_bytes().to_vec()));
    }
}
