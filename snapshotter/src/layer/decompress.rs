//! Gives the raw tar of a blob, however the blob is compressed.

use std::{
    cell::Cell,
    io::{self, BufReader, Read},
};

use darter_peer::MakeError;
use flate2::bufread::MultiGzDecoder;

/// How much of the blob is read at once, in bytes.
const BUFFER_LEN: usize = 256 * 1024;

/// How a blob is compressed. Its bytes say so: media types are often wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    /// RFC 1952; one or more members.
    Gzip,
    /// RFC 8878; one or more frames, skippable ones among them.
    Zstd,
    Plain,
}

impl Compression {
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Plain,
        }
    }
}

/// The raw tar of a blob, as a stream.
pub(super) struct RawTar<'a> {
    raw: Box<dyn Read + 'a>,
    /// Set when the blob itself could not be read.
    blob_failed: &'a Cell<bool>,
}

impl<'a> RawTar<'a> {
    /// Looks at the first bytes of `blob`; `blob_failed` is a place to note that reading it failed.
    pub(super) fn new(blob: &'a mut dyn Read, blob_failed: &'a Cell<bool>) -> Result<Self, MakeError> {
        let mut blob = Watched { blob, failed: blob_failed };
        let mut start = Vec::new();
        blob.by_ref().take(4).read_to_end(&mut start)?;
        let compression = Compression::of(&start);
        let blob = BufReader::with_capacity(BUFFER_LEN, io::Cursor::new(start).chain(blob));
        let raw: Box<dyn Read + 'a> = match compression {
            Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
            Compression::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
            Compression::Plain => Box::new(blob),
        };
        Ok(Self { raw, blob_failed })
    }

    /// Reads the next bytes; 0 at the end, which is reached only if the blob ended where it should.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, MakeError> {
        loop {
            return match self.raw.read(buffer) {
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) if self.blob_failed.get() => Err(MakeError::Io(err)),
                Err(err) => Err(MakeError::Refused(format!("the blob cannot be decompressed: {err}"))),
                Ok(len) => Ok(len),
            };
        }
    }
}

/// Tells an error of the blob from an error of the decompressor.
struct Watched<'a> {
    blob: &'a mut dyn Read,
    failed: &'a Cell<bool>,
}

impl Read for Watched<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.blob.read(buffer);
        if read.as_ref().is_err_and(|err| err.kind() != io::ErrorKind::Interrupted) {
            self.failed.set(true);
        }
        read
    }
}
