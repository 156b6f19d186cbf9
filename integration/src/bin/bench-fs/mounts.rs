//! The three root file systems of the same image.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Containerd, Image, ImageRef, Lab, Node, Registry,
    command::Command,
    containerd::{DARTER, OVERLAYFS},
    darter::Surroundings,
};
use tokio::time::{Instant, sleep};

use crate::{Mount, subject};

/// A layer that is not complete by then never will be.
const DEADLINE: Duration = Duration::from_secs(120);

/// Where a root file system is mounted.
pub(crate) struct Root(pub(crate) PathBuf);

/// All mounts, and what serves them.
pub(crate) struct Mounts {
    overlayfs: Root,
    erofs: Root,
    fuse: Root,
    _nodes: [Node; 2],
    _containerd: Containerd,
}

impl Mounts {
    /// Makes the image, brings it to three nodes and mounts it on each, with all of it local.
    pub(crate) async fn make(lab: &Lab) -> Result<Self> {
        println!("making the image");
        let image = subject::make(&lab.subdir("image")?)?;
        let registry = Registry::start(lab).await?;
        let pushed = registry.push("bench/subject:1", &image).await?;
        println!("unpacking it");
        let containerd = Containerd::start(lab, "overlayfs").await?;
        containerd.pull(&pushed).await?;
        let overlayfs = Root(lab.subdir("root-overlayfs")?);
        containerd.mount_root(OVERLAYFS, &image, &overlayfs.0).await?;
        println!("making its layers lazy, and fetching them");
        let (erofs_node, erofs) = node(lab, &registry, "erofs", &image, &pushed).await?;
        let (fuse_node, fuse) = node(lab, &registry, "fuse", &image, &pushed).await?;
        Ok(Self { overlayfs, erofs, fuse, _nodes: [erofs_node, fuse_node], _containerd: containerd })
    }

    /// That of overlayfs on ext4, and Darter's.
    pub(crate) fn roots(&self) -> (&Root, [(Mount, &Root); 2]) {
        (&self.overlayfs, [(Mount::Erofs, &self.erofs), (Mount::Fuse, &self.fuse)])
    }
}

/// A node with a peer that needs no other, and the image mounted in this way.
async fn node(
    lab: &Lab,
    registry: &Registry,
    mount: &'static str,
    image: &Image,
    pushed: &ImageRef,
) -> Result<(Node, Root)> {
    let around = Surroundings {
        schedulers: vec![],
        manager: None,
        registries: vec![(registry.address.to_string(), registry.url())],
        links: false,
        mount: Some(mount),
    };
    let mut node = Node::start(lab, mount, &around).await?;
    node.pull_lazily(pushed).await?;
    let root = Root(lab.subdir(&format!("root-{mount}"))?);
    node.containerd.mount_root(DARTER, image, &root.0).await?;
    node.peer.until_layers_complete().await?;
    // A complete layer is mounted from its file once it was checked as a whole, and when it is mounted next.
    let started = Instant::now();
    while mount == "erofs" && local_layers(&root)? < image.layers.len() {
        ensure!(started.elapsed() < DEADLINE, "the layers are not mounted from their files");
        sleep(Duration::from_millis(200)).await;
        Command::new(lab, "umount").arg(&root.0).run().await?;
        node.containerd.mount_root(DARTER, image, &root.0).await?;
    }
    Ok((node, root))
}

/// How many of the layers are mounted from their files.
fn local_layers(root: &Root) -> Result<usize> {
    let root = root.0.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let line = mounts.lines().find(|line| line.split(' ').nth(4) == Some(&root));
    Ok(line.context("the image is not mounted")?.matches("/snapshotter/local/").count())
}
