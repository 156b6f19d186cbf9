//! Whole URLs, and tunnels.

use super::*;
use crate::{Action, ForwardConfig, RuleConfig};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn config(rules: Vec<RuleConfig>) -> Config {
    Config { rules, forward: ForwardConfig { enable: true, ..ForwardConfig::default() }, ..Config::default() }
}

fn p2p() -> RuleConfig {
    RuleConfig { url: Some("/files/".into()), ignored_query: vec!["sig".into()], ..RuleConfig::default() }
}

/// A file at an origin that is no registry; the small registry knows only `/v2/`.
fn file(registry: &Registry, content: &[u8]) -> String {
    registry.file("files/model", content);
    format!("http://{}/v2/files/model", registry.name)
}

#[tokio::test]
async fn it_is_off_until_it_is_asked_for() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let answer = world.get(&file(&registry, b"x")).await;
    assert_eq!(answer.status, 403);
    assert!(registry.seen().is_empty());
    world.stop().await;
}

#[tokio::test]
async fn a_file_that_a_rule_names_comes_once_whatever_its_signature() {
    let (world, registry) = (World::with(config(vec![p2p()])).await, Registry::start().await);
    let content = bytes(2 * MIB + 3);
    let url = file(&registry, &content);
    for (signature, source) in [("a", "origin"), ("b", "local")] {
        let answer = world.get(&format!("{url}?sig={signature}")).await;
        assert_eq!(answer.header("x-darter-source"), Some(source));
        assert!(answer.header("x-dragonfly-task-id").is_some());
        assert!(answer.content() == content);
    }
    let part = world.ask(Method::GET, &url, &[("range", "bytes=-5")]).await;
    assert_eq!(part.header("content-range"), Some("bytes 2097150-2097154/2097155"));
    assert!(part.content() == content[content.len() - 5..]);
    let tag = format!("\"{}\"", Digest::sha256(&content));
    assert_eq!(world.ask(Method::GET, &url, &[("if-none-match", &tag)]).await.status, 304);
    let head = world.ask(Method::HEAD, &url, &[]).await;
    assert_eq!(head.header("content-length"), Some("2097155"));
    // One fetch of the whole; the others only asked for its description.
    let whole = registry.seen().into_iter().filter(|seen| !seen.headers.contains_key("range"));
    assert_eq!(whole.count(), 1);
    world.stop().await;
}

#[tokio::test]
async fn a_changed_file_is_another_one_and_a_refusal_is_the_origin_s() {
    let (world, registry) = (World::with(config(vec![p2p()])).await, Registry::start().await);
    let url = file(&registry, b"first");
    assert_eq!(world.get(&url).await.content(), b"first");
    assert_eq!(world.get(&file(&registry, b"second")).await.content(), b"second");
    assert_eq!(world.get(&format!("http://{}/v2/files/none", registry.name)).await.status, 404);
    registry.file("private/files/secret", b"secret");
    let secret = format!("http://{}/v2/private/files/secret", registry.name);
    let token = [("authorization", TOKEN)];
    assert_eq!(world.ask(Method::GET, &secret, &token).await.content(), b"secret");
    assert_eq!(world.get(&secret).await.status, 401);
    world.stop().await;
}

#[tokio::test]
async fn what_no_rule_names_is_passed_on_as_it_is() {
    let deny = RuleConfig { url: Some("/denied".into()), action: Action::Deny, ..RuleConfig::default() };
    let (world, registry) = (World::with(config(vec![deny])).await, Registry::start().await);
    let url = file(&registry, b"content");
    let headers = [("cookie", "c"), ("x-dragonfly-tag", "t"), ("proxy-authorization", "Basic eA==")];
    let answer = world.ask(Method::GET, &url, &headers).await;
    assert_eq!(answer.header("x-darter-source"), Some("origin"));
    assert_eq!(answer.content(), b"content");
    let seen = registry.seen().remove(0);
    assert_eq!(seen.headers["cookie"], "c");
    assert!(
        !seen.headers.contains_key("x-dragonfly-tag") && !seen.headers.contains_key("proxy-authorization")
    );
    assert_eq!(world.ask(Method::POST, &url, &[]).await.status, 200);
    assert_eq!(world.get(&format!("http://{}/denied", registry.name)).await.status, 403);
    assert_eq!(world.get("http://169.254.169.254/latest/meta-data/").await.status, 400);
    // Dragonfly's clients may ask for peers by a header.
    let wish = [("x-dragonfly-use-p2p", "true")];
    for source in ["origin", "local"] {
        assert_eq!(world.ask(Method::GET, &url, &wish).await.header("x-darter-source"), Some(source));
    }
    world.stop().await;
}

