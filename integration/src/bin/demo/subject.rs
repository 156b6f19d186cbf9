//! The image that is shown.

use anyhow::{Context, Result};
use darter_integration::{Cluster, Image, ImageRef};

use crate::{Options, progress};

/// What a program in the image that we make does; it needs a good part of Python, numpy and scipy for it.
const PROGRAM: &str = "import numpy, scipy.linalg; print(scipy.linalg.det(numpy.eye(3)))";

/// The image that is shown, and what is run in it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) image: ImageRef,
    pub(crate) command: Vec<String>,
    /// The image, if it was made here.
    pub(crate) made: Option<Image>,
}

/// Makes the image out of Debian's packages unless another one was named.
pub(crate) async fn make(options: &Options) -> Result<Option<Image>> {
    if options.image.is_some() {
        return Ok(None);
    }
    let spinner = progress::spinner("choosing Debian packages");
    let reported = spinner.clone();
    let making =
        tokio::task::spawn_blocking(move || Image::python(|what| reported.set_message(what.to_owned())))
            .await?;
    spinner.set_message("an image with Python, numpy and scipy out of Debian packages");
    progress::finish(&spinner, making.is_ok());
    making.map(Some)
}

impl Subject {
    /// Pushes the image that was made, or finds the one that was named.
    pub(crate) async fn publish(cluster: &Cluster, made: Option<Image>, options: &Options) -> Result<Self> {
        let Some(image) = made else {
            let name = options.image.as_deref().context("no image")?;
            return Self::named(cluster, name, options.command.clone());
        };
        let pushed =
            progress::step("pushing it to the registry", cluster.push("demo/python:1", &image)).await?;
        let command = ["python3", "-c", PROGRAM].map(str::to_owned).to_vec();
        Ok(Self { image: pushed, command, made: Some(image) })
    }

    fn named(cluster: &Cluster, name: &str, command: Vec<String>) -> Result<Self> {
        let image: ImageRef = name.parse()?;
        for node in &cluster.nodes {
            node.containerd.mirror(&image.registry, &node.peer.proxy_url())?;
        }
        Ok(Self { image, command, made: None })
    }

    /// Bytes that a pull brings, if that is known.
    pub(crate) fn bytes(&self) -> Option<u64> {
        self.made.as_ref().map(Image::layer_bytes)
    }

    /// Bytes of its raw layers, if that is known.
    pub(crate) fn raw_bytes(&self) -> Option<u64> {
        self.made.as_ref().map(Image::raw_bytes)
    }

    /// The command, as it is run.
    pub(crate) fn command(&self) -> impl Iterator<Item = &str> {
        self.command.iter().map(String::as_str)
    }

    /// One line about the image.
    pub(crate) fn describe(&self) -> String {
        match &self.made {
            Some(image) => format!(
                "{}: {} layers, {} MB compressed, {} MB raw.",
                self.image,
                image.layers.len(),
                image.layer_bytes() / 1_000_000,
                image.raw_bytes() / 1_000_000
            ),
            None => format!("{}.", self.image),
        }
    }
}
