//! Pulls an image into containerd so that its layers are mounted, for containerd 1.6 and 1.7, whose own `ctr image pull`
//! sends none of the labels that lazy snapshots need.
//!
//! It does what containerd's client does ("core/unpack" there), with everything that is fetched coming through the
//! node's peer: the manifest and the config go into the content store, each layer is prepared with the labels, and only
//! a layer that the snapshotter does not mount lazily is fetched and applied.

mod containerd;
mod documents;
mod origin;

use std::{collections::HashMap, path::PathBuf};

use containerd_client::services::v1::snapshots::PrepareSnapshotRequest;
use darter_peer::Digest;
use darter_proto::peer::peer_client::PeerClient;
use tonic::{Code, Status, transport::Channel};

use self::{containerd::Containerd, documents::Documents, origin::Origin};
use crate::image::{ImageLayer, Reference};

/// Stays on the config and makes containerd's garbage collector keep the snapshots.
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// An image to be pulled.
#[derive(Debug, Clone)]
pub struct Pull {
    /// containerd's socket.
    pub containerd: PathBuf,
    /// containerd's namespace.
    pub namespace: String,
    /// The snapshotter's name in containerd's configuration.
    pub snapshotter: String,
    /// The image, as `python:3.12` or `registry.example/team/app@sha256:…`.
    pub reference: String,
}

/// What happens during a pull, for whoever watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The manifest is known: so many layers.
    Layers(usize),
    /// A layer is mounted lazily.
    Lazy(Digest),
    /// A layer was there already.
    Present(Digest),
    /// A layer is fetched whole: it cannot be lazy.
    Fetching(Digest, u64),
    /// So many bytes of it have arrived.
    Fetched(u64),
    /// The layer was unpacked.
    Unpacked(Digest),
}

/// A pulled image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Its full name in containerd.
    pub name: String,
    /// Digest of what the name leads to.
    pub target: Digest,
    /// Layers that are mounted lazily, of how many.
    pub lazy: usize,
    /// All layers.
    pub layers: usize,
}

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The reference is none.
    #[error("{0}: write it as NAME[:TAG], REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…")]
    Reference(String),
    /// containerd does not answer on its socket.
    #[error("containerd does not answer on {}: {reason}", socket.display())]
    NoContainerd {
        /// The socket.
        socket: PathBuf,
        /// Why not.
        reason: String,
    },
    /// containerd refused something.
    #[error("containerd: {what}: {message}")]
    Containerd {
        /// What was asked.
        what: &'static str,
        /// What it said.
        message: String,
    },
    /// The peer could not fetch something.
    #[error("fetching {what}: {message}")]
    Fetch {
        /// What was fetched.
        what: String,
        /// What the peer said.
        message: String,
    },
    /// The registry sent something that is no image.
    #[error("{what} is not usable: {reason}")]
    Document {
        /// What was fetched.
        what: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer's content is not what the image's config says.
    #[error("layer {blob} unpacks to {found}, the image's config says {expected}")]
    WrongDiffId {
        /// The layer's blob.
        blob: Digest,
        /// From the config.
        expected: Digest,
        /// What was found.
        found: String,
    },
}

impl PullError {
    fn containerd(what: &'static str) -> impl FnOnce(Status) -> Self {
        move |status| Self::Containerd { what, message: status.message().to_owned() }
    }
}

impl Pull {
    /// Pulls the image through `peer`.
    ///
    /// # Errors
    /// See [`PullError`]. What was stored until then is left to containerd's garbage collector.
    pub async fn run(self, peer: PeerClient<Channel>, watch: impl Fn(Step)) -> Result<Pulled, PullError> {
        let name = full_name(&self.reference);
        let reference: Reference = name.parse().map_err(|_| PullError::Reference(self.reference.clone()))?;
        let containerd = Containerd::connect(&self.containerd, &self.namespace).await?;
        let origin = Origin::of(peer, &reference.repository).await?;
        let documents = Documents::fetch(&origin, &reference).await?;
        watch(Step::Layers(documents.layers.len()));
        containerd.lease().await?;
        let pulled = self.store(&containerd, &origin, &documents, name, &watch).await;
        containerd.end_lease().await?;
        pulled
    }

