//! Images to pull, and how their files are read.

use std::{fs, path::Path};

use containerd_client::{
    tonic::{Code, Status},
    types::Mount,
};
use darter_peer::Digest;

use super::harness::{Client, FakePeer, Home, Mounted, code};
use crate::{engine::OpenLayer, lazy::open_layer, snapshots::Labels};

/// An image in the registry.
pub(super) struct Image {
    pub(super) manifest: Digest,
    pub(super) layers: Vec<OpenLayer>,
    pub(super) chain: Vec<Digest>,
}

impl Image {
    /// Publishes an image with these layers, lowest first.
    pub(super) fn publish(peer: &FakePeer, layers: Vec<OpenLayer>) -> Self {
        let list = |digests: Vec<String>| format!("[{}]", digests.join(","));
        let diff_ids = layers.iter().map(|layer| format!("\"{}\"", layer.descriptor.diff_id)).collect();
        let config =
            peer.put_document(&format!(r#"{{"rootfs":{{"type":"layers","diff_ids":{}}}}}"#, list(diff_ids)));
        let blob = |layer: &OpenLayer| {
            let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
            format!(r#"{{"mediaType":"{media_type}","digest":"{}"}}"#, layer.descriptor.blob)
        };
        let blobs = layers.iter().map(blob).collect();
        let manifest =
            peer.put_document(&format!(r#"{{"config":{{"digest":"{config}"}},"layers":{}}}"#, list(blobs)));
        let mut chain: Vec<Digest> = Vec::new();
        for layer in &layers {
            let diff_id = &layer.descriptor.diff_id;
            let below = chain.last().map(|below| Digest::sha256(format!("{below} {diff_id}").as_bytes()));
            chain.push(below.unwrap_or_else(|| diff_id.clone()));
            peer.put_layer(layer.clone());
        }
        Self { manifest, layers, chain }
    }

    /// What containerd sends when it prepares a layer.
    pub(super) fn labels(&self, at: usize) -> Labels {
        self.labels_in("some/image", at)
    }

    /// The same of the image in another repository.
    pub(super) fn labels_in(&self, repository: &str, at: usize) -> Labels {
        let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
        Labels::from([
            ("containerd.io/snapshot.ref".to_owned(), self.chain[at].to_string()),
            (cri("image-ref"), format!("registry.example/{repository}:1")),
            (cri("manifest-digest"), self.manifest.to_string()),
            (cri("layer-digest"), self.layers[at].descriptor.blob.to_string()),
        ])
    }

    /// Pulls the image as containerd does, all of it lazily, and returns the name of the top snapshot.
    pub(super) async fn pull(&self, daemon: &Client) -> String {
        let mut parent = String::new();
        for at in 0..self.chain.len() {
            let prepared = daemon.prepare_with(&format!("extract {at}"), &parent, self.labels(at)).await;
            assert_eq!(code(prepared), Code::AlreadyExists, "layer {at}");
            let filter =
                format!(r#"labels."containerd.io/snapshot.ref"=={},parent=="{parent}""#, self.chain[at]);
            let found = daemon.list(&[&filter]).await.unwrap();
            assert_eq!(found.len(), 1, "layer {at}");
            assert_eq!(found[0].labels["darter/lazy"], "yes");
            parent = found[0].name.clone();
        }
        parent
    }
}

/// A layer with these files.
pub(super) fn layer(files: &[(&str, &[u8])]) -> OpenLayer {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    open_layer(&tar.into_inner().unwrap()).unwrap().1
}

/// Bytes that do not compress.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    bytes
}

/// Reads in a thread of its own: a read of a lazy file blocks.
pub(super) async fn read(path: impl AsRef<Path>) -> std::io::Result<Vec<u8>> {
    let path = path.as_ref().to_owned();
    tokio::task::spawn_blocking(move || fs::read(path)).await.unwrap()
}

pub(super) async fn mounted(home: &Home, mounts: Result<Vec<Mount>, Status>) -> Mounted {
    Mounted::new(home, &mounts.unwrap())
}
