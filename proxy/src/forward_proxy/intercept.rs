//! Tunnels to listed registries are opened: what goes through them is served like from a mirror.

use std::{fmt, io, num::NonZeroUsize, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use http::{Method, Request, Response};
use hyper::{body::Incoming, upgrade::Upgraded};
use hyper_util::rt::TokioIo;
use lru::LruCache;
use parking_lot::Mutex;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsAcceptor;
use url::Url;

use super::authority::{Authority, AuthorityError};
use crate::{
    answer::{Body, Failure, Verdict},
    config::ForwardConfig,
    proxy::{Place, Proxy},
    route::{self, Route},
    server,
};

/// Certificates that are kept.
const CERTIFICATES: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// How long a certificate is used; it is good for longer.
const KEPT: Duration = Duration::from_secs(24 * 3600);

/// Opens tunnels to listed registries.
pub(crate) struct Interceptor {
    /// `HOST[:PORT]`.
    registries: Vec<String>,
    acceptor: TlsAcceptor,
}

/// Makes a certificate for the name that a client asks for.
struct Certificates {
    authority: Authority,
    made: Mutex<LruCache<String, (Arc<CertifiedKey>, Instant)>>,
    /// For clients that name no host, because they have only its address.
    hosts: Vec<String>,
}

impl Interceptor {
    /// `None` if no registry is listed.
    pub(crate) fn new(config: &ForwardConfig) -> Result<Option<Self>, AuthorityError> {
        if config.intercept.is_empty() || !config.enable {
            return Ok(None);
        }
        let host = |name: &String| name.rsplit_once(':').map_or(name.as_str(), |(host, _)| host).to_owned();
        let hosts: Vec<String> = config.intercept.iter().map(host).collect();
        let authority = Authority::load(&config.ca_dir, &hosts)?;
        let failed =
            |error: io::Error| AuthorityError { path: config.ca_dir.clone(), reason: error.to_string() };
        let made = Mutex::new(LruCache::new(CERTIFICATES));
        let acceptor =
            crate::tls::from_resolver(Arc::new(Certificates { authority, made, hosts })).map_err(failed)?;
        Ok(Some(Self { registries: config.intercept.clone(), acceptor }))
    }

    pub(crate) fn is_for(&self, host: &str) -> bool {
        self.registries.iter().any(|listed| listed.eq_ignore_ascii_case(host))
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let host = hello.server_name().map(str::to_owned).or_else(|| match self.hosts.as_slice() {
            [only] => Some(only.clone()),
            _ => None,
        })?;
        if !self.hosts.iter().any(|listed| listed.eq_ignore_ascii_case(&host)) {
            return None;
        }
        let mut made = self.made.lock();
        if let Some((certificate, at)) = made.get(&host)
            && at.elapsed() < KEPT
        {
            return Some(certificate.clone());
        }
        let certificate = Arc::new(self.authority.certificate(&host).ok()?);
        made.put(host, (certificate.clone(), Instant::now()));
        Some(certificate)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Proxy {
    /// Serves what comes through an opened tunnel to a registry at `url`.
    pub(super) fn opened(
        self: Arc<Self>,
        tunnel: Upgraded,
        url: Url,
        name: String,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let Some(interceptor) = &self.interceptor else { return };
            let handshake = interceptor.acceptor.accept(TokioIo::new(tunnel));
            match timeout(server::HEAD_TIMEOUT, handshake).await {
                Ok(Ok(stream)) => {
                    let place = Place::Opened { url, registry: name };
                    server::exchange(TokioIo::new(stream), self.clone(), place).await;
                }
                Ok(Err(error)) => {
                    tracing::info!(registry = name, %error, "a client does not accept this node's certificate authority");
                }
                Err(_) => {}
            }
        })
    }

    /// Answers a request that came through an opened tunnel.
    pub(crate) async fn intercepted(
        &self,
        request: Request<Incoming>,
        url: &Url,
        registry: &str,
    ) -> Result<Response<Body>, Failure> {
        let readable = matches!(*request.method(), Method::GET | Method::HEAD);
        let (path, query) = (request.uri().path(), request.uri().query());
        match route::parse(path, query, registry, |_| false) {
            Ok(route @ (Route::Content(_) | Route::Forward(_))) if readable => {
                self.mirror(&request.into_parts().0, route).await
            }
            Ok(Route::Ping) if readable => {
                let answered = self.pass(&request.into_parts().0, registry, "/v2/").await;
                Verdict { p2p: false, why: "no-content" }.put(answered)
            }
            _ => {
                let there = url.join(request.uri().path_and_query().map_or("/", |path| path.as_str()));
                let there = there.map_err(|_| Failure::bad_url())?;
                Verdict { p2p: false, why: "no-content" }.put(self.relay(request, &there).await)
            }
        }
    }
}
