//! Lazy layers from the pull to the container's reads, with real EROFS, FUSE and overlay mounts.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::ErrorKind,
    os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::Command,
    sync::Arc,
    time::Duration,
};

use containerd_client::{services::v1::snapshots::CleanupRequest, tonic::Code};
use darter_peer::{Digest, LayerDescriptor};
use rustix::fs::{FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::{
    harness::{Daemon, FakePeer, Home, NoLeaves, code},
    image::{Image, layer, mounted, noise, read},
};
use crate::{
    Config, MountKind,
    engine::OpenLayer,
    lazy::open_layer,
    snapshots::{Labels, usage_of_dir},
};

/// Makes two tests of each function: one with each of the mounts.
macro_rules! with_both_mounts {
    ($($test:ident,)*) => {
        mod with_erofs {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Home::with(MountKind::Erofs)).await;
            })*
        }

        mod with_fuse_alone {
            use super::*;
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(Home::with(MountKind::Fuse)).await;
            })*
        }
    };
}

with_both_mounts! {
    the_mounted_tree_is_what_tar_would_unpack,
    layers_are_stacked_and_written_over,
    a_layer_that_an_image_has_twice_is_stacked_once,
    a_view_of_one_layer_is_like_an_unpacked_one,
    a_read_waits_for_its_leaves_and_only_for_them,
    a_read_that_waits_too_long_fails_and_a_later_one_succeeds,
    a_complete_layer_needs_nobody_after_a_restart,
    usage_is_what_removing_a_layer_frees,
    a_layer_whose_content_is_wrong_is_discarded,
    a_layer_whose_index_is_wrong_is_discarded,
    a_layer_that_cannot_be_completed_makes_way_for_what_is_published_now,
    containers_on_a_wrong_layer_never_see_the_right_one,
    a_start_detaches_what_a_killed_run_left_mounted,
    layers_without_snapshots_are_removed_and_damaged_ones_are_gotten_again,
}

/// Everything below `dir`: name -> what it is, in words.
fn tree(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let what = if kind.is_dir() {
                pending.push(path.clone());
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("-> {}", fs::read_link(&path).unwrap().display())
            } else if kind.is_file() {
                format!(
                    "{} links, {} {}",
                    meta.nlink(),
                    meta.size(),
                    Digest::sha256(&fs::read(&path).unwrap())
                )
            } else {
                format!("fifo {} device {}", kind.is_fifo(), meta.rdev())
            };
            let mut buffer = [0; 64];
            let xattr =
                rustix::fs::lgetxattr(&path, "user.note", &mut buffer).map(|len| buffer[..len].to_vec());
            let note = format!(
                "{what}, mode {:o}, owner {}:{}, time {}.{}, {xattr:?}",
                meta.mode(),
                meta.uid(),
                meta.gid(),
                meta.mtime(),
                meta.mtime_nsec(),
            );
            found.insert(path.strip_prefix(dir).unwrap().display().to_string(), note);
        }
    }
    found
}

