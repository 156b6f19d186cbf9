//! An unfinished download beside the file that it will become.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use darter_peer::Digest;

/// `FILE.part`, and `FILE.part.task` which says of which content it is a part.
pub(super) struct Part {
    output: PathBuf,
    path: PathBuf,
    task_path: PathBuf,
    file: File,
    len: u64,
}

impl Part {
    /// Opens the part of `output`; what belongs to another task than `task` is emptied.
    pub(super) fn open(output: &Path, task: &str) -> anyhow::Result<Self> {
        let path = with_suffix(output, ".part");
        let task_path = with_suffix(output, ".part.task");
        let same = fs::read_to_string(&task_path).is_ok_and(|earlier| earlier == task);
        if !same {
            fs::write(&task_path, task).with_context(|| format!("writing {}", task_path.display()))?;
        }
        let mut options = OpenOptions::new();
        options.create(true).read(true).append(true);
        let file = options.open(&path).with_context(|| format!("writing {}", path.display()))?;
        if !same {
            file.set_len(0)?;
        }
        let len = file.metadata()?.len();
        Ok(Self { output: output.to_owned(), path, task_path, file, len })
    }

    /// Bytes that are there.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(bytes).with_context(|| format!("writing {}", self.path.display()))?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Checks the whole, if its digest is known, and gives it its name.
    pub(super) fn finish(self, digest: Option<&Digest>) -> anyhow::Result<()> {
        self.file.sync_all()?;
        if let Some(expected) = digest {
            let found = hash(&self.path, expected)?;
            if found != *expected {
                fs::remove_file(&self.path)?;
                fs::remove_file(&self.task_path)?;
                bail!("the file's digest is {found}, not {expected}; it was removed");
            }
        }
        fs::rename(&self.path, &self.output).with_context(|| format!("naming {}", self.output.display()))?;
        fs::remove_file(&self.task_path)?;
        Ok(())
    }
}

fn hash(path: &Path, like: &Digest) -> anyhow::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = like.algorithm().hasher();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        match buffer.get(..read) {
            Some([]) | None => return Ok(hasher.finish()),
            Some(bytes) => hasher.update(bytes),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_with_the_same_content_only() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("file");
        Part::open(&output, "task-1").unwrap().write(b"ab").unwrap();
        let mut again = Part::open(&output, "task-1").unwrap();
        assert_eq!(again.len(), 2);
        again.write(b"c").unwrap();
        assert_eq!(Part::open(&output, "task-2").unwrap().len(), 0);
    }

    #[test]
    fn names_only_what_has_the_digest() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("file");
        let digest = Digest::sha256(b"right");
        let mut part = Part::open(&output, "t").unwrap();
        part.write(b"wrong").unwrap();
        assert!(part.finish(Some(&digest)).is_err());
        assert!(!output.exists());
        let mut part = Part::open(&output, "t").unwrap();
        part.write(b"right").unwrap();
        part.finish(Some(&digest)).unwrap();
        assert_eq!(fs::read(&output).unwrap(), b"right");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
