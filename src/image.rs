//! `darter image`: images in this node's containerd.

use std::{cell::RefCell, path::PathBuf};

use clap::Subcommand;
use darter_snapshotter::pull::{Pull, Step};
use indicatif::{ProgressBar, ProgressStyle};

use crate::control::Control;

/// Work with container images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Pull an image into containerd so that its layers are mounted before they have arrived.
    ///
    /// For containerd 1.6 and 1.7, whose `ctr image pull` cannot do it. The kubelet, crictl and containerd 2 need
    /// nothing but their ordinary pull.
    Pull(PullArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct PullArgs {
    /// The image: NAME[:TAG], REGISTRY/NAME:TAG or REGISTRY/NAME@sha256:…
    reference: String,
    /// containerd's socket.
    #[arg(
        long,
        value_name = "PATH",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace; Kubernetes uses k8s.io.
    #[arg(short, long, env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The snapshotter's name in containerd's configuration.
    #[arg(long, env = "CONTAINERD_SNAPSHOTTER", default_value = "darter")]
    snapshotter: String,
    #[command(flatten)]
    control: Control,
}

impl Image {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let Self::Pull(args) = self;
        let peer = args.control.connect().await?;
        let pull = Pull {
            containerd: args.address,
            namespace: args.namespace,
            snapshotter: args.snapshotter,
            reference: args.reference,
        };
        let bar = RefCell::new(ProgressBar::new(0));
        let pulled = pull.run(peer, |step| show(&bar, step)).await?;
        bar.borrow().finish_and_clear();
        println!(
            "{} {}: {} of {} layers without fetching them",
            pulled.name, pulled.target, pulled.lazy, pulled.layers
        );
        Ok(())
    }
}

fn show(bar: &RefCell<ProgressBar>, step: Step) {
    let line = |text: String| bar.borrow().suspend(|| eprintln!("{text}"));
    match step {
        Step::Layers(count) => line(format!("{count} layers")),
        Step::Lazy(blob) => line(format!("{blob} mounted")),
        Step::Present(blob) => line(format!("{blob} present")),
        Step::Fetching(blob, size) => {
            line(format!("{blob} fetched whole: it cannot be lazy, the peer's log says why"));
            let style = ProgressStyle::with_template(
                "{bar:40} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec}",
            );
            let fresh =
                ProgressBar::new(size).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.replace(fresh);
        }
        Step::Fetched(bytes) => bar.borrow().inc(bytes),
        Step::Unpacked(blob) => line(format!("{blob} unpacked")),
    }
}