/// One of everything that is in layers.
fn furnish(dir: &Path) {
    fs::create_dir_all(dir.join("usr/bin")).unwrap();
    for (name, len) in [("empty", 0), ("small", 1), ("usr/block", 512), ("usr/bin/large", 3_000_017)] {
        fs::write(dir.join(name), noise(len)).unwrap();
    }
    fs::write(dir.join("usr/text"), "the same again ".repeat(100_000)).unwrap();
    fs::hard_link(dir.join("small"), dir.join("usr/link")).unwrap();
    symlink("../small", dir.join("usr/symlink")).unwrap();
    fs::set_permissions(dir.join("usr/bin/large"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::set_permissions(dir.join("usr"), fs::Permissions::from_mode(0o1710)).unwrap();
    std::os::unix::fs::chown(dir.join("small"), Some(1234), Some(70_000)).unwrap();
    let mode = Mode::from_raw_mode(0o620);
    mknodat(rustix::fs::CWD, dir.join("zero"), FileType::CharacterDevice, mode, rustix::fs::makedev(1, 5))
        .unwrap();
    mknodat(rustix::fs::CWD, dir.join("pipe"), FileType::Fifo, mode, 0).unwrap();
    lsetxattr(dir.join("usr/text"), "user.note", b"a note", XattrFlags::empty()).unwrap();
    File::open(dir.join("usr/text"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 0))
        .unwrap();
}

fn run_tar(args: &[&str], dir: &Path) -> Vec<u8> {
    let output = Command::new("tar").args(args).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn the_mounted_tree_is_what_tar_would_unpack(home: Home) {
    let (source, unpacked) = (home.dir("source"), home.dir("unpacked"));
    furnish(&source);
    let tar = run_tar(
        &["-c", "--format=posix", "--pax-option=delete=atime,delete=ctime", "--xattrs", "."],
        &source,
    );
    fs::write(home.dir("tars").join("layer.tar"), &tar).unwrap();
    run_tar(&["-x", "-p", "--xattrs", "-f", home.dir("tars").join("layer.tar").to_str().unwrap()], &unpacked);

    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![open_layer(&tar).unwrap().1]);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let top = image.pull(&daemon).await;
    let asked = peer.asked.lock().len();
    let view = mounted(&home, daemon.view("view", &top).await).await;
    let path = view.path().to_owned();
    let seen = tokio::task::spawn_blocking(move || tree(&path)).await.unwrap();
    assert_eq!(seen, tree(&unpacked));
    assert_eq!(seen.len(), 11);
    assert_eq!(peer.asked.lock().len(), asked, "reading asks nobody for anything but leaves");
    drop(view);
    daemon.stop().await;
}

async fn layers_are_stacked_and_written_over(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let (big, other) = (noise(700_000), noise(2_000_000));
    let image = Image::publish(
        &peer,
        vec![
            layer(&[("a", b"one"), ("b", b"one"), ("big", &big)]),
            layer(&[("b", b"two"), (".wh.a", b""), ("other", &other)]),
            layer(&[("c", b"three")]),
        ],
    );
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    let active = mounted(&home, daemon.prepare("container", &top).await).await;
    assert_eq!(read(active.path().join("b")).await.unwrap(), b"two");
    assert_eq!(read(active.path().join("a")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(read(active.path().join("big")).await.unwrap(), big);
    let path = active.path().join("other");
    tokio::task::spawn_blocking(move || {
        File::options().write(true).open(path).unwrap().write_all_at(b"changed", 1_000_000).unwrap();
    })
    .await
    .unwrap();
    let changed = read(active.path().join("other")).await.unwrap();
    assert_eq!(
        (&changed[..1_000_000], &changed[1_000_000..1_000_007]),
        (&other[..1_000_000], &b"changed"[..])
    );
    assert_eq!(daemon.snapshotter.status().iter().filter(|layer| layer.mounted).count(), 3);
    drop(active);
    daemon.stop().await;
}

async fn a_layer_that_an_image_has_twice_is_stacked_once(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let twice = layer(&[("dir/file", b"twice"), (".wh.other", b"")]);
    let between = layer(&[("dir/file", b"between"), ("dir/more", b"between"), ("other", b"between")]);
    let empty = layer(&[]);
    let layers = vec![twice.clone(), twice.clone(), empty.clone(), between, twice, empty.clone(), empty];
    let image = Image::publish(&peer, layers);
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    for mounts in [daemon.prepare("container", &top).await, daemon.view("view", &top).await] {
        let root = mounted(&home, mounts).await;
        assert_eq!(read(root.path().join("dir/file")).await.unwrap(), b"twice");
        assert_eq!(read(root.path().join("dir/more")).await.unwrap(), b"between");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
    daemon.stop().await;
}

async fn a_view_of_one_layer_is_like_an_unpacked_one(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let image =
        Image::publish(&peer, vec![layer(&[("dir/file", b"1"), (".wh.gone", b""), ("dir/.wh.gone", b"")])]);
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    let view = mounted(&home, daemon.view("view", &top).await).await;
    let path = view.path().to_owned();
    let looks = move || {
        for synced in [path.clone(), path.join("dir"), path.join("dir/file")] {
            File::open(synced).unwrap().sync_all().unwrap();
        }
        assert_eq!(tree(&path).into_keys().collect::<Vec<_>>(), ["dir", "dir/file"]);
        File::create(path.join("new")).unwrap_err()
    };
    let refused = tokio::task::spawn_blocking(looks).await.unwrap();
    assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
    drop(view);
    daemon.stop().await;
}

async fn a_read_waits_for_its_leaves_and_only_for_them(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let content = noise(300_000);
    let image = Image::publish(&peer, vec![layer(&[("file", &content)])]);
    let gate = peer.gate(&image.layers[0].descriptor.blob);
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    let view = mounted(&home, daemon.view("view", &top).await).await;
    let metadata = fs::metadata(view.path().join("file")).unwrap();
    assert_eq!(metadata.size(), 300_000, "names and attributes need no leaf");
    let mut reader = tokio::spawn(read(view.path().join("file")));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut reader).await;
    assert!(early.is_err(), "nothing has arrived yet");
    assert_eq!(daemon.snapshotter.status()[0].raw_held, 0);
    gate.send_replace(true);
    assert_eq!(reader.await.unwrap().unwrap(), content);
    drop(view);
    daemon.stop().await;
}

async fn a_read_that_waits_too_long_fails_and_a_later_one_succeeds(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let content = noise(100_000);
    let image = Image::publish(&peer, vec![layer(&[("file", &content)])]);
    let gate = peer.gate(&image.layers[0].descriptor.blob);
    let daemon =
        Daemon::start(&Config { read_timeout: Duration::from_millis(300), ..home.config() }, peer).await;
    let top = image.pull(&daemon).await;
    let view = mounted(&home, daemon.view("view", &top).await).await;
    let error = read(view.path().join("file")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    gate.send_replace(true);
    assert_eq!(read(view.path().join("file")).await.unwrap(), content);
    drop(view);
    daemon.stop().await;
}

async fn a_complete_layer_needs_nobody_after_a_restart(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let content = noise(2_000_000);
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")]), layer(&[("file", &content)])]);
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    daemon.prepare("container", &top).await.unwrap();
    while daemon.snapshotter.status().iter().any(|layer| layer.raw_held < layer.raw_len) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    daemon.remove("container").await.unwrap();
    let local = || fs::read_dir(home.config().root.join("local")).unwrap().count();
    // What is all here may not have been checked yet, and is mounted through FUSE till then.
    while home.mount() != MountKind::Fuse && local() < 2 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        daemon.prepare("another", &top).await.unwrap();
        daemon.remove("another").await.unwrap();
    }
    daemon.stop().await;
    assert_eq!(fs::read_dir(home.config().root.join("fuse")).unwrap().count(), 0, "nothing stays mounted");

    let away = Arc::new(FakePeer::default());
    away.offline.send_replace(true);
    let daemon = Daemon::start(&home.config(), away.clone()).await;
    assert!(
        daemon.snapshotter.status().iter().all(|layer| !layer.mounted && layer.raw_held == layer.raw_len)
    );
    let active = mounted(&home, daemon.prepare("container", &top).await).await;
    assert_eq!(read(active.path().join("file")).await.unwrap(), content);
    if home.mount() != MountKind::Fuse {
        assert_eq!(local(), 2, "complete layers are mounted without FUSE");
    }
    // A second image of the same layers: known here, so nobody is asked for them either.
    assert_eq!(code(daemon.prepare_with("again", "", image.labels(0)).await), Code::AlreadyExists);
    assert!(away.asked.lock().is_empty(), "{:?}", away.asked.lock());
    drop(active);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_be_lazy_is_prepared_the_ordinary_way() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")]), layer(&[("b", b"b")])]);
    let missing = layer(&[("nobody has", b"this")]);
    let incomplete = Image::publish(&FakePeer::default(), vec![image.layers[0].clone(), missing.clone()]);
    let manifests = Image::publish(&peer, vec![image.layers[0].clone(), missing]);
    assert_eq!(manifests.manifest, incomplete.manifest);
    peer.forget(&manifests.layers[1].descriptor.blob);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;

    let not_lazy = async |key: &str, labels: Labels, why: &str| {
        daemon.prepare_with(key, "", labels).await.unwrap();
        let label = daemon.stat(key).await.unwrap().labels["darter/lazy"].clone();
        assert!(label.starts_with("no: ") && label.contains(why), "{label}");
    };
    // Its first layer could be, its second one cannot; either may be known first.
    let first = daemon.prepare_with("half", "", manifests.labels(0)).await;
    assert!(matches!(code(first), Code::Ok | Code::AlreadyExists));
    not_lazy("second", manifests.labels(1), "nobody has").await;
    let mut wrong_chain = image.labels(0);
    wrong_chain.insert("containerd.io/snapshot.ref".into(), Digest::sha256(b"another chain").to_string());
    not_lazy("chain", wrong_chain, "chain").await;
    not_lazy("parent", image.labels(1), "parent").await;
    let mut nameless = image.labels(0);
    nameless.remove("containerd.io/snapshot/cri.image-ref");
    not_lazy("nameless", nameless, "which image").await;
    peer.offline.send_replace(true);
    let mut unknown = image.labels(0);
    unknown.insert("containerd.io/snapshot/cri.manifest-digest".into(), Digest::sha256(b"?").to_string());
    not_lazy("offline", unknown, "network").await;
    daemon.commit("base", "offline").await.unwrap();
    assert!(daemon.stat("base").await.unwrap().labels["darter/lazy"].starts_with("no: "));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_without_an_entry_look_as_they_do_in_the_layers_below() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let source = home.dir("source");
    for (dir, mode, owner) in [("tmp", 0o1777, 0), ("home/user", 0o700, 1000), ("usr", 0o755, 0)] {
        fs::create_dir_all(source.join(dir)).unwrap();
        std::os::unix::fs::chown(source.join(dir), Some(owner), Some(owner)).unwrap();
        fs::set_permissions(source.join(dir), fs::Permissions::from_mode(mode)).unwrap();
    }
    lsetxattr(source.join("home/user"), "user.note", b"a note", XattrFlags::empty()).unwrap();
    let lowest = run_tar(&["-c", "--format=posix", "--xattrs", "."], &source);
    let image = Image::publish(
        &peer,
        vec![
            open_layer(&lowest).unwrap().1,
            layer(&[("tmp/one", b"1"), ("usr/one", b"1"), ("new/one", b"1")]),
            layer(&[("home/user/deep/two", b"2"), ("tmp/two", b"2"), (".wh.usr", b"")]),
        ],
    );
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    let look = |mounted: &Path| -> Vec<_> {
        let look = |path: &&str| {
            let meta = fs::metadata(mounted.join(path)).unwrap();
            (meta.mode() & 0o7777, meta.uid())
        };
        ["", "tmp", "home", "home/user", "home/user/deep", "new"].iter().map(look).collect()
    };
    let expected = [(0o755, 0), (0o1777, 0), (0o755, 0), (0o700, 1000), (0o755, 0), (0o755, 0)];
    let container = mounted(&home, daemon.prepare("container", &top).await).await;
    assert_eq!(look(container.path()), expected);
    let mut note = [0; 16];
    let len = rustix::fs::lgetxattr(container.path().join("home/user"), "user.note", &mut note).unwrap();
    assert_eq!(&note[..len], b"a note");
    for (file, content) in [("tmp/one", b"1"), ("tmp/two", b"2"), ("home/user/deep/two", b"2")] {
        assert_eq!(read(container.path().join(file)).await.unwrap(), content);
    }
    assert!(!container.path().join("usr").exists());
    drop(container);
    daemon.stop().await;

    let daemon = Daemon::start(&home.config(), Arc::default()).await;
    let container = mounted(&home, daemon.mounts("container").await).await;
    assert_eq!(look(container.path()), expected, "after a restart");
    drop(container);
    daemon.remove("container").await.unwrap();
    daemon.remove(&top).await.unwrap();
    daemon.client.clone().cleanup(CleanupRequest { snapshotter: "darter".into() }).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_send_the_labels_of_stargz_are_served_too() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")])]);
    let daemon = Daemon::start(&home.config(), peer).await;
    let tag = image.manifest.to_string().replace(':', "-");
    let stargz = |name: &str| format!("containerd.io/snapshot/remote/stargz.{name}");
    let labels = Labels::from([
        ("containerd.io/snapshot.ref".to_owned(), image.chain[0].to_string()),
        (stargz("reference"), format!("registry.example/some/image:{tag}")),
        (stargz("digest"), image.layers[0].descriptor.blob.to_string()),
    ]);
    assert_eq!(code(daemon.prepare_with("key", "", labels).await), Code::AlreadyExists);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_does_not_get_ready_in_time_is_prepared_the_ordinary_way() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")])]);
    peer.stall(&image.layers[0].descriptor.blob);
    let config = Config { prepare_timeout: Duration::from_millis(300), ..home.config() };
    let daemon = Daemon::start(&config, peer).await;
    daemon.prepare_with("key", "", image.labels(0)).await.unwrap();
    let label = daemon.stat("key").await.unwrap().labels["darter/lazy"].clone();
    assert!(label.contains("not ready after 300ms"), "{label}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_get_one_snapshot() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")])]);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let keys: Vec<String> = (0..16).map(|at| format!("extract {at}")).collect();
    let prepare = |key: &String| {
        let key = key.clone();
        let (daemon, image) = (&daemon, &image);
        async move { code(daemon.prepare_with(&key, "", image.labels(0)).await) }
    };
    let codes = futures_util::future::join_all(keys.iter().map(prepare)).await;
    assert!(codes.iter().all(|code| *code == Code::AlreadyExists), "{codes:?}");
    assert_eq!(daemon.list(&[]).await.unwrap().len(), 1);
    let asked = peer.asked.lock().iter().filter(|what| what.starts_with("layer")).count();
    assert_eq!(asked, 1);
    daemon.stop().await;
}

