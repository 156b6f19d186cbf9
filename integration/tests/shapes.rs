//! Images of unusual shapes, with both of the mounts that lazy layers have.

use anyhow::{Result, bail, ensure};
use darter_integration::{
    Cluster, Image, Lab,
    containerd::{DARTER, OVERLAYFS},
    image::{Compression, Format, ImageBuilder, LayerWriter, Node, busybox},
    run_test,
};

const GZIP: Compression = Compression::Gzip;
/// What a container shows is read while it sleeps.
const SLEEP: [&str; 2] = ["sleep", "3600"];

/// Expects that a container on lazy layers has the root file system that it has where containerd has unpacked them.
async fn expect_same_in_containers(lab: &Lab, image: &Image) -> Result<()> {
    let cluster = Cluster::with_nodes(2).mounting(&["erofs", "fuse"]).start(lab).await?;
    let name = cluster.push("shape:1", image).await?;
    let [erofs, fuse] = cluster.nodes.as_slice() else { bail!("two nodes") };
    let mut seen = Vec::new();
    for node in [erofs, fuse] {
        let pulled = node.pull_lazily(&name).await?;
        let count = image.layers.len();
        ensure!(pulled.stdout.contains(&format!("{count} of {count} layers")), "{}", pulled.stdout);
        node.containerd.run_detached(DARTER, &name, "lazy", &SLEEP).await?;
        seen.push(node.containerd.root_fs_of("lazy").await?);
    }
    erofs.containerd.pull(&name).await?;
    erofs.containerd.run_detached(OVERLAYFS, &name, "unpacked", &SLEEP).await?;
    let unpacked = erofs.containerd.root_fs_of("unpacked").await?;
    seen.iter().try_for_each(|lazy| lazy.expect_same(&unpacked))
}

#[test]
fn as_many_layers_as_docker_makes() -> Result<()> {
    run_test(async |lab| {
        let mut image = ImageBuilder::new(&lab.dir().join("many"), Format::Oci)?.layer(GZIP, lowest)?;
        for number in 1..126_i64 {
            image = image.layer(GZIP, |layer| {
                layer.add_all(&[
                    Node::dir("files").mtime(number, 0),
                    Node::file(format!("files/{number}"), number.to_string()),
                    Node::file("files/latest", number.to_string()),
                    Node::whiteout(&format!("files/{}", number - 5)),
                    // `tmp` without an entry is one more directory to stack.
                    Node::file(format!("tmp/{number}"), ""),
                ])
            })?;
        }
        expect_same_in_containers(&lab, &image.layer(GZIP, top)?.finish()?).await
    })
}

#[test]
fn the_same_layer_more_than_once_and_empty_ones() -> Result<()> {
    run_test(async |lab| {
        let twice = |layer: &mut LayerWriter| {
            layer.add_all(&[
                Node::dir("twice"),
                Node::file("twice/removed between", "1"),
                Node::file("twice/changed between", "1"),
                Node::dir("twice/replaced between"),
                Node::file("twice/replaced between/file", "1"),
                Node::dir("twice/opaque"),
                Node::opaque("twice/opaque"),
                Node::whiteout("files/removed"),
                Node::file("tmp/twice", "1"),
            ])
        };
        let between = |layer: &mut LayerWriter| {
            layer.add_all(&[
                Node::dir("twice"),
                Node::whiteout("twice/removed between"),
                Node::file("twice/changed between", "2"),
                Node::file("twice/replaced between", "2"),
                Node::dir("twice/opaque"),
                Node::file("twice/opaque/hidden", "2"),
                Node::dir("files"),
                Node::file("files/removed", "2"),
            ])
        };
        let empty = |_: &mut LayerWriter| Ok(());
        let image = ImageBuilder::new(&lab.dir().join("twice"), Format::Oci)?
            .layer(GZIP, empty)?
            .layer(GZIP, base)?
            .layer(GZIP, twice)?
            .layer(GZIP, twice)?
            .layer(GZIP, empty)?
            .layer(GZIP, between)?
            .layer(GZIP, empty)?
            // The same layer in another blob.
            .layer(Compression::None, twice)?
            .layer(GZIP, top)?;
        expect_same_in_containers(&lab, &image.finish()?).await
    })
}

/// What a container needs to run.
fn base(layer: &mut LayerWriter) -> Result<()> {
    layer.add_all(&busybox(&["sleep"])?)?;
    layer.add_all(&[
        Node::dir("proc"),
        Node::dir("dev"),
        Node::dir("sys"),
        Node::dir("run"),
        Node::dir("tmp").mode(0o1777),
        Node::dir("files"),
        Node::file("files/removed", "0"),
    ])
}

/// Deletes what was never there, in a directory that no other layer has.
fn lowest(layer: &mut LayerWriter) -> Result<()> {
    base(layer)?;
    layer.add_all(&[Node::dir("alone"), Node::whiteout("alone/never"), Node::file("alone/file", "1")])
}

/// An entry for each directory that a layer below has left out: otherwise it has the time of its unpacking.
fn top(layer: &mut LayerWriter) -> Result<()> {
    layer.add_all(&[Node::dir("tmp").mode(0o1777), Node::dir("files"), Node::file("top", "")])
}
