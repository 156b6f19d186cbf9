//! The client: as little of one as HTTP/1.1 allows, so that the server is what is measured.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// A server that sends nothing for so long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection on which one GET follows the other.
pub(crate) struct Client {
    stream: TcpStream,
    address: SocketAddr,
    buffer: Vec<u8>,
}

/// One answer.
pub(crate) struct Answer {
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Duration,
    /// Bytes of the body that were read.
    pub(crate) bytes: u64,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, address, buffer: vec![0; 256 * 1024] })
    }

    /// Gets `path` and reads its body to the end, or until `stop` or `each` says so.
    pub(crate) fn get(&mut self, path: &str, stop: &AtomicBool, each: impl Fn(u64)) -> Result<Answer> {
        let started = Instant::now();
        let accept = "application/vnd.oci.image.manifest.v1+json, */*";
        // In one packet, as clients do.
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nAccept: {accept}\r\n\r\n", self.address);
        self.stream.write_all(request.as_bytes())?;
        let (head, mut bytes) = self.head()?;
        let head = String::from_utf8(head)?.to_ascii_lowercase();
        ensure!(head.starts_with("http/1.1 200 "), "{path}: {head}");
        let len = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let len: u64 = len.context("no Content-Length")?.trim().parse()?;
        each(bytes);
        let mut first_byte = (bytes > 0).then(|| started.elapsed());
        while bytes < len && !stop.load(Ordering::Relaxed) {
            let read = self.read(0)?;
            first_byte.get_or_insert_with(|| started.elapsed());
            bytes += read as u64;
            each(read as u64);
        }
        Ok(Answer { first_byte: first_byte.unwrap_or_else(|| started.elapsed()), bytes })
    }

    /// The head of an answer, and how many bytes of its body came with it.
    fn head(&mut self) -> Result<(Vec<u8>, u64)> {
        let mut len = 0;
        loop {
            len += self.read(len)?;
            let received = self.buffer.get(..len).unwrap_or_default();
            if let Some(end) = received.windows(4).position(|four| four == b"\r\n\r\n") {
                let (head, body) = received.split_at(end + 4);
                return Ok((head.to_vec(), body.len() as u64));
            }
        }
    }

    fn read(&mut self, at: usize) -> Result<usize> {
        let room =
            self.buffer.get_mut(at..).filter(|room| !room.is_empty()).context("the head is too long")?;
        match self.stream.read(room)? {
            0 => bail!("the connection was closed before the end"),
            read => Ok(read),
        }
    }
}

/// Lets `clients` get `path` again and again for a while, and says how many bytes came.
pub(crate) fn flood(address: SocketAddr, path: &str, clients: usize, time: Duration) -> Result<u64> {
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let count = |read| {
        bytes.fetch_add(read, Ordering::Relaxed);
    };
    let client = || {
        let mut client = Client::connect(address)?;
        while !stop.load(Ordering::Relaxed) {
            client.get(path, &stop, count)?;
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        thread::sleep(time);
        let counted = bytes.load(Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(counted)
    })
}

/// Lets `clients` get `path` at the same time, each once; returns how long all of them took.
pub(crate) fn all_at_once(address: SocketAddr, path: &str, clients: usize, len: u64) -> Result<Duration> {
    let never = AtomicBool::new(false);
    let client = || {
        let answer = Client::connect(address)?.get(path, &never, |_| {})?;
        ensure!(answer.bytes == len, "{} bytes instead of {len}", answer.bytes);
        anyhow::Ok(())
    };
    let started = Instant::now();
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        for client in clients {
            client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??;
        }
        Ok(started.elapsed())
    })
}
