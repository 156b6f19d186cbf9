//! The manifest, the config and what they say.

use std::collections::HashMap;

use bytes::Bytes;
use darter_peer::Digest;
use serde::Deserialize;

use super::{PullError, origin::Origin};
use crate::image::{Document, ImageLayer, Reference};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// A content as manifests name it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Descriptor {
    #[serde(rename = "mediaType")]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Everything of an image but its layers' contents.
#[derive(Debug)]
pub(super) struct Documents {
    /// What the image's name leads to: an index or the manifest.
    pub(super) target: Descriptor,
    index: Option<Bytes>,
    pub(super) manifest: Descriptor,
    manifest_bytes: Bytes,
    pub(super) config: Descriptor,
    config_bytes: Bytes,
    blobs: Vec<Descriptor>,
    /// Lowest first.
    pub(super) layers: Vec<ImageLayer>,
}

#[derive(Deserialize)]
struct Described {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

impl Documents {
    /// Fetches index, manifest and config.
    pub(super) async fn fetch(origin: &Origin, reference: &Reference) -> Result<Self, PullError> {
        let name = match (&reference.digest, &reference.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.clone().unwrap_or_default(),
        };
        let unusable = |reason: String| PullError::Document { what: name.clone(), reason };
        let first = origin.manifest(&name, reference.digest.as_ref()).await?;
        let (index, manifest_bytes) = match Document::parse(&first).map_err(unusable)? {
            Document::Manifest(_) => (None, first),
            Document::Index(digest) => {
                let manifest = origin.manifest(&digest.to_string(), Some(&digest)).await?;
                (Some(first), manifest)
            }
        };
        let Document::Manifest(manifest) = Document::parse(&manifest_bytes).map_err(unusable)? else {
            return Err(unusable("the index leads to another index".to_owned()));
        };
        let config_bytes = origin.config(&manifest.config).await?;
        let layers = manifest.layers(&config_bytes).map_err(unusable)?;
        let described: Described =
            serde_json::from_slice(&manifest_bytes).map_err(|e| unusable(e.to_string()))?;
        let config = described.config.ok_or_else(|| unusable("it has no config".to_owned()))?;
        let manifest = describe(&manifest_bytes, OCI_MANIFEST);
        let target = index.as_ref().map_or_else(|| manifest.clone(), |index| describe(index, OCI_INDEX));
        Ok(Self {
            target,
            index,
            manifest,
            manifest_bytes,
            config,
            config_bytes,
            blobs: described.layers,
            layers,
        })
    }

    /// What goes into the content store, with the labels by which containerd's garbage collector finds the next.
    pub(super) fn contents(&self) -> Vec<(Descriptor, Bytes, HashMap<String, String>)> {
        let refers =
            |name: &str, to: &Digest| (format!("containerd.io/gc.ref.content.{name}"), to.to_string());
        let layers = self.blobs.iter().enumerate().map(|(at, blob)| refers(&format!("l.{at}"), &blob.digest));
        let of_manifest = layers.chain([refers("config", &self.config.digest)]).collect();
        let mut contents = vec![
            (self.config.clone(), self.config_bytes.clone(), HashMap::new()),
            (self.manifest.clone(), self.manifest_bytes.clone(), of_manifest),
        ];
        if let Some(index) = &self.index {
            let labels = HashMap::from([refers("m.0", &self.manifest.digest)]);
            contents.push((self.target.clone(), index.clone(), labels));
        }
        contents
    }

    /// How the manifest names a layer's blob.
    pub(super) fn blob(&self, digest: &Digest) -> Descriptor {
        let found = self.blobs.iter().find(|blob| blob.digest == *digest).cloned();
        found.unwrap_or_else(|| Descriptor { media_type: String::new(), digest: digest.clone(), size: 0 })
    }
}

fn describe(bytes: &[u8], otherwise: &str) -> Descriptor {
    let described = serde_json::from_slice::<Described>(bytes).ok().and_then(|document| document.media_type);
    Descriptor {
        media_type: described.unwrap_or_else(|| otherwise.to_owned()),
        digest: Digest::sha256(bytes),
        size: bytes.len() as u64,
    }
}
