//! The labels by which a client says, when it prepares a snapshot, which image's layer it is for.

use darter_peer::Digest;

use super::{Reference, Repository};
use crate::snapshots::{Labels, TARGET_LABEL};

/// containerd (`pkg/snapshotters`, annotations) and the kubelet through it.
const CRI_REFERENCE: &str = "containerd.io/snapshot/cri.image-ref";
const CRI_MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";
const CRI_LAYER: &str = "containerd.io/snapshot/cri.layer-digest";
/// stargz-snapshotter's clients (`ctr-remote image rpull`).
const STARGZ_REFERENCE: &str = "containerd.io/snapshot/remote/stargz.reference";
const STARGZ_LAYER: &str = "containerd.io/snapshot/remote/stargz.digest";

/// Which image a client prepared a snapshot for, if it said so.
pub(crate) fn image_name(labels: &Labels) -> Option<&str> {
    [CRI_REFERENCE, STARGZ_REFERENCE].iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// One layer of an image, as a client asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerRequest {
    /// The chainID under which the client will look for the snapshot.
    pub(crate) target: Digest,
    /// The image the layer belongs to.
    pub(crate) image: ImageName,
    /// The layer's blob.
    pub(crate) blob: Digest,
}

/// Names an image's manifest (or index) well enough to find it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct ImageName {
    pub(crate) repository: Repository,
    pub(crate) manifest: ManifestName,
}

/// How the manifest is known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum ManifestName {
    Digest(Digest),
    Tag(String),
}

impl LayerRequest {
    /// Reads the labels. `None` if they ask for no remote layer at all, an error if they do but cannot be used.
    pub(crate) fn parse(labels: &Labels) -> Option<Result<Self, String>> {
        let target = labels.get(TARGET_LABEL)?;
        Some(parse(target, labels))
    }
}

impl std::fmt::Display for ImageName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Repository { registry, name } = &self.repository;
        match &self.manifest {
            ManifestName::Digest(digest) => write!(f, "{registry}/{name}@{digest}"),
            ManifestName::Tag(tag) => write!(f, "{registry}/{name}:{tag}"),
        }
    }
}

fn parse(target: &str, labels: &Labels) -> Result<LayerRequest, String> {
    let get = |keys: [&str; 2]| keys.iter().find_map(|key| labels.get(*key));
    let digest = |text: &str| text.parse::<Digest>().map_err(|err| err.to_string());
    let reference = get([CRI_REFERENCE, STARGZ_REFERENCE]).ok_or(
        "the client did not say which image this is (containerd: disable_snapshot_annotations = false)",
    )?;
    let reference: Reference = reference.parse().map_err(|err| format!("{err}"))?;
    let blob = get([CRI_LAYER, STARGZ_LAYER]).ok_or("the client did not say which layer this is")?;
    let manifest = match (labels.get(CRI_MANIFEST), reference.digest, reference.tag) {
        (Some(manifest), ..) => ManifestName::Digest(digest(manifest)?),
        (None, Some(digest), _) => ManifestName::Digest(digest),
        (None, None, Some(tag)) => ManifestName::Tag(tag),
        (None, None, None) => return Err("the image reference has neither a tag nor a digest".into()),
    };
    let image = ImageName { repository: reference.repository, manifest };
    Ok(LayerRequest { target: digest(target)?, image, blob: digest(blob)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(labels: &[(&str, String)]) -> Option<Result<LayerRequest, String>> {
        LayerRequest::parse(&labels.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect())
    }

    #[test]
    fn both_families_of_labels_are_understood() {
        let [target, manifest, blob] = [b"t", b"m", b"b"].map(|bytes| Digest::sha256(bytes));
        let reference = "docker.io/library/python:3.12".to_owned();
        let cri = [
            (TARGET_LABEL, target.to_string()),
            (CRI_REFERENCE, reference.clone()),
            (CRI_MANIFEST, manifest.to_string()),
            (CRI_LAYER, blob.to_string()),
        ];
        let request = parse(&cri).unwrap().unwrap();
        assert_eq!((request.target, request.blob), (target.clone(), blob.clone()));
        assert_eq!(request.image.manifest, ManifestName::Digest(manifest));
        let stargz = [
            (TARGET_LABEL, target.to_string()),
            (STARGZ_REFERENCE, reference),
            (STARGZ_LAYER, blob.to_string()),
        ];
        let request = parse(&stargz).unwrap().unwrap();
        assert_eq!(request.image.manifest, ManifestName::Tag("3.12".into()));
        assert_eq!(request.image.to_string(), "docker.io/library/python:3.12");
    }

    #[test]
    fn a_plain_snapshot_is_no_request_and_a_bad_one_says_why() {
        assert!(parse(&[("a", "b".into())]).is_none());
        let target = (TARGET_LABEL, Digest::sha256(b"t").to_string());
        assert!(parse(std::slice::from_ref(&target)).unwrap().unwrap_err().contains("which image"));
        let bad = (CRI_REFERENCE, "nonsense".to_owned());
        assert!(parse(&[target, bad]).unwrap().unwrap_err().contains("nonsense"));
    }
}
