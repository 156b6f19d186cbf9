//! The plain way: every host asks the origin.

use std::time::Duration;

use anyhow::Result;
use darter_integration::{Lab, network::Host};
use tokio::task::JoinSet;

use crate::pull::Blob;

/// Lets every host fetch the blob with curl, and says how long each took.
pub(crate) async fn pull(lab: &Lab, hosts: &[Host], blob: &Blob) -> Result<Vec<Duration>> {
    let mut pulls = JoinSet::new();
    for host in hosts {
        let curl = host.command(lab, "curl").args(["--silent", "--fail", "--output", "/dev/null", &blob.url]);
        pulls.spawn(curl.run());
    }
    let mut times = Vec::new();
    while let Some(pulled) = pulls.join_next().await {
        times.push(pulled??.elapsed);
    }
    Ok(times)
}
