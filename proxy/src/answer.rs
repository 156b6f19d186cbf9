//! Answers: bodies, and errors in the form of the distribution specification.

use bytes::Bytes;
use darter_peer::{
    TaskError,
    origin::{OriginError, WireBody},
};
use futures_util::{Stream, TryStreamExt as _, stream};
use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use serde_json::json;

use crate::route::{Kind, Malformed};

/// Says where the bytes of an answer came from when it began: `local`, `peer`, `seed` or `origin`.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("x-darter-source");
/// Says that this speaks version 2 of the registry protocol.
pub(crate) const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
/// The digest of a content.
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// The body of an answer; an error in it breaks the connection.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Whether peers took part in an answer, and why or why not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) p2p: bool,
    pub(crate) why: &'static str,
}

impl Verdict {
    /// Notes it with an answer or a failure, for the log and the counters.
    pub(crate) fn put(self, answered: Result<Response<Body>, Failure>) -> Result<Response<Body>, Failure> {
        match answered {
            Ok(mut response) => {
                response.extensions_mut().insert(self);
                Ok(response)
            }
            Err(failure) => Err(Failure { verdict: Some(self), ..failure }),
        }
    }
}

/// Why a body broke.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// An answer that is an error, before it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) status: StatusCode,
    pub(crate) challenge: Option<String>,
    /// What had been decided before it failed.
    verdict: Option<Verdict>,
    code: &'static str,
    message: String,
}

impl Failure {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, challenge: None, verdict: None, code, message: message.into() }
    }

    /// A status that the origin gave.
    fn relayed(status: u16, challenge: Option<String>, kind: Kind, message: String) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        // Anything but a refusal is not what this request can be answered with.
        let status = if status.is_client_error() || status.is_server_error() {
            status
        } else {
            StatusCode::BAD_GATEWAY
        };
        let code = match (status, kind) {
            (StatusCode::UNAUTHORIZED, _) => "UNAUTHORIZED",
            (StatusCode::FORBIDDEN, _) => "DENIED",
            (StatusCode::NOT_FOUND, Kind::Manifest) => "MANIFEST_UNKNOWN",
            (StatusCode::NOT_FOUND, Kind::Blob) => "BLOB_UNKNOWN",
            (StatusCode::TOO_MANY_REQUESTS, _) => "TOOMANYREQUESTS",
            _ => "UNKNOWN",
        };
        Self { challenge, ..Self::new(status, code, message) }
    }

    /// The origin refused or failed.
    pub(crate) fn of_origin(error: &OriginError, kind: Kind) -> Self {
        match error {
            OriginError::Status { status, challenge, .. } => {
                Self::relayed(*status, challenge.clone(), kind, error.to_string())
            }
            OriginError::Timeout { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", error.to_string())
            }
            OriginError::InvalidUrl(_) => {
                Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", error.to_string())
            }
            _ => Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", error.to_string()),
        }
    }

    /// The content cannot be had.
    pub(crate) fn of_task(error: &TaskError, kind: Kind) -> Self {
        match error {
            TaskError::Origin { status, challenge, reason } => {
                Self::relayed(*status, challenge.clone(), kind, reason.clone())
            }
            TaskError::NotFound(_) => Self::relayed(404, None, kind, error.to_string()),
            TaskError::Deadline { .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", error.to_string())
            }
            TaskError::Cancelled => Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", error.to_string()),
            _ => Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", error.to_string()),
        }
    }

    /// No first byte within the deadline.
    pub(crate) fn timeout() -> Self {
        let verdict = Some(Verdict { p2p: false, why: "timeout" });
        let message = "the first byte did not arrive in time";
        Self { verdict, ..Self::new(StatusCode::GATEWAY_TIMEOUT, "UNKNOWN", message) }
    }

    /// A manifest above the limit.
    pub(crate) fn too_large(limit: u64) -> Self {
        let message = format!("manifests are not passed on above {limit} bytes");
        Self::new(StatusCode::BAD_GATEWAY, "MANIFEST_INVALID", message)
    }

    /// A method of the push side.
    pub(crate) fn read_only() -> Self {
        let message = "this is a mirror for pulling; push to the registry itself";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message)
    }

    /// A rule says so.
    pub(crate) fn denied() -> Self {
        let verdict = Some(Verdict { p2p: false, why: "rule" });
        Self { verdict, ..Self::new(StatusCode::FORBIDDEN, "DENIED", "this proxy's rules refuse it") }
    }

    /// The forward proxy is not in use.
    pub(crate) fn forward_is_off() -> Self {
        let message = "this is a registry mirror; proxy.forward.enable makes it a forward proxy too";
        Self::new(StatusCode::FORBIDDEN, "UNSUPPORTED", message)
    }

    /// Too much at once.
    pub(crate) fn busy() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", "too many tunnels are open")
    }

    /// A request for a URL that is none.
    pub(crate) fn bad_url() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "UNSUPPORTED", "this is no URL that can be asked")
    }

    /// A file became another one while it was asked for.
    pub(crate) fn changed() -> Self {
        Self::new(StatusCode::BAD_GATEWAY, "UNKNOWN", "the file changed while it was asked for")
    }

    /// The answer as it is sent.
    pub(crate) fn into_response(self) -> Response<Body> {
        let body = json!({ "errors": [{ "code": self.code, "message": self.message }] }).to_string();
        let mut response = Response::new(full(body));
        *response.status_mut() = self.status;
        self.verdict.map(|verdict| response.extensions_mut().insert(verdict));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
        headers.extend(
            self.challenge
                .and_then(|value| HeaderValue::from_str(&value).ok())
                .map(|v| (WWW_AUTHENTICATE, v)),
        );
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }
}

impl From<Malformed> for Failure {
    fn from(malformed: Malformed) -> Self {
        let bad = |code, message: &str| Self::new(StatusCode::BAD_REQUEST, code, message);
        match malformed {
            Malformed::NotV2 => Self::new(StatusCode::NOT_FOUND, "UNSUPPORTED", "only /v2/ is served here"),
            Malformed::Name => {
                bad("NAME_INVALID", "this is no repository name of the distribution specification")
            }
            Malformed::Reference => {
                bad("DIGEST_INVALID", "expected a tag, or sha256: or sha512: and its hex digits")
            }
            Malformed::Path => bad("UNSUPPORTED", "this is no path of a registry"),
        }
    }
}

/// A body that is here already.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that comes bit by bit.
pub(crate) fn streamed<E>(bytes: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Body
where
    E: Into<BodyError> + 'static,
{
    StreamBody::new(bytes.map_ok(Frame::data).map_err(Into::into)).boxed_unsync()
}

/// A body as it comes from the origin.
pub(crate) fn passed(body: WireBody) -> Body {
    streamed(stream::try_unfold(body, async |mut body| {
        Ok::<_, OriginError>(body.next().await?.map(|b| (b, body)))
    }))
}
