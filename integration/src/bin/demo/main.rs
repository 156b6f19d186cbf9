//! `make demo`: a small cluster on this machine, and what it does for a pull and for the start of a container.

mod lazy;
mod progress;
mod pull;
mod subject;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use darter_integration::{Cluster, Lab, machine};
use tokio::signal::unix::{SignalKind, signal};

use self::{progress::step, subject::Subject};

/// Shows Darter on this machine: a manager, a scheduler, a seed peer and two nodes, each with a containerd of its own.
///
/// It ends by itself and leaves nothing behind. The machine's own containerd and Docker are not touched.
#[derive(Debug, Parser)]
struct Options {
    /// The image to show, as a runtime names it, instead of one made out of Debian's packages.
    #[arg(long, env = "IMAGE")]
    image: Option<String>,
    /// The command to run in IMAGE, split at spaces; it must print a line.
    #[arg(long, env = "COMMAND", default_value = "/bin/sh -c pwd", value_delimiter = ' ')]
    command: Vec<String>,
    /// What the registry and each peer may send, in Mbit a second: a network, where everything is on one machine.
    #[arg(long, env = "LINK_RATE", default_value_t = 100)]
    link_rate: u64,
    /// Leave everything running until Ctrl-C.
    #[arg(long, env = "KEEP", value_parser = clap::builder::BoolishValueParser::new(), default_value = "0")]
    keep: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<()> {
    let lab = Lab::open()?;
    // Whichever comes first, dropping what it leaves cleans up.
    let shown = tokio::select! {
        shown = Box::pin(show(&lab, options)) => shown,
        interrupted = interrupted() => interrupted,
    };
    if shown.is_err() {
        lab.print_logs();
    }
    println!("\nCleaning up.");
    shown
}

/// Waits for Ctrl-C, or for somebody else who wants it to end.
async fn interrupted() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

async fn show(lab: &Lab, options: &Options) -> Result<()> {
    let made = subject::make(options).await?;
    let starting = Cluster::with_nodes(2).with_links().start(lab);
    let cluster =
        step("starting a registry, a manager, a scheduler, a seed peer and two nodes", starting).await?;
    let subject = Subject::publish(&cluster, made, options).await?;
    let peers = cluster.nodes.iter().map(|node| &node.peer).chain(&cluster.seed);
    for link in peers.filter_map(|peer| peer.link.as_ref()).chain([&cluster.origin]) {
        link.limit(options.link_rate * 125_000);
    }
    println!("\n{}\n{}", machine::describe(), subject.describe());
    println!("The registry and each peer send at most {} Mbit/s.\n", options.link_rate);

    let ordinary = pull::show(&cluster, &subject).await?;
    lazy::show(&cluster, &subject, &ordinary).await?;
    if options.keep {
        println!("\n{}\nCtrl-C ends it.", look_around(&cluster, &subject));
        std::future::pending::<()>().await;
    }
    Ok(())
}

/// What a curious person may type next.
fn look_around(cluster: &Cluster, subject: &Subject) -> String {
    let mut lines = vec!["It is all still running. To look around:".to_owned()];
    for (number, node) in (1..).zip(&cluster.nodes) {
        let (socket, namespace) = (node.containerd.socket().display(), node.containerd.namespace());
        lines.push(format!("  node {number}:"));
        lines.push(format!("    ctr --address {socket} --namespace {namespace} images ls"));
        lines.push(format!("    target/debug/darter status --socket {}", node.peer.control.display()));
        lines.push(format!("    curl http://{}/metrics", node.peer.service.admin));
    }
    if let Some(manager) = &cluster.manager {
        lines.push(format!("  the manager: curl http://{}/api/v1/peers", manager.rest));
    }
    lines.push(format!("  the image: {}", subject.image));
    lines.push(format!("  logs: {}/*.log", cluster.lab.dir().display()));
    lines.join("\n")
}
