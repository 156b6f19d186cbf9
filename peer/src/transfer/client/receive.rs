//! The receiving side of a connection to a parent.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, BufReader},
    net::tcp::OwnedReadHalf,
};

use super::link::{Broken, Link, Outlet};
use crate::{
    Class, LEAF_LEN, Limits,
    transfer::{
        codec::{CodecError, frame_begins, read_frame},
        event::{ParentEventKind, Refusal},
        frame::{CONNECTION, Frame},
        metrics::TransferMetrics,
        ranges::joined,
    },
};

/// Bytes that are taken from the download limit at once.
const SLICE: usize = 128 * 1024;

/// Reads what a parent sends and hands it to the tasks.
pub(super) struct Receiver {
    pub(super) link: Arc<Link>,
    pub(super) reader: BufReader<OwnedReadHalf>,
    pub(super) limits: Limits,
    pub(super) metrics: TransferMetrics,
}

impl Receiver {
    /// Runs until the connection is of no use any more; says why.
    pub(super) async fn run(mut self) -> Broken {
        loop {
            if let Err(broken) = self.step().await {
                return broken;
            }
        }
    }

    async fn step(&mut self) -> Result<(), Broken> {
        if !frame_begins(&mut self.reader).await? {
            return Err(Broken("the parent closed the connection".into()));
        }
        let frame = read_frame(&mut self.reader).await?;
        self.link.heard();
        match frame {
            Frame::Have { stream, leaves } => {
                let outlet = self.link.outlet(stream)?;
                self.tell(stream, outlet, ParentEventKind::Have(leaves)).await;
            }
            Frame::Leaf { stream, leaf, len } => self.leaf(stream, leaf, len as usize).await?,
            Frame::Refused { stream, leaves, refusal } => {
                for leaves in joined(self.link.refused(stream, leaves)?) {
                    let outlet = self.link.outlet(stream)?;
                    // A leaf that was cancelled and then wanted again before the parent answered.
                    let reason = if refusal == Refusal::Cancelled { Refusal::Busy } else { refusal };
                    self.tell(stream, outlet, ParentEventKind::Refused { leaves, reason }).await;
                }
            }
            Frame::Gone { stream: CONNECTION, reason } => return Err(Broken(reason)),
            Frame::Gone { stream, reason } => {
                self.link.outlet(stream)?;
                let outlet = self.link.gone(stream);
                self.tell(stream, outlet, ParentEventKind::Gone(reason)).await;
            }
            Frame::Denied { stream, reason } => {
                self.link.outlet(stream)?;
                let outlet = self.link.gone(stream);
                self.tell(stream, outlet, ParentEventKind::Denied(reason)).await;
            }
            Frame::Ping => self.link.pong(),
            Frame::Pong => {}
            Frame::Subscribe { .. }
            | Frame::Request { .. }
            | Frame::Cancel { .. }
            | Frame::Unsubscribe { .. } => {
                return Err(Broken("broken protocol: the parent speaks as a child does".into()));
            }
        }
        Ok(())
    }

    async fn leaf(&mut self, stream: u32, leaf: u32, len: usize) -> Result<(), Broken> {
        let class = self.link.expects(stream, leaf)?;
        let bytes = self.leaf_bytes(class.unwrap_or(Class::Stream), len).await?;
        self.metrics.received.inc_by(len as u64);
        if class == Some(Class::Background) {
            self.limits.prefetch.settle(u64::from(LEAF_LEN), len as u64);
        }
        if let Some((outlet, waited)) = self.link.arrived(stream, leaf) {
            self.tell(stream, Some(outlet), ParentEventKind::Leaf { leaf, bytes, waited }).await;
        }
        Ok(())
    }

    async fn leaf_bytes(&mut self, class: Class, len: usize) -> Result<Bytes, Broken> {
        let mut bytes = BytesMut::with_capacity(len);
        while bytes.len() < len {
            let slice = SLICE.min(len - bytes.len());
            self.link.holding(self.limits.download.take(class, slice as u64)).await;
            let end = bytes.len() + slice;
            while bytes.len() < end {
                let room = end - bytes.len();
                if self.reader.read_buf(&mut (&mut bytes).limit(room)).await.map_err(CodecError::Io)? == 0 {
                    return Err(Broken("the parent closed the connection within a leaf".into()));
                }
                self.link.progressed();
            }
        }
        Ok(bytes.freeze())
    }

    async fn tell(&self, stream: u32, outlet: Option<Outlet>, kind: ParentEventKind) {
        if let Some(outlet) = outlet
            && !self.link.holding(outlet.tell(kind)).await
        {
            self.link.unsubscribe(stream);
        }
    }
}

impl From<CodecError> for Broken {
    fn from(error: CodecError) -> Self {
        Self(error.to_string())
    }
}
