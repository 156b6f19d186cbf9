//! Darter's own processes.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use darter_proto::{
    MAX_MESSAGE_LEN,
    peer::{StatusReply, StatusRequest, peer_client::PeerClient},
};
use tonic::transport::{Channel, Endpoint};

pub use self::metrics::Metrics;
use crate::{Lab, Process, Program, Throttle, http, process::free_address, target};

mod config;
mod metrics;

/// A `darter manager` in a lab, with a SQLite file.
#[derive(Debug)]
pub struct Manager {
    /// Where schedulers and peers reach it.
    pub grpc: SocketAddr,
    /// Where people and tools reach it.
    pub rest: SocketAddr,
    /// The process, with its metrics and health.
    pub service: Service,
}

/// A `darter scheduler` in a lab.
#[derive(Debug)]
pub struct Scheduler {
    /// Where peers reach it.
    pub grpc: SocketAddr,
    /// The process, with its metrics and health.
    pub service: Service,
}

/// A `darter peer` in a lab, a seed peer or one with a proxy and a snapshotter.
#[derive(Debug)]
pub struct Peer {
    /// What it sends to other peers comes through here.
    pub link: Option<Throttle>,
    /// Where it serves other peers.
    pub transfer: SocketAddr,
    /// Its registry mirror.
    pub proxy: SocketAddr,
    /// The unix socket of its snapshotter.
    pub snapshotter: PathBuf,
    /// The unix socket for `darter get`, `darter image pull` and `darter status`.
    pub control: PathBuf,
    /// The process, with its metrics and health.
    pub service: Service,
}

/// What a peer is told: of the others mostly.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// gRPC addresses of the schedulers.
    pub schedulers: Vec<SocketAddr>,
    /// gRPC address of the manager.
    pub manager: Option<SocketAddr>,
    /// Registries by their names in image references, and the URLs where they are.
    pub registries: Vec<(String, String)>,
    /// Whether what a peer sends comes through a [`Throttle`].
    pub links: bool,
    /// How lazy layers are mounted, as `snapshotter.mount` has it; `None` leaves the choice to the peer.
    pub mount: Option<&'static str>,
}

/// One process of Darter, and where it tells about itself.
#[derive(Debug)]
pub struct Service {
    /// `/metrics`, `/healthz`, `/readyz`.
    pub admin: SocketAddr,
    /// The program itself.
    pub process: Process,
}

// === impl Manager ===

impl Manager {
    /// Starts a manager and waits until it is ready.
    pub async fn start(lab: &Lab) -> Result<Self> {
        let (grpc, rest, admin) = (free_address()?, free_address()?, free_address()?);
        let config = config::manager(grpc, rest, admin, &lab.subdir("manager")?);
        Ok(Self {
            grpc,
            rest,
            service: Service::start(lab, "manager", "manager", &config, admin, &[]).await?,
        })
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// Starts a scheduler and waits until it is ready.
    pub async fn start(lab: &Lab, manager: Option<SocketAddr>) -> Result<Self> {
        Self::start_as(lab, "scheduler", manager).await
    }

    /// As [`Self::start`], one of several.
    pub async fn start_as(lab: &Lab, name: &str, manager: Option<SocketAddr>) -> Result<Self> {
        let (grpc, admin) = (free_address()?, free_address()?);
        let config = config::scheduler(name, grpc, admin, manager);
        Ok(Self { grpc, service: Service::start(lab, "scheduler", name, &config, admin, &[]).await? })
    }
}

// === impl Peer ===

impl Peer {
    /// Starts a peer and waits until it is ready.
    pub async fn start(lab: &Lab, name: &str, around: &Surroundings) -> Result<Self> {
        Self::start_as(lab, name, around, false, &[]).await
    }

    /// Starts a peer that trusts this certificate authority instead of the system's.
    pub async fn start_trusting(lab: &Lab, name: &str, around: &Surroundings, ca: &Path) -> Result<Self> {
        Self::start_as(lab, name, around, false, &[("SSL_CERT_FILE", ca)]).await
    }

    /// Starts a seed peer and waits until it is ready.
    pub async fn start_seed(lab: &Lab, name: &str, around: &Surroundings) -> Result<Self> {
        Self::start_as(lab, name, around, true, &[]).await
    }

    async fn start_as(
        lab: &Lab,
        name: &str,
        around: &Surroundings,
        seed: bool,
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let (transfer, proxy, admin) = (free_address()?, free_address()?, free_address()?);
        let link = if around.links { Some(Throttle::to(transfer).await?) } else { None };
        let advertise = link.as_ref().map_or(transfer, |link| link.address);
        let dir = lab.subdir(name)?;
        let config = config::Peer { name, dir: &dir, seed, transfer, advertise, proxy, admin, around };
        let config = config.to_toml();
        Ok(Self {
            link,
            transfer,
            proxy,
            snapshotter: config::snapshotter_socket(&dir),
            control: config::control_socket(&dir),
            service: Service::start(lab, "peer", name, &config, admin, environment).await?,
        })
    }

