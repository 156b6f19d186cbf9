//! A request with what belongs to it: redirects and authentication.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        LOCATION, RANGE, USER_AGENT, WWW_AUTHENTICATE,
    },
};
use parking_lot::Mutex;
use tokio::time::Instant;
use url::Url;

use super::{
    OriginConfig, OriginError, Registries, WireBody,
    auth::{Auth, Authorization},
    challenge::{self, Challenge},
    egress::{self, Egress},
    pause::Pauses,
    registries::{Registry, Road},
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

/// A mirror that has not answered for so long is passed over.
const MIRROR_PATIENCE: Duration = Duration::from_secs(1);
/// A mirror that failed is not asked again for so long.
const MIRROR_REST: Duration = Duration::from_secs(30);

/// Connections, tokens, and which origins want to be left alone.
pub(super) struct Exchange {
    wire: Wire,
    auth: Auth,
    registries: Registries,
    pub(super) pauses: Pauses,
    /// Mirrors that failed, and until when they are passed over.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Exchange {
    pub(super) fn new(config: &OriginConfig, registries: Registries, limits: Limits) -> Self {
        Self {
            wire: Wire::new(config, limits),
            auth: Auth::new(registries.clone()),
            registries,
            pauses: Pauses::default(),
            resting: Mutex::default(),
        }
    }

    /// Sends a request to the registry's mirrors and to itself, follows redirects and meets challenges; any status is
    /// an answer.
    pub(super) async fn run(&self, ask: &Ask, deadline: Instant) -> Result<Response<WireBody>, OriginError> {
        let response = self.reach(ask, deadline, REDIRECTS).await?;
        // A link to a blob store may have expired on its way.
        if response.status() == StatusCode::FORBIDDEN && !response.body().is_from(&ask.url) {
            return self.reach(ask, deadline, REDIRECTS).await;
        }
        Ok(response)
    }

    /// Which addresses a URL that a request names may lead to.
    pub(super) fn egress(&self, url: &Url) -> Egress {
        self.wire.egress(&self.road(url))
    }

    /// How a URL is reached that a request names.
    pub(super) fn road(&self, url: &Url) -> Road {
        self.registries.road(url, None)
    }

    /// Asks the source's own origin whether it would give the content to this caller. Where it sends the caller to
    /// fetch it does not matter then.
    pub(super) async fn allows(
        &self,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<Response<WireBody>, OriginError> {
        self.reach(ask, deadline, 0).await
    }

    async fn reach(
        &self,
        ask: &Ask,
        deadline: Instant,
        most: usize,
    ) -> Result<Response<WireBody>, OriginError> {
        let registry = self.registries.of_url(&ask.url);
        if let Some(registry) = &registry {
            for url in registry.mirrored(&ask.url) {
                if let Some(response) = self.mirror(ask, url, registry, deadline, most).await {
                    return Ok(response);
                }
            }
        }
        self.follow(ask, registry.as_deref(), deadline, most).await
    }

    /// What a mirror answers, if it has what is asked for. It does not see who asks.
    async fn mirror(
        &self,
        ask: &Ask,
        url: Url,
        registry: &Registry,
        deadline: Instant,
        most: usize,
    ) -> Option<Response<WireBody>> {
        let origin = url.origin().ascii_serialization();
        if self.resting.lock().get(&origin).is_some_and(|until| *until > Instant::now()) {
            return None;
        }
        let mut ask = Ask { url, ..ask.clone() };
        ask.headers.remove(AUTHORIZATION);
        let deadline = deadline.min(Instant::now() + MIRROR_PATIENCE);
        match self.follow(&ask, Some(registry), deadline, most).await {
            Ok(response) if matches!(response.status().as_u16(), 200 | 206 | 300..400) => Some(response),
            Ok(_) => None,
            Err(error) => {
                tracing::info!(mirror = origin, %error, "a mirror is passed over for a while");
                let mut resting = self.resting.lock();
                resting.retain(|_, until| *until > Instant::now());
                resting.insert(origin, Instant::now() + MIRROR_REST);
                None
            }
        }
    }

    /// Sends a request and follows its redirects, `most` of them; 0 gives a redirect to another origin as it is.
    async fn follow(
        &self,
        ask: &Ask,
        registry: Option<&Registry>,
        deadline: Instant,
        most: usize,
    ) -> Result<Response<WireBody>, OriginError> {
        let mut url = ask.url.clone();
        // Once another origin has chosen the way, the headers are not sent again, not even back home.
        let mut own_origin = true;
        for _ in 0..=REDIRECTS {
            let response = if own_origin {
                self.authenticated(ask, &url, registry, deadline).await?
            } else {
                let road = self.registries.road(&url, registry);
                self.wire.send(&ask.method, &url, &road, ask.headers(false, None), deadline).await?
            };
            let Some(next) = redirect(&url, &response)? else {
                return Ok(response);
            };
            own_origin &= next.origin() == url.origin();
            if most == 0 && !own_origin {
                return Ok(response);
            }
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
        registry: Option<&Registry>,
        deadline: Instant,
    ) -> Result<Response<WireBody>, OriginError> {
        let road = self.registries.road(url, registry);
        let mut response = self.wire.send(&ask.method, url, &road, ask.headers(true, None), deadline).await?;
        let mut refused: Option<HeaderValue> = None;
        let mut first = None;
        while response.status() == StatusCode::UNAUTHORIZED && !ask.headers.contains_key(AUTHORIZATION) {
            let (parts, body) = response.into_parts();
            response = Response::from_parts(parts, body.buffered().await);
            let challenges = challenges(response.headers());
            let met = self.auth.meet(&self.wire, url, &challenges, refused.as_ref(), deadline).await;
            let Some(Authorization { value, remembered }) = met else {
                break;
            };
            let headers = ask.headers(true, Some(&value));
            let met = self.wire.send(&ask.method, url, &road, headers, deadline).await?;
            first.get_or_insert(std::mem::replace(&mut response, met));
            if !remembered {
                break;
            }
            refused = Some(value);
        }
        // The caller is to hear what he has to bring, not that what this node brought does not do.
        Ok(first.filter(|_| response.status() == StatusCode::UNAUTHORIZED).unwrap_or(response))
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
