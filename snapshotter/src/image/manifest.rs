//! The parts of manifests, indexes and configs that are needed here (OCI image specification, and Docker's image
//! manifest version 2, schema 2, which has the same fields).

use std::env::consts::ARCH;

use darter_peer::Digest;
use serde::Deserialize;

/// Most layers of an image; overlayfs takes 500.
const MAX_LAYERS: usize = 500;

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
struct RawDescriptor {
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
                let layers = layers.into_iter().map(|layer| layer.digest).collect();
                Ok(Self::Manifest(Manifest { config: config.digest, layers }))
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
    fn chain_ids_are_those_of_the_specification() {
        let [config, a, b] = [b"c", b"a", b"b"].map(|bytes| Digest::sha256(bytes));
        let manifest = Manifest { config, layers: vec![a.clone(), b.clone()] };
        let layers =
            manifest.layers(format!(r#"{{"rootfs":{{"diff_ids":["{b}","{a}"]}}}}"#).as_bytes()).unwrap();
        let [first, second] = layers.try_into().unwrap();
        assert_eq!((first.blob, first.diff_id, first.chain_id), (a.clone(), b.clone(), b.clone()));
        assert_eq!(second.chain_id, Digest::sha256(format!("{b} {a}").as_bytes()));
        assert!(manifest.layers(format!(r#"{{"rootfs":{{"diff_ids":["{b}"]}}}}"#).as_bytes()).is_err());
    }
}