async fn usage_is_what_removing_a_layer_frees(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("file", &noise(3_000_000))])]);
    let gate = peer.gate(&image.layers[0].descriptor.blob);
    let daemon = Daemon::start(&home.config(), peer).await;
    let top = image.pull(&daemon).await;
    daemon.prepare("container", &top).await.unwrap();
    let (before, _) = daemon.usage(&top).await.unwrap();
    gate.send_replace(true);
    while daemon.snapshotter.status().iter().any(|layer| layer.raw_held < layer.raw_len) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let layers = home.config().root.join("layers");
    let taken = || i64::try_from(usage_of_dir(&layers).unwrap().size).unwrap();
    daemon.remove("container").await.unwrap();
    let (complete, with) = (daemon.usage(&top).await.unwrap().0, taken());
    daemon.remove(&top).await.unwrap();
    daemon.client.clone().cleanup(CleanupRequest { snapshotter: "darter".into() }).await.unwrap();
    let freed = with - taken();
    // Whole blocks, and the note of what is here.
    assert!((freed - before).abs() < 32 * 1024, "{before} bytes were said and {freed} freed");
    assert!((freed - complete).abs() < 16 * 1024, "{complete} bytes were said and {freed} freed");
    daemon.stop().await;
}

async fn a_layer_whose_content_is_wrong_is_discarded(home: Home) {
    let right = layer(&[("file", b"what the image's config says")]);
    let lie = layer(&[("file", b"What the image's config says")]);
    let lie = OpenLayer { descriptor: published_as(&right, &lie), ..lie };
    expect_discarded(home, lie, right).await;
}

