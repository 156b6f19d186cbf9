//! Handshake and frames on a byte stream. Deadlines are the caller's.

use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt};

use super::frame::{Frame, FrameError, HEADER_LEN, Header};
use crate::Site;

const MAGIC: [u8; 4] = *b"DRTP";
/// The version of the wire format that is spoken here.
const VERSION: u16 = 2;
const MAX_HOST_ID_LEN: usize = 128;

/// What came is no frame, or nothing comes any more.
#[derive(Debug, thiserror::Error)]
pub(super) enum CodecError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("broken protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("no Darter peer answers there")]
    Magic,
    #[error("it speaks version {0} of the protocol, this peer speaks version {VERSION}")]
    Version(u16),
    #[error("its host id is empty, too long or no plain text")]
    HostId,
}

/// Who is at the other end.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) host: String,
    /// Where it stands, if it said so.
    pub(super) site: Site,
}

/// The first bytes that either side sends. Where it stands follows the host id, if there is room.
pub(super) fn encode_hello(host_id: &str, site: Site) -> Vec<u8> {
    let named = if site.is_known() { format!("{host_id}@{site}") } else { host_id.to_owned() };
    let id = if named.len() <= MAX_HOST_ID_LEN { named.as_bytes() } else { host_id.as_bytes() };
    let id = id.get(..MAX_HOST_ID_LEN).unwrap_or(id);
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(id.len() as u16).to_le_bytes());
    out.extend_from_slice(id);
    out
}

/// Reads the other side's first bytes.
pub(super) async fn read_hello<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Hello, CodecError> {
    let mut head = [0; 8];
    reader.read_exact(&mut head).await?;
    let [m0, m1, m2, m3, v0, v1, l0, l1] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(CodecError::Magic);
    }
    let version = u16::from_le_bytes([v0, v1]);
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    if len == 0 || len > MAX_HOST_ID_LEN {
        return Err(CodecError::HostId);
    }
    let mut id = vec![0; len];
    reader.read_exact(&mut id).await?;
    let id = String::from_utf8(id).map_err(|_| CodecError::HostId)?;
    if !id.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(CodecError::HostId);
    }
    let (host, site) = id.split_once('@').unwrap_or((&id, ""));
    Ok(Hello { host: host.to_owned(), site: Site::parse(site).unwrap_or_default() })
}

/// Waits until a frame begins; false if the other side closed the connection instead. Can be dropped without loss.
pub(super) async fn frame_begins<R: AsyncBufRead + Unpin>(reader: &mut R) -> Result<bool, CodecError> {
    Ok(!reader.fill_buf().await?.is_empty())
}

/// Reads one frame. Must be polled to its end: what it read is lost otherwise.
pub(super) async fn read_frame<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Frame, CodecError> {
    let mut header = [0; HEADER_LEN];
    reader.read_exact(&mut header).await?;
    let header = Header::decode(header)?;
    let mut payload = vec![0; header.payload_len()];
    reader.read_exact(&mut payload).await?;
    Ok(Frame::decode(header, &payload)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_hello_is_read_back() {
        for site in [Site::default(), Site::new("r", "z", "1")] {
            let hello = read_hello(&mut &*encode_hello("host-7", site)).await.unwrap();
            assert_eq!(hello, Hello { host: "host-7".into(), site });
            let long = read_hello(&mut &*encode_hello(&"x".repeat(500), site)).await.unwrap();
            assert_eq!((long.host.len(), long.site), (MAX_HOST_ID_LEN, Site::default()));
        }
    }

    #[tokio::test]
    async fn other_hellos_are_refused() {
        let good = encode_hello("host-7", Site::default());
        let bad = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert!(matches!(read_hello(&mut &*bad(0, b'H')).await, Err(CodecError::Magic)));
        assert!(matches!(read_hello(&mut &*bad(4, 9)).await, Err(CodecError::Version(9))));
        assert!(matches!(read_hello(&mut &*bad(7, 1)).await, Err(CodecError::HostId)));
        assert!(matches!(read_hello(&mut &*bad(8, b'\n')).await, Err(CodecError::HostId)));
        assert!(matches!(read_hello(&mut &good[..9]).await, Err(CodecError::Io(_))));
    }
}
