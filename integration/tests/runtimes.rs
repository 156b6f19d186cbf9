//! Newer runtimes with the configuration that `packaging/` has for each: they pull through the proxy, and run containers
//! on layers that are mounted before they are there. `make test-runtimes` fetches them; they are no part of `make test`.

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Containerd, Docker, Image, ImageRef, Lab, Registry, Runtime,
    containerd::{DARTER, OVERLAYFS},
    darter::{self, Peer, Surroundings},
    run_test,
};
use serde_json::Value;

/// Of containerd 1.6 and 1.7, and of 2.x.
const CONFIG_1: &str = include_str!("../../packaging/containerd/config-1.toml");
const CONFIG_2: &str = include_str!("../../packaging/containerd/config-2.toml");
const HOSTS: &str = include_str!("../../packaging/containerd/certs.d/_default/hosts.toml");
const DOCKER: &str = include_str!("../../packaging/docker/daemon.json");
const DOCKER_CONTAINERD: &str = include_str!("../../packaging/docker/daemon-containerd.json");
/// What the samples name, and a lab has elsewhere.
const CERTS: &str = "/etc/containerd/certs.d";
const SOCKET: &str = "/run/darter/snapshotter.sock";
const ROOT: &str = "/var/lib/darter/snapshotter";
const PROXY: &str = "127.0.0.1:7400";

const HELLO: [&str; 2] = ["echo", "hello"];

/// A sample with the lab's addresses and paths instead of the usual ones.
fn adapted(sample: &str, lab: &Lab, name: &str, peer: &Peer) -> String {
    let places = [
        (CERTS, lab.dir().join(name).join("certs.d").display().to_string()),
        (SOCKET, peer.snapshotter.display().to_string()),
        (ROOT, peer.snapshotter.with_file_name("snapshotter").display().to_string()),
        (PROXY, peer.proxy.to_string()),
    ];
    places.into_iter().fold(sample.to_owned(), |sample, (usual, here)| sample.replace(usual, &here))
}

/// A containerd with the samples of its version.
async fn containerd(
    lab: &Lab,
    name: &str,
    runtime: &Runtime,
    sample: &str,
    peer: &Peer,
) -> Result<Containerd> {
    let version_1 = sample == CONFIG_1;
    let cri = if version_1 { "io.containerd.grpc.v1.cri" } else { "io.containerd.cri.v1.runtime" };
    // Lowering the score needs CAP_SYS_RESOURCE, which a test in a container may lack.
    let score = format!("\n[plugins.\"{cri}\"]\n  restrict_oom_score_adj = true\n");
    let config = Containerd::place(lab, name) + &adapted(sample, lab, name, peer) + &score;
    lab.write(&format!("{name}/certs.d/_default/hosts.toml"), &adapted(HOSTS, lab, name, peer))?;
    Containerd::start_as(lab, name, runtime.clone(), &config).await
}

/// A node alone before a registry, which also stands for `docker.io`. Its snapshotter is for one containerd only.
struct World {
    registry: Registry,
    peer: Peer,
    image: Image,
    tiny: ImageRef,
}

impl World {
    async fn start(lab: &Lab, image: Image) -> Result<Self> {
        Self::mounting(lab, image, None).await
    }

    async fn mounting(lab: &Lab, image: Image, mount: Option<&'static str>) -> Result<Self> {
        let registry = Registry::start(lab).await?;
        let tiny = registry.push("library/tiny:1", &image).await?;
        let names = [registry.address.to_string(), "docker.io".to_owned()];
        let around = Surroundings {
            schedulers: vec![],
            manager: None,
            registries: names.map(|name| (name, registry.url())).into(),
            links: false,
            mount,
        };
        Ok(Self { peer: Peer::start(lab, "peer", &around).await?, registry, image, tiny })
    }

    fn expect_no_layer_in(&self, containerd: &Containerd) {
        let layers = &self.image.layers;
        assert!(
            layers.iter().all(|layer| !containerd.has_content(&layer.blob.digest)),
            "a layer was fetched"
        );
    }
}

