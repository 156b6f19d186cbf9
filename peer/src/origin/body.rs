//! A content, or a range of it, that survives broken connections.

use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use darter_service::backoff::Backoff;
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{IF_RANGE, RANGE},
};
use tokio::time::sleep;

use super::{
    OriginConfig, OriginError, OriginHead, Source, WireBody,
    exchange::{Ask, Exchange, status_error},
    head::{self, Asked, Part},
    retry::{self, Purpose},
};

/// Bytes that count as progress: after them the attempts to continue start from their full number again.
const PROGRESS: u64 = 256 * 1024;

/// A content, or a range of it, while it comes from its origin.
///
/// A broken body is continued by `Range` with `If-Range`, or from the start with the bytes before skipped, if the
/// origin names a strong validator and that has not changed. It ends cleanly only where the origin said that it would;
/// if the origin named no length, where the origin ended it.
pub struct OriginBody {
    /// What the origin said when the body was opened.
    pub head: OriginHead,
    exchange: Arc<Exchange>,
    config: Arc<OriginConfig>,
    ask: Ask,
    wire: WireBody,
    /// Bytes of the wire's body before `position`.
    skip: u64,
    /// Bytes that the wire's body may still bring, where its length is known.
    announced: Option<u64>,
    start: u64,
    position: u64,
    end: Option<u64>,
    attempts: u32,
    backoff: Backoff,
    since_break: u64,
}

impl OriginBody {
    pub(super) async fn open(
        exchange: Arc<Exchange>,
        config: Arc<OriginConfig>,
        source: &Source,
        range: Option<Range<u64>>,
    ) -> Result<Self, OriginError> {
        if range.as_ref().is_some_and(Range::is_empty) {
            return Err(OriginError::InvalidUrl("an empty range is not asked for".to_owned()));
        }
        let ask = source.ask(Method::GET)?;
        let asked = range.map(|range| Asked { start: range.start, end: Some(range.end) });
        let (head, part, wire) = request(&exchange, &config, &ask, asked, None).await?;
        let start = asked.map_or(0, |asked| asked.start);
        if head.len.is_some_and(|len| start > 0 && start >= len) {
            let (host, body) = (wire.host().to_owned(), Bytes::new());
            let status = StatusCode::RANGE_NOT_SATISFIABLE.as_u16();
            return Err(OriginError::Status { host, status, challenge: None, body });
        }
        let end = match (asked.and_then(|asked| asked.end), head.len) {
            (Some(end), Some(len)) => Some(end.min(len)),
            // A 206 that does not know the whole length still says where it ends.
            (end, None) => part.len.map(|len| part.start + len).or(end),
            (None, len) => len,
        };
        let attempts = config.retries;
        Ok(Self {
            head,
            exchange,
            config,
            ask,
            wire,
            skip: start - part.start,
            announced: part.len,
            start,
            position: start,
            end,
            attempts,
            backoff: retry::backoff(),
            since_break: 0,
        })
    }

    /// The next bytes; `None` at the end.
    ///
    /// # Errors
    /// The content cannot be continued; the body is of no further use then.
    pub async fn next(&mut self) -> Result<Option<Bytes>, OriginError> {
        while self.end.is_none_or(|end| self.position < end) {
            match self.wire.next().await {
                Ok(Some(bytes)) => {
                    let bytes = self.accept(bytes)?;
                    if !bytes.is_empty() {
                        self.position += bytes.len() as u64;
                        self.since_break += bytes.len() as u64;
                        return Ok(Some(bytes));
                    }
                }
                Ok(None) if self.announced.is_none_or(|left| left == 0) && self.head.len.is_none() => {
                    self.end = Some(self.position);
                }
                Ok(None) => self.resume("it ended before its time".to_owned()).await?,
                Err(broken) => self.resume(broken.to_string()).await?,
            }
        }
        Ok(None)
    }

