//! Why an origin did not give its content.

use bytes::Bytes;

/// Why an origin did not give its content. No message holds a header, a query or a body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// The origin answered, but not with the content.
    #[error("{host} answered {status}")]
    Status {
        /// Who answered.
        host: String,
        /// The HTTP status.
        status: u16,
        /// Its `WWW-Authenticate`; of several the Bearer one.
        challenge: Option<String>,
        /// The beginning of the answer's body, 64 KiB at most.
        body: Bytes,
    },
    /// No connection, or it broke before the answer.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// Who was asked.
        host: String,
        /// What failed.
        reason: String,
    },
    /// A deadline passed.
    #[error("{host} gave no {awaited} in time")]
    Timeout {
        /// Who was asked.
        host: String,
        /// What was waited for.
        awaited: &'static str,
    },
    /// The origin's certificate or its TLS is not acceptable.
    #[error("no TLS with {host}: {reason}")]
    Tls {
        /// Who was asked.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// A redirect that is not followed.
    #[error("a redirect of {host} is not followed: {reason}")]
    Redirect {
        /// Who redirected.
        host: String,
        /// Why it is refused.
        reason: String,
    },
    /// The content became another one while it was fetched.
    #[error("the content at {host} changed while it was fetched")]
    Changed {
        /// Who was asked.
        host: String,
    },
    /// The body broke off and could not be continued.
    #[error("the body from {host} broke off after {received} bytes: {reason}")]
    Truncated {
        /// Who was asked.
        host: String,
        /// Bytes of the body that had arrived.
        received: u64,
        /// Why it was not continued.
        reason: String,
    },
    /// The answer contradicts the request or itself.
    #[error("{host} gave an invalid answer: {reason}")]
    InvalidAnswer {
        /// Who was asked.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// A URL that cannot or must not be fetched.
    #[error("this URL is not fetched: {0}")]
    InvalidUrl(String),
}

impl OriginError {
    /// Whether the origin did not say anything about the caller's rights.
    pub fn is_no_answer(&self) -> bool {
        match self {
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Tls { .. } => true,
            _ => false,
        }
    }
}
