//! A pull: what a consumer on a host does, through its peer's control socket.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use darter_integration::darter;
use darter_proto::peer::{GetRequest, get_reply::Message, peer_client::PeerClient};
use tokio::{task::JoinSet, time::Instant};
use tonic::transport::Channel;

/// A blob at the origin.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) url: String,
    pub(crate) digest: String,
    pub(crate) len: u64,
}

/// Reads all blobs at once to their ends, and says how long that took.
pub(crate) async fn pull(socket: PathBuf, blobs: Vec<Blob>) -> Result<Duration> {
    let started = Instant::now();
    let client = darter::client(&socket).await?;
    let mut pulls = JoinSet::new();
    for blob in blobs {
        pulls.spawn(pull_one(client.clone(), blob));
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled??;
    }
    Ok(started.elapsed())
}

async fn pull_one(mut client: PeerClient<Channel>, blob: Blob) -> Result<()> {
    let request = GetRequest { url: blob.url, digest: blob.digest, ..GetRequest::default() };
    let mut replies = client.get(request).await?.into_inner();
    let mut read = 0;
    while let Some(reply) = replies.message().await? {
        if let Some(Message::Data(bytes)) = reply.message {
            read += bytes.len() as u64;
        }
    }
    ensure!(read == blob.len, "{read} of {} bytes came", blob.len);
    Ok(())
}
