//! The end of each role: at once, in order, and with nothing left behind.

use anyhow::{Context, Result, ensure};
use darter_integration::{Cluster, Image, containerd::DARTER, darter::Service, http, run_test};

#[test]
fn every_role_tells_how_it_is() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).start(&lab).await?;
        let manager = cluster.manager.as_ref().context("no manager")?;
        let scheduler = cluster.scheduler.as_ref().context("no scheduler")?;
        let seed = cluster.seed.as_ref().context("no seed")?;
        let node = &cluster.nodes[0].peer;
        for service in [&manager.service, &scheduler.service, &seed.service, &node.service] {
            for path in ["metrics", "healthz", "readyz"] {
                let answer = http::get(&format!("http://{}/{path}", service.admin)).await?;
                ensure!(answer.status.is_success(), "/{path}: {}", answer.status);
                ensure!(path != "metrics" || answer.body.ends_with(b"# EOF\n"), "no metrics");
            }
        }
        Ok(())
    })
}

#[test]
fn every_role_ends_when_it_is_told_to() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).start(&lab).await?;
        let tiny = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        cluster.nodes[0].pull_lazily(&tiny).await?;
        cluster.nodes[0].containerd.run_with(DARTER, &tiny, ["echo", "hello"]).await?;
        assert!(!lab.leftovers()?.mounts.is_empty());

        let node = cluster.nodes.pop().context("no node")?;
        drop(node.containerd);
        let (mut peer, mut seed) = (node.peer, cluster.seed.take().context("no seed")?);
        let mut scheduler = cluster.scheduler.take().context("no scheduler")?;
        let mut manager = cluster.manager.take().context("no manager")?;
        for service in [&mut peer.service, &mut seed.service, &mut scheduler.service, &mut manager.service] {
            end(service)?;
        }

        let sockets = [&peer.control, &peer.snapshotter, &seed.control];
        assert!(sockets.iter().all(|socket| !socket.exists()), "one of {sockets:?} is still there");
        // The layers of a pulled image stay mounted for the containers on them, and with them their keeper.
        let left = lab.leftovers()?;
        assert!(
            left.mounts.iter().all(|mount| mount.to_string_lossy().contains("/snapshotter/")),
            "{left:?}"
        );
        assert!(left.loop_devices.is_empty(), "{left:?}");
        let registry = i32::try_from(cluster.registry.process.id())?;
        let stays = |(process, command): (&i32, &String)| {
            *process == registry || command.starts_with("darter keeper")
        };
        assert!(left.processes.iter().all(stays), "{left:?}");
        Ok(())
    })
}

#[test]
fn a_peer_ends_in_the_middle_of_a_pull() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).start(&lab).await?;
        let tiny = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        cluster.origin.limit(3_000_000);
        let (node, origin) = (&mut cluster.nodes[0], &cluster.origin);
        let (containerd, peer) = (&node.containerd, &mut node.peer);

        let ending = async {
            origin.until_sent(1_000_000).await?;
            tokio::task::block_in_place(|| end(&mut peer.service))
        };
        // containerd goes to the registry itself.
        tokio::try_join!(containerd.pull(&tiny), ending)?;
        Ok(())
    })
}

fn end(service: &mut Service) -> Result<()> {
    let status = service.process.stop()?;
    ensure!(status.success(), "{status}:\n{}", service.process.log());
    Ok(())
}
