//! Passes a request on as it is, and its answer back: byte for byte, with all headers but those of the connection.

use darter_peer::origin::OriginError;
use futures_util::stream;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version,
    header::{
        CONNECTION, HOST, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use url::Url;

use super::host;
use crate::{
    answer::{self, Body, BodyError, Failure, SOURCE},
    dragonfly,
    proxy::Proxy,
    route::Kind,
};

/// Headers that concern one connection only (RFC 9110, section 7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

impl Proxy {
    /// Passes a request on over a connection of its own.
    pub(super) async fn relay(
        &self,
        request: Request<Incoming>,
        url: &Url,
    ) -> Result<Response<Body>, Failure> {
        let failed = |error: &OriginError| Failure::of_origin(error, Kind::Blob);
        let broken = |error: hyper::Error| {
            failed(&OriginError::Unreachable { host: host(url), reason: error.to_string() })
        };
        let stream = self.peer.origin().connect(url).await.map_err(|error| failed(&error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                tracing::debug!(%error, "a relayed connection ended");
            }
        });
        let (mut parts, body) = request.into_parts();
        parts.headers = end_to_end(&parts.headers);
        parts.headers.insert(HOST, HeaderValue::try_from(host(url)).map_err(|_| Failure::bad_url())?);
        parts.uri = url[url::Position::BeforePath..url::Position::AfterQuery]
            .parse::<Uri>()
            .map_err(|_| Failure::bad_url())?;
        parts.version = Version::HTTP_11;
        let (head, incoming) =
            sender.send_request(Request::from_parts(parts, body)).await.map_err(broken)?.into_parts();
        // The connection ends with its sender, so the body holds it.
        let limit = self.config.write_timeout;
        let bits = stream::try_unfold((incoming, sender), move |(mut incoming, sender)| async move {
            loop {
                let frame =
                    timeout(limit, incoming.frame()).await.map_err(|_| BodyError::from("no progress"))?;
                match frame {
                    None => return Ok(None),
                    Some(frame) => {
                        if let Ok(bytes) = frame?.into_data() {
                            return Ok::<_, BodyError>(Some((bytes, (incoming, sender))));
                        }
                    }
                }
            }
        });
        let mut response = Response::new(answer::streamed::<BodyError>(bits));
        *response.status_mut() = head.status;
        *response.headers_mut() = end_to_end(&head.headers);
        response.headers_mut().insert(SOURCE, HeaderValue::from_static("origin"));
        Ok(response)
    }
}

/// All headers but those that concern one connection only, or this proxy.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let named: Vec<String> =
        named.flat_map(|names| names.split(',').map(|name| name.trim().to_lowercase())).collect();
    let mut kept = HeaderMap::new();
    for (name, value) in headers {
        let hop = HOP_BY_HOP.contains(name) || named.iter().any(|hop| hop == name.as_str());
        if !hop && !dragonfly::is_own(name) {
            kept.append(name, value.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_connection_stay_with_it() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("x-hop", "1"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("transfer-encoding", "chunked"),
            ("x-dragonfly-tag", "t"),
            ("cookie", "a"),
            ("cookie", "b"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let kept = end_to_end(&headers);
        assert_eq!(kept.len(), 2);
        assert_eq!(kept.get_all("cookie").iter().count(), 2);
    }
}
