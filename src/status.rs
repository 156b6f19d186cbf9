//! `darter status`: what this node's peer is doing.

use std::time::Duration;

use darter_proto::peer::{StatusReply, StatusRequest};
use indicatif::{BinaryBytes, HumanDuration};

use crate::control::Control;

/// Show what this node's peer is doing: its scheduler, where bytes came from, tasks and layers.
#[derive(Debug, clap::Args)]
pub(crate) struct Status {
    /// List every task and layer.
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    control: Control,
}

impl Status {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let reply = self.control.connect().await?.status(StatusRequest {}).await;
        let status = reply.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner();
        print!("{}", summary(&status));
        if self.all {
            print!("{}", details(&status));
        }
        Ok(())
    }
}

fn summary(status: &StatusReply) -> String {
    let or_none = |text: &str| if text.is_empty() { "none".to_owned() } else { text.to_owned() };
    let bytes = status.bytes.unwrap_or_default();
    let running = status.tasks.iter().filter(|task| task.from_origin || !task.parents.is_empty()).count();
    [
        ("peer", format!("{}{}", status.host_id, if status.seed { " (seed peer)" } else { "" })),
        ("version", status.version.clone()),
        ("up", HumanDuration(Duration::from_secs(status.uptime_seconds)).to_string()),
        ("schedulers", or_none(&status.schedulers.join(", "))),
        ("serves peers on", status.transfer_address.clone()),
        ("proxy", or_none(&status.proxy_address)),
        ("snapshotter", or_none(&status.snapshotter_socket)),
        ("store", format!("{} of {}", BinaryBytes(status.store_bytes), BinaryBytes(status.store_quota))),
        ("from own store", BinaryBytes(bytes.local).to_string()),
        ("from peers", BinaryBytes(bytes.peer).to_string()),
        ("from seed peers", BinaryBytes(bytes.seed).to_string()),
        ("from origins", BinaryBytes(bytes.origin).to_string()),
        ("to peers", BinaryBytes(bytes.uploaded).to_string()),
        ("tasks", format!("{}, {running} running", status.tasks.len())),
        ("layers", status.layers.len().to_string()),
        ("insecure", or_none(&status.insecure_registries.join(" "))),
    ]
    .map(|(name, value)| format!("{name:<16} {value}\n"))
    .concat()
}

fn details(status: &StatusReply) -> String {
    let mut text = String::new();
    for task in &status.tasks {
        let state = if task.verified { "verified" } else { "partial" };
        let from = if task.from_origin { "origin".to_owned() } else { task.parents.join(" ") };
        let (held, length) = (BinaryBytes(task.held_bytes), BinaryBytes(task.length));
        text += &format!("task  {} {held} of {length} {state} {from}\n", task.id);
    }
    for layer in &status.layers {
        let mounted = if layer.mounted { "mounted" } else { "not mounted" };
        let (held, length) = (BinaryBytes(layer.raw_held), BinaryBytes(layer.raw_len));
        text += &format!("layer {} {held} of {length} {mounted}\n", layer.diff_id);
    }
    text
}
