//! Private images: whoever asks gets the origin's own answer, wherever in the cluster the bytes are.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Containerd, Image, ImageRef, Lab, Registry,
    darter::{Peer, Scheduler, Surroundings},
    http::{Answer, empty, send},
    image::{Compression, Format, ImageBuilder, Node},
    registry::{Guarded, PASSWORD, PrivateCa, TokenServer},
    run_test,
};
use darter_peer::TaskId;
use darter_proto::ticket::Signer;
use http::{Method, Request, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The registry's name in image references.
const NAME: &str = "private.lab";
const HELLO: [&str; 2] = ["echo", "hello"];

/// A registry with two private repositories, and two peers of one cluster before it.
struct World {
    image: Image,
    other: Image,
    tokens: TokenServer,
    guarded: Guarded,
    one: Peer,
    two: Peer,
    _scheduler: Scheduler,
    _registry: Registry,
}

/// What is asked for: a path below the repository, and perhaps a range.
#[derive(Debug, Clone)]
struct Wanted {
    path: String,
    range: Option<&'static str>,
}

impl World {
    async fn start(lab: &Lab) -> Result<Self> {
        let registry = Registry::start(lab).await?;
        let (image, other) = (Image::tiny(lab)?, other(lab)?);
        registry.push("team/app:1", &image).await?;
        registry.push("other/app:1", &other).await?;
        let tokens = TokenServer::start(lab).await?;
        tokens.grant("reader", "team/app");
        let guarded = Guarded::start(lab, &registry, &tokens).await?;
        let scheduler = Scheduler::start(lab, None).await?;
        let around = Surroundings {
            schedulers: vec![scheduler.grpc],
            manager: None,
            registries: vec![(NAME.to_owned(), guarded.url())],
            links: false,
            mount: None,
        };
        let mut one = Peer::start(lab, "one", &around).await?;
        let mut two = Peer::start(lab, "two", &around).await?;
        one.until_scheduled().await?;
        two.until_scheduled().await?;
        Ok(Self { image, other, tokens, guarded, one, two, _scheduler: scheduler, _registry: registry })
    }

    fn bearer(&self, repository: &str) -> Result<String> {
        Ok(format!("Bearer {}", self.tokens.token(repository, 300)?))
    }

    /// Only the manifest of the other image was fetched, which some may read: for a HEAD and for a GET.
    async fn expect_only_other_at(&self, peer: &Peer) -> Result<()> {
        let fetched = fetched(peer).await?;
        ensure!(
            fetched <= 2 * self.other.manifest.size,
            "{fetched} bytes were fetched for those who may not read"
        );
        Ok(())
    }

    /// Everything that can be asked of the image: by tag and by digest, manifests and blobs, whole and in part.
    fn wanted(&self) -> Vec<Wanted> {
        let layers = self.image.layers.iter().map(|layer| &layer.blob);
        let blobs = layers.chain([&self.image.config]).map(|blob| format!("blobs/{}", blob.digest));
        let manifests = ["manifests/1".to_owned(), format!("manifests/{}", self.image.manifest.digest)];
        let whole = blobs.chain(manifests).map(|path| Wanted { path, range: None });
        let whole: Vec<_> = whole.collect();
        let part =
            whole.iter().take(1).cloned().map(|wanted| Wanted { range: Some("bytes=10-19"), ..wanted });
        part.chain(whole.iter().cloned()).collect()
    }
}

/// An image that shares nothing with the tiny one.
fn other(lab: &Lab) -> Result<Image> {
    let file = Node::file("file", "of another repository");
    let builder = ImageBuilder::new(&lab.dir().join("other"), Format::Oci)?;
    builder.layer(Compression::Gzip, |layer| layer.add(&file))?.finish()
}

async fn ask(
    server: SocketAddr,
    method: &Method,
    repository: &str,
    wanted: &Wanted,
    authorization: Option<&str>,
) -> Result<Answer> {
    let url = format!("http://{server}/v2/{repository}/{}?ns={NAME}", wanted.path);
    let mut request = Request::builder().method(method.clone()).uri(url);
    for (name, value) in [(header::AUTHORIZATION, authorization), (header::RANGE, wanted.range)] {
        request = value.into_iter().fold(request, |request, value| request.header(&name, value));
    }
    send(request.header(header::ACCEPT, "application/vnd.oci.image.manifest.v1+json").body(empty())?).await
}

/// What a client goes by in a refusal: status, challenge and the code of the error.
fn essence(answer: &Answer) -> (u16, Option<String>, Option<String>) {
    let challenge = answer.headers.get(header::WWW_AUTHENTICATE);
    let challenge = challenge.and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body: Option<serde_json::Value> = serde_json::from_slice(&answer.body).ok();
    let code = body.and_then(|body| Some(body.get("errors")?.get(0)?.get("code")?.as_str()?.to_owned()));
    (answer.status.as_u16(), challenge, code)
}

/// Everybody who may not read, asking for everything: each gets what the origin says.
async fn expect_refusals(world: &World, peer: &Peer) -> Result<()> {
    let expired = format!("Bearer {}", world.tokens.token("team/app", -120)?);
    let elsewhere = world.bearer("other/app")?;
    let nothing = world.bearer("nothing")?;
    let callers = [
        None,
        Some("Bearer rubbish"),
        Some("Basic cmVhZGVyOndyb25n"),
        Some(expired.as_str()),
        Some(elsewhere.as_str()),
        Some(nothing.as_str()),
    ];
    for wanted in world.wanted() {
        for method in [Method::HEAD, Method::GET] {
            for caller in callers {
                let theirs = ask(world.guarded.address, &method, "team/app", &wanted, caller).await?;
                let ours = ask(peer.proxy, &method, "team/app", &wanted, caller).await?;
                assert_eq!(theirs.status, 401, "{method} {wanted:?} {caller:?}");
                assert_eq!(essence(&ours), essence(&theirs), "{method} {wanted:?} {caller:?}");
                // Through a repository that the content is not in, the caller's rights there do not help.
                if caller == Some(elsewhere.as_str()) {
                    let theirs = ask(world.guarded.address, &method, "other/app", &wanted, caller).await?;
                    let ours = ask(peer.proxy, &method, "other/app", &wanted, caller).await?;
                    let other = wanted.path == "manifests/1";
                    assert_eq!(theirs.status, if other { 200 } else { 404 }, "{method} {wanted:?}");
                    assert_eq!(ours.status, theirs.status, "{method} {wanted:?}");
                    assert_eq!(ours.body.len(), if other { theirs.body.len() } else { ours.body.len() });
                }
            }
        }
    }
    Ok(())
}

/// Who may read, reads.
async fn expect_everything(world: &World, peer: &Peer) -> Result<()> {
    let token = world.bearer("team/app")?;
    for wanted in world.wanted() {
        for method in [Method::HEAD, Method::GET] {
            let theirs = ask(world.guarded.address, &method, "team/app", &wanted, Some(&token)).await?;
            let ours = ask(peer.proxy, &method, "team/app", &wanted, Some(&token)).await?;
            assert!(
                theirs.status.is_success() && ours.status.is_success(),
                "{method} {wanted:?} {}",
                ours.status
            );
            assert!(ours.body == theirs.body, "{method} {wanted:?}: other bytes");
        }
    }
    Ok(())
}

async fn fetched(peer: &Peer) -> Result<u64> {
    let metrics = peer.service.metrics().await?;
    Ok(["origin", "peer", "seed"].into_iter().map(|source| metrics.received_from(source)).sum())
}

/// What a node says to a client without a good ticket that asks it for a blob as a peer would; see the wire format in
/// `peer/src/transfer/mod.rs`.
async fn ask_as_a_peer(peer: &Peer, task: &str, ticket: &[u8]) -> Result<(u8, String)> {
    let mut stream = TcpStream::connect(peer.transfer).await?;
    let mut said = b"DRTP\x02\0\x03\0raw".to_vec();
    // Subscribe, on stream 1; then leaf 0 is requested.
    said.extend([1, 0, 0, 0, 1, 0, 0, 0]);
    for part in [ticket, task.as_bytes()] {
        said.extend(u32::try_from(part.len())?.to_le_bytes());
    }
    said.extend([task.as_bytes(), ticket].concat());
    said.extend([3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    stream.write_all(&said).await?;
    let mut hello = [0; 8];
    stream.read_exact(&mut hello).await?;
    let [.., l0, l1] = hello;
    let mut host = vec![0; usize::from(u16::from_le_bytes([l0, l1]))];
    stream.read_exact(&mut host).await?;
    loop {
        let mut header = [0; 16];
        stream.read_exact(&mut header).await?;
        let [kind, .., n0, n1, n2, n3] = header;
        // The request is refused at once, the rest may wait for the scheduler that would know the ticket.
        if kind != 5 {
            let mut text = vec![0; u32::from_le_bytes([n0, n1, n2, n3]) as usize];
            stream.read_exact(&mut text).await?;
            return Ok((kind, String::from_utf8(text)?));
        }
    }
}

/// A client that knows what the blobs are called, and asks the node as a peer would.
async fn expect_nothing_as_a_peer(world: &World, peer: &Peer) -> Result<()> {
    let held = peer.status().await?.tasks;
    for layer in &world.image.layers {
        let task = TaskId::in_pool(NAME, &layer.blob.digest.parse()?).to_string();
        ensure!(held.iter().any(|held| held.id == task && held.verified), "{task} is not here");
        let task = task.as_str();
        let forged = Signer::new()?.sign("raw", task, u64::MAX);
        for (ticket, says) in
            [(&b""[..], "no ticket"), (&forged, "no session with"), (b"x", "cannot be read")]
        {
            let (kind, text) = timeout(Duration::from_secs(30), ask_as_a_peer(peer, task, ticket)).await??;
            assert_eq!(kind, 11, "{task} {text}");
            assert!(text.contains(says), "{text:?} does not say {says:?}");
        }
    }
    Ok(())
}

#[test]
fn everybody_gets_the_origins_own_answer() -> Result<()> {
    run_test(async |lab| {
        let world = World::start(&lab).await?;
        expect_refusals(&world, &world.one).await?;
        world.expect_only_other_at(&world.one).await?;

        expect_everything(&world, &world.one).await?;
        expect_refusals(&world, &world.one).await?;
        expect_nothing_as_a_peer(&world, &world.one).await?;

        // The other node has nothing yet, but its peer has.
        expect_refusals(&world, &world.two).await?;
        world.expect_only_other_at(&world.two).await?;
        expect_everything(&world, &world.two).await?;
        let from_peers = world.two.service.metrics().await?.received_from("peer");
        // On a busy machine the origin may be quicker with a part.
        assert!(
            from_peers >= world.image.layer_bytes() / 2,
            "only {from_peers} of {} bytes came from the peer",
            world.image.layer_bytes()
        );
        expect_refusals(&world, &world.two).await
    })
}

#[test]
fn containerd_pulls_a_private_image_with_its_own_password() -> Result<()> {
    run_test(async |lab| {
        let world = World::start(&lab).await?;
        let image = ImageRef { registry: NAME.into(), repository: "team/app".into(), tag: "1".into() };
        for (name, peer) in [("first", &world.one), ("second", &world.two)] {
            let containerd = Containerd::start(&lab, name).await?;
            containerd.mirror(NAME, &peer.proxy_url())?;
            let pull = |user: &str| {
                let pull = containerd.ctr([
                    "images",
                    "pull",
                    "--user",
                    &format!("{user}:{PASSWORD}"),
                    "--hosts-dir",
                ]);
                pull.arg(lab.dir().join(name).join("certs.d")).arg(image.to_string())
            };
            pull("stranger").run().await.expect_err("a stranger may not pull");
            pull("reader").run().await?;
            containerd.check_content(&world.image)?;
            assert_eq!(containerd.run(&image, HELLO).await?.stdout, "hello\n");
            pull("stranger").run().await.expect_err("a stranger may not pull what is here either");
        }
        Ok(())
    })
}

#[test]
fn a_registry_with_a_private_ca_and_tokens_is_pulled_from() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        let image = Image::tiny(&lab)?;
        registry.push("team/app:1", &image).await?;
        let tokens = TokenServer::start(&lab).await?;
        tokens.grant("reader", "team/app");
        let ca = PrivateCa::make(&lab).await?;
        let guarded = Guarded::start_tls(&lab, &registry, &tokens, &ca).await?;
        let around = Surroundings {
            schedulers: vec![],
            manager: None,
            registries: vec![(NAME.to_owned(), guarded.url())],
            links: false,
            mount: None,
        };
        let stranger = Peer::start(&lab, "stranger", &around).await?;
        let wanted = Wanted {
            path: format!("blobs/{}", image.layers.first().context("no layer")?.blob.digest),
            range: None,
        };
        let token = format!("Bearer {}", tokens.token("team/app", 300)?);
        let refused = ask(stranger.proxy, &Method::GET, "team/app", &wanted, Some(&token)).await?;
        assert_eq!(refused.status, 502, "a certificate of an unknown authority was trusted");

        let peer = Peer::start_trusting(&lab, "peer", &around, &ca.certificate).await?;
        assert!(ask(peer.proxy, &Method::GET, "team/app", &wanted, Some(&token)).await?.status.is_success());
        let containerd = Containerd::start(&lab, "node").await?;
        containerd.mirror(NAME, &peer.proxy_url())?;
        let name = ImageRef { registry: NAME.into(), repository: "team/app".into(), tag: "1".into() };
        let pull = containerd.ctr(["images", "pull", "--user", &format!("reader:{PASSWORD}"), "--hosts-dir"]);
        pull.arg(lab.dir().join("node/certs.d")).arg(name.to_string()).run().await?;
        containerd.check_content(&image)
    })
}
