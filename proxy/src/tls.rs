//! The proxy's own side of TLS.

use std::{io, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::ResolvesServerCert,
};
use tokio_rustls::TlsAcceptor;

/// Accepts TLS with the certificate, its chain and its key in two PEM files.
pub(crate) fn from_files(certificate: &Path, key: &Path) -> io::Result<TlsAcceptor> {
    let failed = |path: &Path, error: String| io::Error::other(format!("{}: {error}", path.display()));
    let of_certificate = |error: rustls::pki_types::pem::Error| failed(certificate, error.to_string());
    let chain = CertificateDer::pem_file_iter(certificate).map_err(of_certificate)?;
    let chain = chain.collect::<Result<Vec<_>, _>>().map_err(of_certificate)?;
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let config = builder.with_no_client_auth().with_single_cert(chain, key_der);
    Ok(acceptor(config.map_err(|error| failed(certificate, error.to_string()))?))
}

/// Accepts TLS with certificates that are chosen for each connection.
pub(crate) fn from_resolver(resolver: Arc<dyn ResolvesServerCert>) -> io::Result<TlsAcceptor> {
    let builder = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    Ok(acceptor(builder.with_no_client_auth().with_cert_resolver(resolver)))
}

fn acceptor(mut config: ServerConfig) -> TlsAcceptor {
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