    /// What it is doing, from its control socket.
    pub async fn status(&self) -> Result<StatusReply> {
        status(&self.control).await
    }

    /// What it sends to other peers comes through here, in a cluster that was started with links.
    pub fn link(&self) -> Result<&Throttle> {
        self.link.as_ref().context("the cluster was started without links")
    }

    /// Waits until a scheduler knows it.
    pub async fn until_scheduled(&mut self) -> Result<()> {
        self.until_scheduled_by(1).await
    }

    /// Waits until so many schedulers know it.
    pub async fn until_scheduled_by(&mut self, schedulers: usize) -> Result<()> {
        let control = self.control.clone();
        let scheduled =
            async || status(&control).await.is_ok_and(|status| status.schedulers.len() >= schedulers);
        self.service.process.until("a scheduler knew it", scheduled).await
    }

    /// Waits until all of every layer that it was asked for is here, and says how many bytes that is as raw tars.
    pub async fn until_layers_complete(&mut self) -> Result<u64> {
        let control = self.control.clone();
        let complete = async || status(&control).await.is_ok_and(|status| layers_complete(&status));
        self.service.process.until("its layers were complete", complete).await?;
        Ok(self.status().await?.layers.iter().map(|layer| layer.raw_len).sum())
    }

    /// The share of its layers' raw bytes that is here, from 0 to 1.
    pub async fn share_of_layers(&self) -> Result<f64> {
        let layers = self.status().await?.layers;
        let held: u64 = layers.iter().map(|layer| layer.raw_held).sum();
        let total: u64 = layers.iter().map(|layer| layer.raw_len).sum();
        Ok(held as f64 / total.max(1) as f64)
    }

    /// The registry mirror as a URL.
    pub fn proxy_url(&self) -> String {
        format!("http://{}", self.proxy)
    }
}

// === impl Service ===

impl Service {
    async fn start(
        lab: &Lab,
        role: &str,
        name: &str,
        config: &str,
        admin: SocketAddr,
        environment: &[(&str, &Path)],
    ) -> Result<Self> {
        let config = lab.write(&format!("{name}/darter.toml"), config)?;
        let program = Program::new(name, target::darter()?).arg(role).arg("--config").arg(config);
        let program =
            environment.iter().fold(program.env("RUST_BACKTRACE", "1"), |p, (key, value)| p.env(key, value));
        let process = Process::start(lab, program)?;
        let mut service = Self { admin, process };
        service.until_ready().await?;
        Ok(service)
    }

    /// Waits until it says that it is ready.
    pub async fn until_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/readyz", self.admin);
        self.process.until_http(&url).await
    }

    /// Kills it as a crash would, starts it again and waits until it is ready.
    pub async fn crash_and_restart(&mut self) -> Result<()> {
        self.process.start_again()?;
        self.until_ready().await
    }

    /// Stops it as a user would, starts it again and waits until it is ready.
    pub async fn stop_and_restart(&mut self) -> Result<()> {
        let status = self.process.stop()?;
        ensure!(status.success(), "it ended with {status}");
        self.crash_and_restart().await
    }

    /// Its metrics as they are now.
    pub async fn metrics(&self) -> Result<Metrics> {
        let answer = http::get(&format!("http://{}/metrics", self.admin)).await?;
        Ok(Metrics::parse(&String::from_utf8_lossy(&answer.body)))
    }
}

/// `darter` with one of its other subcommands, to be run to its end; arguments are to be added.
pub fn command(lab: &Lab, subcommand: &str) -> Result<crate::command::Command> {
    Ok(crate::command::Command::new(lab, target::darter()?).arg(subcommand))
}

/// A connection to a peer's control socket.
pub async fn client(control: &Path) -> Result<PeerClient<Channel>> {
    let channel = Endpoint::from_shared(format!("unix://{}", control.display()))?.connect().await?;
    Ok(PeerClient::new(channel).max_decoding_message_size(MAX_MESSAGE_LEN))
}

/// What the peer with this control socket is doing.
pub async fn status(control: &Path) -> Result<StatusReply> {
    Ok(client(control).await?.status(StatusRequest {}).await?.into_inner())
}

fn layers_complete(status: &StatusReply) -> bool {
    !status.layers.is_empty() && status.layers.iter().all(|layer| layer.raw_held == layer.raw_len)
}

/// A path as TOML writes it: Rust and TOML quote the characters of our paths alike.
fn quoted(path: &Path) -> String {
    format!("{:?}", path.display().to_string())
}
