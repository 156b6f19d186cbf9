//! `darter image`: images in this node's containerd.

use std::{cell::RefCell, path::PathBuf};

use clap::Subcommand;
use darter_proto::peer::{Image as ImageStatus, StatusRequest};
use darter_snapshotter::pull::{Pull, Step};
use indicatif::{BinaryBytes, ProgressBar, ProgressStyle};

use crate::control::Control;

/// Work with container images.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Pull an image into containerd so that its layers are mounted before they have arrived.
    ///
    /// For containerd 1.6 and 1.7, whose `ctr image pull` cannot do it. The kubelet, crictl and containerd 2 need
    /// nothing but their ordinary pull.
    Pull(PullArgs),
    /// Show which images' layers are mounted lazily, and if they are not, why; how much of them is here, and how well
    /// their latest start was foreseen.
    Status(StatusArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatusArgs {
    /// Only images whose name contains this.
    image: Option<String>,
    #[command(flatten)]
    control: Control,
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
        match self {
            Self::Pull(args) => pull(args).await,
            Self::Status(args) => status(args).await,
        }
    }
}

async fn status(args: StatusArgs) -> anyhow::Result<()> {
    let reply = args.control.connect().await?.status(StatusRequest {}).await;
    let images = reply.map_err(|status| anyhow::anyhow!("{}", status.message()))?.into_inner().images;
    let wanted = args.image.unwrap_or_default();
    for image in images.iter().filter(|image| image.name.contains(&wanted)) {
        println!("{}", describe(image));
    }
    Ok(())
}

fn describe(image: &ImageStatus) -> String {
    let lazy = match (image.lazy_layers, image.plain_layers) {
        (lazy, 0) => format!("yes, all {lazy} layers"),
        (0, _) => "no".to_owned(),
        (lazy, plain) => format!("{lazy} of {} layers", lazy + plain),
    };
    let share = |part: u64, whole: u64| format!("{} %", (part * 100).checked_div(whole).unwrap_or(100));
    let mut lines = vec![image.name.clone(), format!("  lazy           {lazy}")];
    if !image.reason.is_empty() {
        lines.push(format!("  why not        {}", image.reason));
    }
    if image.lazy_layers > 0 {
        let (held, all) = (BinaryBytes(image.raw_held), BinaryBytes(image.raw_len));
        lines.push(format!("  present        {}, {held} of {all}", share(image.raw_held, image.raw_len)));
        lines.push(format!("  not fetched    {}", BinaryBytes(image.raw_len.saturating_sub(image.raw_held))));
    }
    if image.start_read > 0 {
        let foreseen = image.start_foreseen.map_or("no start profile was known".to_owned(), |foreseen| {
            format!("{} in the start profile", share(foreseen.into(), image.start_read.into()))
        });
        lines.push(format!("  latest start   read {} leaves, {foreseen}", image.start_read));
    }
    lines.join("\n")
}

async fn pull(args: PullArgs) -> anyhow::Result<()> {
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
