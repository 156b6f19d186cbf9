//! A real directory, through the real `tar`.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use super::{
    mounted::Mounted,
    seen::{assert_same, walk},
};

/// Directories that some Debian or other has, the first of them is taken.
const SOURCES: [&str; 3] = ["/usr/lib/python3", "/usr/share/perl", "/usr/share/zoneinfo"];

fn tar(args: &[&str], dir: &Path) -> Command {
    let mut tar = Command::new("tar");
    tar.args(args).arg("-C").arg(dir).stdin(Stdio::null());
    tar
}

#[test]
fn a_directory_of_this_machine_survives() {
    let source = SOURCES.map(Path::new).into_iter().find(|path| path.is_dir()).unwrap();
    for format in ["--format=pax", "--format=gnu", "--format=ustar"] {
        let packed = tar(&["-c", format, "-f", "-"], source).arg(".").output().unwrap();
        assert!(packed.status.success());
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tar");
        std::fs::write(&file, &packed.stdout).unwrap();
        let unpacked = dir.path().join("unpacked");
        std::fs::create_dir(&unpacked).unwrap();
        let status = tar(&["-xp", "-f", file.to_str().unwrap()], &unpacked).status().unwrap();
        assert!(status.success());
        let mounted = Mounted::layer(&packed.stdout);
        let (mut found, mut expected) = (walk(mounted.path()), walk(&unpacked));
        assert!(found.len() > 100);
        // The root's attributes are no part of a layer.
        found.remove(Path::new(""));
        expected.remove(Path::new(""));
        assert_same(&found, &expected);
    }
}
