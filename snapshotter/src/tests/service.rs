//! The service's answers: codes, filters, labels, what stays after a restart.

use std::collections::HashMap;

use containerd_client::{
    services::v1::snapshots::{CleanupRequest, Info, UpdateSnapshotRequest},
    tonic::Code,
};
use prost_types::FieldMask;

use super::harness::{Daemon, Home, Mounted, code};
use crate::snapshots::Labels;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_codes_that_containerd_maps() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.prepare("active", "").await.unwrap();
    assert_eq!(code(daemon.prepare("active", "").await), Code::AlreadyExists);
    assert_eq!(code(daemon.prepare("", "").await), Code::InvalidArgument);
    assert_eq!(code(daemon.prepare("x", "active").await), Code::InvalidArgument);
    assert_eq!(code(daemon.view("x", "none").await), Code::NotFound);
    assert_eq!(code(daemon.stat("none").await), Code::NotFound);
    assert_eq!(code(daemon.mounts("none").await), Code::NotFound);
    assert_eq!(code(daemon.usage("none").await), Code::NotFound);
    assert_eq!(code(daemon.remove("none").await), Code::NotFound);
    assert_eq!(code(daemon.commit("base", "none").await), Code::NotFound);
    assert_eq!(code(daemon.list(&["=="]).await), Code::InvalidArgument);
    daemon.commit("base", "active").await.unwrap();
    assert_eq!(code(daemon.mounts("base").await), Code::FailedPrecondition);
    daemon.prepare("active", "base").await.unwrap();
    assert_eq!(code(daemon.commit("base", "active").await), Code::AlreadyExists);
    assert_eq!(code(daemon.commit("other", "base").await), Code::FailedPrecondition);
    let refused = daemon.remove("base").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("remove"), "{}", refused.message());
    let long = labels(&[("key", &"x".repeat(5000))]);
    assert_eq!(code(daemon.prepare_with("long", "", long).await), Code::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_updated_by_field_mask() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.prepare_with("a", "", labels(&[("one", "1"), ("two", "2")])).await.unwrap();
    let update = async |name: &str, set: &[(&str, &str)], paths: &[&str]| {
        let labels: HashMap<_, _> = labels(set).into_iter().collect();
        let info = Info { name: name.into(), labels, ..Default::default() };
        let mask = FieldMask { paths: paths.iter().map(|&path| path.to_owned()).collect() };
        let request =
            UpdateSnapshotRequest { snapshotter: "darter".into(), info: Some(info), update_mask: Some(mask) };
        let updated = daemon.client.clone().update(request).await?.into_inner().info.unwrap();
        Ok(updated.labels.into_iter().collect::<Labels>())
    };
    let created = daemon.stat("a").await.unwrap();
    assert_eq!(
        update("a", &[("two", "II")], &["labels.two"]).await.unwrap(),
        labels(&[("one", "1"), ("two", "II")])
    );
    assert_eq!(update("a", &[], &["labels.two"]).await.unwrap(), labels(&[("one", "1")]));
    assert_eq!(update("a", &[("three", "3")], &["labels"]).await.unwrap(), labels(&[("three", "3")]));
    assert_eq!(update("a", &[("four", "4")], &[]).await.unwrap(), labels(&[("four", "4")]));
    assert_eq!(code(update("a", &[], &["parent"]).await), Code::InvalidArgument);
    assert_eq!(code(update("none", &[], &[]).await), Code::NotFound);
    let updated = daemon.stat("a").await.unwrap();
    assert_eq!(updated.created_at, created.created_at);
    assert_ne!(updated.updated_at, created.updated_at);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_complete_over_many_batches() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    for at in 0..130 {
        let parity = if at % 2 == 0 { "even" } else { "odd" };
        daemon.prepare_with(&format!("key-{at}"), "", labels(&[("a.b/parity", parity)])).await.unwrap();
    }
    daemon.commit("base", "key-0").await.unwrap();
    daemon.view("view", "base").await.unwrap();
    let count = async |filters: &[&str]| daemon.list(filters).await.unwrap().len();
    assert_eq!(count(&[]).await, 131);
    assert_eq!(count(&["kind==active"]).await, 129);
    assert_eq!(count(&["kind==view", "kind==committed"]).await, 2);
    assert_eq!(count(&["parent==base"]).await, 1);
    assert_eq!(count(&[r#"labels."a.b/parity"==odd"#]).await, 65);
    assert_eq!(count(&[r#"labels."a.b/parity",name~=/^key-1.$/"#]).await, 10);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_as_before_after_a_restart() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.layer(&home, "base", "", |dir| std::fs::write(dir.join("file"), "content").unwrap()).await;
    daemon.prepare_with("active", "base", labels(&[("a", "b")])).await.unwrap();
    let by_name = |mut infos: Vec<Info>| {
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        infos
    };
    let before = (by_name(daemon.list(&[]).await.unwrap()), daemon.mounts("active").await.unwrap());
    let usage = daemon.usage("base").await.unwrap();
    daemon.stop().await;
    let daemon = Daemon::plain(&home).await;
    let after = (by_name(daemon.list(&[]).await.unwrap()), daemon.mounts("active").await.unwrap());
    assert_eq!(before, after);
    assert_eq!(daemon.usage("base").await.unwrap(), usage);
    assert!(usage.0 >= 4096 && usage.1 == 2, "{usage:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_deletes_what_has_no_snapshot_and_nothing_else() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    daemon.prepare("kept", "").await.unwrap();
    let mounts = daemon.prepare("gone", "").await.unwrap();
    std::fs::write(format!("{}/file", mounts[0].source), "x").unwrap();
    let root = home.config().root;
    std::fs::create_dir_all(root.join("snapshots/999/fs")).unwrap();
    daemon.remove("gone").await.unwrap();
    daemon.client.clone().cleanup(CleanupRequest { snapshotter: "darter".into() }).await.unwrap();
    let count = |dir: &str| std::fs::read_dir(root.join(dir)).unwrap().count();
    assert_eq!(count("snapshots"), 1);
    while count("trash") > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    drop(Mounted::new(&home, &daemon.mounts("kept").await.unwrap()));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_snapshotter_does_not_take_the_socket() {
    let home = Home::new();
    let daemon = Daemon::plain(&home).await;
    let other = Home::new();
    let config = crate::Config { root: other.config().root, lazy: false, ..home.config() };
    let second = crate::Snapshotter::with_engine(
        &config,
        std::sync::Arc::new(super::harness::FakePeer::default()),
        crate::metrics::Metrics::default(),
        super::harness::start_keeper,
    );
    let error = second.await.unwrap_err();
    assert!(error.to_string().contains("another snapshotter"), "{error}");
    daemon.stat("none").await.unwrap_err();
    daemon.stop().await;
}
