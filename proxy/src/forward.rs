//! Passes requests on that only the origin can answer.

use darter_peer::Digest;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response,
    header::{
        ACCEPT, AUTHORIZATION, CONNECTION, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, PROXY_AUTHENTICATE,
        RANGE, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    },
    request::Parts,
};

use crate::{
    answer::{self, Body, CONTENT_DIGEST, Failure, SOURCE},
    proxy::Proxy,
    route::{Forward, Kind},
};

/// Headers of a request that the origin gets.
const ASKED: [HeaderName; 6] = [ACCEPT, AUTHORIZATION, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE];

/// Headers of an answer that concern the connection to the origin, or the origin as a site, but not the content.
const KEPT_BACK: [HeaderName; 10] = [
    CONNECTION,
    HeaderName::from_static("alt-svc"),
    HeaderName::from_static("keep-alive"),
    PROXY_AUTHENTICATE,
    SET_COOKIE,
    STRICT_TRANSPORT_SECURITY,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

impl Proxy {
    /// Passes a request on. An answered tag tells that the caller may read the repository.
    pub(crate) async fn forward(&self, parts: &Parts, forward: &Forward) -> Result<Response<Body>, Failure> {
        let response = self.pass(parts, &forward.registry, &forward.path).await?;
        if let Some(repository) = &forward.tag_of
            && response.status().is_success()
        {
            let caller = self.caller(parts, &forward.registry, repository);
            self.access.learn(caller, digest(response.headers()));
        }
        Ok(response)
    }

    /// Sends a request's method, path and headers to the origin and gives back what it answers.
    pub(crate) async fn pass(
        &self,
        parts: &Parts,
        registry: &str,
        path: &str,
    ) -> Result<Response<Body>, Failure> {
        let failure = |error| Failure::of_origin(&error, Kind::Manifest);
        let mut request = Request::new(());
        *request.method_mut() = parts.method.clone();
        let url = self.upstream(registry, path, Kind::Manifest)?;
        *request.uri_mut() = url.parse().map_err(|_| Failure::from(crate::route::Malformed::Path))?;
        *request.headers_mut() = only(&parts.headers, |name| ASKED.contains(name));

        let answer = self.peer.origin().send(request).await.map_err(failure)?;
        let (head, body) = answer.into_parts();
        let body = if parts.method == Method::HEAD { answer::empty() } else { answer::passed(body) };
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = only(&head.headers, |name| !KEPT_BACK.contains(name));
        response.headers_mut().insert(SOURCE, HeaderValue::from_static("origin"));
        Ok(response)
    }
}

fn only(headers: &HeaderMap, keep: impl Fn(&HeaderName) -> bool) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| keep(name)) {
        kept.append(name, value.clone());
    }
    kept
}

fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}
