//! Takes a request to the part that answers it, within the deadline for the first byte.

use std::{net::SocketAddr, sync::Arc};

use arc_swap::ArcSwap;
use darter_peer::{
    Peer,
    origin::{OriginError, Source},
};
use http::{
    HeaderName, HeaderValue, Method, Request, Response, Version,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
    request::Parts,
};
use hyper::body::Incoming;
use tokio::{sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use url::Url;

use crate::{
    Config,
    access::{Access, Caller},
    answer::{self, API_VERSION, Body, Failure, Verdict},
    dragonfly::Wishes,
    forward_proxy::{self, Interceptor},
    log::{Line, Logged},
    metrics::Metrics,
    route::{self, Kind, Route},
    rules::{Action, Rules, Subject},
    server::ServeError,
    tags::Tags,
    tls,
};

/// What all requests share.
pub(crate) struct Proxy {
    pub(crate) config: Config,
    pub(crate) rules: ArcSwap<Rules>,
    pub(crate) peer: Peer,
    pub(crate) access: Access,
    pub(crate) tags: Tags,
    pub(crate) metrics: Metrics,
    /// How many more tunnels may be opened.
    pub(crate) tunnels: Arc<Semaphore>,
    pub(crate) interceptor: Option<Interceptor>,
    pub(crate) tls: Option<TlsAcceptor>,
    /// Connections that requests have opened to origins.
    pub(crate) tasks: TaskTracker,
    /// Ends them.
    pub(crate) stop: CancellationToken,
}

/// Where a connection came to.
#[derive(Clone)]
pub(crate) enum Place {
    /// The listening address.
    Front(Option<SocketAddr>),
    /// A tunnel to a registry at a URL, which was opened.
    Opened { url: Url, registry: String },
}

/// What a request is about.
pub(crate) enum Target {
    /// A registry, as whose mirror this is asked.
    Mirror(Route),
    /// A URL that the forward proxy is asked for.
    Url(Url),
    /// Bytes both ways.
    Tunnel,
    /// Something of a registry, through a tunnel that was opened.
    Opened { url: Url, registry: String },
}

impl Proxy {
    pub(crate) fn new(config: Config, peer: Peer, metrics: Metrics) -> Result<Self, ServeError> {
        Ok(Self {
            rules: ArcSwap::from_pointee(Rules::new(&config.rules)?),
            access: Access::new(config.offline, config.auth_cache, config.offline_for),
            tags: Tags::new(config.stale_tags),
            tunnels: Arc::new(Semaphore::new(config.connections.clamp(1, Semaphore::MAX_PERMITS))),
            interceptor: Interceptor::new(&config.forward)?,
            tls: match (&config.certificate_file, &config.key_file) {
                (None, None) => None,
                (Some(certificate), Some(key)) => {
                    Some(tls::from_files(certificate, key).map_err(ServeError::Certificate)?)
                }
                _ => return Err(ServeError::HalfCertificate),
            },
            config,
            peer,
            metrics,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Answers a request.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        place: &Place,
    ) -> Response<Logged> {
        let target = match place {
            Place::Front(local) => self.target(&request, *local),
            Place::Opened { url, registry } => {
                Ok(Target::Opened { url: url.clone(), registry: registry.clone() })
            }
        };
        let path = request.uri().authority().filter(|_| request.method() == Method::CONNECT);
        let path = path.map_or_else(|| request.uri().path(), |authority| authority.as_str());
        let line = Line::new(request.method(), path, target.as_ref().ok(), self.metrics.clone());
        // A request's own body may take longer.
        let readable = matches!(*request.method(), Method::GET | Method::HEAD | Method::CONNECT);
        let limit = if readable { self.config.first_byte_timeout } else { self.config.write_timeout };
        let answered = async {
            match target? {
                Target::Mirror(route) => Box::pin(self.mirror(&request.into_parts().0, route)).await,
                Target::Url(url) => Box::pin(self.forwarded(request, url)).await,
                Target::Tunnel => Box::pin(self.tunnel(request)).await,
                Target::Opened { url, registry } => {
                    Box::pin(self.intercepted(request, &url, &registry)).await
                }
            }
        };
        let answered = timeout(limit, answered).await;
        let response =
            answered.unwrap_or_else(|_| Err(Failure::timeout())).unwrap_or_else(Failure::into_response);
        line.attach(response)
    }

    /// What a request is about. One that names this proxy itself in its URL, as all of HTTP/2 do, asks for a mirror.
    fn target(&self, request: &Request<Incoming>, local: Option<SocketAddr>) -> Result<Target, Failure> {
        if request.method() == Method::CONNECT {
            return Ok(Target::Tunnel);
        }
        let uri = request.uri();
        let own = uri.authority().is_none_or(|named| {
            let local = local.filter(|local| named.port_u16().unwrap_or(80) == local.port());
            let host = named.host().trim_matches(['[', ']']);
            local.is_some_and(|local| {
                let ip = host.parse().is_ok_and(|ip: std::net::IpAddr| ip == local.ip());
                ip || host == "localhost" || request.version() == Version::HTTP_2
            })
        });
        match forward_proxy::url_of(uri) {
            Some(url) if !own => Ok(Target::Url(url)),
            _ => self.route(request).map(Target::Mirror),
        }
    }

    fn route(&self, request: &Request<Incoming>) -> Result<Route, Failure> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Failure::read_only());
        }
        let default = &self.config.default_registry;
        // Names on Docker Hub have no dots, so there such a first part is a registry, as in an image's reference.
        let is_host = |name: &str| name == "localhost" || name.contains(['.', ':']);
        let knows =
            |name: &str| self.peer.registries().knows(name) || (default == "docker.io" && is_host(name));
        let named = Wishes::of(request.headers()).registry;
        let default = named.as_deref().unwrap_or(default);
        Ok(route::parse(request.uri().path(), request.uri().query(), default, knows)?)
    }

    pub(crate) async fn mirror(&self, parts: &Parts, route: Route) -> Result<Response<Body>, Failure> {
        match route {
            Route::Ping => Ok(pong()),
            Route::Content(named) => {
                let path = named.path();
                let url = self.upstream(&named.registry, &path, named.kind)?;
                match self.decide(&named.registry, Some(&named.repository), &url) {
                    (Action::Deny, _) => Err(Failure::denied()),
                    (Action::Direct, why) => {
                        Verdict { p2p: false, why }.put(self.pass(parts, &named.registry, &path).await)
                    }
                    (Action::P2p, why) => Verdict { p2p: true, why }.put(self.content(parts, &named).await),
                }
            }
            Route::Forward(forward) => {
                let url = self.upstream(&forward.registry, &forward.path, Kind::Manifest)?;
                match self.decide(&forward.registry, forward.repository(), &url) {
                    (Action::Deny, _) => Err(Failure::denied()),
                    _ => {
                        let why = if forward.tag_of.is_some() { "tag" } else { "no-content" };
                        Verdict { p2p: false, why }.put(self.forward(parts, &forward).await)
                    }
                }
            }
        }
    }

    fn decide(&self, registry: &str, repository: Option<&str>, url: &str) -> (Action, &'static str) {
        match self.rules.load().decide(Subject { registry, repository, url }) {
            Some(decision) => (decision.action, "rule"),
            None => (Action::P2p, "default"),
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
    let mut response = Response::new(answer::full("{}"));
    response.headers_mut().insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"));
    response
}
