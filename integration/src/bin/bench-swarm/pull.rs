//! A pull: what a runtime on a host does.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use darter_integration::{Lab, network::Host};

/// A blob at the origin.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    /// `sha256:` and the digest.
    pub(crate) digest: String,
    pub(crate) len: u64,
}

impl Blob {
    /// Its path at a registry.
    pub(crate) fn path(&self) -> String {
        format!("v2/image/blobs/{}", self.digest)
    }
}

/// Fetches all blobs at once to their ends from a registry, or a mirror of one, and says how long that took. `query` is
/// added to each URL.
pub(crate) async fn pull(
    lab: Lab,
    host: Host,
    registry: String,
    query: &str,
    blobs: Vec<Blob>,
) -> Result<Duration> {
    let mut curl = host.command(&lab, "curl").args(["--silent", "--fail", "--fail-early", "--parallel"]);
    curl = curl.args(["--write-out", "%{size_download}\n"]);
    for blob in &blobs {
        curl = curl.args(["--output", "/dev/null", &format!("http://{registry}/{}{query}", blob.path())]);
    }
    let pulled = curl.run().await?;
    let lens: Result<Vec<u64>, _> = pulled.stdout.split_whitespace().map(str::parse).collect();
    let (came, due) =
        (lens.context("curl tells no lengths")?, blobs.iter().map(|blob| blob.len).sum::<u64>());
    ensure!(came.iter().sum::<u64>() == due, "{came:?} of {due} bytes came");
    Ok(pulled.elapsed)
}
