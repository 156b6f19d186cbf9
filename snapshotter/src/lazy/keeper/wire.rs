//! What daemon and keeper say to each other: messages of two bytes on a SOCK_SEQPACKET socket, some with a descriptor.
//!
//! A daemon talks to keepers of older and newer releases, so this never changes; [`VERSION`] is for the day when it must.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// First byte of every message.
const VERSION: u8 = 1;

/// The second byte of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Message {
    /// The keeper's first word to who connects: it holds nothing.
    Nothing = b'N',
    /// The keeper's first word to who connects: this is what it holds.
    Held = b'H',
    /// The daemon's: hold this from now on.
    Keep = b'K',
    /// The keeper's answer to that.
    Kept = b'O',
}

impl Message {
    const ALL: [Self; 4] = [Self::Nothing, Self::Held, Self::Keep, Self::Kept];

    fn byte(self) -> u8 {
        self as u8
    }
}

/// Sends a message, without waiting for room: there is always room for the few that are sent.
pub(super) fn send(socket: &OwnedFd, message: Message, device: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let devices: Vec<BorrowedFd<'_>> = device.into_iter().collect();
    if !devices.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&devices));
    }
    let bytes = [VERSION, message.byte()];
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives a message; `None` if the other side has gone.
pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 2];
    let mut into = [IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let len = recvmsg(socket, &mut into, &mut ancillary, flags)?.bytes;
    let device = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut devices) => devices.next(),
        _ => None,
    });
    if len == 0 {
        return Ok(None);
    }
    let message = Message::ALL.into_iter().find(|message| bytes == [VERSION, message.byte()]);
    Ok(Some((message.ok_or_else(unexpected)?, device)))
}

/// The other side says what it should not.
pub(super) fn unexpected() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the keeper and the daemon do not understand each other")
}