async fn a_layer_whose_index_is_wrong_is_discarded(home: Home) {
    let right = layer(&[("file", b"what the image's config says")]);
    let other = layer(&[("File", b"what the image's config says")]);
    let LayerDescriptor { index, index_len, .. } = other.descriptor;
    let descriptor = LayerDescriptor { index, index_len, ..right.descriptor.clone() };
    let lie = OpenLayer { descriptor, index: other.index, ..right.clone() };
    expect_discarded(home, lie, right).await;
}

/// Expects that a layer is blamed once it is here, and that a container gets the right one.
async fn expect_discarded(home: Home, lie: OpenLayer, right: OpenLayer) {
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![lie.clone()]);
    let gate = peer.gate(&lie.descriptor.blob);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let top = image.pull(&daemon).await;
    daemon.prepare("container", &top).await.unwrap();
    // Nobody offers it any more.
    peer.put_layer(right);
    gate.send_replace(true);
    until_blamed(&peer).await;
    assert_eq!(*peer.blamed.lock(), [lie.descriptor]);
    let container = mounted(&home, daemon.mounts("container").await).await;
    assert_eq!(read(container.path().join("file")).await.unwrap(), b"what the image's config says");
    drop(container);
    daemon.stop().await;
}

async fn until_blamed(peer: &FakePeer) {
    while peer.blamed.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What somebody publishes who says that the layer `of` is what `layer` is.
fn published_as(of: &OpenLayer, layer: &OpenLayer) -> LayerDescriptor {
    let LayerDescriptor { blob, diff_id, .. } = of.descriptor.clone();
    LayerDescriptor { blob, diff_id, ..layer.descriptor.clone() }
}

async fn a_layer_that_cannot_be_completed_makes_way_for_what_is_published_now(home: Home) {
    let right = layer(&[("file", b"right")]);
    let withdrawn = layer(&[("file", b"wrong")]);
    let descriptor = published_as(&right, &withdrawn);
    let withdrawn = OpenLayer { descriptor, leaves: Arc::new(NoLeaves), ..withdrawn };
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![withdrawn]);
    let config = Config { read_timeout: Duration::from_millis(300), ..home.config() };
    let daemon = Daemon::start(&config, peer.clone()).await;
    let top = image.pull(&daemon).await;
    let running = mounted(&home, daemon.prepare("running", &top).await).await;
    peer.put_layer(right);
    // It takes a read, or the filling, to find out.
    let new = loop {
        let new = mounted(&home, daemon.view("new", &top).await).await;
        match read(new.path().join("file")).await {
            Ok(content) => {
                assert_eq!(content, b"right");
                break new;
            }
            Err(_) => daemon.remove("new").await.unwrap(),
        }
    };
    assert!(peer.blamed.lock().is_empty(), "nobody knows which one is wrong");
    let error = read(running.path().join("file")).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    drop((running, new));
    daemon.stop().await;
}

