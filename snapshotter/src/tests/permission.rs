//! An image gets only layers that its own registry lets this node read in its own repository.

use std::sync::{Arc, atomic::Ordering};

use containerd_client::tonic::Code;

use super::{
    harness::{Client, Daemon, FakePeer, Home, code},
    image::{Image, layer},
};
use crate::{engine::OpenLayer, snapshots::Labels};

const THEIRS: &str = "team/secret";
const OWN: &str = "evil/image";

/// Whether containerd is told to unpack a layer itself, and for this reason. What is below a refused one may have been
/// decided before it.
async fn is_refused(daemon: &Client, key: &str, labels: Labels, why: &str) {
    daemon.prepare_with(key, "", labels).await.unwrap();
    let label = daemon.stat(key).await.unwrap().labels["darter/lazy"].clone();
    assert!(label.starts_with("no: ") && label.contains(why), "{label}");
}

async fn is_lazy(daemon: &Client, key: &str, labels: Labels) {
    assert_eq!(code(daemon.prepare_with(key, "", labels).await), Code::AlreadyExists);
}

fn layers() -> [OpenLayer; 3] {
    [layer(&[("secret", b"key")]), layer(&[("own", b"file")]), layer(&[("third", b"one")])]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_another_repository_is_not_mounted_though_it_is_here() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let [secret, own, _] = layers();
    peer.keep_private(&secret.descriptor.blob, THEIRS);
    let theirs = Image::publish(&peer, vec![secret.clone()]);
    let stolen = Image::publish(&peer, vec![own.clone(), secret.clone()]);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;

    // The cluster has it, this node does not yet.
    is_refused(&daemon, "unseen", stolen.labels_in(OWN, 1), "does not let this node read it").await;
    is_lazy(&daemon, "allowed", theirs.labels_in(THEIRS, 0)).await;
    let again = Image::publish(&peer, vec![own.clone(), own, secret]);
    is_refused(&daemon, "seen", again.labels_in(OWN, 2), "does not let this node read it").await;
    // In the repository that it belongs to the same image is one like any other.
    is_lazy(&daemon, "theirs", again.labels_in(THEIRS, 0)).await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_config_that_names_a_foreign_diff_id_does_not_help() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let [secret, own, other] = layers();
    peer.keep_private(&secret.descriptor.blob, THEIRS);
    let theirs = Image::publish(&peer, vec![secret.clone()]);
    // Its blob may be read; what comes out of it is something else.
    let mut claimed = own.clone();
    claimed.descriptor.diff_id = secret.descriptor.diff_id.clone();
    let forged = Image::publish(&peer, vec![other, claimed]);
    peer.put_layer(own);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    is_lazy(&daemon, "allowed", theirs.labels_in(THEIRS, 0)).await;
    is_refused(&daemon, "forged", forged.labels_in(OWN, 1), "not the one that the image's config names")
        .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_registry_stops_only_what_it_did_not_allow_before() {
    let home = Home::new();
    let peer = Arc::new(FakePeer::default());
    let [one, two, unknown] = layers();
    let image = Image::publish(&peer, vec![one.clone(), two.clone()]);
    let upside_down = Image::publish(&peer, vec![two.clone(), one]);
    let with_unknown = Image::publish(&peer, vec![two.clone(), two, unknown]);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    image.pull(&daemon).await;
    daemon.stop().await;

    peer.silent.store(true, Ordering::Relaxed);
    let daemon = Daemon::start(&home.config(), peer.clone()).await;
    is_refused(&daemon, "elsewhere", upside_down.labels_in(OWN, 1), "does not say").await;
    is_refused(&daemon, "unknown", with_unknown.labels(2), "does not say").await;
    is_lazy(&daemon, "again", upside_down.labels(0)).await;
    daemon.stop().await;
}
