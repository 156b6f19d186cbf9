//! The fixtures themselves, on the real programs and without Darter.

use ::http::Request;
use anyhow::{Context, Result};
use darter_integration::{
    Containerd, Docker, Image, Process, Program, Registry, Throttle,
    containerd::OVERLAYFS,
    http,
    lab::Lab,
    rootfs::{Content, RootFs},
    run_test,
};

const HELLO: [&str; 2] = ["echo", "hello from the container"];

#[test]
fn containerd_pulls_and_runs_the_tiny_image() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        let image = Image::tiny(&lab)?;
        let tiny = registry.push("tiny:1", &image).await?;
        let node = Containerd::start(&lab, "node").await?;

        let mark = registry.mark();
        node.pull(&tiny).await?;
        node.check_content(&image)?;
        let traffic = registry.traffic_since(mark).await;
        for layer in &image.layers {
            assert_eq!(traffic.of(&layer.blob.digest).bytes, layer.blob.size);
        }

        let output = node.run(&tiny, HELLO).await?;
        assert_eq!(output.stdout, "hello from the container\n");
        assert!(output.first_line.is_some_and(|first_line| first_line <= output.elapsed));
        Ok(())
    })
}

#[test]
fn the_tiny_image_contains_what_its_table_says() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        let (image, docker_image) = (Image::tiny(&lab)?, Image::tiny_docker(&lab)?);
        let tiny = registry.push("tiny:1", &image).await?;
        let docker_tiny = registry.push("docker-tiny:1", &docker_image).await?;
        let node = Containerd::start(&lab, "node").await?;
        node.pull(&tiny).await?;
        node.pull(&docker_tiny).await?;

        let root = node.root_fs(OVERLAYFS, &image).await?;
        expect_nodes(&root)?;
        expect_changes(&root)?;
        root.expect_same(&node.root_fs(OVERLAYFS, &docker_image).await?)
    })
}

fn expect_nodes(root: &RootFs) -> Result<()> {
    assert_eq!(root.at("nodes/set-uid")?.mode, 0o4755);
    assert_eq!(root.at("nodes/owned-high")?.owner, (70_000, 4_000_000_000));
    // containerd takes what is older than 1970 as from 1970.
    assert_eq!(root.at("nodes/before-1970")?.mtime, (0, 0));
    assert_eq!(root.at("nodes/with-nanoseconds")?.mtime, (1_234_567_890, 987_654_321));
    assert_eq!(root.at("nodes/linked")?.links, 3);
    assert_eq!(root.at("nodes/linked")?.same_as, root.at("nodes/elsewhere/linked")?.same_as);
    assert_eq!(root.at("nodes/null")?.content, Content::CharDevice(rustix::fs::makedev(1, 3)));
    assert_eq!(root.at("nodes/block")?.content, Content::BlockDevice(rustix::fs::makedev(7, 300)));
    assert_eq!(root.at("nodes/pipe")?.content, Content::Fifo);
    assert_eq!(root.at("nodes/long-target")?.content, Content::Symlink("t/".repeat(150).into()));
    let xattrs = &root.at("nodes/xattrs")?.xattrs;
    assert_eq!(xattrs.get(&b"user.binary"[..]), Some(&b"\0\n=\xff".to_vec()));
    assert!(root.at("nodes/capable")?.xattrs.contains_key(&b"security.capability"[..]));
    Ok(())
}

fn expect_changes(root: &RootFs) -> Result<()> {
    for gone in ["removed", "removed-dir", "opaque/hidden", "dir-to-file/inside"] {
        assert!(root.at(&format!("changed/{gone}")).is_err(), "{gone} is still there");
    }
    assert_eq!(root.at("changed/file-to-dir")?.content, Content::Dir);
    assert_eq!(root.at("changed/content")?.content, Content::File(5, blake3::hash(b"after")));
    assert_eq!(root.at("changed/mode")?.mode, 0o600);
    root.at("changed/kept")?;
    root.at("changed/opaque/new")?;
    Ok(())
}

#[test]
fn a_container_outlives_a_crash_of_containerd() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        let tiny = registry.push("tiny:1", &Image::tiny(&lab)?).await?;
        let mut node = Containerd::start(&lab, "node").await?;
        node.pull(&tiny).await?;
        node.run_detached(OVERLAYFS, &tiny, "sleeper", &["sleep", "1000"]).await?;

        node.crash_and_restart().await?;

        assert_eq!(node.exec("sleeper", &HELLO).await?.stdout, "hello from the container\n");
        node.remove_container("sleeper").await
    })
}

#[test]
fn python_runs_in_an_image_of_debian_packages() -> Result<()> {
    run_test(async |lab| {
        let image = tokio::task::spawn_blocking(|| Image::python(|_| {})).await??;
        assert!(image.layers.len() >= 4 && image.raw_bytes() > 200_000_000);
        let registry = Registry::start(&lab).await?;
        let python = registry.push("python:1", &image).await?;
        let node = Containerd::start(&lab, "node").await?;
        node.pull(&python).await?;

        let program = "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))";
        assert_eq!(node.run(&python, ["python3", "-c", program]).await?.stdout, "1.0\n");
        Ok(())
    })
}

