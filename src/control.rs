//! The way to this node's peer: its control socket.

use std::path::PathBuf;

use anyhow::Context;
use darter_proto::{MAX_MESSAGE_LEN, peer::peer_client::PeerClient};
use tonic::transport::{Channel, Endpoint};

/// Where the peer is.
#[derive(Debug, clap::Args)]
pub(crate) struct Control {
    /// The control socket of this node's peer.
    #[arg(long, value_name = "PATH", env = "DARTER_SOCKET", default_value = "/run/darter/peer.sock")]
    socket: PathBuf,
}

impl Control {
    /// Connects to the peer.
    pub(crate) async fn connect(&self) -> anyhow::Result<PeerClient<Channel>> {
        let path = std::path::absolute(&self.socket)?;
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?;
        let channel = endpoint.connect().await.with_context(|| {
            format!(
                "no peer answers on {}: is `darter peer` running on this node? (--socket names another)",
                path.display()
            )
        })?;
        Ok(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_LEN))
    }
}
