//! The parts of manifests, indexes and configs that are needed here (OCI image specification, and Docker's image
//! manifest version 2, schema 2, which has the same fields).

use std::env::consts::ARCH;

use darter_peer::Digest;
use serde::Deserialize;

/// Most layers of an image; overlayfs takes 500.
const MAX_LAYERS: usize = 500;

/// What a registry must have and containerd unpacks as a tar (OCI image specification, `layer.md`; Docker image manifest
/// version 2, schema 2). Types of foreign and of encrypted layers are not among them.
const LAYER_TYPES: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A manifest, or an index that leads to one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Manifest(Manifest),
    /// The manifest for this platform.
    Index(Digest),
}

/// An image manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) config: Digest,
    /// The layers' blobs, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// The media type of the first layer that has none of [`LAYER_TYPES`].
    other_type: Option<String>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageLayer {
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
    /// Digest of this layer and all below it.
    pub(crate) chain_id: Digest,
}

#[derive(Deserialize)]
struct RawDocument {
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    media_type: Option<String>,
    digest: Digest,
    platform: Option<RawPlatform>,
}

#[derive(Deserialize)]
struct RawPlatform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    diff_ids: Vec<Digest>,
}

impl Document {
    /// Parses a manifest or an index.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, String> {
        let raw: RawDocument =
            serde_json::from_slice(json).map_err(|err| format!("not a manifest: {err}"))?;
        match (raw.config, raw.layers, raw.manifests) {
            (Some(config), Some(layers), None) => {
                let types = layers.iter().map(|layer| layer.media_type.as_deref().unwrap_or_default());
                let other_type =
                    types.into_iter().find(|name| !LAYER_TYPES.contains(name)).map(str::to_owned);
                let layers = layers.into_iter().map(|layer| layer.digest).collect();
                Ok(Self::Manifest(Manifest { config: config.digest, layers, other_type }))
            }
            (None, None, Some(manifests)) => {
                let mine = manifests
                    .into_iter()
                    .filter(|manifest| manifest.platform.as_ref().is_some_and(runs_here));
                let best = mine
                    .min_by_key(|manifest| manifest.platform.as_ref().is_some_and(|p| p.variant.is_some()));
                best.map(|manifest| Self::Index(manifest.digest))
                    .ok_or_else(|| format!("the index has no manifest for linux/{}", architecture()))
            }
            _ => Err("neither an image manifest nor an index".into()),
        }
    }
}

impl Manifest {
    /// The layers, lowest first, with what the image's config says of them.
    pub(crate) fn layers(&self, config: &[u8]) -> Result<Vec<ImageLayer>, String> {
        if let Some(other) = &self.other_type {
            return Err(format!("a layer has the media type {other:?}, which is left to containerd"));
        }
        let config: RawConfig =
            serde_json::from_slice(config).map_err(|err| format!("not an image config: {err}"))?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != self.layers.len() || diff_ids.len() > MAX_LAYERS {
            return Err(format!(
                "the manifest has {} layers, the config {}",
                self.layers.len(),
                diff_ids.len()
            ));
        }
        let mut below: Option<Digest> = None;
        let join = |(blob, diff_id): (&Digest, Digest)| {
            let chain_id = chain_id(below.as_ref(), &diff_id);
            below = Some(chain_id.clone());
            ImageLayer { blob: blob.clone(), diff_id, chain_id }
        };
        Ok(self.layers.iter().zip(diff_ids).map(join).collect())
    }
}

/// OCI image specification, config, "Layer ChainID".
fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::sha256(format!("{below} {diff_id}").as_bytes()),
    }
}

fn runs_here(platform: &RawPlatform) -> bool {
    let variant = platform.variant.as_deref().unwrap_or_default();
    // Variants are ABI levels: the base level of amd64, and v8, the only one of arm64, run everywhere.
    platform.os == "linux" && platform.architecture == architecture() && matches!(variant, "" | "v1" | "v8")
}

/// This machine's architecture by its name in images (GOARCH).
fn architecture() -> &'static str {
    match ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_leads_to_this_platform() {
        let [mine, other] = [b"mine", b"othe"].map(|bytes| Digest::sha256(bytes));
        let arch = architecture();
        let json = format!(
            r#"{{"schemaVersion":2,"manifests":[
                {{"digest":"{other}","platform":{{"os":"windows","architecture":"{arch}"}}}},
                {{"digest":"{other}"}},
                {{"digest":"{other}","platform":{{"os":"linux","architecture":"{arch}","variant":"v3"}}}},
                {{"digest":"{mine}","platform":{{"os":"linux","architecture":"{arch}"}}}}]}}"#
        );
        assert_eq!(Document::parse(json.as_bytes()).unwrap(), Document::Index(mine));
        assert!(Document::parse(br#"{"manifests":[]}"#).unwrap_err().contains(arch));
        assert!(Document::parse(b"{}").is_err());
    }

    #[test]
    fn layers_of_other_types_are_left_to_containerd() {
        let digest = Digest::sha256(b"layer");
        let config = format!(r#"{{"rootfs":{{"diff_ids":["{digest}"]}}}}"#);
        let layers = |media_type: &str| {
            let layer = format!(r#"{{"mediaType":"{media_type}","digest":"{digest}"}}"#);
            let json = format!(r#"{{"config":{{"digest":"{digest}"}},"layers":[{layer}]}}"#);
            let Document::Manifest(manifest) = Document::parse(json.as_bytes()).unwrap() else { panic!() };
            manifest.layers(config.as_bytes())
        };
        for taken in LAYER_TYPES {
            assert_eq!(layers(taken).unwrap().len(), 1, "{taken}");
        }
        for other in [
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "application/vnd.erofs.layer.v1",
            "",
        ] {
            assert!(layers(other).unwrap_err().contains(other), "{other}");
        }
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let [config, a, b] = [b"c", b"a", b"b"].map(|bytes| Digest::sha256(bytes));
        let manifest = Manifest { config, layers: vec![a.clone(), b.clone()], other_type: None };
        let layers =
            manifest.layers(format!(r#"{{"rootfs":{{"diff_ids":["{b}","{a}"]}}}}"#).as_bytes()).unwrap();
        let [first, second] = layers.try_into().unwrap();
        assert_eq!((first.blob, first.diff_id, first.chain_id), (a.clone(), b.clone(), b.clone()));
        assert_eq!(second.chain_id, Digest::sha256(format!("{b} {a}").as_bytes()));
        assert!(manifest.layers(format!(r#"{{"rootfs":{{"diff_ids":["{b}"]}}}}"#).as_bytes()).is_err());
    }
}