    /// The bytes of a chunk that lie in the range and were not given before.
    fn accept(&mut self, mut bytes: Bytes) -> Result<Bytes, OriginError> {
        let len = bytes.len() as u64;
        if let Some(announced) = &mut self.announced {
            *announced = announced.checked_sub(len).ok_or_else(|| OriginError::InvalidAnswer {
                host: self.wire.host().to_owned(),
                reason: "its body is longer than it announced".to_owned(),
            })?;
        }
        let skipped = self.skip.min(len);
        self.skip -= skipped;
        let room = self.end.map_or(u64::MAX, |end| end - self.position);
        // Both are at most the chunk's length.
        bytes = bytes.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
        bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        Ok(bytes)
    }

    /// Opens the rest of the content after its body broke.
    async fn resume(&mut self, reason: String) -> Result<(), OriginError> {
        if self.since_break >= PROGRESS {
            self.attempts = self.config.retries;
            self.backoff.reset();
        }
        self.since_break = 0;
        let host = self.wire.host().to_owned();
        let truncated = |reason| OriginError::Truncated {
            host: host.clone(),
            received: self.position - self.start,
            reason,
        };
        let Some(attempts) = self.attempts.checked_sub(1) else {
            return Err(truncated(reason));
        };
        let begun = self.position > self.start;
        if begun && self.head.validator.is_none() {
            return Err(truncated(format!("{reason}; it names no strong validator to continue with")));
        }
        tracing::debug!(origin = host, position = self.position, reason, "body broke, continuing");
        self.attempts = attempts;
        sleep(self.backoff.wait()).await;

        let asked = (self.position > 0 || self.head.status == StatusCode::PARTIAL_CONTENT.as_u16())
            .then_some(Asked { start: self.position, end: self.end });
        let validator = self.head.validator.as_deref();
        let reopened = request(&self.exchange, &self.config, &self.ask, asked, validator).await;
        let changed = || OriginError::Changed { host: host.clone() };
        let (head, part, wire) = match reopened {
            Err(OriginError::Status { status: 416, .. }) => return Err(changed()),
            other => other?,
        };
        if !is_same(&self.head, &head) {
            return Err(changed());
        }
        self.skip = self.position - part.start;
        self.announced = part.len;
        self.wire = wire;
        Ok(())
    }
}

impl fmt::Debug for OriginBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginBody")
            .field("host", &self.wire.host())
            .field("position", &self.position)
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}

/// Whether an answer is about the same version of the content as an earlier one.
fn is_same(before: &OriginHead, now: &OriginHead) -> bool {
    let validated = match (&before.validator, &now.validator) {
        (Some(before), Some(now)) => before == now,
        // A 206 to If-Range means that the validator still holds, also where it is not repeated.
        (Some(_), None) => now.status == StatusCode::PARTIAL_CONTENT.as_u16(),
        (None, _) => true,
    };
    let same_len = before.len.is_none() || now.len.is_none() || before.len == now.len;
    validated && same_len
}

/// Asks for a content from an offset on.
async fn request(
    exchange: &Exchange,
    config: &OriginConfig,
    ask: &Ask,
    asked: Option<Asked>,
    validator: Option<&str>,
) -> Result<(OriginHead, Part, WireBody), OriginError> {
    let mut ask = ask.clone();
    let header = |text: &str| HeaderValue::from_str(text).ok();
    if let Some(range) = asked.and_then(|asked| header(&asked.header())) {
        ask.headers.insert(RANGE, range);
        ask.headers.extend(validator.and_then(header).map(|validator| (IF_RANGE, validator)));
    }
    let response: Response<WireBody> =
        retry::until_answered(exchange, &ask, config, Purpose::Content).await?;
    if !matches!(response.status(), StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Err(status_error(response).await);
    }
    let (parts, wire) = response.into_parts();
    let (head, part) = head::read(wire.host(), &parts, asked)?;
    Ok((head, part, wire))
}
