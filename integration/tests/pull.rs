//! Pulls through the proxy: the same bytes as from the registry, and each of them from there only once.

use anyhow::Result;
use darter_integration::{Cluster, Docker, Image, run_test};
use futures_util::future::try_join_all;

const HELLO: [&str; 2] = ["echo", "hello"];

#[test]
fn the_second_node_gets_its_bytes_inside_the_cluster() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(2).start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let mark = cluster.registry.mark();

        for node in &cluster.nodes {
            node.containerd.pull(&tiny).await?;
            node.containerd.check_content(&image)?;
            assert_eq!(node.containerd.run(&tiny, HELLO).await?.stdout, "hello\n");
        }

        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&image)?;
        let metrics = cluster.nodes[1].peer.service.metrics().await?;
        assert_eq!(metrics.received_from("origin"), 0);
        assert!(metrics.received_from("peer") + metrics.received_from("seed") >= image.layer_bytes());
        Ok(())
    })
}

#[test]
fn four_nodes_at_once_get_each_byte_from_the_registry_once() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(4).start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let mark = cluster.registry.mark();
        // Slow enough that all of them are there before the first one is done.
        cluster.origin.limit(5_000_000);

        try_join_all(cluster.nodes.iter().map(|node| node.containerd.pull(&tiny))).await?;

        for node in &cluster.nodes {
            node.containerd.check_content(&image)?;
        }
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&image)
    })
}

#[test]
fn four_nodes_without_a_seed_get_each_byte_from_the_registry_once() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(4).without_manager().without_seed().start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let mark = cluster.registry.mark();
        cluster.origin.limit(5_000_000);

        try_join_all(cluster.nodes.iter().map(|node| node.containerd.pull(&tiny))).await?;

        for node in &cluster.nodes {
            node.containerd.check_content(&image)?;
        }
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&image)
    })
}

#[test]
fn docker_pulls_through_its_mirror() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).standing_for_docker_hub().start(&lab).await?;
        let image = Image::tiny_docker(&lab)?;
        cluster.push("library/tiny:1", &image).await?;
        let mark = cluster.registry.mark();
        let peer = &cluster.nodes[0].peer;
        let docker = Docker::start(&lab, &peer.proxy_url()).await?;

        docker.pull("tiny:1").await?;

        assert_eq!(docker.run("tiny:1", HELLO).await?.stdout, "hello\n");
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&image)?;
        assert!(peer.service.metrics().await?.received_from("seed") >= image.layer_bytes());
        Ok(())
    })
}

#[test]
fn a_peer_alone_is_a_mirror_that_remembers() -> Result<()> {
    run_test(async |lab| {
        let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
        let cluster = alone.start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = cluster.push("tiny:1", &image).await?;
        let mark = cluster.registry.mark();
        let node = &cluster.nodes[0].containerd;

        node.pull(&tiny).await?;
        node.remove_image(&tiny).await?;
        assert!(!node.has_content(&image.layers[0].blob.digest));
        node.pull(&tiny).await?;

        node.check_content(&image)?;
        assert_eq!(node.run(&tiny, HELLO).await?.stdout, "hello\n");
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&image)
    })
}
