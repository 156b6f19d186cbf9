//! Mounting a layer's index, with the layer's flat FUSE file as the device that its files point into
//! (Linux, Documentation/filesystems/erofs.rst, "device=").

use std::{
    ffi::CString,
    fs, io,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use rustix::mount::{MountFlags, UnmountFlags};

/// `f_type` of EROFS (linux/magic.h).
const EROFS_SUPER_MAGIC: u64 = 0xE0F5_E1E2;

/// Mounts `index` at `target`. Blocks, and while it does the device file has to be served.
///
/// Device nodes and set-user-id bits stay in force: containers need both.
pub(super) fn mount(index: &Path, device: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(target)?;
    let mut options = b"device=".to_vec();
    options.extend_from_slice(device.as_os_str().as_bytes());
    let options = CString::new(options)?;
    rustix::mount::mount(index, target, "erofs", MountFlags::RDONLY, Some(options.as_c_str()))?;
    Ok(())
}

/// Whether an index is mounted at `target`.
pub(super) fn is_mounted(target: &Path) -> bool {
    rustix::fs::statfs(target).is_ok_and(|fs| u64::try_from(fs.f_type) == Ok(EROFS_SUPER_MAGIC))
}

/// Whether something is mounted at `target`, found out without touching it.
pub(super) fn is_mount_point(target: &Path) -> io::Result<bool> {
    let parent = target.parent().unwrap_or(target);
    Ok(mounts_below(parent, &fs::read_to_string("/proc/self/mountinfo")?).iter().any(|point| point == target))
}

/// Unmounts what is at `target`. An overlay that stands on it keeps what it has.
pub(super) fn unmount(target: &Path) -> io::Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::NOFOLLOW) {
        Ok(()) => fs::remove_dir(target),
        // EINVAL: not a mount point.
        Err(rustix::io::Errno::INVAL) => fs::remove_dir(target),
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(err) => Err(err.into()),
    }
}

/// Detaches every mount below `root`: left behind by a run that was killed, and of no use without it.
pub(super) fn detach_stale(root: &Path) -> io::Result<usize> {
    let mounts = mounts_below(root, &fs::read_to_string("/proc/self/mountinfo")?);
    for mount in mounts.iter().rev() {
        rustix::mount::unmount(mount, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    }
    Ok(mounts.len())
}

/// The mount points below `root` in the order of their mounting; field 5 of each line (proc_pid_mountinfo(5)).
fn mounts_below(root: &Path, mountinfo: &str) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    points.filter(|point| point.starts_with(root) && point != root).collect()
}

/// Blanks, tabs, newlines and backslashes are written in octal.
fn unescape(field: &str) -> PathBuf {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    PathBuf::from(escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_mounts_below_a_directory() {
        let mountinfo = "22 1 8:1 / / rw - ext4 /dev/vda rw\n\
            30 22 0:40 / /var/lib/a\\040b rw - tmpfs t rw\n\
            31 30 0:41 / /var/lib/a\\040b/fuse ro - fuse darter ro\n\
            32 30 0:42 / /var/lib/a\\040b/mnt/1 ro - erofs i ro\n\
            33 22 0:43 / /var/lib/a\\040bc/mnt ro - erofs i ro\n";
        let below = mounts_below(Path::new("/var/lib/a b"), mountinfo);
        assert_eq!(below, [PathBuf::from("/var/lib/a b/fuse"), PathBuf::from("/var/lib/a b/mnt/1")]);
    }
}
