//! Tries again what may succeed a moment later: lost connections, overloaded and failing origins.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use darter_service::backoff::Backoff;
use http::{HeaderMap, Response, StatusCode, header::RETRY_AFTER};
use rand::RngExt as _;
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    OriginConfig, OriginError, WireBody,
    exchange::{Ask, Exchange},
};

/// What a request is sent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The content, or its description: whatever may succeed a moment later is tried again.
    Content,
    /// What the origin answers: only a moment that it named itself is waited for.
    Answer,
    /// Whether the origin answers: where it sends the caller to fetch does not matter.
    Permission,
}

/// Waiting times between attempts where the origin does not name one.
pub(super) fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(5))
}

/// Sends a request until it is answered for good, the attempts are used up, or the next one would come too late.
pub(super) async fn until_answered(
    exchange: &Exchange,
    ask: &Ask,
    config: &OriginConfig,
    purpose: Purpose,
) -> Result<Response<WireBody>, OriginError> {
    let deadline = Instant::now() + config.first_byte_timeout;
    let mut backoff = backoff();
    let mut left = config.retries;
    loop {
        if let Some(pause) = exchange.pauses.of(&ask.url) {
            if pause.until >= deadline {
                let host = super::wire::host(&ask.url);
                return Err(OriginError::Status {
                    host,
                    status: pause.status,
                    challenge: None,
                    body: Bytes::new(),
                });
            }
            sleep_until(pause.until).await;
        }
        let outcome = match purpose {
            Purpose::Content | Purpose::Answer => exchange.run(ask, deadline).await,
            Purpose::Permission => exchange.allows(ask, deadline).await,
        };
        let Some(wait) = wait(&outcome, &mut backoff) else {
            return outcome;
        };
        let named = outcome.as_ref().ok().filter(|response| names_a_pause(response));
        if let Some(response) = named.filter(|response| response.body().is_from(&ask.url)) {
            exchange.pauses.note(&ask.url, response.status().as_u16(), wait);
        }
        let hopeless = purpose != Purpose::Content && named.is_none();
        if hopeless || left == 0 || Instant::now() + wait >= deadline {
            return outcome;
        }
        // Gives the connection back before the wait.
        drop(outcome);
        sleep(wait).await;
        left -= 1;
    }
}

/// How long to wait before the request is sent again; `None` if its outcome would be the same.
fn wait(outcome: &Result<Response<WireBody>, OriginError>, backoff: &mut Backoff) -> Option<Duration> {
    match outcome {
        Ok(response) => match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some(retry_after(response.headers()).unwrap_or_else(|| backoff.wait()))
            }
            StatusCode::INTERNAL_SERVER_ERROR | StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => {
                Some(backoff.wait())
            }
            _ => None,
        },
        Err(OriginError::Unreachable { .. }) => Some(backoff.wait()),
        Err(_) => None,
    }
}

/// Whether an origin says for how long it wants to be left alone.
fn names_a_pause(response: &Response<WireBody>) -> bool {
    let busy = matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    busy && retry_after(response.headers()).is_some()
}

/// `Retry-After` (RFC 9110, section 10.2.3) with up to a tenth more, so that not all come back in the same moment.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u32>() {
        Ok(seconds) => Duration::from_secs(seconds.into()),
        Err(_) => {
            httpdate::parse_http_date(value).ok()?.duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.mul_f64(rand::rng().random_range(1.0..=1.1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(value: &str) -> Option<Duration> {
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().ok()?)]))
    }

    #[test]
    fn reads_seconds_and_dates() {
        let near = |wait: Option<Duration>, seconds: u64| {
            let wait = wait.unwrap().as_secs_f64();
            assert!((seconds as f64 - 5.0..=seconds as f64 * 1.1).contains(&wait), "{wait}");
        };
        near(of("120"), 120);
        near(of(&httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100))), 100);
        assert_eq!(of("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        assert_eq!(of("soon"), None);
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(value in "[ -~]{0,40}") {
            of(&value);
        }
    }
}
