//! What images take on a node's disk, and what an update moves.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Cluster, Image, Lab,
    command::Output,
    containerd::DARTER,
    darter::{self, Peer},
    image::{Compression, Descriptor, Format, ImageBuilder, Node, busybox, noise},
    run_test,
    wait::until,
};
use darter_peer::{LayerMaker, LeafDigest, LeafSink};
use darter_snapshotter::layer::Maker;

const HELLO: [&str; 2] = ["echo", "hello"];
const MIB: usize = 1 << 20;
/// Manifests and configs, which nobody removes but who needs the room.
const DOCUMENTS: u64 = 64 * 1024;

#[test]
fn an_update_moves_what_changed_and_a_removed_image_frees_what_it_took() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).start(&lab).await?;
        let (old, new) = (version(&lab, 1)?, version(&lab, 2)?);
        let first = cluster.push("app:1", &old).await?;
        let second = cluster.push("app:2", &new).await?;
        let node = &mut cluster.nodes[0];

        node.pull_lazily(&first).await?;
        node.containerd.run_with(DARTER, &first, HELLO).await?;
        node.peer.until_layers_complete().await?;
        let (before, used) = (moved(&node.peer).await?, used(&node.peer).await?);

        node.pull_lazily(&second).await?;
        node.containerd.run_with(DARTER, &second, HELLO).await?;
        node.peer.until_layers_complete().await?;
        let moved = moved(&node.peer).await? - before;
        let (all, changed) = stored(&old, &new)?;
        println!("moved {moved} bytes, leaves of {changed} bytes changed, all take {all}");
        ensure!(moved as f64 <= 1.15 * changed as f64, "{moved} bytes were moved, {changed} are new");
        ensure!(changed * 3 < all, "the images are too different to show anything: {changed} of {all}");
        let both = self::used(&node.peer).await?;
        ensure!(both - used <= moved, "{both} bytes are used, {used} before {moved} were moved");

        // What the second needs of the first stays, without anybody who could give it again.
        cluster.origin.down();
        (cluster.seed, cluster.scheduler, cluster.manager) = (None, None, None);
        let node = &mut cluster.nodes[0];
        node.containerd.remove_image(&first).await?;
        let verified = store(&lab, &node.peer, ["verify"]).await?;
        ensure!(verified.stdout.ends_with("are right\n"), "{}", verified.stdout);
        node.restart_peer().await?;
        let sum = node.containerd.run_with(DARTER, &second, ["sha256sum", "/app/library-7"]).await?;
        ensure!(sum.stdout.ends_with(" /app/library-7\n"), "{}", sum.stdout);
        let left = self::used(&node.peer).await?;
        ensure!(left < both && left > all, "{left} of {both} are used, the second image takes {all}");

        node.containerd.remove_image(&second).await?;
        let left = self::used(&node.peer).await?;
        ensure!(left < DOCUMENTS, "{left} bytes are used by nobody");
        ensure!(node.peer.status().await?.layers.is_empty());
        Ok(())
    })
}

#[test]
fn a_removed_image_is_not_filled_any_more() -> Result<()> {
    run_test(async |lab| {
        let mut cluster = Cluster::with_nodes(1).with_links().start(&lab).await?;
        let image = version(&lab, 1)?;
        let app = cluster.push("app:1", &image).await?;
        let node = &cluster.nodes[0];
        node.pull_lazily(&app).await?;
        cluster.seed.as_ref().context("no seed")?.link()?.limit(1_000_000);
        node.containerd.run_with(DARTER, &app, HELLO).await?;
        let begun = async || matches!(node.peer.share_of_layers().await, Ok(share) if share > 0.2);
        until("being filled", begun).await?;

        node.containerd.remove_image(&app).await?;
        cluster.seed()?.link()?.unlimited();
        let peer = &cluster.nodes[0].peer;
        let ended = async || matches!(peer.status().await, Ok(status) if status.layers.is_empty());
        until("forgotten", ended).await?;
        // Whatever was still on its way would be here before what is asked for now.
        let other = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        cluster.nodes[0].containerd.pull(&other).await?;
        let moved = moved(peer).await?;
        let (all, other) = (stored(&image, &image)?.0, Image::tiny(&lab)?.layer_bytes());
        ensure!(moved < all / 2 + other, "{moved} bytes were moved, the images take {all} and {other}");
        Ok(())
    })
}

