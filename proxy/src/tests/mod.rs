//! The proxy with a real peer, between a small runtime and a small registry.

mod access;
mod bad_origin;
mod contents;
mod faults;
mod forward_proxy;
mod forwarding;
mod hostile;
mod registry;
mod rules;
mod serving;

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use darter_peer::{Digest, Peer};
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{Config, ServeError};
use registry::{Fault, Registry, TOKEN};

/// A proxy on a peer of its own, without a scheduler.
struct World {
    address: SocketAddr,
    peer: Peer,
    metrics: darter_service::Registry,
    shutdown: CancellationToken,
    serving: JoinHandle<Result<(), ServeError>>,
    dir: TempDir,
}

impl World {
    async fn start() -> Self {
        Self::with(Config::default()).await
    }

    async fn with(config: Config) -> Self {
        Self::with_registries(config, "").await
    }

    /// With registries configured as in TOML; their names are those of tables.
    async fn with_registries(config: Config, registries: &str) -> Self {
        let registries = darter_service::config::parse(registries, "registries").unwrap();
        Self::with_peer(config, |peer| peer.registries = registries).await
    }

    /// `adjust` changes what the peer is configured with.
    async fn with_peer(config: Config, adjust: impl FnOnce(&mut darter_peer::Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut of_peer = darter_peer::Config {
            control_socket: dir.path().join("peer.sock"),
            stall_timeout: Duration::from_secs(20),
            ..darter_peer::Config::default()
        };
        of_peer.store.dir = dir.path().join("store");
        of_peer.store.min_free = 0;
        of_peer.transfer.listen = SocketAddr::from(([127, 0, 0, 1], 0));
        of_peer.origin.first_byte_timeout = Duration::from_secs(5);
        of_peer.origin.allow = vec!["127.0.0.0/8".parse().unwrap()];
        adjust(&mut of_peer);
        let shutdown = CancellationToken::new();
        let mut metrics = darter_service::Registry::default();
        let peer = Peer::start(of_peer, None, &mut metrics, shutdown.clone()).await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = crate::serve(listener, config, peer.clone(), &mut metrics, shutdown.clone());
        Self { address, peer, metrics, shutdown, serving: tokio::spawn(serving), dir }
    }

    /// Sends a request as a runtime does; the answer's body is still to come.
    async fn send(&self, request: Request<Empty<Bytes>>) -> Response<Incoming> {
        self.try_send(request).await.unwrap()
    }

    async fn try_send(&self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await
    }

    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> Answer {
        let builder = Request::builder().method(method).uri(path).header("host", self.address.to_string());
        let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(*name, *value));
        match self.try_send(builder.body(Empty::new()).unwrap()).await {
            Ok(response) => Answer::read(response).await,
            // The connection broke before the head of the answer was on its way.
            Err(_) => Answer { status: 0, headers: HeaderMap::new(), body: vec![], broken: true },
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask(Method::GET, path, &[]).await
    }

    /// The metrics have this line.
    fn expect_metric(&self, line: &str) {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics).unwrap();
        assert!(text.contains(line), "{line} is not in\n{text}");
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.serving.await.unwrap().unwrap();
        self.peer.stopped().await;
    }
}

/// An answer that has ended.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
    /// Whether the connection broke before the body's end.
    broken: bool,
}

impl Answer {
    async fn read(response: Response<Incoming>) -> Self {
        let (parts, mut incoming) = response.into_parts();
        let (mut body, mut broken) = (vec![], false);
        while let Some(frame) = incoming.frame().await {
            match frame {
                Ok(frame) => body.extend_from_slice(&frame.into_data().unwrap()),
                Err(_) => {
                    broken = true;
                    break;
                }
            }
        }
        Self { status: parts.status.as_u16(), headers: parts.headers, body, broken }
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The body of an answer that must be a complete success.
    #[track_caller]
    fn content(self) -> Vec<u8> {
        assert!(!self.broken && matches!(self.status, 200 | 206), "{} {:?}", self.status, self.headers);
        self.body
    }

    /// The code of an error in the specification's form.
    #[track_caller]
    fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        body["errors"][0]["code"].as_str().unwrap().to_owned()
    }
}

/// The path of a blob as containerd asks for it.
fn blob(registry: &Registry, repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}?ns={}", registry.name)
}

fn manifest(registry: &Registry, repository: &str, reference: impl ToString) -> String {
    format!("/v2/{repository}/manifests/{}?ns={}", reference.to_string(), registry.name)
}

/// Bytes that are different everywhere.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}

const MIB: usize = 1024 * 1024;
