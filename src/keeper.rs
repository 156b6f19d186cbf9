//! `darter keeper`: holds the mounts of lazy layers while the peer is away.

use std::path::PathBuf;

use anyhow::Context;
use darter_snapshotter::keeper;

/// Hold the mounts of lazy layers while this node's peer restarts. The peer starts it by itself.
///
/// Only where whatever ends the peer also ends all processes that it has started, as in a pod, run it apart from the peer.
#[derive(Debug, clap::Args)]
pub(crate) struct Keeper {
    /// The peer's `snapshotter.root`.
    dir: PathBuf,
    /// Stay when there is nothing to hold (any more), and wait for the next mount.
    #[arg(long)]
    stay: bool,
}

impl Keeper {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let dir = std::path::absolute(self.dir)?;
        keeper::detach()?;
        keeper::keep(&dir, self.stay).with_context(|| format!("keeping for {}", dir.display()))
    }
}
