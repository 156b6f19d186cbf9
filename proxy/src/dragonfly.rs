//! The request headers that Dragonfly's clients send, so that they need no change to use this proxy.

use darter_peer::Class;
use http::{HeaderMap, HeaderName};
use url::{Host, Url};

const TAG: HeaderName = HeaderName::from_static("x-dragonfly-tag");
const APPLICATION: HeaderName = HeaderName::from_static("x-dragonfly-application");
const PRIORITY: HeaderName = HeaderName::from_static("x-dragonfly-priority");
const REGISTRY: HeaderName = HeaderName::from_static("x-dragonfly-registry");
const FILTERED: HeaderName = HeaderName::from_static("x-dragonfly-filtered-query-params");
const USE_P2P: HeaderName = HeaderName::from_static("x-dragonfly-use-p2p");
const PREFETCH: HeaderName = HeaderName::from_static("x-dragonfly-prefetch");

/// What a request's headers ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// Contents of other tags or applications are other tasks.
    pub(crate) tag: String,
    pub(crate) application: String,
    /// How urgent it is; low priorities wait behind others.
    pub(crate) class: Option<Class>,
    /// The registry that is meant, `HOST[:PORT]`.
    pub(crate) registry: Option<String>,
    /// Query parameters that do not tell one file from another.
    pub(crate) ignored_query: Option<Vec<String>>,
    /// Whether peers are to be used where no rule says anything.
    pub(crate) use_p2p: bool,
    /// Whether a request for a part is to bring the whole here.
    pub(crate) prefetch: bool,
}

impl Wishes {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        let is_true = |name| text(name).is_some_and(|text| text.eq_ignore_ascii_case("true"));
        Self {
            tag: text(TAG).unwrap_or_default().to_owned(),
            application: text(APPLICATION).unwrap_or_default().to_owned(),
            class: text(PRIORITY).and_then(class),
            registry: text(REGISTRY).and_then(registry),
            ignored_query: text(FILTERED).map(|names| {
                let names = names.split(['&', ',']).map(str::trim).filter(|name| !name.is_empty());
                names.map(str::to_owned).collect()
            }),
            use_p2p: is_true(USE_P2P),
            prefetch: is_true(PREFETCH),
        }
    }
}

/// Whether a header is one of these: they are not for the origin.
pub(crate) fn is_own(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-dragonfly-")
}

/// Priorities go from 0 to 6, the highest.
fn class(priority: &str) -> Option<Class> {
    match priority.parse().ok()? {
        0u8 | 4..=6 => Some(Class::Stream),
        1..=3 => Some(Class::Background),
        _ => None,
    }
}

/// The registry in a URL as `https://index.docker.io`.
fn registry(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let host = match url.host()? {
        Host::Domain("index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        host => host.to_string(),
    };
    Some(url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_send_is_understood() {
        let headers = [
            ("x-dragonfly-tag", "t"),
            ("x-dragonfly-application", "a"),
            ("x-dragonfly-priority", "3"),
            ("x-dragonfly-registry", "https://index.docker.io"),
            ("x-dragonfly-filtered-query-params", "Signature&Expires"),
            ("x-dragonfly-use-p2p", "true"),
            ("x-dragonfly-prefetch", "false"),
        ];
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()));
        let wishes = Wishes {
            tag: "t".into(),
            application: "a".into(),
            class: Some(Class::Background),
            registry: Some("docker.io".into()),
            ignored_query: Some(vec!["Signature".into(), "Expires".into()]),
            use_p2p: true,
            prefetch: false,
        };
        assert_eq!(Wishes::of(&HeaderMap::from_iter(headers)), wishes);
        assert_eq!(Wishes::of(&HeaderMap::new()), Wishes::default());
        assert_eq!(registry("http://10.0.0.1:5000/x"), Some("10.0.0.1:5000".to_owned()));
        assert_eq!(registry("none"), None);
    }
}
