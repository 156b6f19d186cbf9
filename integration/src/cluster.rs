//! A whole cluster in a lab: an origin, Darter's services, and nodes that each have a containerd of their own.

use anyhow::{Context, Result};

use crate::{
    Containerd, Image, ImageRef, Lab, Registry, Throttle,
    command::Output,
    darter::{self, Manager, Peer, Scheduler, Surroundings},
};

/// A cluster. What stands first is stopped first.
#[derive(Debug)]
pub struct Cluster {
    /// Named `node1`, `node2` and so on.
    pub nodes: Vec<Node>,
    /// Makes layers and fetches from the origin for the others.
    pub seed: Option<Peer>,
    /// Makes the peers find each other.
    pub scheduler: Option<Scheduler>,
    /// Knows the scheduler and the seed peer.
    pub manager: Option<Manager>,
    /// Stands before the registry: images are named by its address, so nobody gets past it.
    pub origin: Throttle,
    /// The origin itself.
    pub registry: Registry,
    /// Where all this runs.
    pub lab: Lab,
}

/// A host of the cluster.
#[derive(Debug)]
pub struct Node {
    /// Pulls through its peer's proxy, and knows its peer's snapshotter.
    pub containerd: Containerd,
    /// The peer of this host.
    pub peer: Peer,
}

/// What a cluster is to have.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    nodes: usize,
    seed: bool,
    scheduler: bool,
    manager: bool,
    docker_hub: bool,
    links: bool,
    mounts: Vec<&'static str>,
}

// === impl ClusterBuilder ===

impl ClusterBuilder {
    /// Leaves out the manager.
    pub fn without_manager(mut self) -> Self {
        self.manager = false;
        self
    }

    /// Leaves out the scheduler.
    pub fn without_scheduler(mut self) -> Self {
        self.scheduler = false;
        self
    }

    /// Leaves out the seed peer.
    pub fn without_seed(mut self) -> Self {
        self.seed = false;
        self
    }

    /// Lets the registry also stand for `docker.io`, which is where a docker pulls short names from.
    pub fn standing_for_docker_hub(mut self) -> Self {
        self.docker_hub = true;
        self
    }

    /// Lets what a peer sends to others come through a [`Throttle`]: [`Peer::link`].
    pub fn with_links(mut self) -> Self {
        self.links = true;
        self
    }

    /// Has each node mount lazy layers in a way of its own, as `snapshotter.mount` has it; the rest choose by themselves.
    pub fn mounting(mut self, mounts: &[&'static str]) -> Self {
        self.mounts = mounts.to_owned();
        self
    }

    /// Starts everything and waits until it is ready and the scheduler knows all peers.
    pub async fn start(self, lab: &Lab) -> Result<Cluster> {
        let registry = Registry::start(lab).await?;
        let origin = Throttle::to(registry.address).await?;
        let manager = if self.manager { Some(Manager::start(lab).await?) } else { None };
        let manager_address = manager.as_ref().map(|manager| manager.grpc);
        let scheduler =
            if self.scheduler { Some(Scheduler::start(lab, manager_address).await?) } else { None };
        let mut names = vec![origin.address.to_string()];
        if self.docker_hub {
            names.push("docker.io".to_owned());
        }
        // With a manager it is the only thing that a peer is told of.
        let told = scheduler.iter().filter(|_| !self.manager);
        let around = Surroundings {
            schedulers: told.map(|scheduler| scheduler.grpc).collect(),
            manager: manager_address,
            registries: names.iter().map(|name| (name.clone(), origin.url())).collect(),
            links: self.links,
            mount: None,
        };
        let mut seed = if self.seed { Some(Peer::start_seed(lab, "seed", &around).await?) } else { None };
        let mut nodes = Vec::new();
        for number in 1..=self.nodes {
            let around = Surroundings { mount: self.mounts.get(number - 1).copied(), ..around.clone() };
            nodes.push(Node::start(lab, &format!("node{number}"), &around).await?);
        }
        if scheduler.is_some() {
            for peer in nodes.iter_mut().map(|node| &mut node.peer).chain(&mut seed) {
                peer.until_scheduled().await?;
            }
        }
        Ok(Cluster { nodes, seed, scheduler, manager, origin, registry, lab: lab.clone() })
    }
}

// === impl Cluster ===

impl Cluster {
    /// A cluster with a manager, a scheduler, a seed peer and this many nodes.
    pub fn with_nodes(nodes: usize) -> ClusterBuilder {
        ClusterBuilder {
            nodes,
            seed: true,
            scheduler: true,
            manager: true,
            docker_hub: false,
            links: false,
            mounts: Vec::new(),
        }
    }

    /// The seed peer.
    pub fn seed(&mut self) -> Result<&mut Peer> {
        self.seed.as_mut().context("the cluster has no seed peer")
    }

    /// Pushes an image to the registry; the answer names it by the origin's address.
    pub async fn push(&self, name: &str, image: &Image) -> Result<ImageRef> {
        let pushed = self.registry.push(name, image).await?;
        Ok(ImageRef { registry: self.origin.address.to_string(), ..pushed })
    }
}

// === impl Node ===

impl Node {
    /// Starts a node of its own and waits until it is ready.
    pub async fn start(lab: &Lab, name: &str, around: &Surroundings) -> Result<Self> {
        let peer = Peer::start(lab, &format!("{name}-peer"), around).await?;
        let containerd = Containerd::start_with(lab, name, Some(&peer.snapshotter)).await?;
        for (registry, _) in &around.registries {
            containerd.mirror(registry, &peer.proxy_url())?;
        }
        Ok(Self { containerd, peer })
    }

    /// Stops the peer as a user would, starts it again and waits until containerd has noticed.
    pub async fn restart_peer(&mut self) -> Result<()> {
        self.peer.service.stop_and_restart().await?;
        self.containerd.until_snapshotter_answers().await
    }

    /// Pulls an image with Darter's snapshotter, so that it can run before it is there. Works with every containerd,
    /// also with those whose `ctr` does not tell a snapshotter which layer it is asked for.
    pub async fn pull_lazily(&self, image: &ImageRef) -> Result<Output> {
        let pull = darter::command(self.containerd.lab(), "image")?
            .arg("pull")
            .arg("--socket")
            .arg(&self.peer.control);
        let pull = pull.arg("--address").arg(self.containerd.socket());
        pull.args(["--namespace", self.containerd.namespace()]).arg(image.to_string()).run().await
    }
}
