//! The frames of a connection as bytes. Pure: no socket, no clock.
//!
//! The [module documentation](super) has the table of the wire format; this file is its only implementation.

use std::ops::Range;

use bytes::Bytes;

use super::event::Refusal;
use crate::{Class, TaskId};

/// Length of every frame's header in bytes.
pub(super) const HEADER_LEN: usize = 16;
/// Longest leaf in bytes.
pub(super) const MAX_LEAF_LEN: u32 = 16 * 1024 * 1024;
/// Most ranges in one Have.
pub(super) const MAX_RANGES: u32 = 2048;
/// Most leaves in one Request or Cancel.
pub(super) const MAX_LEAVES: u32 = 4096;
/// Longest task id in bytes.
pub(super) const MAX_TASK_ID_LEN: u32 = 160;
/// Longest ticket in bytes.
pub(super) const MAX_TICKET_LEN: u32 = 256;
/// Longest reason of a Gone or a Denied in bytes.
pub(super) const MAX_REASON_LEN: u32 = 512;
/// The stream that stands for the connection itself.
pub(super) const CONNECTION: u32 = 0;

/// One message; the bytes of a leaf follow its frame and are no part of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    Subscribe { stream: u32, task: TaskId, ticket: Bytes },
    Have { stream: u32, leaves: Vec<Range<u32>> },
    Request { stream: u32, leaves: Range<u32>, class: Class },
    Leaf { stream: u32, leaf: u32, len: u32 },
    Refused { stream: u32, leaves: Range<u32>, refusal: Refusal },
    Cancel { stream: u32, leaves: Range<u32> },
    Unsubscribe { stream: u32 },
    Gone { stream: u32, reason: String },
    Ping,
    Pong,
    Denied { stream: u32, reason: String },
}

/// A header whose kind and lengths were checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    kind: Kind,
    detail: u8,
    stream: u32,
    first: u32,
    second: u32,
}

/// Bytes that are no frame. The connection is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FrameError {
    #[error("there is no frame kind {0}")]
    Kind(u8),
    #[error("a field that must be 0 is not")]
    Reserved,
    #[error("{what} of {len} where {limit} is the most")]
    TooLong { what: &'static str, len: u32, limit: u32 },
    #[error("{0}")]
    Invalid(&'static str),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Subscribe = 1,
    Have = 2,
    Request = 3,
    Leaf = 4,
    Refused = 5,
    Cancel = 6,
    Unsubscribe = 7,
    Gone = 8,
    Ping = 9,
    Pong = 10,
    Denied = 11,
}

impl Header {
    /// Checks everything that can be checked without the payload.
    pub(super) fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, detail, r0, r1, s0, s1, s2, s3, a0, a1, a2, a3, b0, b1, b2, b3] = bytes;
        let header = Self {
            kind: Kind::decode(kind)?,
            detail,
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            first: u32::from_le_bytes([a0, a1, a2, a3]),
            second: u32::from_le_bytes([b0, b1, b2, b3]),
        };
        if (r0, r1) != (0, 0) {
            return Err(FrameError::Reserved);
        }
        header.check()?;
        Ok(header)
    }

    /// Length of the payload that follows and must be handed to [`Frame::decode`]; a leaf's bytes do not count.
    pub(super) fn payload_len(&self) -> usize {
        let len = match self.kind {
            Kind::Subscribe => self.first + self.second,
            Kind::Gone | Kind::Denied => self.second,
            Kind::Have => self.second * 8,
            _ => 0,
        };
        len as usize
    }

    fn check(&self) -> Result<(), FrameError> {
        let zero = |fields: &[u32]| match fields.iter().all(|field| *field == 0) {
            true => Ok(()),
            false => Err(FrameError::Reserved),
        };
        let detail = u32::from(self.detail);
        match self.kind {
            Kind::Subscribe => {
                zero(&[detail])?;
                at_most("a ticket", self.first, MAX_TICKET_LEN)?;
                at_most("a task id", self.second, MAX_TASK_ID_LEN)
            }
            Kind::Have => {
                zero(&[detail, self.first])?;
                at_most("a list of ranges", self.second, MAX_RANGES)
            }
            Kind::Gone | Kind::Denied => {
                zero(&[detail, self.first])?;
                at_most("a reason", self.second, MAX_REASON_LEN)
            }
            Kind::Request | Kind::Refused => self.check_range(),
            Kind::Cancel => {
                zero(&[detail])?;
                self.check_range()
            }
            Kind::Leaf => {
                zero(&[detail])?;
                if self.second == 0 {
                    return Err(FrameError::Invalid("a leaf is empty"));
                }
                at_most("a leaf", self.second, MAX_LEAF_LEN)
            }
            Kind::Unsubscribe => zero(&[detail, self.first, self.second]),
            Kind::Ping | Kind::Pong => zero(&[detail, self.stream, self.first, self.second]),
        }?;
        let connection_wide = matches!(self.kind, Kind::Gone | Kind::Ping | Kind::Pong);
        if self.stream == CONNECTION && !connection_wide {
            return Err(FrameError::Invalid("stream 0 is the connection itself"));
        }
        Ok(())
    }

    fn check_range(&self) -> Result<(), FrameError> {
        if self.second == 0 || self.first.checked_add(self.second).is_none() {
            return Err(FrameError::Invalid("a range is empty or ends past the last number"));
        }
        at_most("a range of leaves", self.second, MAX_LEAVES)
    }

    fn leaves(&self) -> Range<u32> {
        self.first..self.first.saturating_add(self.second)
    }

    fn encode(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[self.kind as u8, self.detail, 0, 0]);
        for field in [self.stream, self.first, self.second] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }
}

