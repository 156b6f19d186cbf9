//! The command line on a node: `darter get`, `darter status`, `darter config`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use darter_integration::{
    Cluster, Image, Lab, Process, Program, command::Command, darter, image::Descriptor, run_test, target,
    wait::until,
};

/// Bytes per second.
const SLOW: u64 = 1_000_000;

/// A peer alone with a registry, and a file in it to get.
struct Fixture {
    cluster: Cluster,
    image: Image,
    blob: Descriptor,
    socket: PathBuf,
}

impl Fixture {
    async fn start(lab: &Lab) -> Result<Self> {
        let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
        let cluster = alone.start(lab).await?;
        let image = Image::tiny(lab)?;
        cluster.push("tiny:1", &image).await?;
        let blob = image.layers.get(1).context("no second layer")?.blob.clone();
        let socket = cluster.nodes.first().context("no node")?.peer.control.clone();
        Ok(Self { cluster, image, blob, socket })
    }

    fn args(&self, file: &Path) -> Vec<String> {
        self.args_with(file, "")
    }

    fn args_with(&self, file: &Path, query: &str) -> Vec<String> {
        let url = format!("{}/v2/tiny/blobs/{}{query}", self.cluster.origin.url(), self.blob.digest);
        let (file, socket) = (file.display().to_string(), self.socket.display().to_string());
        vec![url, "-O".into(), file, "--socket".into(), socket]
    }

    fn get(&self, file: &Path) -> Result<Command> {
        Ok(darter::command(&self.cluster.lab, "get")?.args(self.args(file)))
    }

    fn expect_whole(&self, file: &Path) -> Result<()> {
        let same = std::fs::read(file)? == std::fs::read(self.image.path_of(&self.blob))?;
        anyhow::ensure!(same, "the file is not what the registry has");
        Ok(())
    }
}

#[test]
fn a_file_is_fetched_by_its_url_and_checked_against_its_digest() -> Result<()> {
    run_test(async |lab| {
        let fixture = Fixture::start(&lab).await?;
        let (plain, checked, wrong) = (lab.dir().join("a"), lab.dir().join("b"), lab.dir().join("c"));

        fixture.get(&plain)?.run().await?;
        fixture.expect_whole(&plain)?;
        fixture.get(&checked)?.args(["--digest", &fixture.blob.digest]).run().await?;
        fixture.expect_whole(&checked)?;

        let other = &fixture.image.layers[0].blob.digest;
        let refused = fixture.get(&wrong)?.args(["--digest", other]).run().await;
        let refused = refused.expect_err("the URL has another content").to_string();
        assert!(refused.contains("digest") || refused.contains(other), "{refused}");
        assert!(!wrong.exists());
        Ok(())
    })
}

#[test]
fn a_part_of_a_file_is_fetched_by_its_range() -> Result<()> {
    run_test(async |lab| {
        let fixture = Fixture::start(&lab).await?;
        let whole = std::fs::read(fixture.image.path_of(&fixture.blob))?;
        for (range, expected) in [
            ("10-19", &whole[10..20]),
            ("300000-", &whole[300_000..]),
            ("-7", &whole[whole.len() - 7..]),
            ("0-99999999999", &whole[..]),
        ] {
            for digest in [&[][..], &["--digest", &fixture.blob.digest]] {
                let file = lab.dir().join(format!("part{range}-{}", digest.len()));
                fixture.get(&file)?.args(["--range", range]).args(digest).run().await?;
                assert!(std::fs::read(&file)? == expected, "{range}");
            }
        }
        for refused in ["5-4", "0-1,3-4", "99999999999-"] {
            let file = lab.dir().join("refused");
            fixture.get(&file)?.args(["--range", refused]).run().await.expect_err("no range of it");
            assert!(!file.exists());
        }
        Ok(())
    })
}

