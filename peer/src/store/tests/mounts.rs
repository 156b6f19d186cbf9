//! Real small file systems, mounted by root and unmounted in any case.

use std::{
    ffi::CString,
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A mounted file system, unmounted when it is dropped.
pub(super) struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

impl Mounted {
    /// What is not durable by now is lost: the ext4 forgets all that it has in memory, its journal included, and fails
    /// from then on.
    #[allow(unsafe_code)]
    pub(super) fn cut_power(&self) {
        /// `EXT4_IOC_SHUTDOWN` and `EXT4_GOING_FLAGS_NOLOGFLUSH` of `fs/ext4/ext4.h`.
        const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
        const NO_LOG_FLUSH: u32 = 2;
        let root = File::open(&self.0).unwrap();
        // SAFETY: the ioctl reads one u32, which is what is given; file systems that do not know it refuse it.
        unsafe { rustix::ioctl::ioctl(root, rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH)) }
            .unwrap();
    }
}

/// Whether this process may mount; says so if not.
pub(super) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

pub(super) fn tmpfs(at: &Path, options: &str) -> Mounted {
    let options = CString::new(format!("{options},mode=0700")).unwrap();
    mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
    Mounted(at.to_owned())
}

/// Makes an ext4 in a sparse file.
pub(super) fn make_ext4(image: &Path, len: u64, options: &[&str]) {
    File::create(image).unwrap().set_len(len).unwrap();
    run(Command::new("mkfs.ext4").arg("-q").args(options).arg(image)).unwrap();
}

/// Mounts an ext4 in a file. The loop device goes with the mount.
pub(super) fn ext4(image: &Path, at: &Path) -> Mounted {
    let mount = || run(Command::new("mount").args(["-o", "loop,errors=continue"]).arg(image).arg(at));
    // Others who set up loop devices at this moment may take the one that mount(8) chose.
    (0..10).find_map(|_| mount().ok()).unwrap();
    Mounted(at.to_owned())
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().unwrap();
    let complaint = || format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    if output.status.success() { Ok(()) } else { Err(complaint()) }
}
