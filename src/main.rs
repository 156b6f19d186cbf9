//! The command line: one file per subcommand, no logic.

mod config;
mod control;
mod get;
mod image;
mod keeper;
mod limits;
mod peer;
mod status;
mod store;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Parser, Subcommand};
use darter_service::{shutdown, telemetry};

/// Peer-to-peer distribution of container images and files.
///
/// Every pull on a node goes through its peer: what another node has comes from there, the origin is asked once, and
/// with the snapshotter a container starts before its layers have arrived. A peer alone needs nothing else; a
/// scheduler makes the peers find each other; a manager knows schedulers and limits of whole clusters.
#[derive(Debug, Parser)]
#[command(name = "darter", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the manager: clusters, dynamic configuration and who is alive.
    Manager(Role),
    /// Run a scheduler: it tells peers who has what and who may go to the origin.
    Scheduler(Role),
    /// Run a peer: the node's registry mirror, snapshotter and store; a seed peer with `seed = true`.
    Peer(Role),
    /// Hold the mounts of lazy layers while this node's peer restarts; started by the peer.
    Keeper(keeper::Keeper),
    /// Fetch a URL through this node's peer, and so through all others.
    Get(get::Get),
    /// Work with container images.
    #[command(subcommand)]
    Image(image::Image),
    /// Show what this node's peer is doing.
    Status(status::Status),
    /// Look after this node's store.
    #[command(subcommand)]
    Store(store::Store),
    /// Show or change this node's rate limits.
    #[command(subcommand)]
    Limits(limits::Limits),
    /// Check a configuration file, or print a role's defaults with an explanation of every key.
    #[command(subcommand)]
    Config(config::ConfigCommand),
}

#[derive(Debug, clap::Args)]
struct Role {
    /// The role's configuration file (TOML); see `darter config default ROLE`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("darter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    // Small: it holds one descriptor and needs none of what follows.
    if let Command::Keeper(keeper) = command {
        return keeper.run();
    }
    // One TLS provider in the whole process; a second call could only come from a test.
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(async {
        match command {
            Command::Manager(role) => {
                let config: darter_manager::Config = darter_service::config::load(&role.config)?;
                telemetry::init(&config.log)?;
                Ok(darter_manager::run(config, shutdown::on_signals()?).await?)
            }
            Command::Scheduler(role) => {
                let config: darter_scheduler::Config = darter_service::config::load(&role.config)?;
                telemetry::init(&config.log)?;
                Ok(darter_scheduler::run(config, shutdown::on_signals()?).await?)
            }
            Command::Peer(role) => {
                let config: peer::PeerRole = darter_service::config::load(&role.config)?;
                telemetry::init(&config.log)?;
                peer::run(config, &role.config, shutdown::on_signals()?).await
            }
            Command::Keeper(keeper) => keeper.run(),
            Command::Get(get) => get.run().await,
            Command::Image(image) => image.run().await,
            Command::Status(status) => status.run().await,
            Command::Store(store) => store.run().await,
            Command::Limits(limits) => limits.run().await,
            Command::Config(command) => command.run(),
        }
    })
}
