//! A second door to a registry: only for those who have a token, and perhaps over TLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Result;
use serde_json::json;

use super::{
    Registry,
    tokens::{ISSUER, SERVICE, TokenServer},
};
use crate::{Lab, Process, Program, command::Command, process::free_address};

/// A docker-registry that serves what another one has, to whom a [`TokenServer`] gave a token.
#[derive(Debug)]
pub struct Guarded {
    /// Where it listens.
    pub address: SocketAddr,
    /// The program itself.
    pub process: Process,
    scheme: &'static str,
}

/// A certificate authority that nobody knows but the lab, and a certificate of it for this machine.
#[derive(Debug)]
pub struct PrivateCa {
    /// The authority's certificate.
    pub certificate: PathBuf,
    server: PathBuf,
    key: PathBuf,
}

impl Guarded {
    /// Starts one over plain HTTP.
    pub async fn start(lab: &Lab, registry: &Registry, tokens: &TokenServer) -> Result<Self> {
        Self::start_as(lab, "guarded", registry, tokens, None).await
    }

    /// Starts one over TLS.
    pub async fn start_tls(
        lab: &Lab,
        registry: &Registry,
        tokens: &TokenServer,
        ca: &PrivateCa,
    ) -> Result<Self> {
        Self::start_as(lab, "guarded-tls", registry, tokens, Some(ca)).await
    }

    async fn start_as(
        lab: &Lab,
        name: &str,
        registry: &Registry,
        tokens: &TokenServer,
        ca: Option<&PrivateCa>,
    ) -> Result<Self> {
        let address = free_address()?;
        let http = match ca {
            Some(ca) => {
                json!({ "addr": address.to_string(), "tls": { "certificate": ca.server, "key": ca.key } })
            }
            None => json!({ "addr": address.to_string() }),
        };
        let auth = json!({ "token": {
            "realm": tokens.realm(), "service": SERVICE, "issuer": ISSUER, "rootcertbundle": tokens.certificate,
        } });
        let mut config = super::config(&registry.data, &http);
        config.as_object_mut().map(|config| config.insert("auth".to_owned(), auth));
        let config = lab.write(&format!("{name}/config.json"), &config.to_string())?;
        let program = Program::new(name, "docker-registry").arg("serve").arg(config);
        let mut process = Process::start(lab, program)?;
        process.until("it listened", async || tokio::net::TcpStream::connect(address).await.is_ok()).await?;
        Ok(Self { address, process, scheme: if ca.is_some() { "https" } else { "http" } })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }
}

impl PrivateCa {
    /// Makes an authority and a certificate for 127.0.0.1.
    pub async fn make(lab: &Lab) -> Result<Self> {
        let dir = lab.subdir("ca")?;
        let path = |name: &str| dir.join(name);
        let new = |key: &Path, subject: &str| {
            let command = Command::new(lab, "openssl").args(["req", "-newkey", "ec", "-nodes"]);
            command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", subject, "-keyout"]).arg(key)
        };
        let (ca, ca_key) = (path("ca.pem"), path("ca.key"));
        new(&ca_key, "/CN=Lab").args(["-x509", "-days", "2", "-out"]).arg(&ca).run().await?;
        let (request, server, key) = (path("server.csr"), path("server.pem"), path("server.key"));
        let names = "subjectAltName=IP:127.0.0.1,DNS:localhost";
        new(&key, "/CN=registry").args(["-addext", names, "-out"]).arg(&request).run().await?;
        let sign =
            Command::new(lab, "openssl").args(["x509", "-req", "-days", "2", "-copy_extensions", "copyall"]);
        let sign = sign.arg("-in").arg(&request).arg("-CA").arg(&ca).arg("-CAkey").arg(&ca_key);
        sign.arg("-out").arg(&server).run().await?;
        Ok(Self { certificate: ca, server, key })
    }
}