impl Frame {
    /// Reads a frame; `payload` has the length that the header says.
    pub(super) fn decode(header: Header, payload: &[u8]) -> Result<Self, FrameError> {
        let stream = header.stream;
        Ok(match header.kind {
            Kind::Subscribe => decode_subscribe(header, payload)?,
            Kind::Have => Self::Have { stream, leaves: decode_ranges(payload)? },
            Kind::Request => {
                Self::Request { stream, leaves: header.leaves(), class: decode_class(header.detail)? }
            }
            Kind::Leaf => Self::Leaf { stream, leaf: header.first, len: header.second },
            Kind::Refused => {
                Self::Refused { stream, leaves: header.leaves(), refusal: decode_refusal(header.detail)? }
            }
            Kind::Cancel => Self::Cancel { stream, leaves: header.leaves() },
            Kind::Unsubscribe => Self::Unsubscribe { stream },
            Kind::Gone => Self::Gone { stream, reason: decode_reason(payload) },
            Kind::Ping => Self::Ping,
            Kind::Pong => Self::Pong,
            Kind::Denied => Self::Denied { stream, reason: decode_reason(payload) },
        })
    }

    /// Appends the frame's bytes. What exceeds a limit is cut off (a reason) or is the caller's mistake.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let header = |kind, detail, stream, first, second| Header { kind, detail, stream, first, second };
        match self {
            Self::Subscribe { stream, task, ticket } => {
                let id = task.as_str().as_bytes();
                header(Kind::Subscribe, 0, *stream, ticket.len() as u32, id.len() as u32).encode(out);
                out.extend_from_slice(id);
                out.extend_from_slice(ticket);
            }
            Self::Have { stream, leaves } => {
                header(Kind::Have, 0, *stream, 0, leaves.len() as u32).encode(out);
                for range in leaves {
                    out.extend_from_slice(&range.start.to_le_bytes());
                    out.extend_from_slice(&range.end.to_le_bytes());
                }
            }
            Self::Request { stream, leaves, class } => {
                header(Kind::Request, *class as u8, *stream, leaves.start, leaves.len() as u32).encode(out);
            }
            Self::Leaf { stream, leaf, len } => header(Kind::Leaf, 0, *stream, *leaf, *len).encode(out),
            Self::Refused { stream, leaves, refusal } => {
                header(Kind::Refused, *refusal as u8, *stream, leaves.start, leaves.len() as u32).encode(out);
            }
            Self::Cancel { stream, leaves } => {
                header(Kind::Cancel, 0, *stream, leaves.start, leaves.len() as u32).encode(out);
            }
            Self::Unsubscribe { stream } => header(Kind::Unsubscribe, 0, *stream, 0, 0).encode(out),
            Self::Gone { stream, reason } => encode_reason(Kind::Gone, *stream, reason, out),
            Self::Ping => header(Kind::Ping, 0, CONNECTION, 0, 0).encode(out),
            Self::Pong => header(Kind::Pong, 0, CONNECTION, 0, 0).encode(out),
            Self::Denied { stream, reason } => encode_reason(Kind::Denied, *stream, reason, out),
        }
    }
}

