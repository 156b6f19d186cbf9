//! Containers on layers that are mounted before they are there.

use anyhow::Result;
use darter_integration::{
    Cluster, Image, Lab,
    containerd::{DARTER, OVERLAYFS},
    image::{Compression, Format, ImageBuilder, Kind, Node, busybox},
    run_test,
};

const HELLO: [&str; 2] = ["echo", "hello"];

#[test]
fn a_container_prints_its_line_while_most_bytes_are_held_back() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).with_links().start(&lab).await?;
        let tiny = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        cluster.seed()?.link()?.limit(500_000);

        cluster.nodes[0].pull_lazily(&tiny).await?;
        // The seed peer has made the layers from what it got. Nobody needs the registry any more.
        cluster.origin.down();
        let node = &cluster.nodes[0];
        assert_eq!(node.containerd.run_with(DARTER, &tiny, HELLO).await?.stdout, "hello\n");
        let share = node.peer.share_of_layers().await?;
        assert!(share < 0.5, "{share} of the bytes are here already");

        cluster.seed()?.link()?.unlimited();
        cluster.nodes[0].peer.until_layers_complete().await?;
        Ok(())
    })
}

#[test]
fn the_root_file_system_is_the_same_as_with_overlayfs() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let node = &cluster.nodes[0];

        node.pull_lazily(&tiny).await?;
        assert!(image.layers.iter().all(|layer| !node.containerd.has_content(&layer.blob.digest)));
        let lazy = node.containerd.root_fs(DARTER, &image).await?;

        node.containerd.pull(&tiny).await?;
        lazy.expect_same(&node.containerd.root_fs(OVERLAYFS, &image).await?)
    })
}

#[test]
fn complete_layers_run_with_nobody_else_left() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        cluster.nodes[0].pull_lazily(&tiny).await?;
        // The layers are mounted, and so filled, when the first container needs them.
        cluster.nodes[0].containerd.run_with(DARTER, &tiny, HELLO).await?;
        cluster.nodes[0].peer.until_layers_complete().await?;

        cluster.origin.down();
        cluster.registry.process.stop()?;
        (cluster.seed, cluster.scheduler, cluster.manager) = (None, None, None);

        let node = &mut cluster.nodes[0];
        assert_eq!(node.containerd.run_with(DARTER, &tiny, HELLO).await?.stdout, "hello\n");
        let before = node.containerd.root_fs(DARTER, &image).await?;
        node.restart_peer().await?;
        assert_eq!(node.containerd.run_with(DARTER, &tiny, HELLO).await?.stdout, "hello\n");
        before.expect_same(&node.containerd.root_fs(DARTER, &image).await?)
    })
}

#[test]
fn an_ordinary_pull_is_unpacked_by_the_same_snapshotter() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let node = &cluster.nodes[0].containerd;

        node.pull_with(DARTER, &tiny).await?;
        node.check_content(&image)?;
        assert_eq!(node.run_with(DARTER, &tiny, HELLO).await?.stdout, "hello\n");

        let ours = node.root_fs(DARTER, &image).await?;
        node.pull(&tiny).await?;
        ours.expect_same(&node.root_fs(OVERLAYFS, &image).await?)
    })
}

#[test]
fn an_image_that_cannot_be_lazy_is_pulled_whole() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let image = with_a_sparse_file(&lab)?;
        let sparse = cluster.push("sparse:1", &image).await?;
        let node = &cluster.nodes[0];

        let pulled = node.pull_lazily(&sparse).await?;
        // The layer below is lazy if it was decided about first.
        let lazy = ["0 of 2 layers", "1 of 2 layers"];
        assert!(lazy.iter().any(|lazy| pulled.stdout.contains(lazy)), "{}", pulled.stdout);

        let size = node.containerd.run_with(DARTER, &sparse, ["stat", "-c", "%s", "/sparse"]).await?;
        assert_eq!(size.stdout, "1048576\n");
        let ours = node.containerd.root_fs(DARTER, &image).await?;
        node.containerd.pull(&sparse).await?;
        ours.expect_same(&node.containerd.root_fs(OVERLAYFS, &image).await?)
    })
}

#[test]
fn what_a_layer_leaves_out_is_as_containerd_unpacks_it() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let image = cluster.push("left-out:1", &with_things_left_out(&lab)?).await?;
        let node = &cluster.nodes[0];
        let pulled = node.pull_lazily(&image).await?;
        assert!(pulled.stdout.contains("3 of 3 layers"), "{}", pulled.stdout);
        node.containerd.pull(&image).await?;
        // Not their times: a directory without an entry has that of its unpacking.
        let attributes =
            ["stat", "-c", "%n %a %u:%g", "/tmp", "/home", "/home/user", "/home/user/new", "/new"];
        for command in [&attributes[..], &["sha256sum", "/sparse"]] {
            let lazy = node.containerd.run_with(DARTER, &image, command.iter().copied()).await?.stdout;
            let unpacked = node.containerd.run_with(OVERLAYFS, &image, command.iter().copied()).await?.stdout;
            assert_eq!(lazy, unpacked);
        }
        Ok(())
    })
}

/// Directories without entries above layers that have them, and a file with holes.
fn with_things_left_out(lab: &Lab) -> Result<Image> {
    let sparse = Kind::SparseFile { len: 1 << 20, offset: 8192, content: vec![7; 4096] };
    ImageBuilder::new(&lab.dir().join("left-out"), Format::Oci)?
        .layer(Compression::Gzip, |layer| {
            layer.add_all(&busybox(&["stat", "sha256sum"])?)?;
            layer.add_all(&[
                Node::dir("tmp").mode(0o1777),
                Node::dir("home").mode(0o711),
                Node::dir("home/user").mode(0o2750).owner(1000, 1001),
                Node::dir("proc"),
                Node::dir("dev"),
                Node::dir("sys"),
            ])
        })?
        .layer(Compression::Gzip, |layer| {
            layer.add_all(&[
                Node::file("tmp/file", "1"),
                Node::file("new/file", "1"),
                Node::new("sparse", sparse),
            ])
        })?
        .layer(Compression::Gzip, |layer| {
            layer.add_all(&[Node::file("home/user/new/file", "2"), Node::file("tmp/other", "2")])
        })?
        .finish()
}

/// An index can express holes between whole blocks only.
fn with_a_sparse_file(lab: &Lab) -> Result<Image> {
    let sparse = Kind::SparseFile { len: 1 << 20, offset: 8192, content: b"something".to_vec() };
    ImageBuilder::new(&lab.dir().join("sparse"), Format::Oci)?
        .layer(Compression::Gzip, |layer| {
            layer.add_all(&busybox(&["stat"])?)?;
            layer.add_all(&["proc", "dev", "sys"].map(Node::dir))
        })?
        .layer(Compression::Gzip, |layer| layer.add(&Node::new("sparse", sparse)))?
        .finish()
}
