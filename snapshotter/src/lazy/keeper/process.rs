//! The keeper's side: one thread, one loop, and nothing that could fail for want of memory, disk or network.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FlockOperation, flock},
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with},
};

use super::{lock_path, socket_path, wire, wire::Message};

/// How long it stays without anything to hold and anybody to hold it for, in seconds.
const IDLE_SECS: i64 = 30;
/// Daemons connected at a time: one, and the one that takes its place.
const MAX_DAEMONS: usize = 4;

/// What a keeper has.
struct State {
    listener: OwnedFd,
    /// The FUSE device of the mount.
    device: Option<OwnedFd>,
    daemons: Vec<OwnedFd>,
    /// Something was handed over once.
    used: bool,
}

/// Holds what the daemon of `dir` hands over, until the mount is gone; at once if there is a keeper already.
/// With `stay` it waits for the next mount.
///
/// # Errors
/// If it cannot listen in `dir`.
pub fn keep(dir: &Path, stay: bool) -> io::Result<()> {
    let lock = File::create(lock_path(dir))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(()),
        locked => locked?,
    }
    let mut state = State { listener: listen_in(dir)?, device: None, daemons: Vec::new(), used: false };
    say(&format!("keeping for {}", dir.display()));
    while state.step(stay)? {}
    // Whoever finds the lock free must not find this socket.
    fs::remove_file(socket_path(dir))?;
    say("nothing left to keep");
    Ok(())
}

/// Leaves the session and the directory of who started it: neither a hang-up nor an unmount is its business.
///
/// # Errors
/// If the root directory cannot be entered.
pub fn detach() -> io::Result<()> {
    // It fails for the leader of a session, who needs no new one.
    rustix::process::setsid().ok();
    std::env::set_current_dir("/")
}

impl State {
    /// Waits for something to happen and deals with it; false if there is nothing left to do.
    fn step(&mut self, stay: bool) -> io::Result<bool> {
        let device = self.device.as_ref();
        // A FUSE device reports an error, and so is always polled, once its connection has ended.
        let device = device.map(|device| PollFd::new(device, PollFlags::empty()));
        let daemons = self.daemons.iter().map(|daemon| PollFd::new(daemon, PollFlags::IN));
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        let had_device = device.is_some();
        let mut polled: Vec<PollFd<'_>> = daemons.chain([listener]).chain(device).collect();
        let is_idle = !stay && self.device.is_none() && self.daemons.is_empty();
        let timeout = is_idle.then_some(Timespec { tv_sec: IDLE_SECS, tv_nsec: 0 });
        match poll(&mut polled, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Err(rustix::io::Errno::INTR) => return Ok(true),
            polled => polled?,
        };
        let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let is_ready = |at: usize| ready.get(at).copied().unwrap_or_default();
        if had_device && is_ready(self.daemons.len() + 1) {
            say("the mount is gone");
            self.device = None;
        }
        let knocks = is_ready(self.daemons.len());
        let daemons = std::mem::take(&mut self.daemons);
        let connected = daemons.into_iter().zip(&ready);
        self.daemons = connected
            .filter_map(|(daemon, ready)| (!ready || self.hear(&daemon)).then_some(daemon))
            .collect();
        if knocks {
            self.welcome();
        }
        Ok(stay || !self.used || self.device.is_some() || !self.daemons.is_empty())
    }

    /// Does what a daemon says; false if it has gone.
    fn hear(&mut self, daemon: &OwnedFd) -> bool {
        match wire::receive(daemon) {
            Ok(Some((Message::Keep, Some(device)))) => {
                self.device = Some(device);
                self.used = true;
                wire::send(daemon, Message::Kept, None).is_ok()
            }
            _ => false,
        }
    }

    /// Gives a daemon that connects what is held.
    fn welcome(&mut self) {
        let Ok(daemon) = accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        let greeted = match &self.device {
            Some(device) => wire::send(&daemon, Message::Held, Some(device.as_fd())),
            None => wire::send(&daemon, Message::Nothing, None),
        };
        if greeted.is_ok() {
            self.daemons.truncate(MAX_DAEMONS - 1);
            self.daemons.push(daemon);
        }
    }
}

/// Listens in the place of a keeper that was killed.
fn listen_in(dir: &Path) -> io::Result<OwnedFd> {
    let path = socket_path(dir);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    bind(&listener, &SocketAddrUnix::new(&path)?)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    listen(&listener, 4)?;
    Ok(listener)
}

/// A line for whoever looks; that nobody does is no reason to end.
fn say(what: &str) {
    writeln!(io::stderr(), "darter keeper: {what}").ok();
}
