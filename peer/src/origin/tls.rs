//! How connections to origins are made secure: which certificates are trusted, and which is shown.

use std::{fmt, path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem, pem::PemObject as _},
};

/// What a registry's configuration says about TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TlsConfig {
    /// Certificate authorities (PEM) that are trusted besides the system's.
    pub(super) ca_file: Option<PathBuf>,
    /// The certificate that this node shows, with its chain, and its key (PEM).
    pub(super) client: Option<(PathBuf, PathBuf)>,
    /// Any certificate will do.
    pub(super) insecure: bool,
}

/// TLS that cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file cannot be used.
    #[error("cannot use {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The TLS library refuses.
    #[error(transparent)]
    Library(#[from] rustls::Error),
}

/// The system's certificate authorities; without any, no origin can be asked over https.
pub(super) fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        tracing::warn!("no origin can be asked over https: install the system's CA certificates");
    }
    roots
}

/// The client's side of TLS. Without `own` nothing that only the registry itself may see or skip is in it: neither
/// this node's certificate nor the leave to skip the check.
pub(super) fn client(
    config: &TlsConfig,
    mut roots: RootCertStore,
    own: bool,
) -> Result<Arc<ClientConfig>, TlsError> {
    if let Some(path) = &config.ca_file {
        for certificate in certificates(path)? {
            let refused =
                |error: rustls::Error| TlsError::File { path: path.clone(), reason: error.to_string() };
            roots.add(certificate).map_err(refused)?;
        }
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder =
        ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    let builder = if own && config.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
    } else {
        builder.with_root_certificates(roots)
    };
    Ok(Arc::new(match config.client.as_ref().filter(|_| own) {
        Some((chain, key)) => {
            let failed = |error: pem::Error| TlsError::File { path: key.clone(), reason: error.to_string() };
            let key = PrivateKeyDer::from_pem_file(key).map_err(failed)?;
            builder.with_client_auth_cert(certificates(chain)?, key)?
        }
        None => builder.with_no_client_auth(),
    }))
}

fn certificates(path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |reason: String| TlsError::File { path: path.clone(), reason };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| failed(error.to_string()))?;
    let found = read.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.to_string()))?;
    if found.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(found) }
}

/// Accepts every certificate, for registries that are configured as insecure; signatures are still checked.
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnyCertificate")
    }
}