async fn containers_on_a_wrong_layer_never_see_the_right_one(home: Home) {
    let right = layer(&[("first", &noise(600_000)), ("file", b"right")]);
    let lie = layer(&[("first", &noise(500_000)), ("file", b"wrong"), ("more", b"wrong")]);
    let lie = OpenLayer { descriptor: published_as(&right, &lie), ..lie };
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![lie.clone()]);
    let gate = peer.gate(&lie.descriptor.blob);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let top = image.pull(&daemon).await;
    let running = mounted(&home, daemon.prepare("running", &top).await).await;
    let open = File::open(running.path().join("file")).unwrap();
    let seen = running.path().to_owned();
    let expect_only_errors = async || {
        for file in ["first", "file", "more"] {
            let error = read(seen.join(file)).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()), "{file}");
        }
    };
    peer.put_layer(right);
    gate.send_replace(true);
    until_blamed(&peer).await;
    expect_only_errors().await;

    let new = mounted(&home, daemon.prepare("new", &top).await).await;
    assert_eq!(read(new.path().join("file")).await.unwrap(), b"right");
    assert_eq!(read(new.path().join("first")).await.unwrap(), noise(600_000));
    assert!(!new.path().join("more").exists());
    expect_only_errors().await;
    daemon.stop().await;

    let daemon = Daemon::start(&home.config(), peer).await;
    expect_only_errors().await;
    tokio::task::spawn_blocking(move || open.read_at(&mut [0; 5], 0).unwrap_err()).await.unwrap();
    let another = mounted(&home, daemon.prepare("another", &top).await).await;
    assert_eq!(read(another.path().join("file")).await.unwrap(), b"right");
    drop((running, new, another));
    daemon.stop().await;
}

