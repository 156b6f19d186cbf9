//! Serves what a digest names: blobs streamed while they arrive, manifests once they are checked.

use bytes::{Bytes, BytesMut};
use darter_peer::{
    Class, Content, TaskError, Want,
    origin::{OriginError, Source},
};
use futures_util::{TryStreamExt as _, future};
use http::{
    HeaderMap, HeaderValue, Method, Response,
    header::{CONTENT_TYPE, ETAG},
    request::Parts,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    access::Caller,
    answer::{API_VERSION, Body, CONTENT_DIGEST, Failure},
    delivery::{self, Outline, main_source},
    dragonfly::Wishes,
    manifest::Manifest,
    proxy::{Proxy, source},
    route::{Kind, Named},
};

/// Longest manifest that is passed on, in bytes. Registries take no longer ones (distribution specification,
/// "Pushing Manifests": at least 4 MiB must be taken).
const MAX_MANIFEST: u64 = 4 * 1024 * 1024;

impl Proxy {
    /// Answers a request for a content, after the origin let this caller read it.
    pub(crate) async fn content(&self, parts: &Parts, named: &Named) -> Result<Response<Body>, Failure> {
        let source = source(self.upstream(&named.registry, &named.path(), named.kind)?, parts, named.kind);
        let id = self.peer.registries().task(&source.url, &named.digest);
        let here = self.peer.store().get(&id).is_some_and(|entry| entry.is_verified());
        if parts.method == Method::HEAD && !here {
            return self.head_at_origin(parts, named).await;
        }
        let failure = |error| Failure::of_task(&error, named.kind);
        let want = Want {
            id,
            source: Some(source.clone()),
            class: Wishes::of(&parts.headers).class.unwrap_or(Class::Stream),
        };
        let open = async { self.open(want.clone()).await.map_err(failure) };
        let caller = self.caller(parts, &named.registry, &named.repository);
        let (content, len) = if self.access.is_permitted(caller) {
            // Most likely this is allowed too; the question takes no time then.
            let begun = self.peer.open(want.clone()).await.map_err(failure)?;
            let ((), opened) = tokio::try_join!(self.allowed(named, caller, &source, &begun), open)?;
            opened
        } else {
            self.check(named, caller, &source, self.check_deadline()).await?;
            open.await?
        };
        match named.kind {
            Kind::Blob => {
                let media_type = HeaderValue::from_static("application/octet-stream");
                let outline = outline(named, len, media_type, "local");
                delivery::stream(parts, &content, outline).await.map_err(failure)
            }
            Kind::Manifest if len > MAX_MANIFEST => Err(Failure::too_large(MAX_MANIFEST)),
            Kind::Manifest => {
                let bytes = whole(&content, len).await.map_err(failure)?;
                let media_type = Manifest::parse(&bytes).media_type();
                let outline = outline(named, len, media_type, main_source(content.by_source()));
                Ok(delivery::whole(parts, bytes, &outline))
            }
        }
    }

    /// Lets the origin answer a HEAD, instead of fetching the whole content for it.
    async fn head_at_origin(&self, parts: &Parts, named: &Named) -> Result<Response<Body>, Failure> {
        let mut response = self.pass(parts, &named.registry, &named.path()).await?;
        if response.status().is_success() {
            let caller = self.caller(parts, &named.registry, &named.repository);
            self.access.learn(caller, [named.digest.clone()]);
            // Where a registry redirects to a blob store, that knows nothing of the registry's headers.
            response.headers_mut().insert(CONTENT_DIGEST, text(named.digest.to_string()));
        }
        Ok(response)
    }

    /// Lets the caller read a content that is being opened with his credentials, or says why not. That the origin sends it
    /// now is as good an answer as one to a `HEAD`, which is spared where nobody but this node asks the origin.
    async fn allowed(
        &self,
        named: &Named,
        caller: Caller<'_>,
        source: &Source,
        content: &Content,
    ) -> Result<(), Failure> {
        let alone = self.peer.schedulers().is_empty();
        let deadline = self.check_deadline();
        let granted = timeout_at(deadline, content.granted(source));
        let checked = self.check(named, caller, source, deadline);
        tokio::pin!(checked);
        let granted = tokio::select! {
            granted = granted => granted.unwrap_or(false),
            checked = &mut checked, if !alone => return checked,
        };
        if !granted {
            return checked.await;
        }
        self.access.learn(caller, [named.digest.clone()]);
        Ok(())
    }

    /// Until when the origin may say whether a caller may read, in whatever way it is asked.
    fn check_deadline(&self) -> Instant {
        Instant::now() + self.config.check_timeout
    }

    async fn check(
        &self,
        named: &Named,
        caller: Caller<'_>,
        source: &Source,
        deadline: Instant,
    ) -> Result<(), Failure> {
        let ask = async {
            let late = || OriginError::Timeout {
                host: named.registry.clone(),
                awaited: "permission for the caller",
            };
            if Instant::now() >= deadline {
                return Err(late());
            }
            timeout_at(deadline, self.peer.origin().allows(source)).await.unwrap_or_else(|_| Err(late()))
        };
        let checked = self.access.check(caller, &named.digest, ask).await;
        checked.map_err(|error| Failure::of_origin(&error, named.kind))
    }

    /// Opens a content that the caller may read, and waits for its length.
    pub(crate) async fn open(&self, want: Want) -> Result<(Content, u64), TaskError> {
        let open = async |want| {
            let content = self.peer.open(want).await?;
            let len = content.geometry().await?.len();
            Ok((content, len))
        };
        match open(want.clone()).await {
            // The task may have been running for somebody with lesser credentials.
            Err(TaskError::Origin { status: 401 | 403 | 404, .. }) => open(want).await,
            opened => opened,
        }
    }
}

/// What a registry says about a content.
fn outline(named: &Named, len: u64, media_type: HeaderValue, source: &'static str) -> Outline {
    let headers = HeaderMap::from_iter([
        (API_VERSION, HeaderValue::from_static("registry/2.0")),
        (CONTENT_DIGEST, text(named.digest.to_string())),
        (CONTENT_TYPE, media_type),
        (ETAG, text(format!("\"{}\"", named.digest))),
    ]);
    Outline { len, headers, source }
}

/// All bytes of a small content, checked.
async fn whole(content: &Content, len: u64) -> Result<Bytes, TaskError> {
    let bytes = content.read(0..len).try_fold(BytesMut::new(), |mut whole, bytes| {
        whole.extend_from_slice(&bytes);
        future::ok(whole)
    });
    let bytes = bytes.await?.freeze();
    content.finished().await?;
    Ok(bytes)
}

/// A header made of digits and plain letters.
fn text(value: String) -> HeaderValue {
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static(""))
}
