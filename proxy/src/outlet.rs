//! A runtime's connection that sends stored contents from the page cache, without copying them through this process.
//!
//! hyper can only send bytes in memory. So it is given a mapping of the file, which nobody reads: the connection knows
//! the mapping's addresses, and when it is told to write bytes from there, it lets the kernel send the same bytes from
//! the file. Whoever does read the mapping (HTTP/2 frames, a hyper that copies small bodies) finds the same bytes in it,
//! so nothing depends on whether the connection recognises them.

use std::{
    io::{self, IoSlice},
    ops::Range,
    pin::Pin,
    ptr::{self, NonNull},
    sync::{Arc, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use darter_peer::StoredFile;
use parking_lot::Mutex;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};

/// What the answers of a connection leave for it to send from a file; cheap to clone.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outlet {
    mapping: Arc<Mutex<Weak<Mapping>>>,
}

impl Outlet {
    /// The content as bytes that need not be read to be sent on this connection.
    pub(crate) fn offer(&self, file: Arc<StoredFile>) -> io::Result<Bytes> {
        let mapping = Arc::new(Mapping::of(file)?);
        *self.mapping.lock() = Arc::downgrade(&mapping);
        Ok(Bytes::from_owner(Mapped(mapping)))
    }

    /// The mapping that is being sent, if any.
    fn mapping(&self) -> Option<Arc<Mapping>> {
        self.mapping.lock().upgrade()
    }
}

/// A whole file in memory, to be read only. The kernel brings a page in when somebody touches it.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
    file: Arc<StoredFile>,
}

// SAFETY: the memory is only ever read, and stays mapped until the drop.
#[allow(unsafe_code)]
unsafe impl Send for Mapping {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Mapping {}

impl Mapping {
    #[allow(unsafe_code)]
    fn of(file: Arc<StoredFile>) -> io::Result<Self> {
        let len = usize::try_from(file.len()).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address that the kernel chooses takes nothing from anybody.
        let start = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file.file(), 0)? };
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len, file })
    }

    #[allow(unsafe_code)]
    fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping has this length and lives as long as `self`. The store never changes a verified content
        // in place, and unlinks its file without shortening it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// Where in the file these bytes are, if they are this mapping's.
    fn find(&self, bytes: &[u8]) -> Option<Range<u64>> {
        let start = (bytes.as_ptr() as usize).checked_sub(self.start.as_ptr() as usize)?;
        let end = start.checked_add(bytes.len()).filter(|end| *end <= self.len)?;
        (start < end).then_some(start as u64..end as u64)
    }
}

impl Drop for Mapping {
    #[allow(unsafe_code)]
    fn drop(&mut self) {
        // SAFETY: nobody borrows the bytes any more. It cannot fail for a mapping that is as it was made.
        unsafe { munmap(self.start.as_ptr().cast(), self.len).ok() };
    }
}

struct Mapped(Arc<Mapping>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// A connection with an [`Outlet`].
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    outlet: Outlet,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, outlet: Outlet) -> Self {
        Self { stream, outlet }
    }

    /// Sends bytes of the file, as many as the socket takes.
    fn poll_send(
        &self,
        cx: &mut Context<'_>,
        file: &StoredFile,
        range: &Range<u64>,
    ) -> Poll<io::Result<usize>> {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let send = || {
            let mut offset = range.start;
            Ok(rustix::fs::sendfile(&self.stream, file.file(), Some(&mut offset), len)?)
        };
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_io(Interest::WRITABLE, send) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Some(mapping) = self.outlet.mapping() else {
            return Pin::new(&mut self.stream).poll_write_vectored(cx, bytes);
        };
        let mut slices = bytes.iter().enumerate();
        let stored = slices.find_map(|(at, slice)| mapping.find(slice).map(|range| (at, range)));
        match stored {
            Some((0, range)) => self.poll_send(cx, &mapping.file, &range),
            // What comes before goes first.
            Some((at, _)) => {
                let before = bytes.get(..at).unwrap_or_default();
                Pin::new(&mut self.stream).poll_write_vectored(cx, before)
            }
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
