//! What containerd's own test suite for snapshotters expects (containerd, `core/snapshots/testsuite`), with real mounts.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use containerd_client::tonic::Code;

use super::harness::{Daemon, Home, Mounted, code};

fn write(dir: &Path, name: &str, content: &str) {
    fs::create_dir_all(dir.join(name).parent().unwrap()).unwrap();
    fs::write(dir.join(name), content).unwrap();
}

fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_build_on_each_other() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon
        .layer(&home, "one", "", |dir| {
            write(dir, "foo", "foo\n");
            write(dir, "a/b/c", "c\n");
        })
        .await;
    daemon
        .layer(&home, "two", "one", |dir| {
            assert_eq!(read(dir, "foo"), "foo\n");
            write(dir, "bar", "bar\n");
            write(dir, "foo", "changed\n");
            fs::remove_dir_all(dir.join("a")).unwrap();
        })
        .await;
    let view = Mounted::new(&home, &daemon.view("view", "two").await.unwrap());
    assert_eq!(read(view.path(), "foo"), "changed\n");
    assert_eq!(read(view.path(), "bar"), "bar\n");
    assert!(!view.path().join("a").exists());
    let one = Mounted::new(&home, &daemon.view("view one", "one").await.unwrap());
    assert_eq!(read(one.path(), "foo"), "foo\n");
    assert_eq!(read(one.path(), "a/b/c"), "c\n");
    assert_eq!(daemon.stat("two").await.unwrap().parent, "one");
    drop((view, one));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_read_only() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.layer(&home, "one", "", |dir| write(dir, "foo", "foo")).await;
    daemon.layer(&home, "two", "one", |dir| write(dir, "bar", "bar")).await;
    for parent in ["", "one", "two"] {
        let view = Mounted::new(&home, &daemon.view(&format!("view {parent}"), parent).await.unwrap());
        assert!(fs::write(view.path().join("new"), "x").is_err(), "{parent}");
    }
    assert_eq!(code(daemon.commit("three", "view two").await), Code::FailedPrecondition);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_move_and_directories_are_replaced_across_layers() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon
        .layer(&home, "one", "", |dir| {
            write(dir, "dir1/f1", "f1");
            write(dir, "dir2/f2", "f2");
            symlink("f1", dir.join("dir1/link")).unwrap();
        })
        .await;
    daemon
        .layer(&home, "two", "one", |dir| {
            fs::rename(dir.join("dir1/f1"), dir.join("dir2/f1")).unwrap();
            fs::remove_dir_all(dir.join("dir1")).unwrap();
            fs::create_dir(dir.join("dir1")).unwrap();
            write(dir, "dir1/new", "new");
        })
        .await;
    let view = Mounted::new(&home, &daemon.view("view", "two").await.unwrap());
    assert_eq!(read(view.path(), "dir2/f1"), "f1");
    assert_eq!(fs::read_dir(view.path().join("dir1")).unwrap().count(), 1);
    drop(view);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_modes_survive_commit() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon
        .layer(&home, "one", "", |dir| {
            chown(dir, Some(7), Some(8)).unwrap();
            fs::create_dir(dir.join("d")).unwrap();
            fs::set_permissions(dir.join("d"), Permissions::from_mode(0o1777)).unwrap();
            write(dir, "opt/f", "f");
            chown(dir.join("opt/f"), Some(1), Some(2)).unwrap();
        })
        .await;
    let mounted = Mounted::new(&home, &daemon.prepare("top", "one").await.unwrap());
    let top = fs::metadata(mounted.path()).unwrap();
    assert_eq!((top.uid(), top.gid()), (7, 8), "the top directory belongs to whom the parent's does");
    assert_eq!(fs::metadata(mounted.path().join("d")).unwrap().mode() & 0o7777, 0o1777);
    chown(mounted.path().join("opt"), Some(3), Some(4)).unwrap();
    drop(mounted);
    daemon.commit("two", "top").await.unwrap();
    let view = Mounted::new(&home, &daemon.view("view", "two").await.unwrap());
    let owner =
        |name: &str| fs::metadata(view.path().join(name)).map(|meta| (meta.uid(), meta.gid())).unwrap();
    assert_eq!((owner("opt/f"), owner("opt")), ((1, 2), (3, 4)));
    drop(view);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_has_mode_0755_whatever_the_umask_is() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let mounts = daemon.prepare("active", "").await;
    rustix::process::umask(before);
    let mounted = Mounted::new(&home, &mounts.unwrap());
    assert_eq!(fs::metadata(mounted.path()).unwrap().mode() & 0o7777, 0o755);
    drop(mounted);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_removed_only_after_its_children() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.layer(&home, "one", "", |dir| write(dir, "f", "1")).await;
    daemon.layer(&home, "two", "one", |dir| write(dir, "f", "2")).await;
    daemon.prepare("active", "two").await.unwrap();
    for name in ["one", "two"] {
        assert_eq!(code(daemon.remove(name).await), Code::FailedPrecondition, "{name}");
    }
    for name in ["active", "two", "one"] {
        daemon.remove(name).await.unwrap();
    }
    assert!(daemon.list(&[]).await.unwrap().is_empty());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_and_twenty_eight_layers_mount() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    let mut parent = String::new();
    for at in 0..128 {
        let name = format!("layer {at}");
        let key = format!("extract {at}");
        // Written into the upper directory itself: mounting each of them would take long.
        let mounts = daemon.prepare(&key, &parent).await.unwrap();
        let upper = mounts[0].options.iter().find_map(|option| option.strip_prefix("upperdir="));
        write(Path::new(upper.unwrap_or(&mounts[0].source)), &at.to_string(), "x");
        daemon.commit(&name, &key).await.unwrap();
        parent = name;
    }
    let mounts = daemon.prepare("top", &parent).await.unwrap();
    let lower = mounts[0].options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap();
    let root = format!("{}/", home.config().root.display());
    let shortened = lower.replace(&root, "");
    assert!(shortened.len() < 4096 - 512, "containerd cannot shorten this enough: {shortened}");
    let mounted = Mounted::new(&home, &mounts);
    assert_eq!(fs::read_dir(mounted.path()).unwrap().count(), 128);
    drop(mounted);
    daemon.stop().await;
}
