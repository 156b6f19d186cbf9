//! Hosts with links of a given rate, all on this machine: network namespaces behind bridges.
//!
//! Each host's link is shaped in both directions, as a switch and a network card of that rate would, and its sockets
//! use cubic: the kernel's BBR needs a pacing queue that a namespace may not have.

use std::{fmt::Write, net::Ipv4Addr, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{Lab, Program, command, lab::DEBIAN_PATH};

/// The token bucket of a shaped link: deep enough that the kernel's large segments are not split.
const BUCKET: &str = "burst 256kb latency 100ms";

/// Namespaces that are removed when this is dropped.
#[derive(Debug)]
pub struct Network {
    lab: Lab,
    hosts: u16,
    racks: u16,
    namespaces: Vec<String>,
}

/// A switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rack(u16);

/// A host behind a switch.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its network namespace.
    pub namespace: String,
    /// Its address.
    pub address: Ipv4Addr,
}

/// The namespaces that belong to the lab of this name.
pub(crate) fn namespaces(lab: &str) -> Vec<String> {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.strip_prefix(lab).is_some_and(|rest| rest.starts_with('.'))).collect()
}

/// Removes namespaces, and so their devices.
pub(crate) fn remove(namespaces: &[String]) -> Result<()> {
    let script = namespaces.iter().fold(String::new(), |script, name| script + "ip netns del " + name + "\n");
    shell(&script)
}

// === impl Network ===

impl Network {
    /// A network without hosts.
    pub fn new(lab: &Lab) -> Result<Self> {
        let mut network = Self { lab: lab.clone(), hosts: 0, racks: 0, namespaces: Vec::new() };
        let hub = network.hub();
        network.namespaces.push(hub.clone());
        shell(&format!("ip netns add {hub}"))?;
        Ok(network)
    }

    /// Adds a switch.
    pub fn rack(&mut self) -> Result<Rack> {
        self.racks += 1;
        let (hub, number) = (self.hub(), self.racks);
        shell(&format!("ip -n {hub} link add r{number} type bridge\nip -n {hub} link set r{number} up"))?;
        Ok(Rack(number))
    }

    /// Joins two switches by a link of `mbit` Mbit/s in each direction.
    pub fn join(&self, a: Rack, b: Rack, mbit: u32) -> Result<()> {
        let hub = self.hub();
        let mut script = format!("ip -n {hub} link add xa type veth peer name xb\n");
        for (device, rack) in [("xa", a), ("xb", b)] {
            writeln!(script, "ip -n {hub} link set {device} master r{} up", rack.0)?;
            writeln!(script, "tc -n {hub} qdisc add dev {device} root tbf rate {mbit}mbit {BUCKET}")?;
        }
        shell(&script)
    }

    /// Bytes that crossed the joining link so far, in both directions.
    pub async fn crossed(&self) -> Result<u64> {
        let ip = command::Command::new(&self.lab, "ip");
        let shown = ip.args(["-n", &self.hub(), "-s", "-j", "link", "show", "dev", "xa"]).run().await?;
        let shown: serde_json::Value = serde_json::from_str(&shown.stdout)?;
        let bytes = |way: &str| shown.pointer(&format!("/0/stats64/{way}/bytes")).and_then(|n| n.as_u64());
        bytes("rx").zip(bytes("tx")).map(|(rx, tx)| rx + tx).context("ip tells no numbers")
    }

    /// Adds a host behind a switch, with a link of `mbit` Mbit/s in each direction or an unlimited one.
    pub fn host(&mut self, rack: Rack, mbit: Option<u32>) -> Result<Host> {
        self.hosts += 1;
        let (hub, number) = (self.hub(), self.hosts);
        let namespace = format!("{}.h{number}", self.lab.name());
        self.namespaces.push(namespace.clone());
        let [high, low] = number.to_be_bytes();
        let address = Ipv4Addr::new(10, 77, high, low);
        let mut script = format!(
            "ip netns add {namespace}\n\
             ip -n {hub} link add v{number} type veth peer name e0 netns {namespace}\n\
             ip -n {hub} link set v{number} master r{rack} up\n\
             ip -n {namespace} addr add {address}/16 dev e0\n\
             ip -n {namespace} link set lo up\n\
             ip -n {namespace} link set e0 up\n\
             ip -n {namespace} route replace 10.77.0.0/16 dev e0 src {address} congctl cubic\n",
            rack = rack.0,
        );
        if let Some(mbit) = mbit {
            let shape = format!("root tbf rate {mbit}mbit {BUCKET}");
            writeln!(script, "tc -n {namespace} qdisc add dev e0 {shape}")?;
            writeln!(script, "tc -n {hub} qdisc add dev v{number} {shape}")?;
        }
        shell(&script)?;
        Ok(Host { namespace, address })
    }

    /// The namespace of all switches.
    fn hub(&self) -> String {
        format!("{}.hub", self.lab.name())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.namespaces) {
            eprintln!("removing the network: {error:#}");
        }
    }
}

// === impl Host ===

impl Host {
    /// A program that will run on this host.
    pub fn program(&self, name: impl Into<String>, path: impl AsRef<std::ffi::OsStr>) -> Program {
        Program::new(name, "ip").args(["netns", "exec", &self.namespace]).arg(path.as_ref())
    }

    /// A program that will run on this host to its end.
    pub fn command(&self, lab: &Lab, path: impl AsRef<std::ffi::OsStr>) -> command::Command {
        command::Command::new(lab, "ip").args(["netns", "exec", &self.namespace]).arg(path.as_ref())
    }
}

fn shell(script: &str) -> Result<()> {
    let output = Command::new("/bin/sh").args(["-ec", script]).env("PATH", DEBIAN_PATH).output()?;
    ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
