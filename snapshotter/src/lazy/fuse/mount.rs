//! Mounting the FUSE file system, and taking over one that an earlier run mounted.
//!
//! The daemon mounts by itself and not through `fuser`, so that the descriptor is its own to hand to the keeper. A
//! connection that the kernel has opened already is taken over in three steps. `fuser` insists on a first message
//! (FUSE_INIT), which the kernel will not send again: it gets one from here, over a pair of sockets. Then the kernel's
//! descriptor takes the place of the socket. Last, the kernel is told to send again what the earlier run had read and not
//! answered (FUSE_NOTIFY_RESEND, Linux 6.9; `include/uapi/linux/fuse.h`).

use std::{
    ffi::CString,
    fs::{self, File},
    io::{self, Write},
    mem::ManuallyDrop,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use fuser::{BackgroundSession, Config, Filesystem, Notifier, Session, SessionACL};
use rustix::{
    fs::{major, minor},
    io::{DupFlags, dup3},
    mount::{MountFlags, UnmountFlags},
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
};
use tracing::warn;

use crate::lazy::layer::LayerId;

/// Threads that take requests.
const THREADS: usize = 4;
/// How far the kernel reads ahead in the trees, in KiB.
const READ_AHEAD_KIB: u32 = 1024;

/// `FUSE_INIT` and the protocol's version that `fuser` speaks.
const INIT: u32 = 26;
const PROTOCOL: (u32, u32) = (7, 40);
/// Lengths of `fuse_in_header` and `fuse_init_in`.
const HEADER_LEN: usize = 40;
const INIT_LEN: usize = 64;
/// `FUSE_NOTIFY_RESEND`
const RESEND: u32 = 7;

/// The mounted file system, answered by this process.
pub(in crate::lazy) struct FuseMount {
    path: PathBuf,
    device: OwnedFd,
    session: BackgroundSession,
}

impl FuseMount {
    /// Mounts the file system at `path`. Blocks.
    pub(in crate::lazy) fn mount(path: &Path, fs: impl Filesystem) -> io::Result<Self> {
        fs::create_dir_all(path)?;
        let device: OwnedFd = File::options().read(true).write(true).open("/dev/fuse")?.into();
        // Containers' reads come under their own user ids.
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        rustix::mount::mount("darter", path, "fuse", MountFlags::RDONLY, CString::new(options)?.as_c_str())?;
        let answered = device
            .try_clone()
            .and_then(|device| Session::from_fd(fs, device, SessionACL::All, config())?.spawn());
        let session = answered.inspect_err(|_| {
            rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).ok();
        })?;
        Ok(Self { path: path.to_owned(), device, session })
    }

    /// Answers the file system at `path` that an earlier run mounted, from what it left unanswered on.
    pub(in crate::lazy) fn take_over(path: &Path, device: OwnedFd, fs: impl Filesystem) -> io::Result<Self> {
        let (ours, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let mut ours = File::from(ours);
        ours.write_all(&first_message())?;
        let session = Session::from_fd(fs, its, SessionACL::All, config())?;
        put_in_place(&device, &session)?;
        let session = session.spawn()?;
        let mount = Self { path: path.to_owned(), device, session };
        mount.resend().unwrap_or_else(
            |error| warn!(%error, "reads that the earlier run had begun wait for ever; Linux 6.9 can repeat them"),
        );
        Ok(mount)
    }

    /// What the keeper holds.
    pub(in crate::lazy) fn device(&self) -> &OwnedFd {
        &self.device
    }

    /// Where a layer's raw tar is.
    pub(in crate::lazy) fn file(&self, id: LayerId) -> PathBuf {
        self.path.join(super::raw_name(id))
    }

    /// Where a layer's tree is.
    pub(in crate::lazy) fn tree(&self, id: LayerId) -> PathBuf {
        self.path.join(id.to_string())
    }

    /// What [`super::invalidate`] takes.
    pub(in crate::lazy) fn notifier(&self) -> Notifier {
        self.session.notifier()
    }

    /// Unmounts the file system and waits for its threads, unless it is in use. Blocks.
    pub(in crate::lazy) fn unmount(self) -> io::Result<()> {
        rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW)?;
        self.session.join()
    }

    /// Has the kernel read further ahead, for trees. Below EROFS, which reads ahead by itself, that would only make reads
    /// wait for bytes that nobody needs. What a file system can ask for when it is mounted is capped; afterwards root may
    /// set more (Linux, Documentation/ABI/testing/sysfs-class-bdi).
    pub(in crate::lazy) fn raise_read_ahead(&self) -> io::Result<()> {
        let device = fs::metadata(&self.path)?.dev();
        let knob = format!("/sys/class/bdi/{}:{}/read_ahead_kb", major(device), minor(device));
        fs::write(knob, READ_AHEAD_KIB.to_string())
    }

    fn resend(&self) -> io::Result<()> {
        // `fuse_out_header`: a length, a code where answers have an error, and 0 where they have the request's number.
        let mut notice = 16u32.to_ne_bytes().to_vec();
        notice.extend_from_slice(&RESEND.to_ne_bytes());
        notice.extend_from_slice(&0u64.to_ne_bytes());
        rustix::io::write(&self.device, &notice)?;
        Ok(())
    }
}

/// Whether the connection of a FUSE device still is one.
pub(in crate::lazy) fn is_connected(device: &OwnedFd) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut polled = [PollFd::new(device, PollFlags::empty())];
    poll(&mut polled, Some(&Timespec::default())).is_ok_and(|ready| ready == 0)
}

fn config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // Each clone's unanswered requests would end with it, out of the keeper's reach.
    config.clone_fd = false;
    config.acl = SessionACL::All;
    config
}

/// A FUSE_INIT as the kernel would send it, offering nothing: what the kernel and the earlier run agreed on stays.
fn first_message() -> Vec<u8> {
    let mut header = [((HEADER_LEN + INIT_LEN) as u32).to_ne_bytes(), INIT.to_ne_bytes()].concat();
    header.extend_from_slice(&1u64.to_ne_bytes());
    header.resize(HEADER_LEN, 0);
    let mut init = [PROTOCOL.0.to_ne_bytes(), PROTOCOL.1.to_ne_bytes()].concat();
    init.extend_from_slice(&(128u32 * 1024).to_ne_bytes());
    init.resize(INIT_LEN, 0);
    [header, init].concat()
}

/// Puts the kernel's descriptor in the place of the one that a session was made with.
fn put_in_place(device: &OwnedFd, session: &Session<impl Filesystem>) -> io::Result<()> {
    // SAFETY: the descriptor is open, since the session owns it, and goes on owning it, since this is never dropped.
    // What it refers to changes, but no thread of the session uses it yet.
    #[expect(unsafe_code, reason = "fuser only lends its descriptor, and dup3 wants to own what it replaces")]
    let its = unsafe { OwnedFd::from_raw_fd(session.as_fd().as_raw_fd()) };
    dup3(device, &mut ManuallyDrop::new(its), DupFlags::CLOEXEC)?;
    Ok(())
}
