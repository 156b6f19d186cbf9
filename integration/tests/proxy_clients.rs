//! Clients that people have: each gets the right bytes through the proxy, and the registry sends each of them once.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use darter_integration::{
    Cluster, Image, Lab,
    command::{Command, Output},
    run_test,
};

/// How the sample for podman and its kin names the registry and the peer.
const SAMPLE: &str = include_str!("../../packaging/podman/registries.conf");
const SAMPLE_REGISTRY: &str = "docker.io";
const SAMPLE_PROXY: &str = "127.0.0.1:7400";

/// A node alone before a registry that stands for `docker.io`, which has the tiny image.
struct World {
    cluster: Cluster,
    image: Image,
}

impl World {
    async fn start(lab: &Lab) -> Result<Self> {
        let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
        let cluster = alone.standing_for_docker_hub().start(lab).await?;
        let image = Image::tiny(lab)?;
        cluster.push("library/tiny:1", &image).await?;
        Ok(Self { cluster, image })
    }

    fn proxy(&self) -> Result<String> {
        Ok(self.cluster.nodes.first().context("no node")?.peer.proxy.to_string())
    }

    fn blob_url(&self, layer: usize) -> Result<String> {
        let layer = self.image.layers.get(layer).context("no such layer")?;
        Ok(format!("http://{}/v2/library/tiny/blobs/{}", self.proxy()?, layer.blob.digest))
    }

    fn expect_blob(&self, layer: usize, file: &Path) -> Result<()> {
        let layer = self.image.layers.get(layer).context("no such layer")?;
        let same = fs::read(file)? == fs::read(self.image.path_of(&layer.blob))?;
        anyhow::ensure!(same, "{} is not what the registry has", file.display());
        Ok(())
    }

    /// podman, buildah or skopeo, which find the mirror as the sample in `packaging/` says.
    fn containers(&self, program: &str) -> Result<Command> {
        let lab = &self.cluster.lab;
        let mirrors = SAMPLE.replace(SAMPLE_PROXY, &self.proxy()?);
        assert!(mirrors.contains(&format!("{}/{SAMPLE_REGISTRY}", self.proxy()?)));
        let mirrors = lab.write("registries.conf", &mirrors)?;
        let policy = lab.write("policy.json", r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        let storage = lab.subdir(program)?;
        let command = Command::new(lab, program).env("CONTAINERS_REGISTRIES_CONF", &mirrors);
        let command = command.env("XDG_RUNTIME_DIR", lab.subdir("run")?).env("TMPDIR", lab.subdir("tmp")?);
        Ok(match program {
            "skopeo" => command.arg("--policy").arg(policy).arg("--registries-conf").arg(mirrors),
            _ => {
                let command = command.arg("--root").arg(storage.join("root")).arg("--runroot");
                command.arg(storage.join("run")).args(["--storage-driver", "vfs"])
            }
        })
    }
}

#[test]
fn skopeo_podman_and_buildah_pull_through_a_mirror() -> Result<()> {
    run_test(async |lab| {
        let world = World::start(&lab).await?;
        let mark = world.cluster.registry.mark();

        let dir = lab.dir().join("copied");
        let copy = world.containers("skopeo")?.args(["copy", "docker://docker.io/library/tiny:1"]);
        copy.arg(format!("dir:{}", dir.display())).run().await?;
        for blob in world.image.blobs().filter(|blob| blob.digest != world.image.manifest.digest) {
            let copied = dir.join(blob.digest.trim_start_matches("sha256:"));
            assert!(fs::read(copied)? == fs::read(world.image.path_of(blob))?, "{}", blob.digest);
        }
        let manifest = fs::read(dir.join("manifest.json"))?;
        assert!(manifest == fs::read(world.image.path_of(&world.image.manifest))?);

        let pull = world.containers("podman")?.args(["pull", "--quiet", "docker.io/library/tiny:1"]);
        expect_image(&world, pull.run().await?);
        let pull = world.containers("buildah")?.args(["pull", "--quiet", "docker.io/library/tiny:1"]);
        expect_image(&world, pull.run().await?);

        // All three got what the first one brought.
        world.cluster.registry.traffic_since(mark).await.expect_each_layer_once(&world.image)
    })
}

/// What they print is the image's id, which is the digest of its config.
fn expect_image(world: &World, printed: Output) {
    let id = world.image.config.digest.trim_start_matches("sha256:");
    assert_eq!(printed.stdout.trim(), id, "{}", printed.stderr);
}

#[test]
fn curl_and_wget_get_a_blob_and_go_on_where_they_were() -> Result<()> {
    run_test(async |lab| {
        let world = World::start(&lab).await?;
        let mark = world.cluster.registry.mark();
        let (url, half) = (world.blob_url(1)?, world.image.layers[1].blob.size / 2);

        let file = lab.dir().join("curl");
        let curl =
            || Command::new(&lab, "curl").args(["--silent", "--show-error", "--fail", "--output"]).arg(&file);
        curl().args(["--range", &format!("0-{}", half - 1), &url]).run().await?;
        assert_eq!(fs::metadata(&file)?.len(), half);
        curl().args(["--continue-at", "-", &url]).run().await?;
        world.expect_blob(1, &file)?;

        let file = lab.dir().join("wget");
        let wget =
            || Command::new(&lab, "wget").args(["--quiet", "--no-config", "--output-document"]).arg(&file);
        wget().arg(&url).run().await?;
        world.expect_blob(1, &file)?;
        fs::File::options().write(true).open(&file)?.set_len(half)?;
        wget().args(["--continue", &url]).run().await?;
        world.expect_blob(1, &file)?;

        let head = Command::new(&lab, "curl").args(["--silent", "--head", &url]).run().await?.stdout;
        let length = format!("content-length: {}\r\n", world.image.layers[1].blob.size);
        assert!(head.to_ascii_lowercase().contains(&length), "{head}");
        let sent = world.cluster.registry.traffic_since(mark).await.of(&world.image.layers[1].blob.digest);
        assert_eq!(sent.bytes, world.image.layers[1].blob.size);
        Ok(())
    })
}

#[test]
fn curl_over_http2_gets_the_same_bytes() -> Result<()> {
    run_test(async |lab| {
        let world = World::start(&lab).await?;
        for file in ["cold", "warm"].map(|name| lab.dir().join(name)) {
            let curl = Command::new(&lab, "curl").args([
                "--silent",
                "--fail",
                "--http2-prior-knowledge",
                "--output",
            ]);
            curl.arg(&file).arg(world.blob_url(1)?).run().await?;
            world.expect_blob(1, &file)?;
        }
        Ok(())
    })
}
