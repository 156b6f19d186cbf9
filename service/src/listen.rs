//! Listening TCP sockets that survive a shortage of file descriptors.

use futures_util::{Stream, stream};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    time::sleep,
};
use tracing::warn;

/// Pause after a failed accept, which mostly means that the process has no file descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A socket that could not be bound.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for {purpose}: {source}")]
pub struct ListenError {
    /// The address that was asked for.
    pub address: SocketAddr,
    /// What it was to serve, as "gRPC".
    pub purpose: &'static str,
    /// What the system said.
    pub source: io::Error,
}

/// Listens on `address`; an error says for what `purpose`.
pub async fn bind(purpose: &'static str, address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address).await.map_err(|source| ListenError { address, purpose, source })
}

/// The next connection, with Nagle's algorithm off. A failed accept is logged and tried again after a pause.
pub async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await.and_then(|(stream, _)| stream.set_nodelay(true).map(|()| stream)) {
            Ok(stream) => return stream,
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All connections of a listener as tonic's `serve_with_incoming` takes them; never an error, never an end.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    stream::unfold(listener, async |listener| Some((Ok(accept(&listener).await), listener)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_in_use_is_named() {
        let taken = bind("gRPC", "127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = taken.local_addr().unwrap();
        let error = bind("REST", address).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("cannot listen on {address} for REST: ")), "{error}");
    }
}