#[test]
fn a_presigned_url_is_the_same_file_under_every_signature() -> Result<()> {
    run_test(async |lab| {
        let fixture = Fixture::start(&lab).await?;
        for (query, times) in [("?part=1&sig=first", 1), ("?sig=second&part=1", 1), ("?part=2&sig=third", 2)]
        {
            let file = lab.dir().join(format!("file-{}", query.len()));
            let get = darter::command(&lab, "get")?.args(fixture.args_with(&file, query));
            get.args(["--ignore-query", "sig,expires"]).run().await?;
            fixture.expect_whole(&file)?;
            let fetched = fixture.cluster.nodes[0].peer.service.metrics().await?.received_from("origin");
            assert_eq!(fetched, times * fixture.blob.size, "{query}");
        }
        Ok(())
    })
}

#[test]
fn a_killed_get_goes_on_where_it_was() -> Result<()> {
    run_test(async |lab| {
        let fixture = Fixture::start(&lab).await?;
        let (file, part) = (lab.dir().join("file"), lab.dir().join("file.part"));
        fixture.cluster.origin.limit(SLOW);

        let get = Program::new("get", target::darter()?).arg("get").args(fixture.args(&file));
        let mut get = Process::start(&lab, get)?;
        until("some of it on disk", async || len(&part) > 500_000).await?;
        get.kill()?;
        assert!(len(&part) > 500_000 && !file.exists());

        fixture.cluster.origin.unlimited();
        fixture.get(&file)?.run().await?;
        assert!(!part.exists());
        fixture.expect_whole(&file)
    })
}

#[test]
fn a_get_says_so_when_its_peer_dies_and_goes_on_with_the_next() -> Result<()> {
    run_test(async |lab| {
        let mut fixture = Fixture::start(&lab).await?;
        let file = lab.dir().join("file");
        fixture.cluster.origin.limit(SLOW);

        let get = fixture.get(&file)?;
        let service = &mut fixture.cluster.nodes[0].peer.service;
        let death = async {
            until("some of it on disk", async || len(&lab.dir().join("file.part")) > 500_000).await?;
            service.process.kill()
        };
        let (failed, killed) = tokio::join!(get.run(), death);
        killed?;
        failed.expect_err("the peer was killed");
        assert!(!file.exists());

        fixture.cluster.nodes[0].peer.service.crash_and_restart().await?;
        fixture.cluster.origin.unlimited();
        fixture.get(&file)?.run().await?;
        fixture.expect_whole(&file)
    })
}

fn len(file: &Path) -> u64 {
    std::fs::metadata(file).map_or(0, |metadata| metadata.len())
}

#[test]
fn status_tells_what_a_peer_is_doing() -> Result<()> {
    run_test(async |lab| {
        let cluster = Cluster::with_nodes(1).without_manager().start(&lab).await?;
        let tiny = cluster.push("tiny:1", &Image::tiny(&lab)?).await?;
        let node = &cluster.nodes[0];
        node.containerd.pull(&tiny).await?;

        let status = darter::command(&lab, "status")?.arg("--all").arg("--socket").arg(&node.peer.control);
        let status = status.run().await?.stdout;
        let scheduler = cluster.scheduler.context("no scheduler")?.grpc.to_string();
        assert!(status.contains(&scheduler) && status.contains("from seed peers"), "{status}");
        assert!(status.contains("verified"), "{status}");
        Ok(())
    })
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line() -> Result<()> {
    run_test(async |lab| {
        for role in ["manager", "scheduler", "peer", "seed"] {
            let sample = darter::command(&lab, "config")?.args(["default", role]).run().await?.stdout;
            let file = lab.write(&format!("{role}.toml"), &sample)?;
            darter::command(&lab, "config")?.args(["check", role]).arg(file).run().await?;
        }
        let file = lab.write("wrong.toml", "[peer]\nseed = true\nstall_timeuot = \"5s\"\n")?;
        let refused = darter::command(&lab, "config")?.args(["check", "peer"]).arg(file).run().await;
        let refused = refused.expect_err("there is no such key").to_string();
        assert!(refused.contains("wrong.toml:3") && refused.contains("stall_timeuot"), "{refused}");
        Ok(())
    })
}
