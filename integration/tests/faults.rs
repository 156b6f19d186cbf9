//! Whatever dies or lies in the middle of a pull: the right bytes arrive, or none.

use anyhow::{Result, ensure};
use darter_integration::{Cluster, Image, ImageRef, Lab, Node, http, run_test};

/// Slow enough that a fault comes before the pull's end, in bytes per second.
const SLOW: u64 = 3_000_000;
/// Sent when a fault comes; the tiny image has more than five times as many bytes.
const SOON: u64 = 2_000_000;

/// Pulls while something happens, and checks what was pulled.
async fn pull_while(node: &Node, tiny: &Tiny, fault: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::try_join!(node.containerd.pull(&tiny.name), fault)?;
    node.containerd.check_content(&tiny.image)
}

struct Tiny {
    image: Image,
    name: ImageRef,
}

impl Tiny {
    async fn push(lab: &Lab, cluster: &Cluster) -> Result<Self> {
        let image = Image::tiny(lab)?;
        let name = cluster.push("tiny:1", &image).await?;
        Ok(Self { image, name })
    }
}

#[test]
fn a_pull_survives_the_death_of_the_scheduler() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(2).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        cluster.origin.limit(SLOW);

        let (nodes, origin) = (&cluster.nodes, &cluster.origin);
        let scheduler = cluster.scheduler.as_mut();
        let death = async {
            origin.until_sent(SOON).await?;
            scheduler.map_or(Ok(()), |scheduler| scheduler.service.process.kill())?;
            origin.unlimited();
            Ok(())
        };
        pull_while(&nodes[0], &tiny, death).await?;
        pull_while(&nodes[1], &tiny, async { Ok(()) }).await
    })
}

#[test]
fn a_transfer_does_not_notice_that_the_scheduler_restarts() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(2).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        let mark = cluster.registry.mark();
        cluster.origin.limit(SLOW);

        let (nodes, origin) = (&cluster.nodes, &cluster.origin);
        let scheduler = cluster.scheduler.as_mut();
        let restart = async {
            origin.until_sent(SOON).await?;
            if let Some(scheduler) = scheduler {
                scheduler.service.crash_and_restart().await?;
            }
            Ok(())
        };
        let pulls = async {
            tokio::try_join!(nodes[0].containerd.pull(&tiny.name), nodes[1].containerd.pull(&tiny.name))?;
            nodes.iter().try_for_each(|node| node.containerd.check_content(&tiny.image))
        };
        tokio::try_join!(pulls, restart)?;
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&tiny.image)
    })
}

#[test]
fn nobody_needs_the_manager_once_it_was_asked() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(2).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        let mark = cluster.registry.mark();
        cluster.origin.limit(SLOW);

        let (nodes, origin) = (&cluster.nodes, &cluster.origin);
        let manager = cluster.manager.as_mut();
        let death = async {
            origin.until_sent(SOON).await?;
            manager.map_or(Ok(()), |manager| manager.service.process.kill())
        };
        pull_while(&nodes[0], &tiny, death).await?;
        pull_while(&nodes[1], &tiny, async { Ok(()) }).await?;
        cluster.registry.traffic_since(mark).await.expect_each_layer_once(&tiny.image)
    })
}

#[test]
fn a_pull_survives_the_death_of_its_parent() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(2).without_seed().with_links().start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        pull_while(&cluster.nodes[0], &tiny, async { Ok(()) }).await?;

        let [parent, child] = cluster.nodes.as_mut_slice() else { anyhow::bail!("two nodes") };
        let (link, process) = (parent.peer.link.as_ref(), &mut parent.peer.service.process);
        let death = async {
            if let Some(link) = link {
                link.limit(SLOW);
                link.until_sent(SOON).await?;
            }
            process.kill()
        };
        pull_while(child, &tiny, death).await?;

        let metrics = child.peer.service.metrics().await?;
        assert!(metrics.received_from("peer") > 0 && metrics.received_from("origin") > 0);
        Ok(())
    })
}

#[test]
fn a_pull_survives_the_death_of_the_seed_that_fetches_for_it() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        cluster.origin.limit(SLOW);

        let (nodes, origin) = (&cluster.nodes, &cluster.origin);
        let seed = cluster.seed.as_mut();
        let death = async {
            origin.until_sent(SOON).await?;
            seed.map_or(Ok(()), |seed| seed.service.process.kill())?;
            origin.unlimited();
            Ok(())
        };
        pull_while(&nodes[0], &tiny, death).await
    })
}

#[test]
fn a_wrong_leaf_from_a_parent_goes_no_further() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(2).without_seed().with_links().start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        pull_while(&cluster.nodes[0], &tiny, async { Ok(()) }).await?;

        let link = cluster.nodes[0].peer.link()?;
        link.flip_byte_after(SOON);
        pull_while(&cluster.nodes[1], &tiny, async { Ok(()) }).await?;

        assert!(!link.fault_is_pending());
        let metrics = cluster.nodes[1].peer.service.metrics().await?;
        assert_eq!(metrics.sum("darter_peer_wrong_leaves_total", &[]), 1.0);
        Ok(())
    })
}

#[test]
fn a_body_that_the_origin_breaks_off_is_completed() -> Result<()> {
    run_test(async |lab| {
        let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
        let cluster = alone.start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;

        cluster.origin.cut_after(SOON);
        pull_while(&cluster.nodes[0], &tiny, async { Ok(()) }).await?;

        assert!(!cluster.origin.fault_is_pending());
        Ok(())
    })
}

#[test]
fn wrong_bytes_at_the_origin_are_not_passed_on() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(2).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        let (node, blob) = (&cluster.nodes[0], &tiny.image.layers[0].blob);
        cluster.registry.flip_byte_of(blob)?;

        let proxy = node.peer.proxy_url();
        let url = format!("{proxy}/v2/tiny/blobs/{}?ns={}", blob.digest, tiny.name.registry);
        // It breaks before the end, or it is refused at once.
        if let Ok(answer) = http::get(&url).await {
            ensure!(!answer.status.is_success(), "{} with {} bytes", answer.status, answer.body.len());
        }
        node.containerd.pull(&tiny.name).await.expect_err("the registry has a wrong layer");
        assert!(!node.containerd.has_content(&blob.digest));

        // Not on the same node: containerd keeps what it got of the wrong layer, and would go on from there.
        cluster.registry.flip_byte_of(blob)?;
        pull_while(&cluster.nodes[1], &tiny, async { Ok(()) }).await
    })
}

#[test]
fn what_is_here_is_served_while_the_origin_is_down() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let tiny = Tiny::push(&lab, &cluster).await?;
        let node = &cluster.nodes[0];
        pull_while(node, &tiny, async { Ok(()) }).await?;
        node.containerd.remove_image(&tiny.name).await?;

        cluster.origin.down();
        // Only the origin could say what the tag stands for now.
        let pinned = Tiny { name: tiny.name.pinned(&tiny.image), image: tiny.image };
        pull_while(node, &pinned, async { Ok(()) }).await
    })
}
