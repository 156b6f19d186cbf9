//! Where requests may go: not to addresses that are never an origin, whoever names them.
//!
//! Link-local addresses and the metadata services of clouds hand out credentials to whoever can make a node fetch a
//! URL of his choice (server-side request forgery). They are refused in URLs, in redirects and as what a name
//! resolves to, so that a name which changes its address gains nothing. Private networks are asked only where the
//! configuration names the registry, or the network.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    vec,
};

use futures_util::future::BoxFuture;
use hyper_util::client::legacy::connect::dns::Name;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use url::{Host, Url};

use super::OriginError;

/// Addresses of metadata services outside the link-local ranges: Alibaba Cloud, Oracle Cloud, and AWS over IPv6.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// A network that may be asked although it is private: `ADDRESS/PREFIX`, as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Which addresses may be asked.
#[derive(Debug, Clone, Default)]
pub(super) struct Egress {
    networks: Arc<[Network]>,
    /// Whether all private networks may be asked: those of a configured registry.
    private: bool,
}

/// An address that may not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0} is not a public address: name the registry in [peer.registries], or the network in peer.origin.allow"
)]
pub(super) struct Refused(IpAddr);

impl Egress {
    /// The public internet, and these networks.
    pub(super) fn new(networks: &[Network]) -> Self {
        Self { networks: networks.into(), private: false }
    }

    /// The same with all private networks.
    pub(super) fn with_private(&self) -> Self {
        Self { private: true, ..self.clone() }
    }

    fn admits(&self, ip: IpAddr) -> Result<(), Refused> {
        let ip = meant(ip);
        let fine = allowed(ip)
            && (self.private || is_public(ip) || self.networks.iter().any(|network| network.contains(ip)));
        if fine { Ok(()) } else { Err(Refused(ip)) }
    }

    /// Checks the host of a URL that names an address.
    pub(super) fn check_literal(&self, url: &Url) -> Result<(), Refused> {
        url.host().as_ref().and_then(literal).map_or(Ok(()), |ip| self.admits(ip))
    }

    /// Resolves a host name to the addresses that may be asked.
    pub(super) fn resolve(&self, name: Name) -> BoxFuture<'static, io::Result<vec::IntoIter<SocketAddr>>> {
        let egress = self.clone();
        Box::pin(async move { Ok(egress.lookup(name.as_str(), 0).await?.into_iter()) })
    }

    /// The addresses of a URL's host and port that may be asked.
    pub(super) async fn addresses(&self, url: &Url) -> io::Result<Vec<SocketAddr>> {
        let port = url.port_or_known_default().unwrap_or_default();
        match url.host() {
            Some(Host::Domain(name)) => self.lookup(name, port).await,
            Some(host) => {
                let ip = literal(&host).ok_or_else(|| io::Error::other("no address"))?;
                self.admits(ip).map_err(io::Error::other)?;
                Ok(vec![SocketAddr::new(ip, port)])
            }
            None => Err(io::Error::other("no host")),
        }
    }

    async fn lookup(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await?.collect();
        let (mut usable, mut refused) = (vec![], None);
        for address in found {
            match self.admits(address.ip()) {
                Ok(()) => usable.push(address),
                Err(error) => refused = Some(error),
            }
        }
        match refused.filter(|_| usable.is_empty()) {
            Some(refused) => Err(io::Error::other(refused)),
            None => Ok(usable),
        }
    }
}

impl Network {
    fn contains(&self, ip: IpAddr) -> bool {
        match (self.address, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                (network.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                (network.to_bits() ^ ip.to_bits()).leading_zeros() >= u32::from(self.prefix)
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is no network; write as \"10.0.0.0/8\"");
        let (address, prefix) = text.split_once('/').ok_or_else(invalid)?;
        let (address, prefix): (IpAddr, u8) =
            (address.parse().map_err(|_| invalid())?, prefix.parse().map_err(|_| invalid())?);
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(invalid()) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Serialize for Network {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

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
    let ip = meant(ip);
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !link_local && !ip.is_unspecified() && !METADATA.contains(&ip)
}

/// The address that is reached in the end: IPv6 addresses may stand for IPv4 ones (IPv4-mapped and -compatible; NAT64,
/// RFC 6052; 6to4, RFC 3056).
fn meant(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let [a, b, c, d, e, f, g, h] = v6.segments();
    let v4 = |high: u16, low: u16| IpAddr::V4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match [a, b, c, d, e, f] {
        _ if v6.is_loopback() => ip,
        [0x64, 0xff9b, 0, 0, 0, 0] | [0, 0, 0, 0, 0, 0] => v4(g, h),
        [0x2002, ..] => v4(b, c),
        _ => ip,
    }
}

/// Whether an address is reached through the internet. Not so are loopback, private and shared networks (RFC 1918,
/// RFC 6598, RFC 4193), benchmarks' (RFC 2544) and reserved ones, and multicast.
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            let shared = a == 100 && (64..128).contains(&b);
            let special = a == 0 || a >= 240 || (a, b, c) == (192, 0, 0) || (a == 198 && b & 0xfe == 18);
            !(ip.is_loopback() || ip.is_private() || ip.is_multicast() || shared || special)
        }
        IpAddr::V6(ip) => !(ip.is_loopback() || ip.is_unique_local() || ip.is_multicast()),
    }
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

    #[test]
    fn private_networks_are_asked_only_where_they_are_named() {
        let admits = |egress: &Egress, ip: &str| egress.admits(ip.parse().unwrap()).is_ok();
        let internet = Egress::new(&[]);
        let (own, listed) = (internet.with_private(), Egress::new(&["10.1.0.0/16".parse().unwrap()]));
        for public in ["8.8.8.8", "100.128.0.1", "2a00::1", "64:ff9b::8.8.8.8", "2002:808:808::1"] {
            assert!(admits(&internet, public), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "198.19.0.1",
            "::1",
            "fd12::1",
            "::ffff:10.1.0.1",
            "64:ff9b::10.0.0.1",
            "2002:a00:1::",
            "::10.0.0.1",
            "255.255.255.255",
            "0.1.2.3",
        ] {
            assert!(!admits(&internet, private), "{private}");
            assert!(admits(&own, private), "{private}");
        }
        assert!(admits(&listed, "10.1.255.1") && admits(&listed, "::ffff:10.1.0.1"));
        assert!(!admits(&listed, "10.2.0.1"));
        for never in [
            "169.254.169.254",
            "fe80::1",
            "100.100.100.200",
            "fd00:ec2::254",
            "0.0.0.0",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert!(!admits(&own, never), "{never}");
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129", "10.0.0.0/-1"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn names_that_lead_inward_are_not_resolved() {
        // A literal takes the same way through the system's resolver as a name.
        let (internet, own) = (Egress::new(&[]), Egress::new(&[]).with_private());
        assert!(own.resolve("169.254.169.254".parse().unwrap()).await.is_err());
        assert!(own.resolve("127.0.0.1".parse().unwrap()).await.is_ok());
        assert!(internet.resolve("localhost".parse().unwrap()).await.is_err());
    }
}
