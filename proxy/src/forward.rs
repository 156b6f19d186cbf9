//! Passes requests on that only the origin can answer.

use darter_peer::Digest;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{
        ACCEPT, AUTHORIZATION, CONNECTION, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LINK,
        PROXY_AUTHENTICATE, RANGE, SET_COOKIE, STRICT_TRANSPORT_SECURITY, TE, TRAILER, TRANSFER_ENCODING,
        UPGRADE,
    },
    request::Parts,
};

use crate::{
    answer::{self, Body, CONTENT_DIGEST, Failure, SOURCE},
    proxy::Proxy,
    route::{self, Forward, Kind, Named, Naming},
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
    /// Passes a request on. An answered tag tells that the caller may read the repository, and what the tag stands for.
    pub(crate) async fn forward(&self, parts: &Parts, forward: &Forward) -> Result<Response<Body>, Failure> {
        let passed = self.pass(parts, &forward.registry, &forward.path).await;
        let (Forward { registry, path, naming, .. }, Some(repository)) = (forward, &forward.tag_of) else {
            return Ok(with_local_links(passed?, &forward.registry, forward.naming));
        };
        let status = passed.as_ref().map_or_else(|failure| failure.status, Response::status);
        if (status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS)
            && let Some(digest) = self.tags.stale(registry, path)
        {
            tracing::info!(
                registry,
                path,
                "answered as when the origin was last asked, as `stale_tags` allows"
            );
            let (registry, repository) = (registry.clone(), repository.clone());
            return self.content(parts, &Named { registry, repository, kind: Kind::Manifest, digest }).await;
        }
        let response = with_local_links(passed?, registry, *naming);
        if response.status().is_success() {
            let digest = digest(response.headers());
            self.access.learn(self.caller(parts, registry, repository), digest.clone());
            digest.into_iter().for_each(|digest| self.tags.learn(registry, path, digest));
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

/// The answer with links that lead back here.
fn with_local_links(mut response: Response<Body>, registry: &str, naming: Naming) -> Response<Body> {
    let headers = response.headers_mut();
    let link = headers.get(LINK).and_then(|link| link.to_str().ok());
    let local = link.and_then(|link| route::localized(link, registry, naming));
    if let Some(local) = local.and_then(|local| HeaderValue::try_from(local).ok()) {
        headers.insert(LINK, local);
    }
    response
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
