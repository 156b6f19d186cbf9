//! What is to be fetched, and with which headers.

use std::fmt;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use url::Url;

use super::{OriginError, egress, exchange::Ask};

/// A URL and the headers to send with it. The headers, and the query of the URL, may be secret; `Debug` shows neither.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    /// `http://…` or `https://…`, without user name or password.
    pub url: String,
    /// Headers of the request, as `Authorization`. They are sent to the URL's own origin only.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Source {
    /// The request that asks for this source.
    pub(super) fn ask(&self, method: Method) -> Result<Ask, OriginError> {
        let url = Url::parse(&self.url).map_err(|error| OriginError::InvalidUrl(error.to_string()))?;
        egress::check(&url)?;
        let headers: HeaderMap =
            self.headers.iter().cloned().fold(HeaderMap::new(), |mut map, (name, value)| {
                map.append(name, value);
                map
            });
        Ok(Ask { method, url, headers })
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = self.url.split(['?', '#']).next().unwrap_or_default();
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        let user_info = Url::parse(&self.url).is_ok_and(|url| !egress::without_user_info(&url));
        let shown = if user_info { "(a URL with a password)" } else { url };
        f.debug_struct("Source").field("url", &shown).field("headers", &names).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::AUTHORIZATION;

    #[test]
    fn debug_shows_no_secret() {
        let source = Source {
            url: "https://bucket.example/key?X-Signature=canary1".into(),
            headers: vec![(AUTHORIZATION, HeaderValue::from_static("Bearer canary2"))],
        };
        let shown = format!("{source:?}");
        assert!(shown.contains("bucket.example/key") && shown.contains("authorization"), "{shown}");
        assert!(!shown.contains("canary"), "{shown}");
        let shown = format!("{:?}", Source { url: "https://u:canary@h/".into(), headers: vec![] });
        assert!(!shown.contains("canary"), "{shown}");
    }

    #[test]
    fn refuses_what_is_no_url_of_an_origin() {
        for url in [
            "",
            "/v2/",
            "ftp://h/x",
            "file:///etc/passwd",
            "http://",
            "https://u:p@h/",
            "http://169.254.169.254/",
        ] {
            let source = Source { url: url.into(), headers: vec![] };
            assert!(source.ask(Method::GET).is_err(), "{url}");
        }
    }
}
