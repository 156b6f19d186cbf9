//! Takes a request to the part that answers it, within the deadline for the first byte.

use darter_peer::{
    Peer,
    origin::{OriginError, Source},
};
use http::{
    HeaderName, HeaderValue, Method, Request, Response,
    header::{ACCEPT, AUTHORIZATION},
    request::Parts,
};
use tokio::time::timeout;

use crate::{
    Config,
    access::{Access, Caller},
    answer::{self, API_VERSION, Body, Failure},
    log::{Line, Logged},
    metrics::Metrics,
    route::{self, Kind, Route},
};

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) config: Config,
    pub(crate) peer: Peer,
    pub(crate) access: Access,
    pub(crate) metrics: Metrics,
}

impl Proxy {
    pub(crate) fn new(config: Config, peer: Peer, metrics: Metrics) -> Self {
        Self { access: Access::new(config.offline, config.auth_cache), config, peer, metrics }
    }

    /// Answers a request; its body is not looked at, because none of the pull side has one.
    pub(crate) async fn answer<B>(&self, request: Request<B>) -> Response<Logged> {
        let (parts, _) = request.into_parts();
        let route = self.route(&parts);
        let line = Line::new(&parts, route.as_ref().ok(), self.metrics.clone());
        let answered = async { self.dispatch(&parts, route?).await };
        let answered = timeout(self.config.first_byte_timeout, answered).await;
        let response =
            answered.unwrap_or_else(|_| Err(Failure::timeout())).unwrap_or_else(Failure::into_response);
        line.attach(response)
    }

    fn route(&self, parts: &Parts) -> Result<Route, Failure> {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            return Err(Failure::read_only());
        }
        let knows = |name: &str| self.peer.registries().knows(name);
        Ok(route::parse(parts.uri.path(), parts.uri.query(), &self.config.default_registry, knows)?)
    }

    async fn dispatch(&self, parts: &Parts, route: Route) -> Result<Response<Body>, Failure> {
        match route {
            Route::Ping => Ok(pong()),
            Route::Content(named) => self.content(parts, &named).await,
            Route::Forward(forward) => self.forward(parts, &forward).await,
        }
    }

    /// The URL of `path` at a registry.
    pub(crate) fn upstream(&self, registry: &str, path: &str, kind: Kind) -> Result<String, Failure> {
        let base = self.peer.registries().base(registry).map_err(|error| Failure::of_origin(&error, kind))?;
        let invalid =
            |error: url::ParseError| Failure::of_origin(&OriginError::InvalidUrl(error.to_string()), kind);
        Ok(base.join(path).map_err(invalid)?.into())
    }

    /// Who asks for what is in this repository.
    pub(crate) fn caller<'a>(&self, parts: &'a Parts, registry: &'a str, repository: &'a str) -> Caller<'a> {
        let authorization = parts.headers.get(AUTHORIZATION);
        let anonymous = authorization.is_none() && !self.peer.registries().has_credentials(registry);
        Caller { registry, repository, authorization, anonymous }
    }
}

/// A URL with the caller's credentials, and for manifests with what the caller accepts.
pub(crate) fn source(url: String, parts: &Parts, kind: Kind) -> Source {
    let passed = |name: HeaderName| {
        parts.headers.get_all(&name).iter().map(move |value| (name.clone(), value.clone()))
    };
    let mut headers: Vec<(HeaderName, HeaderValue)> = passed(AUTHORIZATION).collect();
    if kind == Kind::Manifest {
        headers.extend(passed(ACCEPT));
    }
    Source { url, headers }
}

fn pong() -> Response<Body> {
    let mut response = Response::new(answer::empty());
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response
}