#[test]
fn the_store_and_the_limits_are_looked_after_while_the_peer_runs() -> Result<()> {
    run_test(async |lab| {
        let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
        let cluster = alone.start(&lab).await?;
        let image = version(&lab, 1)?;
        let app = cluster.push("app:1", &image).await?;
        let node = &cluster.nodes[0];
        node.containerd.pull(&app).await?;

        let status = fields(&store(&lab, &node.peer, ["status"]).await?.stdout);
        assert_eq!((status["not kept"].as_str(), status["damaged"].as_str()), ("0 leaves", "0 leaves"));
        let verified = store(&lab, &node.peer, ["verify", "--rate", "1GiB"]).await?.stdout;
        ensure!(verified.ends_with(" are right\n") && !verified.starts_with("0 "), "{verified}");

        let before = used(&node.peer).await?;
        ensure!(before >= image.layer_bytes());
        let removed = store(&lab, &node.peer, ["remove", &image.layers[0].blob.digest]).await?.stdout;
        ensure!(removed.starts_with("removed "), "{removed}");
        assert_eq!(before - used(&node.peer).await?, image.layers[0].blob.size);
        let evicted = store(&lab, &node.peer, ["evict", "1TiB"]).await?.stdout;
        ensure!(evicted.starts_with("evicted "), "{evicted}");
        assert_eq!(used(&node.peer).await?, 0);

        let shown = limits(&lab, &node.peer, ["show"]).await?;
        assert_eq!(shown["download"], "unlimited");
        let set = limits(&lab, &node.peer, ["set", "--download", "20MiB", "--origin", "1MiB"]).await?;
        assert_eq!((set["download"].as_str(), set["origin"].as_str()), ("20.00 MiB/s", "1.00 MiB/s"));
        assert_eq!(limits(&lab, &node.peer, ["show"]).await?, set);
        Ok(())
    })
}

/// A base, and an application with libraries; the second version has another application, a new library and later
/// directories.
fn version(lab: &Lab, version: u64) -> Result<Image> {
    let library = |number: u64| Node::file(format!("app/library-{number}"), random(number, MIB));
    ImageBuilder::new(&lab.dir().join(format!("version-{version}")), Format::Oci)?
        .layer(Compression::Gzip, |layer| {
            layer.add_all(&busybox(&["echo", "sha256sum"])?)?;
            layer.add_all(&["dev", "proc", "sys"].map(Node::dir))?;
            layer.add(&Node::file("base", random(100, 4 * MIB)))
        })?
        .layer(Compression::Gzip, |layer| {
            let time = 1_750_000_000 + i64::try_from(version)? * 86_400;
            layer.add(&Node::dir("app").mtime(time, 0))?;
            layer.add(&Node::file("app/application", random(1000 + version, MIB / 2)).mtime(time, 0))?;
            if version > 1 {
                layer.add(&Node::file("app/library", random(2000, MIB / 3)).mtime(time, 0))?;
            }
            (0..10).try_for_each(|number| layer.add(&library(number)))
        })?
        .finish()
}

/// Always the same for the same number.
fn random(number: u64, len: usize) -> Vec<u8> {
    noise(number.to_le_bytes(), len)
}

/// Bytes of the new image's leaves as they are stored, and of those that the old one lacks.
fn stored(old: &Image, new: &Image) -> Result<(u64, u64)> {
    let leaves = |image: &Image| -> Result<HashMap<LeafDigest, u64>> {
        let made = image.layers.iter().map(|layer| leaves_of(image, &layer.blob));
        Ok(made.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    };
    let old: HashSet<_> = leaves(old)?.into_keys().collect();
    let new = leaves(new)?;
    let changed = new.iter().filter(|(digest, _)| !old.contains(*digest)).map(|(_, len)| len).sum();
    Ok((new.values().sum(), changed))
}

/// The leaves of a layer with their lengths as they are stored.
fn leaves_of(image: &Image, blob: &Descriptor) -> Result<Vec<(LeafDigest, u64)>> {
    struct Nowhere;
    impl LeafSink for Nowhere {
        fn leaf(&mut self, _: &[u8]) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut blob = std::fs::File::open(image.path_of(blob))?;
    let made = Maker::new().make(&mut blob, &mut Nowhere)?;
    Ok(made.table.entries().iter().map(|leaf| (leaf.digest, leaf.stored_len.into())).collect())
}

/// Bytes that came from somebody else.
async fn moved(peer: &Peer) -> Result<u64> {
    let metrics = peer.service.metrics().await?;
    Ok(["peer", "seed", "origin"].map(|source| metrics.received_from(source)).iter().sum())
}

/// Bytes that the store takes.
async fn used(peer: &Peer) -> Result<u64> {
    Ok(peer.status().await?.store_bytes)
}

async fn store<'a>(lab: &Lab, peer: &Peer, args: impl IntoIterator<Item = &'a str>) -> Result<Output> {
    darter::command(lab, "store")?.args(args).arg("--socket").arg(&peer.control).run().await
}

async fn limits<'a>(
    lab: &Lab,
    peer: &Peer,
    args: impl IntoIterator<Item = &'a str>,
) -> Result<HashMap<String, String>> {
    let run = darter::command(lab, "limits")?.args(args).arg("--socket").arg(&peer.control).run();
    Ok(fields(&run.await?.stdout))
}

/// Lines of a name and a value.
fn fields(text: &str) -> HashMap<String, String> {
    let field = |line: &str| Some((line.get(..17)?.trim().to_owned(), line.get(17..)?.to_owned()));
    text.lines().filter_map(field).collect()
}
