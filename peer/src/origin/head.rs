//! What an answer says about the content and about the part of it that it holds.

use std::{
    ops::Range,
    time::{Duration, SystemTime},
};

use http::{
    HeaderMap, HeaderName, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, DATE, ETAG, LAST_MODIFIED},
    response,
};

use super::{OriginError, content_range};

/// What an origin says about a content.
#[derive(Debug, Clone)]
pub struct OriginHead {
    /// The HTTP status, 200 or 206.
    pub status: u16,
    /// Length of the whole content in bytes, if the origin says it.
    pub len: Option<u64>,
    /// Whether the origin gives parts of the content, as far as this answer shows.
    pub ranges: bool,
    /// What changes when the content does: a strong entity tag, or else a time that is strong enough (RFC 9110,
    /// section 8.8).
    pub validator: Option<String>,
    /// The media type that the origin names.
    pub content_type: Option<String>,
    /// All headers of the answer.
    pub headers: HeaderMap,
}

/// Where in the content the body of an answer lies.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Offset of the body's first byte in the content.
    pub(super) start: u64,
    /// Length of the body, if known.
    pub(super) len: Option<u64>,
}

/// The bytes that were asked for: from an offset to an end, or to the content's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) start: u64,
    pub(super) end: Option<u64>,
}

impl Asked {
    /// The value of a `Range` header.
    pub(super) fn header(self) -> String {
        match self.end {
            Some(end) => format!("bytes={}-{}", self.start, end.saturating_sub(1)),
            None => format!("bytes={}-", self.start),
        }
    }
}

/// Reads a successful answer; `asked` is the range that the request named, if it named one.
pub(super) fn read(
    host: &str,
    parts: &response::Parts,
    asked: Option<Asked>,
) -> Result<(OriginHead, Part), OriginError> {
    let invalid = |reason: String| OriginError::InvalidAnswer { host: host.to_owned(), reason };
    let body_len = number(&parts.headers, CONTENT_LENGTH);
    let (len, part, ranges) = match (parts.status, asked) {
        (StatusCode::PARTIAL_CONTENT, Some(asked)) => {
            let (range, total) = partial(&parts.headers, asked).map_err(invalid)?;
            let range_len = range.end - range.start;
            if body_len.is_some_and(|len| len != range_len) {
                return Err(invalid("its Content-Length and Content-Range differ".to_owned()));
            }
            (total, Part { start: range.start, len: Some(range_len) }, true)
        }
        (StatusCode::OK, asked) => {
            let ranges = asked.is_none() && accepts_ranges(&parts.headers);
            (body_len, Part { start: 0, len: body_len }, ranges)
        }
        (status, _) => return Err(invalid(format!("{status} is no answer to this request"))),
    };
    let text = |name: HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let head = OriginHead {
        status: parts.status.as_u16(),
        len,
        ranges,
        validator: validator(&parts.headers),
        content_type: text(CONTENT_TYPE),
        headers: parts.headers.clone(),
    };
    Ok((head, part))
}

/// The range and the total length that a `206` names, if they are what was asked for.
fn partial(headers: &HeaderMap, asked: Asked) -> Result<(Range<u64>, Option<u64>), String> {
    let value = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let found = value.and_then(content_range::parse).ok_or("its 206 has no valid Content-Range")?;
    let end_fits = match (asked.end, found.total) {
        (Some(end), Some(total)) => found.range.end == end.min(total),
        (Some(end), None) => found.range.end <= end,
        (None, Some(total)) => found.range.end == total,
        (None, None) => true,
    };
    if found.range.start != asked.start || !end_fits {
        return Err("its Content-Range is not the range that was asked for".to_owned());
    }
    Ok((found.range, found.total))
}

fn accepts_ranges(headers: &HeaderMap) -> bool {
    headers.get(ACCEPT_RANGES).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"bytes"))
}

fn number(headers: &HeaderMap, name: HeaderName) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

/// The strong validator among the headers, as it goes into `If-Range`.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok();
    if let Some(tag) = text(ETAG).filter(|tag| tag.starts_with('"')) {
        return Some(tag.to_owned());
    }
    let modified = text(LAST_MODIFIED)?;
    let time = |value: &str| httpdate::parse_http_date(value).ok();
    strong_time(time(modified)?, time(text(DATE)?)?).then(|| modified.to_owned())
}

/// A content that changed twice within the second of its `Last-Modified` would show the same time both times
/// (RFC 9110, section 8.8.2.2).
fn strong_time(modified: SystemTime, date: SystemTime) -> bool {
    date.duration_since(modified).is_ok_and(|age| age >= Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;

    fn parts(status: u16, headers: &[(&str, &str)]) -> response::Parts {
        let builder = headers
            .iter()
            .fold(Response::builder().status(status), |b, (name, value)| b.header(*name, *value));
        builder.body(()).unwrap().into_parts().0
    }

    fn part(status: u16, headers: &[(&str, &str)], asked: Option<Asked>) -> Option<(Option<u64>, Part)> {
        read("h", &parts(status, headers), asked).ok().map(|(head, part)| (head.len, part))
    }

    #[test]
    fn a_206_must_be_what_was_asked_for() {
        let asked = Some(Asked { start: 10, end: Some(20) });
        let good = (Some(100), Part { start: 10, len: Some(10) });
        assert_eq!(part(206, &[("content-range", "bytes 10-19/100")], asked), Some(good));
        let clipped = (Some(15), Part { start: 10, len: Some(5) });
        assert_eq!(part(206, &[("content-range", "bytes 10-14/15")], asked), Some(clipped));
        for bad in ["bytes 0-9/100", "bytes 10-18/100", "bytes 10-20/100", "bytes 11-19/100", "rubbish"] {
            assert_eq!(part(206, &[("content-range", bad)], asked), None, "{bad}");
        }
        assert_eq!(part(206, &[], asked), None);
        assert_eq!(part(206, &[("content-range", "bytes 10-19/100"), ("content-length", "9")], asked), None);
        assert_eq!(part(206, &[("content-range", "bytes 0-9/10")], None), None);
        let whole = (Some(100), Part { start: 0, len: Some(100) });
        assert_eq!(part(200, &[("content-length", "100")], asked), Some(whole));
    }

    #[test]
    fn only_strong_validators_count() {
        let validator = |headers: &[(&str, &str)]| validator(&parts(200, headers).headers);
        let (old, now) = ("Sun, 06 Nov 1994 08:49:36 GMT", "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(validator(&[("etag", "\"a\"")]), Some("\"a\"".to_owned()));
        assert_eq!(validator(&[("etag", "W/\"a\"")]), None);
        assert_eq!(
            validator(&[("etag", "W/\"a\""), ("last-modified", old), ("date", now)]),
            Some(old.to_owned())
        );
        assert_eq!(validator(&[("last-modified", now), ("date", now)]), None);
        assert_eq!(validator(&[("last-modified", old)]), None);
    }
}