#[test]
fn docker_pulls_through_a_mirror_and_runs() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        registry.push("library/tiny:1", &Image::tiny_docker(&lab)?).await?;
        let docker = Docker::start(&lab, &registry.url()).await?;

        docker.pull("tiny:1").await?;

        assert_eq!(docker.run("tiny:1", HELLO).await?.stdout, "hello from the container\n");
        Ok(())
    })
}

#[test]
fn the_registry_counts_the_bytes_of_each_blob() -> Result<()> {
    run_test(async |lab| {
        let registry = Registry::start(&lab).await?;
        let image = Image::tiny(&lab)?;
        registry.push("tiny:1", &image).await?;
        let blob = &image.layers[0].blob;
        let url = format!("{}/v2/tiny/blobs/{}", registry.url(), blob.digest);

        let mark = registry.mark();
        http::get(&url).await?;
        let part = Request::get(&url).header("range", "bytes=100-299").body(http::empty())?;
        assert_eq!(http::send(part).await?.body.len(), 200);

        let sent = registry.traffic_since(mark).await.of(&blob.digest);
        assert_eq!((sent.requests, sent.bytes), (2, blob.size + 200));
        Ok(())
    })
}

#[test]
fn a_throttle_holds_bytes_back_until_it_is_released() -> Result<()> {
    run_test(async |lab| {
        let (registry, url) = registry_with_a_blob(&lab).await?;
        let throttle = Throttle::to(registry.address).await?;
        let url = url.replace(&registry.url(), &throttle.url());
        let expected = http::get(&url).await?.body;

        throttle.hold();
        let before = throttle.sent();
        let download = tokio::spawn(async move { http::get(&url).await });
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        assert_eq!(throttle.sent(), before);
        assert!(!download.is_finished());

        throttle.limit(1 << 30);
        assert_eq!(download.await??.body, expected);
        assert!(throttle.sent() - before > expected.len() as u64);
        Ok(())
    })
}

#[test]
fn a_throttle_cuts_flips_and_goes_down() -> Result<()> {
    run_test(async |lab| {
        let (registry, url) = registry_with_a_blob(&lab).await?;
        let throttle = Throttle::to(registry.address).await?;
        let url = url.replace(&registry.url(), &throttle.url());
        let expected = http::get(&url).await?.body;

        throttle.cut_after(100_000);
        http::get(&url).await.expect_err("the body is cut");
        assert!(!throttle.fault_is_pending());

        throttle.flip_byte_after(100_000);
        let changed = http::get(&url).await?.body;
        let differences =
            changed.iter().zip(&expected).filter(|(changed, expected)| changed != expected).count();
        assert_eq!((changed.len(), differences), (expected.len(), 1));

        throttle.down();
        http::get(&url).await.expect_err("nobody answers");
        throttle.unlimited();
        assert_eq!(http::get(&url).await?.body, expected);
        Ok(())
    })
}

/// A registry, and the URL of the largest layer in it.
async fn registry_with_a_blob(lab: &Lab) -> Result<(Registry, String)> {
    let registry = Registry::start(lab).await?;
    let image = Image::tiny(lab)?;
    registry.push("tiny:1", &image).await?;
    let digest = &image
        .layers
        .iter()
        .map(|layer| &layer.blob)
        .max_by_key(|blob| blob.size)
        .context("no layer")?
        .digest;
    let url = format!("{}/v2/tiny/blobs/{digest}", registry.url());
    Ok((registry, url))
}

#[test]
fn whatever_a_test_leaves_is_removed() -> Result<()> {
    run_test(async |lab| {
        // A mount on a mount, and a process that has left its process group.
        let script = format!(
            "mkdir {0}/m && mount -t tmpfs none {0}/m && mkdir '{0}/m/a b' && mount -t tmpfs none '{0}/m/a b'
            setsid sleep 1000 & sleep 1000",
            lab.dir().display()
        );
        let mut process = Process::start(&lab, Program::new("untidy", "sh").args(["-c", &script]))?;
        let ready =
            async || lab.leftovers().is_ok_and(|left| left.mounts.len() == 2 && left.processes.len() == 3);
        process.until("both mounts and processes were there", ready).await?;

        process.kill()?;

        let left = lab.leftovers()?;
        assert_eq!((left.mounts.len(), left.processes.len()), (2, 1));
        Ok(())
    })
}

#[test]
fn a_lab_whose_owner_is_dead_is_removed() -> Result<()> {
    let mut owner = std::process::Command::new("true").spawn()?;
    let orphan = std::path::PathBuf::from(format!("/var/tmp/dtr-{}-0", owner.id()));
    owner.wait()?;
    std::fs::create_dir(&orphan)?;
    Lab::open()?;
    assert!(!orphan.exists());
    Ok(())
}
