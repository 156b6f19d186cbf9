//! This node's own certificate authority, for the registries whose TLS it is told to open.
//!
//! Its certificate is good for these names only (name constraints, RFC 5280, section 4.2.1.10) and for 30 days, and its
//! key never leaves the node: a client that trusts it trusts it for nothing else.

use std::{
    fmt, fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};

/// How long a certificate authority is good.
const LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// So long before its end it is replaced at the next start.
const RENEWAL: Duration = Duration::from_secs(10 * 24 * 3600);
/// How long a certificate of a registry is good.
const LEAF_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Clocks may differ by so much.
const SKEW: Duration = Duration::from_secs(3600);

/// A certificate authority for some hosts.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate authority that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("proxy.forward.ca_dir: {}: {reason}", path.display())]
pub struct AuthorityError {
    /// Where it is, or was to be.
    pub path: PathBuf,
    /// What is wrong.
    pub reason: String,
}

impl Authority {
    /// Reads the authority for exactly these hosts from `dir`, or makes one: `ca.pem` for the clients, `ca.key`, and
    /// `ca.hosts` with its hosts and its end.
    pub(crate) fn load(dir: &Path, hosts: &[String]) -> Result<Self, AuthorityError> {
        let failed = |reason: String| AuthorityError { path: dir.to_owned(), reason };
        let now = SystemTime::now();
        if let Some(key) = read(dir, hosts, now) {
            return Ok(Self {
                issuer: Issuer::new(params(hosts, now).map_err(|e| failed(e.to_string()))?, key),
            });
        }
        let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
        let params = params(hosts, now).map_err(|error| failed(error.to_string()))?;
        let certificate = params.self_signed(&key).map_err(|error| failed(error.to_string()))?;
        let write = || -> io::Result<()> {
            fs::create_dir_all(dir)?;
            // Without it the two others are made anew, so it goes first and comes last.
            fs::remove_file(dir.join("ca.hosts")).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            put(&dir.join("ca.key"), &key.serialize_pem(), 0o600)?;
            put(&dir.join("ca.pem"), &certificate.pem(), 0o644)?;
            put(&dir.join("ca.hosts"), &marker(hosts, seconds(now + LIFE)), 0o644)
        };
        write().map_err(|error| failed(error.to_string()))?;
        tracing::warn!(path = %dir.join("ca.pem").display(), ?hosts, "made a certificate authority to open TLS with");
        Ok(Self { issuer: Issuer::new(params, key) })
    }

    /// A certificate for one host.
    pub(crate) fn certificate(&self, host: &str) -> Result<CertifiedKey, AuthorityError> {
        let failed = |reason: String| AuthorityError { path: host.into(), reason };
        let now = SystemTime::now();
        let key = KeyPair::generate().map_err(|error| failed(error.to_string()))?;
        let mut params =
            CertificateParams::new(vec![host.to_owned()]).map_err(|error| failed(error.to_string()))?;
        (params.not_before, params.not_after) = ((now - SKEW).into(), (now + LEAF_LIFE).into());
        params.distinguished_name.push(DnType::CommonName, host);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).map_err(|error| failed(error.to_string()))?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(|error| failed(error.to_owned()))?;
        let key = any_supported_type(&der).map_err(|error| failed(error.to_string()))?;
        Ok(CertifiedKey::new(vec![CertificateDer::from(certificate)], key))
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

fn params(hosts: &[String], now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name.push(DnType::CommonName, "Darter proxy of this node");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let subtree = |host: &String| match host.parse::<IpAddr>() {
        Ok(ip) => {
            GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(ip, if ip.is_ipv4() { 32 } else { 128 }))
        }
        Err(_) => GeneralSubtree::DnsName(host.clone()),
    };
    let permitted_subtrees = hosts.iter().map(subtree).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    (params.not_before, params.not_after) = ((now - SKEW).into(), (now + LIFE).into());
    Ok(params)
}

/// The key of an authority that was made for these hosts and is good for a while.
fn read(dir: &Path, hosts: &[String], now: SystemTime) -> Option<KeyPair> {
    let text = fs::read_to_string(dir.join("ca.hosts")).ok()?;
    let until: u64 = text.lines().next()?.parse().ok()?;
    if text != marker(hosts, until) || until < seconds(now + RENEWAL) || !dir.join("ca.pem").exists() {
        return None;
    }
    KeyPair::from_pem(&fs::read_to_string(dir.join("ca.key")).ok()?).ok()
}

fn marker(hosts: &[String], until: u64) -> String {
    format!("{until}\n{}\n", hosts.join("\n"))
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn put(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = fs::OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(part, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::{
        RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
        pki_types::{ServerName, UnixTime, pem::PemObject as _},
    };
    use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

    #[test]
    fn it_vouches_for_its_hosts_only() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = ["r.example".to_owned(), "10.0.0.1".to_owned()];
        let authority = Authority::load(dir.path(), &hosts).unwrap();
        let mode = fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(dir.path().join("ca.pem")).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let accepted = |authority: &Authority, host: &str| {
            let certificate = authority.certificate(host).unwrap();
            let name = ServerName::try_from(host.to_owned()).unwrap();
            verifier.verify_server_cert(&certificate.cert[0], &[], &name, &[], UnixTime::now()).is_ok()
        };
        assert!(accepted(&authority, "r.example") && accepted(&authority, "10.0.0.1"));
        assert!(!accepted(&authority, "other.example") && !accepted(&authority, "10.0.0.2"));

        // The same again after a restart; another one for other hosts.
        assert!(accepted(&Authority::load(dir.path(), &hosts).unwrap(), "r.example"));
        assert!(!accepted(&Authority::load(dir.path(), &hosts[..1]).unwrap(), "r.example"));
    }
}