impl Kind {
    fn decode(kind: u8) -> Result<Self, FrameError> {
        Ok(match kind {
            1 => Self::Subscribe,
            2 => Self::Have,
            3 => Self::Request,
            4 => Self::Leaf,
            5 => Self::Refused,
            6 => Self::Cancel,
            7 => Self::Unsubscribe,
            8 => Self::Gone,
            9 => Self::Ping,
            10 => Self::Pong,
            11 => Self::Denied,
            other => return Err(FrameError::Kind(other)),
        })
    }
}

fn at_most(what: &'static str, len: u32, limit: u32) -> Result<(), FrameError> {
    if len > limit { Err(FrameError::TooLong { what, len, limit }) } else { Ok(()) }
}

fn decode_subscribe(header: Header, payload: &[u8]) -> Result<Frame, FrameError> {
    let short = FrameError::Invalid("a task id is none");
    let (task, ticket) = payload.split_at_checked(header.second as usize).ok_or(short)?;
    let (task, ticket) = (decode_task(task)?, Bytes::copy_from_slice(ticket));
    Ok(Frame::Subscribe { stream: header.stream, task, ticket })
}

fn decode_task(payload: &[u8]) -> Result<TaskId, FrameError> {
    let id = std::str::from_utf8(payload).ok().and_then(|id| TaskId::parse(id).ok());
    id.ok_or(FrameError::Invalid("a task id is none"))
}

fn decode_class(detail: u8) -> Result<Class, FrameError> {
    match detail {
        0 => Ok(Class::Demand),
        1 => Ok(Class::Stream),
        2 => Ok(Class::Profile),
        3 => Ok(Class::Background),
        _ => Err(FrameError::Invalid("a class is none")),
    }
}

fn decode_refusal(detail: u8) -> Result<Refusal, FrameError> {
    match detail {
        1 => Ok(Refusal::Busy),
        2 => Ok(Refusal::NotHeld),
        3 => Ok(Refusal::Cancelled),
        _ => Err(FrameError::Invalid("a refusal is none")),
    }
}

fn encode_reason(kind: Kind, stream: u32, reason: &str, out: &mut Vec<u8>) {
    let reason = reason.get(..reason.floor_char_boundary(MAX_REASON_LEN as usize));
    let reason = reason.unwrap_or_default().as_bytes();
    Header { kind, detail: 0, stream, first: 0, second: reason.len() as u32 }.encode(out);
    out.extend_from_slice(reason);
}

/// Reasons are for people: what is no text is shown as far as it is.
fn decode_reason(payload: &[u8]) -> String {
    let text = String::from_utf8_lossy(payload);
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Ranges must not be empty, and ascend without touching: then there is one way only to write a set of leaves.
fn decode_ranges(payload: &[u8]) -> Result<Vec<Range<u32>>, FrameError> {
    let (pairs, _) = payload.as_chunks::<8>();
    let mut ranges: Vec<Range<u32>> = Vec::with_capacity(pairs.len());
    for [s0, s1, s2, s3, e0, e1, e2, e3] in pairs {
        let range = u32::from_le_bytes([*s0, *s1, *s2, *s3])..u32::from_le_bytes([*e0, *e1, *e2, *e3]);
        if range.is_empty() || ranges.last().is_some_and(|last| range.start <= last.end) {
            return Err(FrameError::Invalid("ranges are empty, touch each other or do not ascend"));
        }
        ranges.push(range);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests;
