//! System calls on the transfer's sockets.

use std::{
    fs::File,
    io::{self, IoSliceMut},
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::Arc,
    time::Duration,
};

use rustix::{
    io::ReadWriteFlags,
    net::{SendFlags, send},
};
use tokio::{io::Interest, net::TcpStream, time::timeout};

/// Most bytes that wait in the kernel unsent. More urgent bytes wait behind them.
static UNSENT: libc::c_int = 128 * 1024;

/// Sets the options of a connection between peers: small frames leave at once, and little is queued in the kernel.
pub(super) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    limit_unsent(stream)
}

/// `TCP_NOTSENT_LOWAT`, tcp(7): the socket takes no more while this much is unsent. rustix does not have it.
#[allow(unsafe_code)]
fn limit_unsent(stream: &TcpStream) -> io::Result<()> {
    // SAFETY: the descriptor is open while `stream` lives, and the pointer and length are those of a c_int.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NOTSENT_LOWAT,
            (&raw const UNSENT).cast(),
            size_of_val(&UNSENT) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends all of `bytes`; fails if none of them can be sent for `patience`. With `more`, what follows at once shares a
/// segment with them.
pub(super) async fn send_all(
    stream: &TcpStream,
    mut bytes: &[u8],
    more: bool,
    patience: Duration,
) -> io::Result<()> {
    while !bytes.is_empty() {
        let sent = timeout(patience, send_some(stream, bytes, more)).await;
        let sent = usize::try_from(sent.map_err(|_| no_progress(patience))??).map_err(io::Error::other)?;
        bytes = bytes.get(sent..).unwrap_or_default();
    }
    Ok(())
}

/// Sends some of `bytes`, which are not empty; returns how many. `more` as for [`send_all`].
pub(super) async fn send_some(stream: &TcpStream, bytes: &[u8], more: bool) -> io::Result<u64> {
    let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
    match stream.async_io(Interest::WRITABLE, || Ok(send(stream, bytes, flags)?)).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        sent => Ok(sent as u64),
    }
}

/// Sends some of the file's bytes from `offset` on, `len` at most, straight from the page cache; returns how many.
pub(super) async fn send_file(stream: &TcpStream, file: &File, offset: u64, len: u64) -> io::Result<u64> {
    let len = usize::try_from(len).map_err(io::Error::other)?;
    let write = || Ok(rustix::fs::sendfile(stream, file, Some(&mut offset.clone()), len)?);
    match stream.async_io(Interest::WRITABLE, write).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        sent => Ok(sent as u64),
    }
}

/// Brings bytes of a file into the page cache if they are not there, so that sending them does not wait for the disk on a
/// thread that others need.
pub(crate) async fn warm(file: &Arc<File>, offset: u64, len: u64) -> io::Result<()> {
    if is_cached(file, offset) && is_cached(file, (offset + len).saturating_sub(1)) {
        return Ok(());
    }
    let file = file.clone();
    let read = move || {
        let mut buffer = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        file.read_exact_at(&mut buffer, offset)
    };
    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
}

/// Whether the byte at `offset` can be read without waiting; where that cannot be told, it is taken to be so.
fn is_cached(file: &File, offset: u64) -> bool {
    let mut byte = [0];
    let mut slices = [IoSliceMut::new(&mut byte)];
    let read = rustix::io::preadv2(file, &mut slices, offset, ReadWriteFlags::NOWAIT);
    read != Err(rustix::io::Errno::AGAIN)
}

/// The error of a transfer that stands still.
pub(super) fn no_progress(patience: Duration) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no progress for {patience:?}"))
}
