//! containerd by itself: everything is fetched and unpacked before anything runs.

use anyhow::Result;
use darter_integration::{Containerd, ImageRef, Lab, Registry, Throttle, containerd::OVERLAYFS};

use crate::{
    State,
    start::{Start, Starter},
    subject::Subject,
};

pub(crate) async fn measure(lab: &Lab, subject: &Subject, link_mbit: u64) -> Result<Vec<(State, Start)>> {
    let registry = Registry::start(lab).await?;
    let link = Throttle::to(registry.address).await?;
    let pushed = registry.push("bench/subject:1", &subject.image).await?;
    let image = ImageRef { registry: link.address.to_string(), ..pushed };
    let containerd = Containerd::start(lab, "node").await?;
    link.limit(link_mbit * 125_000);
    let starter = Starter { containerd: &containerd, snapshotter: OVERLAYFS, image: &image, links: &[&link] };
    let pull = async { containerd.pull(&image).await.map(drop) };
    Ok(vec![(State::Cold, starter.start(subject, pull).await?)])
}
