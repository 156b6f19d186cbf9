//! The configuration files of a lab's processes: one function for each role.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::{Surroundings, quoted};

/// Says what the roles log, in the syntax of their `log.level`.
const LOG_VARIABLE: &str = "DARTER_LOG";
/// What they log unless the variable says something else.
const LOG: &str = "info,darter_peer=debug,darter_scheduler=debug,darter_snapshotter=debug";

/// A peer's configuration.
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    pub(super) dir: &'a Path,
    pub(super) seed: bool,
    pub(super) transfer: SocketAddr,
    /// Where the others are told to reach it.
    pub(super) advertise: SocketAddr,
    pub(super) proxy: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) around: &'a Surroundings,
}

pub(super) fn manager(grpc: SocketAddr, rest: SocketAddr, admin: SocketAddr, dir: &Path) -> String {
    let database = quoted(&dir.join("manager.db"));
    let log = log();
    format!(
        r#"grpc.listen = "{grpc}"
rest.listen = "{rest}"
admin.listen = "{admin}"
database.path = {database}
# Deaths are seen soon enough for a test.
keepalive.interval = "500ms"
{log}"#
    )
}

pub(super) fn scheduler(
    name: &str,
    grpc: SocketAddr,
    admin: SocketAddr,
    manager: Option<SocketAddr>,
) -> String {
    let (manager, log) = (manager_key(manager), log());
    format!(
        r#"listen = "{grpc}"
name = "{name}"
admin.listen = "{admin}"
{manager}{log}"#
    )
}

impl Peer<'_> {
    pub(super) fn to_toml(&self) -> String {
        let Self { name, dir, seed, transfer, advertise, proxy, admin, around } = self;
        let schedulers: Vec<_> =
            around.schedulers.iter().map(|address| format!("http://{address}")).collect();
        let manager = manager_key(around.manager);
        let registries = around.registries.iter();
        let registries =
            registries.map(|(name, url)| format!("registries.\"{name}\".upstream = \"{url}\"\n"));
        let registries: String = registries.collect();
        let control = quoted(&control_socket(dir));
        let store = quoted(&dir.join("store"));
        // A seed peer makes layers for others; no container runs from it.
        let runtime = if *seed { String::new() } else { runtime(*proxy, dir, around.mount) };
        let log = log();
        format!(
            r#"admin.listen = "{admin}"
{log}
[peer]
name = "{name}"
seed = {seed}
control_socket = {control}
scheduler.addresses = {schedulers:?}
store.dir = {store}
transfer.listen = "{transfer}"
transfer.advertise = "{advertise}"
{manager}{registries}{runtime}"#
        )
    }
}

/// What a container runtime talks to.
fn runtime(proxy: SocketAddr, dir: &Path, mount: Option<&str>) -> String {
    let socket = quoted(&snapshotter_socket(dir));
    let snapshots = quoted(&dir.join("snapshotter"));
    let mount = mount.map(|mount| format!("mount = \"{mount}\"\n")).unwrap_or_default();
    format!(
        r#"
[proxy]
listen = "{proxy}"

[snapshotter]
socket = {socket}
root = {snapshots}
{mount}"#
    )
}

pub(super) fn control_socket(dir: &Path) -> PathBuf {
    dir.join("peer.sock")
}

pub(super) fn snapshotter_socket(dir: &Path) -> PathBuf {
    dir.join("snapshotter.sock")
}

fn manager_key(manager: Option<SocketAddr>) -> String {
    manager.map(|address| format!("manager.address = \"{address}\"\n")).unwrap_or_default()
}

fn log() -> String {
    let level = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOG.to_owned());
    format!("log.level = {level:?}\n")
}
