//! Where requests may go: not to addresses that are never an origin, whoever names them.
//!
//! Link-local addresses and the metadata services of clouds hand out credentials to whoever can make a node fetch a
//! URL of his choice (server-side request forgery). They are refused in URLs, in redirects and as what a name
//! resolves to, so that a name which changes its address gains nothing.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    vec,
};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use url::{Host, Url};

use super::OriginError;

/// Addresses of metadata services outside the link-local ranges: Alibaba Cloud, Oracle Cloud, and AWS over IPv6.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Checks a URL before it is asked.
pub(super) fn check(url: &Url) -> Result<(), OriginError> {
    let invalid = |reason: &str| Err(OriginError::InvalidUrl(reason.to_owned()));
    if !matches!(url.scheme(), "http" | "https") {
        return invalid("only http and https are");
    }
    if !without_user_info(url) {
        return invalid("a user name or password belongs into a header or the configuration");
    }
    match url.host() {
        None => invalid("it names no host"),
        Some(host) if literal(&host).is_some_and(|ip| !allowed(ip)) => {
            invalid("link-local and metadata addresses are no origins")
        }
        Some(_) => Ok(()),
    }
}

/// Whether the URL holds neither a user name nor a password.
pub(super) fn without_user_info(url: &Url) -> bool {
    url.username().is_empty() && url.password().is_none()
}

/// Why a redirect from one URL to another is not followed, if so.
pub(super) fn refused(from: &Url, to: &Url) -> Option<String> {
    if let Err(error) = check(to) {
        return Some(error.to_string());
    }
    if from.scheme() == "https" && to.scheme() == "http" {
        return Some("it leads from https to http".to_owned());
    }
    (is_loopback(to) && !is_loopback(from)).then(|| "it leads to this machine".to_owned())
}

/// Whether the URL's host names this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(host) => literal(&host).is_some_and(|ip| ip.to_canonical().is_loopback()),
        None => false,
    }
}

fn literal(host: &Host<&str>) -> Option<IpAddr> {
    match host {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some(IpAddr::V4(*ip)),
        Host::Ipv6(ip) => Some(IpAddr::V6(*ip)),
    }
}

/// Whether an address may be an origin's.
fn allowed(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_unspecified() && !METADATA.contains(&ip)
}

/// Resolves a host name to the addresses that may be asked.
pub(super) fn resolve(name: Name) -> BoxFuture<'static, io::Result<vec::IntoIter<SocketAddr>>> {
    Box::pin(async move {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        let usable: Vec<SocketAddr> = found.iter().copied().filter(|address| allowed(address.ip())).collect();
        if usable.is_empty() && !found.is_empty() {
            return Err(io::Error::other("its name leads to link-local or metadata addresses only"));
        }
        Ok(usable.into_iter())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn metadata_services_are_refused_however_they_are_written() {
        for bad in [
            "http://169.254.169.254/latest/",
            "http://2852039166/latest/",
            "http://0xa9fea9fe/",
            "http://0251.0376.0251.0376/",
            "http://169.254.43518/",
            "http://[::ffff:169.254.169.254]/",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/",
            "http://0.0.0.0/",
        ] {
            assert!(check(&url(bad)).is_err(), "{bad}");
        }
        for good in [
            "http://127.0.0.1:5000/",
            "https://10.0.0.1/",
            "https://[2001:db8::1]/",
            "http://registry.local/",
        ] {
            assert!(check(&url(good)).is_ok(), "{good}");
        }
    }

    #[test]
    fn redirects_do_not_lead_inward_or_downward() {
        let refused = |from, to| refused(&url(from), &url(to)).is_some();
        assert!(refused("https://a.example/", "http://a.example/"));
        assert!(refused("http://a.example/", "http://localhost:2379/"));
        assert!(refused("http://a.example/", "http://[::1]/"));
        assert!(refused("http://127.0.0.1/", "http://169.254.169.254/"));
        assert!(refused("http://a.example/", "ftp://a.example/"));
        assert!(!refused("http://127.0.0.1:1/", "http://127.0.0.1:2/"));
        assert!(!refused("http://a.example/", "https://b.example/"));
    }

    #[tokio::test]
    async fn names_that_lead_to_metadata_addresses_are_not_resolved() {
        // A literal takes the same way through the system's resolver as a name.
        assert!(resolve("169.254.169.254".parse().unwrap()).await.is_err());
        assert!(resolve("127.0.0.1".parse().unwrap()).await.is_ok());
    }
}
