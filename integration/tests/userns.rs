//! Containers with a user namespace of their own. That lazy layers are id-mapped for them, and not copied, takes
//! containerd 2.0 or later: see `runtimes.rs`.

use anyhow::Result;
use darter_integration::{
    Cluster, Image,
    containerd::{DARTER, OVERLAYFS},
    run_test,
};

const ROOT: u32 = 100_000;
const OWNERS: [&str; 3] =
    ["sh", "-c", "cat /proc/self/uid_map; touch /new; stat -c '%n %u:%g %a' / /new /nodes/* /bin/busybox"];

#[test]
fn owners_are_the_same_as_with_overlayfs() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(2).mounting(&["erofs", "fuse"]).start(&lab).await?;
        let tiny = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        let mut seen = Vec::new();
        for node in &cluster.nodes {
            node.pull_lazily(&tiny).await?;
            seen.push(node.containerd.run_as(DARTER, &tiny, "lazy", ROOT, false, OWNERS).await?.stdout);
        }
        let node = &cluster.nodes[0].containerd;
        node.pull(&tiny).await?;
        let unpacked = node.run_as(OVERLAYFS, &tiny, "unpacked", ROOT, false, OWNERS).await?.stdout;
        assert_eq!(seen, [unpacked.clone(), unpacked]);
        Ok(())
    })
}
