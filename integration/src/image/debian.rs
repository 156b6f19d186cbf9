//! Debian's packages as the content of layers. Only apt and dpkg are asked, so any mirror and release will do.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};
use tar::{Entry, EntryType};

use super::{Kind, LayerWriter, Node};

/// Directories that are links into /usr, in every release from Debian 12 on: https://wiki.debian.org/UsrMerge
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];
/// As if no package were installed; and without asking the user `_apt`, who may not read the cache, to download.
const APT_OPTIONS: [&str; 5] = [
    "Dir::State::status=/dev/null",
    "APT::Sandbox::User=root",
    "APT::Install-Recommends=false",
    "Debug::NoLocking=true",
    "Acquire::Retries=3",
];

/// The file names of the packages that must be installed for `packages` on an empty system, in apt's order.
pub(super) fn closure(packages: &[&str]) -> Result<Vec<String>> {
    let args = [&["install", "-qq", "--print-uris"], packages].concat();
    // The lists may never have been read on this machine.
    let printed =
        apt(&args, None).or_else(|_| apt(&["update", "-qq"], None).and_then(|_| apt(&args, None)))?;
    // A line is 'URI' file-name length digest.
    let names = printed.lines().filter_map(|line| line.split_whitespace().nth(1));
    Ok(names.map(str::to_owned).collect())
}

/// Downloads `packages` and what they depend on into `dir`; what is there already is not downloaded again.
pub(super) fn download(packages: &[&str], dir: &Path) -> Result<()> {
    fs::create_dir_all(dir.join("partial"))?;
    let args = [&["install", "-qq", "-y", "--download-only"], packages].concat();
    // The lists may be so old that the mirror no longer has what they name.
    apt(&args, Some(dir)).or_else(|_| apt(&["update", "-qq"], None).and_then(|_| apt(&args, Some(dir))))?;
    Ok(())
}

fn apt(args: &[&str], archives: Option<&Path>) -> Result<String> {
    let mut command = Command::new("apt-get");
    for option in APT_OPTIONS {
        command.arg("-o").arg(option);
    }
    if let Some(archives) = archives {
        command.arg("-o").arg(format!("Dir::Cache::archives={}", archives.display()));
    }
    let output = command.args(args).stdin(Stdio::null()).output().context("starting apt-get")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "apt-get {}: {}\n{errors}", args.join(" "), output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The links that make a system a merged one, for the lowest layer.
pub(super) fn merged_links() -> impl Iterator<Item = Node> {
    MERGED.into_iter().map(|dir| Node::symlink(dir, format!("usr/{dir}")))
}

/// Writes what packages install (their maintainer scripts are not run) into a layer.
#[derive(Debug, Default)]
pub(super) struct Unpacker {
    /// Directories that are in the layer already.
    dirs: BTreeSet<PathBuf>,
}

impl Unpacker {
    /// Adds the content of one package.
    pub(super) fn unpack(&mut self, package: &Path, layer: &mut LayerWriter) -> Result<()> {
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdout(Stdio::piped())
            .spawn()
            .context("starting dpkg-deb")?;
        let mut archive = tar::Archive::new(child.stdout.take().context("no standard output")?);
        let mut kept = HashSet::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let Some(node) = node_of(&entry)? else { continue };
            if node.kind == Kind::Dir && !self.dirs.insert(node.path.clone().into()) {
                continue;
            }
            if let Kind::HardLink(target) = &node.kind {
                ensure!(
                    kept.contains(target),
                    "{}: {target} is linked to before it is there",
                    package.display()
                );
            }
            kept.insert(node.path.clone());
            let len = entry.size();
            layer.add_from(&node, len, &mut entry)?;
        }
        drop(archive);
        let status = child.wait()?;
        ensure!(status.success(), "dpkg-deb --fsys-tarfile {}: {status}", package.display());
        Ok(())
    }
}

/// The node for an entry of a package; `None` for the root, and for the directories that are links in a merged system.
fn node_of(entry: &Entry<'_, impl std::io::Read>) -> Result<Option<Node>> {
    let path = merged(&entry.path()?.to_string_lossy());
    if path.is_empty() || MERGED.contains(&path.as_str()) {
        return Ok(None);
    }
    let header = entry.header();
    let target = || -> Result<String> {
        Ok(entry.link_name()?.context("a link without a target")?.to_string_lossy().into_owned())
    };
    let kind = match header.entry_type() {
        EntryType::Regular => Kind::File(Vec::new()),
        EntryType::Directory => Kind::Dir,
        EntryType::Symlink => Kind::Symlink(target()?),
        EntryType::Link => Kind::HardLink(merged(&target()?)),
        other => anyhow::bail!("{path}: unexpected in a package: {other:?}"),
    };
    let mtime = i64::try_from(header.mtime()?)?;
    let node = Node::new(path, kind).mode(header.mode()? & 0o7777).owner(header.uid()?, header.gid()?);
    Ok(Some(node.mtime(mtime, 0)))
}

/// The path in a merged system, without leading `./` and trailing `/`.
fn merged(path: &str) -> String {
    let path = path.trim_start_matches("./").trim_end_matches('/');
    match path.split_once('/') {
        Some((dir, _)) if MERGED.contains(&dir) => format!("usr/{path}"),
        _ => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged_into_usr() {
        assert_eq!(merged("./"), "");
        assert_eq!(merged("./bin/"), "bin");
        assert_eq!(merged("./bin/dash"), "usr/bin/dash");
        assert_eq!(merged("./usr/bin/env"), "usr/bin/env");
        assert_eq!(merged("./binary/x"), "binary/x");
    }
}
