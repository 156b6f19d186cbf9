//! The keeper: a small process that holds the node's `/dev/fuse` descriptor while the daemon is away.
//!
//! A FUSE connection lives as long as somebody has its descriptor open. The daemon hands a copy to the keeper
//! ([`Keeper::keep`]), so when the daemon is killed the mounts stay, and reads wait. The next daemon gets the descriptor
//! back when it connects ([`Keeper::open`]) and goes on where the last one ended.
//!
//! They talk over a unix socket in the snapshotter's directory ([`wire`]); [`process`] is the keeper's side.

mod process;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
};
use tracing::info;

pub use self::process::{detach, keep};
use self::wire::Message;

/// How long a keeper may take to start, and to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long to wait before the next attempt to reach a keeper that was started.
const POLL: Duration = Duration::from_millis(10);

/// How long a keeper that was started has before another one is.
const RESTART: Duration = Duration::from_millis(500);

/// How a keeper for a directory is started.
pub(crate) type Start = fn(&Path) -> io::Result<()>;

/// The connection to the keeper of a directory. Methods block for [`DEADLINE`] at most.
#[derive(Debug)]
pub(crate) struct Keeper {
    socket: OwnedFd,
}

impl Keeper {
    /// Connects to the keeper of `dir`, which is started if there is none, and takes what it holds.
    pub(crate) fn open(dir: &Path, start: Start) -> io::Result<(Self, Option<OwnedFd>)> {
        let deadline = Instant::now() + DEADLINE;
        let mut started: Option<Instant> = None;
        loop {
            let error = match Self::connect(dir) {
                Ok(connected) => return Ok(connected),
                Err(error) => error,
            };
            if Instant::now() > deadline {
                return Err(error);
            }
            // One that was just ending may have kept the first from starting.
            if is_gone(&error) && started.is_none_or(|started| started.elapsed() > RESTART) {
                start(dir)?;
                started = Some(Instant::now());
            }
            thread::sleep(POLL);
        }
    }

    /// Has the keeper hold a copy of `device` in the place of what it held.
    pub(crate) fn keep(&self, device: &OwnedFd) -> io::Result<()> {
        wire::send(&self.socket, Message::Keep, Some(device.as_fd()))?;
        match self.receive()? {
            (Message::Kept, None) => Ok(()),
            _ => Err(wire::unexpected()),
        }
    }

    /// Ends when the keeper does.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        // tokio only waits, to which the kind of a unix socket does not matter.
        let socket = UnixStream::from(self.socket.try_clone()?);
        socket.set_nonblocking(true)?;
        // It says nothing of its own accord, so all there is to read is the end.
        tokio::net::UnixStream::from_std(socket)?.readable().await
    }

    fn connect(dir: &Path) -> io::Result<(Self, Option<OwnedFd>)> {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(socket_path(dir))?)?;
        let keeper = Self { socket };
        match keeper.receive()? {
            (Message::Held, Some(device)) => Ok((keeper, Some(device))),
            (Message::Nothing, None) => Ok((keeper, None)),
            _ => Err(wire::unexpected()),
        }
    }

    fn receive(&self) -> io::Result<(Message, Option<OwnedFd>)> {
        let timeout = Timespec::try_from(DEADLINE).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        wire::receive(&self.socket)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Starts `darter keeper` for `dir`, apart from this process: it goes on when this one is killed.
pub(crate) fn start(dir: &Path) -> io::Result<()> {
    // The very program that is running, also when its file was replaced meanwhile.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("darter").arg("keeper").arg(dir).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.process_group(0).spawn()?;
    info!(process = child.id(), "started the keeper");
    let reap = move || child.wait().map(drop);
    thread::Builder::new().name("keeper-reaper".to_owned()).spawn(reap).map(drop)
}

/// Where the keeper of `dir` listens.
fn socket_path(dir: &Path) -> PathBuf {
    dir.join("keeper.sock")
}

/// Held locked by the keeper of `dir`: there is one at most.
fn lock_path(dir: &Path) -> PathBuf {
    dir.join("keeper.lock")
}

/// Whether an error of connecting means that there is no keeper.
fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof
    )
}
