//! The forward proxy: requests that name a whole URL, and `CONNECT`.
//!
//! Files that a rule gives to the peers come through them; everything else is passed on as it is.

mod authority;
mod file;
mod intercept;
mod relay;
mod tunnel;

pub use authority::AuthorityError;
pub(crate) use intercept::Interceptor;

use http::{Method, Request, Response, Uri};
use hyper::body::Incoming;
use url::Url;

use crate::{
    answer::{Body, Failure, Verdict},
    dragonfly::Wishes,
    proxy::Proxy,
    route::{self, Route},
    rules::{Action, Decision, Subject},
};

impl Proxy {
    /// Answers a request for a URL.
    pub(crate) async fn forwarded(
        &self,
        request: Request<Incoming>,
        url: Url,
    ) -> Result<Response<Body>, Failure> {
        self.forward_is_on()?;
        let (wishes, host) = (Wishes::of(request.headers()), host(&url));
        let readable = matches!(*request.method(), Method::GET | Method::HEAD);
        let content = self.registry_content(&url, &host).filter(|_| readable);
        let repository = content.as_ref().map(|named| named.repository.as_str());
        let rules = self.rules.load();
        let decision = rules.decide(Subject { registry: &host, repository, url: url.as_str() });
        let (p2p, why) = match decision.map(|decision| decision.action) {
            Some(Action::Deny) => return Err(Failure::denied()),
            _ if !readable => (false, "method"),
            Some(Action::Direct) => (false, "rule"),
            Some(Action::P2p) => (true, "rule"),
            None if wishes.use_p2p => (true, "header"),
            None => (content.is_some() && self.peer.registries().knows(&host), "default"),
        };
        if !p2p {
            return Verdict { p2p, why }.put(self.relay(request, &url).await);
        }
        let ignored = wishes.ignored_query.clone();
        let ignored =
            ignored.unwrap_or_else(|| decision.map_or(vec![], |decision| decision.ignored_query.to_vec()));
        let (parts, body) = request.into_parts();
        if let Some(named) = content {
            return Verdict { p2p, why }.put(self.content(&parts, &named).await);
        }
        let served = self.file(&parts, &url, &wishes, &ignored).await;
        if let Some(answered) = served.transpose() {
            return Verdict { p2p, why }.put(answered);
        }
        // Without a version in its description nobody could tell today's content from tomorrow's.
        let relayed = self.relay(Request::from_parts(parts, body), &url).await;
        Verdict { p2p: false, why: "no-version" }.put(relayed)
    }

    /// What the rules say of a URL that somebody wants through peers without this proxy: the query parameters that do not
    /// count, or why he does not get it.
    pub(crate) fn file_rule(&self, url: &Url) -> Result<Vec<String>, String> {
        let host = host(url);
        let content = self.registry_content(url, &host);
        let repository = content.as_ref().map(|named| named.repository.as_str());
        match self.rules.load().decide(Subject { registry: &host, repository, url: url.as_str() }) {
            Some(Decision { action: Action::Deny, .. }) => Err("this node's rules refuse it".to_owned()),
            decision => Ok(decision.map_or(vec![], |decision| decision.ignored_query.to_vec())),
        }
    }

    pub(crate) fn forward_is_on(&self) -> Result<(), Failure> {
        if self.config.forward.enable { Ok(()) } else { Err(Failure::forward_is_off()) }
    }

    /// What of a registry the URL names, if it leads to where that registry is asked.
    fn registry_content(&self, url: &Url, host: &str) -> Option<route::Named> {
        let base = self.peer.registries().base(host).ok()?;
        let at_home = base.origin() == url.origin() && url.path().starts_with("/v2/");
        match route::parse(url.path(), None, host, |_| false).ok().filter(|_| at_home)? {
            Route::Content(named) => Some(named),
            Route::Ping | Route::Forward(_) => None,
        }
    }
}

/// The URL that a request to a forward proxy names.
pub(crate) fn url_of(uri: &Uri) -> Option<Url> {
    uri.scheme()?;
    Url::parse(&uri.to_string()).ok().filter(|url| url.has_host())
}

/// Host and port, without the port that its scheme has anyway.
pub(crate) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}
