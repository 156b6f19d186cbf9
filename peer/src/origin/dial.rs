//! Connections to origins for those who speak with them themselves: tunnels, and requests that are passed on as they are.

use std::{io, sync::Arc};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_rustls::TlsConnector;
use url::Url;

use super::{Origin, OriginError, egress, wire};

/// A connection to an origin, with or without TLS.
pub type Connection = Box<dyn Stream>;

/// Bytes both ways.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

impl Origin {
    /// Connects to the host and port of a URL, under the same rules as everything that is fetched.
    ///
    /// # Errors
    /// The address may not be asked, or cannot be reached.
    pub async fn dial(&self, url: &Url) -> Result<TcpStream, OriginError> {
        egress::check(url)?;
        let host = wire::host(url);
        let unreachable = |reason: String| OriginError::Unreachable { host: host.clone(), reason };
        let late = |_| OriginError::Timeout { host: host.clone(), awaited: "connection" };
        let deadline = Instant::now() + self.config.first_byte_timeout;
        let egress = self.exchange.egress(url);
        let addresses = timeout_at(deadline, egress.addresses(url)).await.map_err(late)?;
        let addresses = addresses.map_err(|error| {
            match error.get_ref().and_then(|e| e.downcast_ref::<egress::Refused>()) {
                Some(refused) => OriginError::InvalidUrl(format!("{host}: {refused}")),
                None => unreachable(error.to_string()),
            }
        })?;
        let mut last = unreachable("it has no address".to_owned());
        for address in addresses {
            match timeout(self.config.connect_timeout, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true).map_err(|error| unreachable(error.to_string()))?;
                    return Ok(stream);
                }
                Ok(Err(error)) => last = unreachable(error.to_string()),
                Err(elapsed) => last = late(elapsed),
            }
        }
        Err(last)
    }

    /// The same, with TLS where the URL is https.
    ///
    /// # Errors
    /// The address may not be asked or cannot be reached, or its certificate is not acceptable.
    pub async fn connect(&self, url: &Url) -> Result<Connection, OriginError> {
        let stream = self.dial(url).await?;
        if url.scheme() != "https" {
            return Ok(Box::new(stream));
        }
        let host = wire::host(url);
        let refused = |reason: String| OriginError::Tls { host: host.clone(), reason };
        let name = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(name).map_err(|error| refused(error.to_string()))?;
        let connector = TlsConnector::from(Arc::clone(&self.exchange.road(url).tls));
        let late = |_| OriginError::Timeout { host: host.clone(), awaited: "TLS handshake" };
        let handshake = timeout(self.config.connect_timeout, connector.connect(name, stream));
        let stream = handshake.await.map_err(late)?.map_err(|error: io::Error| refused(error.to_string()))?;
        Ok(Box::new(stream))
    }
}
