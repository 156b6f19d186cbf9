//! A request with what belongs to it: redirects and authentication.

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
    },
};
use tokio::time::Instant;
use url::Url;

use super::{
    OriginConfig, OriginError, Registries, WireBody,
    auth::{Auth, Authorization},
    challenge::{self, Challenge},
    egress,
    wire::{self, Wire},
};
use crate::limits::Limits;

/// Most redirects that one request follows.
const REDIRECTS: usize = 8;

/// The only headers of a request that another origin than the source's gets to see.
const HARMLESS: [HeaderName; 6] = [ACCEPT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE];

/// A request: a method without a body, a checked URL, and headers that are meant for this URL's origin.
#[derive(Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
}

impl Ask {
    /// The headers as they are sent, to the source's own origin or to another one.
    fn headers(&self, own_origin: bool, authorization: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = if own_origin { self.headers.clone() } else { harmless(&self.headers) };
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("darter/", env!("CARGO_PKG_VERSION"))));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        headers
    }
}

fn harmless(headers: &HeaderMap) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| HARMLESS.contains(name)) {
        kept.append(name, value.clone());
    }
    kept
}

/// Connections and tokens.
pub(super) struct Exchange {
    wire: Wire,
    auth: Auth,
}

impl Exchange {
    pub(super) fn new(
        config: &OriginConfig,
        registries: Registries,
        limits: Limits,
    ) -> Result<Self, rustls::Error> {
        Ok(Self { wire: Wire::new(config, limits)?, auth: Auth::new(registries) })
    }

    /// Sends a request, follows redirects and meets challenges; any status is an answer.
    pub(super) async fn run(&self, ask: &Ask, deadline: Instant) -> Result<Response<WireBody>, OriginError> {
        let mut url = ask.url.clone();
        // Once another origin has chosen the way, the headers are not sent again, not even back home.
        let mut own_origin = true;
        for _ in 0..=REDIRECTS {
            let response = if own_origin {
                self.authenticated(ask, &url, deadline).await?
            } else {
                self.wire.send(&ask.method, &url, ask.headers(false, None), deadline).await?
            };
            let Some(next) = redirect(&url, &response)? else {
                return Ok(response);
            };
            own_origin &= next.origin() == url.origin();
            url = next;
        }
        let reason = format!("there are more than {REDIRECTS} of them");
        Err(OriginError::Redirect { host: wire::host(&ask.url), reason })
    }

    /// Sends a request to the source's own origin. If that is refused with a challenge, and the caller brought no
    /// `Authorization`, it is sent again with what the challenge asks for.
    async fn authenticated(
        &self,
        ask: &Ask,
        url: &Url,
        deadline: Instant,
    ) -> Result<Response<WireBody>, OriginError> {
        let mut response = self.wire.send(&ask.method, url, ask.headers(true, None), deadline).await?;
        let mut refused: Option<HeaderValue> = None;
        while response.status() == StatusCode::UNAUTHORIZED && !ask.headers.contains_key(AUTHORIZATION) {
            let (parts, body) = response.into_parts();
            response = Response::from_parts(parts, body.buffered().await);
            let challenges = challenges(response.headers());
            let met = self.auth.meet(&self.wire, url, &challenges, refused.as_ref(), deadline).await;
            let Some(Authorization { value, remembered }) = met else {
                break;
            };
            response = self.wire.send(&ask.method, url, ask.headers(true, Some(&value)), deadline).await?;
            if !remembered {
                break;
            }
            refused = Some(value);
        }
        Ok(response)
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    values.filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// Where an answer redirects to, if it does.
fn redirect(from: &Url, response: &Response<WireBody>) -> Result<Option<Url>, OriginError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refuse = |reason: String| OriginError::Redirect { host: wire::host(from), reason };
    let location = response.headers().get(LOCATION).and_then(|location| location.to_str().ok());
    let location = location.ok_or_else(|| refuse("it names no location".to_owned()))?;
    let to = from.join(location).map_err(|error| refuse(format!("its location is no URL: {error}")))?;
    match egress::refused(from, &to) {
        Some(reason) => Err(refuse(reason)),
        None => Ok(Some(to)),
    }
}

/// An answer that is not the content, as an error.
pub(super) async fn status_error(response: Response<WireBody>) -> OriginError {
    let (parts, body) = response.into_parts();
    let values: Vec<&str> =
        parts.headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let offers_bearer = |value: &&&str| challenge::parse(value).iter().any(|c| c.scheme == "bearer");
    let challenge =
        values.iter().find(offers_bearer).or_else(|| values.first()).map(|value| (*value).to_owned());
    let host = body.host().to_owned();
    let body: Bytes = body.beginning().await;
    OriginError::Status { host, status: parts.status.as_u16(), challenge, body }
}