    async fn store(
        &self,
        containerd: &Containerd,
        origin: &Origin,
        documents: &Documents,
        name: String,
        watch: &impl Fn(Step),
    ) -> Result<Pulled, PullError> {
        for (descriptor, bytes, labels) in documents.contents() {
            containerd.write(&descriptor, bytes, labels).await?;
        }
        let mut below = String::new();
        let mut lazy = 0;
        for (at, layer) in documents.layers.iter().enumerate() {
            let labels = self.labels(&name, documents, at, layer);
            if self.layer(containerd, origin, documents, layer, &below, labels, watch).await? {
                lazy += 1;
            }
            below = layer.chain_id.to_string();
        }
        let gc = HashMap::from([(format!("{GC_SNAPSHOT}{}", self.snapshotter), below)]);
        containerd.label(&documents.config.digest, gc).await?;
        containerd.name(&name, &documents.target).await?;
        Ok(Pulled { name, target: documents.target.digest.clone(), lazy, layers: documents.layers.len() })
    }

    /// One layer: true if it is there without having been fetched.
    #[allow(clippy::too_many_arguments, reason = "one step of the pull, with everything that the pull knows")]
    async fn layer(
        &self,
        containerd: &Containerd,
        origin: &Origin,
        documents: &Documents,
        layer: &ImageLayer,
        below: &str,
        labels: HashMap<String, String>,
        watch: &impl Fn(Step),
    ) -> Result<bool, PullError> {
        let chain_id = layer.chain_id.to_string();
        if containerd.has_snapshot(&self.snapshotter, &chain_id).await? {
            watch(Step::Present(layer.blob.clone()));
            return Ok(true);
        }
        let key = format!("extract-{}-darter {chain_id}", std::process::id());
        let request = PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.clone(),
            parent: below.to_owned(),
            labels: labels.clone(),
        };
        let mounts = match containerd.prepare(request).await {
            Ok(mounts) => mounts,
            Err(status) if status.code() == Code::AlreadyExists => {
                watch(Step::Lazy(layer.blob.clone()));
                return Ok(true);
            }
            Err(status) => return Err(PullError::containerd("preparing a snapshot")(status)),
        };
        let blob = documents.blob(&layer.blob);
        watch(Step::Fetching(layer.blob.clone(), blob.size));
        containerd
            .write_stream(&blob, origin.blob(&layer.blob).await?, |bytes| watch(Step::Fetched(bytes)))
            .await?;
        let found = containerd.apply(&blob, mounts).await?;
        if found != layer.diff_id.to_string() {
            containerd.remove_snapshot(&self.snapshotter, &key).await?;
            let (blob, expected) = (layer.blob.clone(), layer.diff_id.clone());
            return Err(PullError::WrongDiffId { blob, expected, found });
        }
        containerd.commit(&self.snapshotter, &key, &chain_id, labels).await?;
        watch(Step::Unpacked(layer.blob.clone()));
        Ok(false)
    }

    /// The labels of containerd's `pkg/snapshotters`.
    fn labels(
        &self,
        name: &str,
        documents: &Documents,
        at: usize,
        layer: &ImageLayer,
    ) -> HashMap<String, String> {
        // A label and its value have 4096 bytes at most.
        let above = documents.layers.iter().skip(at).map(|layer| layer.blob.to_string()).take(50);
        HashMap::from([
            ("containerd.io/snapshot.ref".to_owned(), layer.chain_id.to_string()),
            ("containerd.io/snapshot/cri.image-ref".to_owned(), name.to_owned()),
            ("containerd.io/snapshot/cri.manifest-digest".to_owned(), documents.manifest.digest.to_string()),
            ("containerd.io/snapshot/cri.layer-digest".to_owned(), layer.blob.to_string()),
            ("containerd.io/snapshot/cri.image-layers".to_owned(), above.collect::<Vec<_>>().join(",")),
        ])
    }
}

/// What `docker pull NAME` and the like mean by a short name.
fn full_name(reference: &str) -> String {
    let first = reference.split('/').next().unwrap_or_default();
    let has_registry = reference.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    let mut name = match (has_registry, reference.contains('/')) {
        (true, _) => reference.to_owned(),
        (false, true) => format!("docker.io/{reference}"),
        (false, false) => format!("docker.io/library/{reference}"),
    };
    let last = name.rsplit('/').next().unwrap_or_default();
    if !last.contains([':', '@']) {
        name.push_str(":latest");
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_those_of_docker_hub() {
        for (short, full) in [
            ("python", "docker.io/library/python:latest"),
            ("python:3.12", "docker.io/library/python:3.12"),
            ("team/app", "docker.io/team/app:latest"),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1"),
            ("localhost/app", "localhost/app:latest"),
            ("ghcr.io/x/y@sha256:00", "ghcr.io/x/y@sha256:00"),
        ] {
            assert_eq!(full_name(short), full);
        }
    }
}
