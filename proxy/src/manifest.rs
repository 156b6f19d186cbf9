//! What a manifest says about itself: its media type.

use http::HeaderValue;
use serde::{Deserialize, de::IgnoredAny};

/// The media type of a manifest that says nothing about itself, and has no shape that is known.
const UNKNOWN: &str = "application/octet-stream";

/// What tells a manifest from an index of manifests (OCI image specification; Docker's
/// "Image Manifest Version 2").
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    media_type: Option<String>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    #[serde(rename = "fsLayers")]
    schema1_layers: Option<IgnoredAny>,
    signatures: Option<IgnoredAny>,
}

impl Manifest {
    /// Reads a manifest; what is no manifest is one that says nothing.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// The media type that a registry would send with it.
    pub(crate) fn media_type(&self) -> HeaderValue {
        let named = self.media_type.as_deref().filter(|name| name.contains('/'));
        named
            .and_then(|name| HeaderValue::from_str(name).ok())
            .unwrap_or_else(|| HeaderValue::from_static(self.shape()))
    }

    fn shape(&self) -> &'static str {
        if self.manifests.is_some() {
            "application/vnd.oci.image.index.v1+json"
        } else if self.layers.is_some() || self.config.is_some() {
            "application/vnd.oci.image.manifest.v1+json"
        } else if self.schema1_layers.is_some() && self.signatures.is_some() {
            "application/vnd.docker.distribution.manifest.v1+prettyjws"
        } else if self.schema1_layers.is_some() {
            "application/vnd.docker.distribution.manifest.v1+json"
        } else {
            UNKNOWN
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn media_type(json: &str) -> String {
        Manifest::parse(json.as_bytes()).media_type().to_str().unwrap().to_owned()
    }

    #[test]
    fn the_media_type_is_named_or_seen() {
        assert_eq!(
            media_type(r#"{"mediaType": "application/x+json", "manifests": []}"#),
            "application/x+json"
        );
        assert_eq!(media_type(r#"{"manifests": []}"#), "application/vnd.oci.image.index.v1+json");
        assert_eq!(
            media_type(r#"{"config": {}, "layers": []}"#),
            "application/vnd.oci.image.manifest.v1+json"
        );
        let signed = r#"{"fsLayers": [], "signatures": []}"#;
        assert_eq!(media_type(signed), "application/vnd.docker.distribution.manifest.v1+prettyjws");
        for unknown in ["", "[]", "{}", "\u{0}", r#"{"mediaType": "a\nb"}"#, r#"{"mediaType": 7}"#] {
            assert_eq!(media_type(unknown), UNKNOWN, "{unknown}");
        }
    }

    proptest! {
        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>) {
            Manifest::parse(&bytes).media_type();
        }
    }
}