#[tokio::test]
async fn connect_opens_a_tunnel_where_it_may() {
    let registry = Registry::start().await;
    let name = registry.name.clone();
    let port = name.rsplit_once(':').unwrap().1.parse().unwrap();
    let forward = ForwardConfig { enable: true, ports: vec![port], ..ForwardConfig::default() };
    let world = World::with(Config { forward, ..Config::default() }).await;
    let connect = async |authority: &str| {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        let head = format!("CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        (String::from_utf8(answer).unwrap(), stream)
    };
    let (answer, mut stream) = connect(&name).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut through = String::new();
    stream.read_to_string(&mut through).await.unwrap();
    assert!(through.contains("no token for you") || through.starts_with("HTTP/1.1 "), "{through}");
    for refused in ["127.0.0.1:1", "169.254.169.254:443"] {
        assert!(!connect(refused).await.0.starts_with("HTTP/1.1 200"), "{refused}");
    }
    // Where nobody listens any more.
    registry.stop().await;
    assert!(connect(&name).await.0.starts_with("HTTP/1.1 502"));
    world.expect_metric("darter_proxy_decisions_total{p2p=\"no\",why=\"tunnel\"} 2");
    world.stop().await;
}

/// A TLS client that trusts one authority and offers these protocols.
async fn secure(
    stream: TcpStream,
    ca: &std::path::Path,
    host: &str,
    protocols: &[&str],
) -> tokio_rustls::client::TlsStream<TcpStream> {
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    connector.connect(ServerName::try_from(host.to_owned()).unwrap(), stream).await.unwrap()
}

async fn get_over(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    host: &str,
    path: &str,
) -> Answer {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", host).body(Empty::<Bytes>::new()).unwrap();
    Answer::read(sender.send_request(request).await.unwrap()).await
}

#[tokio::test]
async fn a_listed_registry_s_tunnel_is_opened_and_served_by_peers() {
    let (registry, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let forward = ForwardConfig {
        enable: true,
        intercept: vec!["registry.example".into()],
        ca_dir: dir.path().to_owned(),
        ..ForwardConfig::default()
    };
    let listed = format!("[\"registry.example\"]\nupstream = \"http://{}\"", registry.name);
    let world = World::with_registries(Config { forward, ..Config::default() }, &listed).await;
    let content = bytes(MIB);
    let digest = registry.blob("a", &content, None);
    for source in ["origin", "local"] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream
            .write_all(b"CONNECT registry.example:443 HTTP/1.1\r\nhost: registry.example\r\n\r\n")
            .await
            .unwrap();
        let mut answer = vec![];
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.unwrap());
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"));
        let stream = secure(stream, &dir.path().join("ca.pem"), "registry.example", &[]).await;
        let answer = get_over(stream, "registry.example", &format!("/v2/a/blobs/{digest}")).await;
        assert_eq!(answer.header("x-darter-source"), Some(source));
        assert!(answer.content() == content);
    }
    world.stop().await;
}

#[tokio::test]
async fn with_a_certificate_the_same_port_takes_tls() {
    let (registry, dir) = (Registry::start().await, tempfile::tempdir().unwrap());
    let made = rcgen::KeyPair::generate().unwrap();
    let certificate =
        rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap().self_signed(&made).unwrap();
    let (file, key) = (dir.path().join("c.pem"), dir.path().join("c.key"));
    std::fs::write(&file, certificate.pem()).unwrap();
    std::fs::write(&key, made.serialize_pem()).unwrap();
    let config = Config { certificate_file: Some(file.clone()), key_file: Some(key), ..Config::default() };
    let world = World::with(config).await;
    let content = bytes(MIB);
    let path = blob(&registry, "a", &registry.blob("a", &content, None));
    let connect = async |protocols: &[&str]| {
        secure(TcpStream::connect(world.address).await.unwrap(), &file, "localhost", protocols).await
    };
    assert!(get_over(connect(&[]).await, "localhost", &path).await.content() == content);
    assert!(world.get(&path).await.content() == content);

    let stream = connect(&["h2", "http/1.1"]).await;
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let url = format!("https://localhost:{}{path}", world.address.port());
    let answer = sender.send_request(Request::get(url).body(Empty::<Bytes>::new()).unwrap()).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    assert!(Answer::read(answer).await.content() == content);
    drop(sender);
    world.stop().await;
}
