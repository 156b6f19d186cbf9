//! What a registry has sent, from its log.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;

use crate::Image;

/// What a registry has sent of each blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic {
    /// By digest: `sha256:…`.
    pub blobs: BTreeMap<String, Sent>,
    /// Requests for manifests, by tag or digest.
    pub manifest_requests: u64,
}

/// What has been sent of one blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sent {
    /// GET requests.
    pub requests: u64,
    /// Bytes of bodies, also of answers that were broken off.
    pub bytes: u64,
}

/// The fields of docker-registry's log line about an answered request that are of use here.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "http.request.method")]
    method: String,
    #[serde(rename = "http.request.uri")]
    uri: String,
    #[serde(rename = "http.response.written", default)]
    written: u64,
    msg: String,
}

// === impl Traffic ===

impl Traffic {
    /// Sums up a log in docker-registry's JSON format; other lines in it are passed over.
    pub fn parse(log: &str) -> Self {
        let mut traffic = Self::default();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
        for line in lines.filter(|line| line.msg.starts_with("response completed") && line.method == "GET") {
            let path = line.uri.split('?').next().unwrap_or_default();
            if let Some((_, digest)) = path.split_once("/blobs/") {
                let sent = traffic.blobs.entry(digest.to_owned()).or_default();
                sent.requests += 1;
                sent.bytes += line.written;
            } else if path.contains("/manifests/") {
                traffic.manifest_requests += 1;
            }
        }
        traffic
    }

    /// What has been sent of one blob.
    pub fn of(&self, digest: &str) -> Sent {
        self.blobs.get(digest).copied().unwrap_or_default()
    }

    /// Fails unless every layer of the image was sent, and no byte of it twice.
    pub fn expect_each_layer_once(&self, image: &Image) -> Result<()> {
        for layer in &image.layers {
            let sent = self.of(&layer.blob.digest);
            ensure!(
                sent.bytes == layer.blob.size,
                "{}: {} bytes sent in {} answers, it has {}",
                layer.blob.digest,
                sent.bytes,
                sent.requests,
                layer.blob.size
            );
        }
        Ok(())
    }

    /// Bytes of all blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.values().map(|sent| sent.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"
time="x" level=info msg="not JSON"
{"http.request.method":"GET","http.request.uri":"/v2/a/blobs/sha256:1?ns=x","http.response.written":7,"msg":"response completed"}
{"http.request.method":"GET","http.request.uri":"/v2/a/blobs/sha256:1","http.response.written":3,"msg":"response completed with error"}
{"http.request.method":"HEAD","http.request.uri":"/v2/a/blobs/sha256:1","http.response.written":0,"msg":"response completed"}
{"http.request.method":"GET","http.request.uri":"/v2/a/blobs/sha256:2","msg":"response completed"}
{"http.request.method":"GET","http.request.uri":"/v2/a/manifests/1","http.response.written":9,"msg":"response completed"}
{"http.request.method":"GET","http.request.uri":"/v2/a/blobs/sha256:1","http.response.written":5,"msg":"authorized request"}
"#;

    #[test]
    fn bytes_are_summed_up_by_blob() {
        let traffic = Traffic::parse(LOG);
        assert_eq!(traffic.of("sha256:1"), Sent { requests: 2, bytes: 10 });
        assert_eq!(traffic.of("sha256:2"), Sent { requests: 1, bytes: 0 });
        assert_eq!(traffic.of("sha256:3"), Sent::default());
        assert_eq!((traffic.bytes(), traffic.manifest_requests), (10, 1));
    }
}
