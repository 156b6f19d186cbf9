//! A file that comes through the peers: any URL whose origin tells one version of it from another.

use darter_peer::{Class, TaskId, Want, origin::Source};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response,
    header::{
        CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE, ETAG, EXPIRES,
        HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED,
        RANGE,
    },
    request::Parts,
};
use url::Url;

use super::relay::end_to_end;
use crate::{
    answer::{Body, Failure},
    delivery::{self, Outline},
    dragonfly::Wishes,
    proxy::Proxy,
    route::Kind,
};

/// What an origin says about a content, whichever part of it is sent.
const DESCRIBING: [HeaderName; 8] = [
    CACHE_CONTROL,
    CONTENT_DISPOSITION,
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    CONTENT_TYPE,
    ETAG,
    EXPIRES,
    LAST_MODIFIED,
];

/// Headers of a request that are answered here.
const ANSWERED_HERE: [HeaderName; 7] =
    [HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE];

/// Names the task of a file for Dragonfly's clients.
const TASK_ID: HeaderName = HeaderName::from_static("x-dragonfly-task-id");

impl Proxy {
    /// Answers with a file, after the origin has described it to this caller; `None` if it names no version of it.
    pub(super) async fn file(
        &self,
        parts: &Parts,
        url: &Url,
        wishes: &Wishes,
        ignored_query: &[String],
    ) -> Result<Option<Response<Body>>, Failure> {
        let of_origin = |error| Failure::of_origin(&error, Kind::Blob);
        let of_task = |error| Failure::of_task(&error, Kind::Blob);
        let asked = end_to_end(&parts.headers);
        let asked = asked.iter().filter(|(name, _)| !ANSWERED_HERE.contains(name));
        let asked = asked.map(|(name, value)| (name.clone(), value.clone())).collect();
        let source = Source { url: url.to_string(), headers: asked };
        let head = self.peer.origin().describe(&source).await.map_err(of_origin)?;
        let (Some(_), Some(len)) = (&head.validator, head.len) else { return Ok(None) };

        let labels = [wishes.tag.as_str(), wishes.application.as_str()];
        let id = TaskId::of_file(url, ignored_query, labels, &head);
        let mut headers = only(&head.headers, &DESCRIBING);
        headers.extend(HeaderValue::from_str(id.as_str()).ok().map(|id| (TASK_ID, id)));
        let outline = Outline { len, headers, source: "local" };
        if parts.method == Method::HEAD && !wishes.prefetch {
            return Ok(Some(delivery::head(parts, &outline)));
        }
        let want = Want { id, source: Some(source), class: wishes.class.unwrap_or(Class::Stream) };
        let (content, opened) = self.open(want).await.map_err(of_task)?;
        if opened != len {
            return Err(Failure::changed());
        }
        Ok(Some(delivery::stream(parts, &content, outline).await.map_err(of_task)?))
    }
}

fn only(headers: &HeaderMap, names: &[HeaderName]) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, value) in headers.iter().filter(|(name, _)| names.contains(name)) {
        kept.append(name, value.clone());
    }
    kept
}
