//! `make bench-proxy`: the proxy against nginx's `proxy_cache` and against going to the registry directly, all in one
//! run and with one client.

mod cached;
mod first_byte;
mod flash_crowd;
mod load;
mod nginx;
mod report;

use std::{net::SocketAddr, path::Path, process::ExitCode};

use anyhow::{Context, Result};
use darter_integration::{
    Image, Lab, Registry,
    darter::{Peer, Surroundings},
    image::{Compression, Format, ImageBuilder, Node, noise},
};

use self::{nginx::Nginx, report::Report};

/// Bytes of the blob that is pulled again and again.
const BIG: usize = 256 << 20;
/// Bytes of the blob that many pull at once for the first time.
const FRESH: usize = 64 << 20;
/// Bytes of each blob whose first byte is waited for.
const SMALL: usize = 1 << 20;
/// How many of these there are.
const SMALLS: usize = 120;

/// Everything that is measured, in one lab.
struct Bench {
    registry: Registry,
    peer: Peer,
    nginx: Nginx,
    /// One big layer, one fresh one, and many small ones.
    image: Image,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-proxy: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<()> {
    let lab = Lab::open()?;
    let measured = tokio::select! {
        measured = Box::pin(measure(&lab)) => measured,
        interrupted = tokio::signal::ctrl_c() => interrupted.map_err(Into::into),
    };
    if measured.is_err() {
        lab.print_logs();
    }
    measured
}

async fn measure(lab: &Lab) -> Result<()> {
    let bench = Bench::start(lab).await?;
    let mut report = Report::default();
    flash_crowd::measure(&bench, &mut report).await?;
    first_byte::measure(&bench, &mut report).await?;
    cached::measure(&bench, &mut report).await?;
    report.print();
    report.write()
}

impl Bench {
    async fn start(lab: &Lab) -> Result<Self> {
        println!("Making {} MiB of layers.", (BIG + FRESH + SMALL * SMALLS) >> 20);
        let registry = Registry::start(lab).await?;
        let image = image(&lab.subdir("image")?)?;
        registry.push("bench:1", &image).await?;
        let around = Surroundings {
            schedulers: vec![],
            manager: None,
            registries: vec![(registry.address.to_string(), registry.url())],
            links: false,
            mount: None,
        };
        let peer = Peer::start(lab, "node", &around).await?;
        let nginx = Nginx::start(lab, &registry.url()).await?;
        Ok(Self { registry, peer, nginx, image })
    }

    /// The path of a layer's blob, as containerd asks for it.
    fn blob(&self, layer: usize) -> Result<String> {
        let layer = self.image.layers.get(layer).context("no such layer")?;
        Ok(format!("/v2/bench/blobs/{}?ns={}", layer.blob.digest, self.registry.address))
    }

    fn manifest(&self) -> String {
        format!("/v2/bench/manifests/{}?ns={}", self.image.manifest.digest, self.registry.address)
    }

    /// The address of Darter's proxy.
    fn darter(&self) -> SocketAddr {
        self.peer.proxy
    }
}

/// The big layer first, then the fresh one, then the small ones.
fn image(dir: &Path) -> Result<Image> {
    let lens = [BIG, FRESH].into_iter().chain([SMALL; SMALLS]);
    let mut builder = ImageBuilder::new(dir, Format::Oci)?;
    for (number, len) in lens.enumerate() {
        let content = noise(number.to_le_bytes(), len);
        builder = builder
            .layer(Compression::None, |layer| layer.add(&Node::file(format!("file-{number}"), content)))?;
    }
    builder.finish()
}