async fn a_start_detaches_what_a_killed_run_left_mounted(home: Home) {
    let root = home.config().root;
    let stale = root.join("mnt/0123456789abcdef");
    fs::create_dir_all(&stale).unwrap();
    fs::create_dir_all(root.join("fuse")).unwrap();
    rustix::mount::mount("tmpfs", root.join("fuse"), "tmpfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    rustix::mount::mount("tmpfs", &stale, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")])]);
    let daemon = Daemon::start(&home.config(), peer).await;
    assert!(!stale.exists());
    let top = image.pull(&daemon).await;
    let view = mounted(&home, daemon.view("view", &top).await).await;
    assert_eq!(read(view.path().join("a")).await.unwrap(), b"a");
    drop(view);
    daemon.stop().await;
}

async fn layers_without_snapshots_are_removed_and_damaged_ones_are_gotten_again(home: Home) {
    let peer = Arc::new(FakePeer::default());
    let image = Image::publish(&peer, vec![layer(&[("a", b"a")])]);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let top = image.pull(&daemon).await;
    daemon.stop().await;
    let dir = home.config().root.join("layers").join(image.layers[0].descriptor.diff_id.hex());
    fs::write(dir.join("table"), "rubbish").unwrap();
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    let view = mounted(&home, daemon.view("view", &top).await).await;
    assert_eq!(read(view.path().join("a")).await.unwrap(), b"a");
    drop(view);
    let cleanup = CleanupRequest { snapshotter: "darter".into() };
    daemon.client.clone().cleanup(cleanup.clone()).await.unwrap();
    assert!(dir.exists());
    daemon.remove("view").await.unwrap();
    daemon.remove(&top).await.unwrap();
    daemon.client.clone().cleanup(cleanup).await.unwrap();
    assert!(!dir.exists());
    assert_eq!(peer.removed.lock().last(), Some(&image.layers[0].descriptor.blob));
    assert!(daemon.snapshotter.status().is_empty());
    daemon.stop().await;
}
