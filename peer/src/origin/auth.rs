//! Meets a challenge: the token authentication of registries, and Basic with configured credentials.
//!
//! Follows the distribution project's "Token Authentication Specification": a `GET` of the challenge's realm with
//! `service` and `scope` gives a token, anonymously or with the user name and password of the registry.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, AUTHORIZATION},
};
use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::{
    OriginError, Registries,
    challenge::Challenge,
    credentials::Credentials,
    egress,
    registries::Road,
    wire::{self, Wire},
};

/// Number of tokens that are kept.
const TOKENS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();
/// How long a token is good if its response does not say (Token Authentication Specification, `expires_in`).
const DEFAULT_LIFE: u64 = 60;
/// Longest time for which a token is kept, in seconds.
const MAX_LIFE: u64 = 3600;

/// Tokens by what they are for.
pub(super) struct Auth {
    registries: Registries,
    tokens: Mutex<LruCache<TokenKey, Slot>>,
}

/// The value of an `Authorization` header, and whether it is one that was used before.
pub(super) struct Authorization {
    pub(super) value: HeaderValue,
    pub(super) remembered: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: Url,
    service: Option<String>,
    scope: Option<String>,
    /// Whose credentials the token was got with.
    user: Option<String>,
}

/// Holds the lock while a token is fetched, so that those who want the same one wait for it.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

struct Token {
    value: HeaderValue,
    until: Instant,
}

/// The answer of a token realm.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Auth {
    pub(super) fn new(registries: Registries) -> Self {
        Self { registries, tokens: Mutex::new(LruCache::new(TOKENS)) }
    }

    /// The authorization that answers one of the challenges of `url`, Bearer before Basic; `None` if there is none.
    /// An authorization that the origin has just `refused` is not given again.
    pub(super) async fn meet(
        &self,
        wire: &Wire,
        url: &Url,
        challenges: &[Challenge],
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Option<Authorization> {
        let credentials = self.registries.credentials(url).await;
        let of_scheme = |scheme| challenges.iter().find(|challenge| challenge.scheme == scheme);
        if let Some(bearer) = of_scheme("bearer") {
            let met = self.token(wire, url, bearer, credentials.as_ref(), refused, deadline).await;
            return met
                .inspect_err(
                    |error| tracing::warn!(registry = wire::host(url), %error, "no token for this registry"),
                )
                .ok();
        }
        let value = basic(of_scheme("basic").and(credentials.as_ref())?)?;
        Some(Authorization { value, remembered: false })
    }

    async fn token(
        &self,
        wire: &Wire,
        url: &Url,
        bearer: &Challenge,
        credentials: Option<&Credentials>,
        refused: Option<&HeaderValue>,
        deadline: Instant,
    ) -> Result<Authorization, OriginError> {
        let realm = realm(url, bearer)?;
        let credentials = credentials.filter(|credentials| credentials.may_go_to(url, &realm));
        let key = TokenKey {
            realm,
            service: bearer.param("service").map(str::to_owned),
            scope: bearer.param("scope").map(str::to_owned),
            user: credentials.map(|credentials| credentials.user.clone()),
        };
        let slot = self.tokens.lock().get_or_insert(key.clone(), Slot::default).clone();
        let mut slot = slot.lock().await;
        if let Some(token) =
            slot.as_ref().filter(|token| token.until > Instant::now() && refused != Some(&token.value))
        {
            return Ok(Authorization { value: token.value.clone(), remembered: true });
        }
        let road = self.registries.road(&key.realm, self.registries.of_url(url).as_deref());
        let token = fetch(wire, &key, &road, credentials, deadline).await?;
        let value = token.value.clone();
        *slot = Some(token);
        Ok(Authorization { value, remembered: false })
    }
}

/// The challenge's realm, if it may be asked: over https, unless the registry itself is not or is on this machine.
fn realm(registry: &Url, bearer: &Challenge) -> Result<Url, OriginError> {
    let invalid = |reason: String| OriginError::InvalidAnswer { host: wire::host(registry), reason };
    let realm = bearer.param("realm").ok_or_else(|| invalid("its challenge names no realm".to_owned()))?;
    let realm = Url::parse(realm).map_err(|error| invalid(format!("its token realm is no URL: {error}")))?;
    let http = realm.scheme() == "http" && (registry.scheme() == "http" || egress::is_loopback(registry));
    if realm.scheme() != "https" && !http {
        return Err(invalid("its token realm is not https".to_owned()));
    }
    match egress::refused(registry, &realm).filter(|_| !http) {
        Some(reason) => Err(invalid(format!("its token realm is not asked: {reason}"))),
        None => egress::check(&realm).map(|()| realm),
    }
}

async fn fetch(
    wire: &Wire,
    key: &TokenKey,
    road: &Road,
    credentials: Option<&Credentials>,
    deadline: Instant,
) -> Result<Token, OriginError> {
    let mut url = key.realm.clone();
    let scopes = key.scope.iter().flat_map(|scopes| scopes.split(' ')).filter(|scope| !scope.is_empty());
    let pairs = key
        .service
        .iter()
        .map(|service| ("service", service.as_str()))
        .chain(scopes.map(|scope| ("scope", scope)));
    url.query_pairs_mut().extend_pairs(pairs);
    let mut headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static("application/json"))]);
    headers.extend(credentials.and_then(basic).map(|value| (AUTHORIZATION, value)));

    let response = wire.send(&Method::GET, &url, road, headers, deadline).await?;
    let host = wire::host(&url);
    let invalid = |reason: String| OriginError::InvalidAnswer { host: host.clone(), reason };
    let status = response.status();
    if status != StatusCode::OK {
        return Err(invalid(format!("it answered {status} instead of giving a token")));
    }
    let body = response.into_body().beginning().await;
    // serde_json's message would quote what it read.
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| invalid("its token answer is not the JSON expected".to_owned()))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| invalid("its token answer holds no token".to_owned()))?;
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| invalid("its token is not printable".to_owned()))?;
    value.set_sensitive(true);
    // A tenth is left for the way, so that a token does not expire under a request.
    let life = Duration::from_secs(answer.expires_in.unwrap_or(DEFAULT_LIFE).min(MAX_LIFE)).mul_f64(0.9);
    Ok(Token { value, until: Instant::now() + life })
}

/// `Basic` credentials (RFC 7617).
fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let pair = format!("{}:{}", credentials.user, credentials.password);
    let mut value = HeaderValue::from_str(&format!("Basic {}", BASE64_STANDARD.encode(pair))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
