//! Origins: where contents come from when no peer has them. HTTP(S) sources with Range, resume, redirects and token
//! authentication.
//!
//! What it guarantees: every wait has a deadline; a body that [`OriginBody`] ends cleanly has the length that the
//! origin named; a broken body is continued only if the origin proves that the content is still the same; the headers
//! of a source never reach another origin (scheme, host and port) than the source's own. What it does not: that the
//! bytes are the right ones. Digests are the caller's business.

mod auth;
mod body;
mod challenge;
mod content_range;
mod credentials;
mod dial;
mod egress;
mod error;
mod exchange;
mod head;
mod pause;
mod registries;
mod retry;
mod source;
#[cfg(test)]
mod tests;
mod tls;
mod wire;

pub use body::OriginBody;
pub use credentials::{CredentialsConfig, ProviderConfig};
pub use dial::{Connection, Stream};
pub use egress::Network;
pub use error::OriginError;
pub use head::OriginHead;
pub use registries::{Registries, RegistryConfig, RegistryError};
pub use source::Source;
pub use tls::TlsError;
pub use wire::WireBody;

use std::{fmt, ops::Range, sync::Arc, time::Duration};

use darter_service::config::duration;
use http::{Method, Request, Response, StatusCode, request};
use serde::{Deserialize, Serialize};

use crate::limits::Limits;
use exchange::{Ask, Exchange};
use retry::Purpose;

/// How patient the client is with origins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OriginConfig {
    /// Longest time to set up one TCP connection.
    #[serde(with = "duration")]
    pub connect_timeout: Duration,
    /// Longest time from the request to the head of the final response: connecting, TLS, redirects, tokens and
    /// retries included.
    #[serde(with = "duration")]
    pub first_byte_timeout: Duration,
    /// Longest time in which a running body may bring less than 16 KiB.
    #[serde(with = "duration")]
    pub progress_timeout: Duration,
    /// How often a failed request, or a broken body that made no progress, is tried again.
    pub retries: u32,
    /// Most connections to one origin (scheme, host and port) at a time.
    pub connections: usize,
    /// Private networks that any URL may lead to. Configured registries, and what they redirect to, may be in any
    /// private network without it; link-local and metadata addresses are never asked.
    pub allow: Vec<Network>,
}

impl Default for OriginConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            first_byte_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(30),
            retries: 3,
            connections: 64,
            allow: Vec::new(),
        }
    }
}

/// Fetches from origins. Clones share connections and tokens.
#[derive(Clone)]
pub struct Origin {
    exchange: Arc<Exchange>,
    config: Arc<OriginConfig>,
}

impl Origin {
    /// A client with its own connections and no tokens yet.
    pub fn new(config: &OriginConfig, registries: Registries, limits: Limits) -> Self {
        let exchange = Arc::new(Exchange::new(config, registries, limits));
        Self { exchange, config: Arc::new(config.clone()) }
    }

    /// What the origin says about a content, without the content.
    ///
    /// # Errors
    /// [`OriginError::Status`] for any answer but a success, and every failure to get an answer.
    pub async fn head(&self, source: &Source) -> Result<OriginHead, OriginError> {
        let ask = source.ask(Method::HEAD)?;
        let response = self.answer(&ask, Purpose::Content).await?;
        if response.status() != StatusCode::OK {
            return Err(exchange::status_error(response).await);
        }
        let (parts, body) = response.into_parts();
        head::read(body.host(), &parts, None).map(|(head, _)| head)
    }

    /// Whether the origin would give a content to who asks with these headers: it does, or it says where it is.
    ///
    /// # Errors
    /// [`OriginError::Status`] for any other answer, and every failure to get an answer.
    pub async fn allows(&self, source: &Source) -> Result<(), OriginError> {
        let ask = source.ask(Method::HEAD)?;
        let response = self.answer(&ask, Purpose::Permission).await?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            Ok(())
        } else {
            Err(exchange::status_error(response).await)
        }
    }

    /// What the origin says about a content, asked with the same method as the content itself: the signature in a URL
    /// may hold for `GET` alone.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub async fn describe(&self, source: &Source) -> Result<OriginHead, OriginError> {
        match self.get(source, Some(0..1)).await {
            Ok(mut body) => {
                // To the end where that is near, so that the connection can be used again.
                if body.head.status == StatusCode::PARTIAL_CONTENT.as_u16() {
                    while body.next().await?.is_some() {}
                }
                Ok(body.head)
            }
            // An empty content has no first byte.
            Err(OriginError::Status { status: 416, .. }) => Ok(self.get(source, None).await?.head),
            Err(error) => Err(error),
        }
    }

    /// Opens a content, or the bytes `range` of it; a range that reaches beyond the end stops at the end.
    ///
    /// # Errors
    /// [`OriginError::Status`] for any answer but a success, and every failure to get an answer. An origin that
    /// ignores ranges is no error: the bytes before the range are skipped, see [`OriginHead::ranges`].
    pub async fn get(&self, source: &Source, range: Option<Range<u64>>) -> Result<OriginBody, OriginError> {
        OriginBody::open(self.exchange.clone(), self.config.clone(), source, range).await
    }

    /// Passes a request without a body on and returns the answer as it comes, whatever its status. Redirects are
    /// followed. Without an `Authorization` a challenge is met as for [`Self::get`]; if that fails, the answer is the
    /// one with the challenge.
    ///
    /// # Errors
    /// Every failure to get an answer.
    pub async fn send(&self, request: Request<()>) -> Result<Response<WireBody>, OriginError> {
        let (request::Parts { method, uri, headers, .. }, ()) = request.into_parts();
        let mut ask = Source { url: uri.to_string(), headers: vec![] }.ask(method)?;
        ask.headers = headers;
        self.answer(&ask, Purpose::Answer).await
    }

    async fn answer(&self, ask: &Ask, purpose: Purpose) -> Result<Response<WireBody>, OriginError> {
        retry::until_answered(&self.exchange, ask, &self.config, purpose).await
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Origin").field("config", &self.config).finish_non_exhaustive()
    }
}