/// Pulls through the proxy and runs, with layers unpacked and with layers mounted before they are there.
async fn expect_all_of_containerd(lab: Lab, release: &str, sample: &str, major: &str) -> Result<()> {
    let runtime = Runtime::of_debian(&lab, release).await?;
    let version = runtime.version(&lab, "containerd").await?;
    ensure!(version.starts_with(major), "Debian {release} has containerd {version} now");
    let world = World::start(&lab, Image::tiny(&lab)?).await?;
    let World { image, tiny, peer, .. } = &world;
    let mark = world.registry.mark();
    let node = containerd(&lab, "newer", &runtime, sample, peer).await?;

    if sample == CONFIG_1 {
        let pull = darter::command(&lab, "image")?.args(["pull", "--socket"]).arg(&peer.control);
        let pull = pull.arg("--address").arg(node.socket()).args(["--namespace", node.namespace()]);
        pull.arg(tiny.to_string()).run().await?;
    } else {
        // By the transfer service, which knows the registries and the snapshotter from the sample alone.
        node.ctr(["images", "pull", "--snapshotter", DARTER]).arg(tiny.to_string()).run().await?;
    }
    world.expect_no_layer_in(&node);
    assert_eq!(node.run_with(DARTER, tiny, HELLO).await?.stdout, "hello\n");
    let lazy = node.root_fs(DARTER, image).await?;

    node.remove_image(tiny).await?;
    node.pull_with(OVERLAYFS, tiny).await?;
    node.check_content(image)?;
    assert_eq!(node.run_with(OVERLAYFS, tiny, HELLO).await?.stdout, "hello\n");
    lazy.expect_same(&node.root_fs(OVERLAYFS, image).await?)?;
    world.registry.traffic_since(mark).await.expect_each_layer_once(image)
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn containerd_1_7() -> Result<()> {
    run_test(async |lab| expect_all_of_containerd(lab, "trixie", CONFIG_1, "1.7.").await)
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn containerd_2() -> Result<()> {
    run_test(async |lab| expect_all_of_containerd(lab, "sid", CONFIG_2, "2.").await)
}

/// In a container with a user namespace of its own the files have the owners that they have in the image, and the host's
/// owners are others; nothing is copied for that.
async fn expect_mapped(lab: Lab, mount: &'static str) -> Result<()> {
    let runtime = Runtime::of_debian(&lab, "sid").await?;
    let World { tiny, peer, registry: _registry, .. } =
        &World::mounting(&lab, Image::tiny(&lab)?, Some(mount)).await?;
    let node = containerd(&lab, "newer", &runtime, CONFIG_2, peer).await?;
    node.ctr(["images", "pull", "--snapshotter", DARTER]).arg(tiny.to_string()).run().await?;
    let show = "cat /proc/self/uid_map; stat -c '%n %u:%g' / /nodes/owned /bin/busybox; \
        touch /new; cat /data/* | sha256sum";
    let mapped = node.run_as(DARTER, tiny, "mapped", 100_000, true, ["sh", "-c", show]).await?.stdout;
    let plain = node.run_with(DARTER, tiny, ["sh", "-c", show]).await?.stdout;
    let (map, mapped) = mapped.split_once('\n').context("no line")?;
    let (_, plain) = plain.split_once('\n').context("no line")?;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "100000", "65536"]);
    assert_eq!(mapped, plain);
    let snapshots = node.ctr(["snapshots", "--snapshotter", DARTER, "ls"]).run().await?.stdout;
    ensure!(!snapshots.contains("remap"), "the image was copied for other owners:\n{snapshots}");
    Ok(())
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn containerd_2_with_a_user_namespace_on_erofs() -> Result<()> {
    run_test(async |lab| expect_mapped(lab, "erofs").await)
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn containerd_2_with_a_user_namespace_on_fuse() -> Result<()> {
    run_test(async |lab| expect_mapped(lab, "fuse").await)
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn docker_28_with_its_own_store() -> Result<()> {
    run_test(async |lab| {
        let runtime = Runtime::of_debian(&lab, "sid").await?;
        let world = World::start(&lab, Image::tiny_docker(&lab)?).await?;
        let mark = world.registry.mark();
        let config: Value = serde_json::from_str(&adapted(DOCKER, &lab, "docker", &world.peer))?;
        let docker = Docker::start_as(&lab, runtime, config, None).await?;
        docker.pull("tiny:1").await?;
        assert_eq!(docker.run("tiny:1", HELLO).await?.stdout, "hello\n");
        world.registry.traffic_since(mark).await.expect_each_layer_once(&world.image)
    })
}

#[test]
#[ignore = "fetches programs: make test-runtimes"]
fn docker_28_with_containerds_store_is_lazy() -> Result<()> {
    run_test(async |lab| {
        let runtime = Runtime::of_debian(&lab, "sid").await?;
        let world = World::start(&lab, Image::tiny_docker(&lab)?).await?;
        let node = containerd(&lab, "newer", &runtime, CONFIG_2, &world.peer).await?;
        let config: Value = serde_json::from_str(&adapted(DOCKER_CONTAINERD, &lab, "docker", &world.peer))?;
        let docker = Docker::start_as(&lab, runtime, config, Some(node.socket())).await?;
        docker.pull("tiny:1").await?;
        world.expect_no_layer_in(&node);
        assert_eq!(docker.run("tiny:1", HELLO).await?.stdout, "hello\n");
        Ok(())
    })
}
