//! soci-snapshotter, the lazy snapshotter that Debian has, with its index of the image on the node already.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use darter_integration::{
    Containerd, ImageRef, Lab, Process, Program, Registry, Throttle, command::Command, target, wait::until,
};

use crate::{
    State,
    start::{Start, Starter},
    subject::Subject,
};

/// The name under which containerd knows it.
const SOCI: &str = "soci";
/// Where its programs keep what they index, and cannot be told otherwise.
const STATE: &str = "/var/lib/soci-snapshotter-grpc";

/// What its daemon logs of a layer that it unpacks.
const NOT_LAZY: &str = r#""remote-snapshot-prepared":"false""#;

/// [`STATE`] as a link into the lab while this lives.
struct StateLink;

pub(crate) async fn measure(lab: &Lab, subject: &Subject, link_mbit: u64) -> Result<Vec<(State, Start)>> {
    let programs = target::cache("soci")?.join("usr/bin");
    ensure!(programs.exists(), "soci-snapshotter is not there: integration/install-soci.sh");
    let registry = Registry::start(lab).await?;
    let link = Throttle::to(registry.address).await?;
    let pushed = registry.push("bench/subject:1", &subject.image).await?;
    let image = ImageRef { registry: link.address.to_string(), ..pushed };
    // Its daemon looks for the index here first; from a registry that speaks plain HTTP it could not fetch it.
    let _state = StateLink::to(&lab.subdir("soci-state")?)?;
    let index = make_index(lab, &programs, &image).await?;

    let socket = lab.dir().join("soci.sock");
    let daemon = Program::new("soci", programs.join("soci-snapshotter-grpc"));
    let daemon = daemon.arg("--address").arg(&socket).arg("--root").arg(lab.subdir("soci-root")?);
    let daemon = daemon.arg("--config").arg(lab.write("soci.toml", "")?);
    let daemon = Process::start(lab, daemon)?;
    until("listening: soci-snapshotter", async || socket.exists()).await?;
    let containerd = Containerd::start_with_plugin(lab, "node", Some((SOCI, &socket))).await?;
    link.limit(link_mbit * 125_000);
    let starter = Starter { containerd: &containerd, snapshotter: SOCI, image: &image, links: &[&link] };
    let pull = async {
        let pull = soci(lab, &programs, &containerd).args(["image", "rpull", "--plain-http"]);
        let pull = pull.args(["--soci-index-digest", &index]).arg(image.to_string()).run().await?;
        ensure!(pull.stderr.is_empty() || !pull.stderr.contains("error"), "{}", pull.stderr);
        Ok(())
    };
    let cold = starter.start(subject, pull).await?;
    ensure!(!daemon.log().contains(NOT_LAZY), "soci-snapshotter has not mounted every layer");
    Ok(vec![(State::Cold, cold)])
}

/// Makes the index of an image. Returns its digest.
async fn make_index(lab: &Lab, programs: &Path, image: &ImageRef) -> Result<String> {
    let containerd = Containerd::start(lab, "indexer").await?;
    containerd.pull(image).await?;
    let name = image.to_string();
    // Layers of less than 10 MB would have no index, and the daemon does not fetch them over plain HTTP either.
    soci(lab, programs, &containerd)
        .args(["create", "--platform", "linux/amd64", "--min-layer-size", "0", &name])
        .run()
        .await?;
    let listed = soci(lab, programs, &containerd).args(["index", "list", "-q"]).run().await?.stdout;
    Ok(listed.split_whitespace().next().context("soci lists no index")?.to_owned())
}

fn soci(lab: &Lab, programs: &Path, containerd: &Containerd) -> Command {
    let command = Command::new(lab, programs.join("soci")).arg("--address").arg(containerd.socket());
    command.args(["--namespace", containerd.namespace()])
}

// === impl StateLink ===

impl StateLink {
    /// Fails if there is a soci-snapshotter of this machine's own.
    fn to(dir: &Path) -> Result<Self> {
        let state = PathBuf::from(STATE);
        if state.is_symlink() {
            // Of a benchmark that was killed.
            fs::remove_file(&state)?;
        }
        symlink(dir, &state).with_context(|| format!("{STATE} is in use"))?;
        Ok(Self)
    }
}

impl Drop for StateLink {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(STATE) {
            eprintln!("{STATE} could not be removed: {error}");
        }
    }
}
