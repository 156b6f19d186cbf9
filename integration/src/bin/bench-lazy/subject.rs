//! The images that are started.

use anyhow::Result;
use darter_integration::Image;
use serde::Serialize;

/// What a scientific Python program imports before it does anything.
const IMPORTS: &str =
    "import numpy, scipy.linalg, pandas, sklearn.linear_model, django; print(numpy.eye(3).sum())";

/// Which image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// An application in Python, a large binary and nginx.
    Web,
    /// Python with five large libraries.
    Science,
}

/// An image and what is run in it.
pub(crate) struct Subject {
    pub(crate) kind: Kind,
    pub(crate) image: Image,
}

impl Subject {
    /// Makes the image, or takes it from the cache.
    pub(crate) fn make(kind: Kind) -> Result<Self> {
        let report = |what: &str| println!("{what}");
        let image = match kind {
            Kind::Web => Image::web(report)?,
            Kind::Science => Image::science(report)?,
        };
        Ok(Self { kind, image })
    }

    /// The command, which serves at `port` of 127.0.0.1 if it serves at all.
    pub(crate) fn command(&self, port: u16) -> Vec<String> {
        match self.kind {
            Kind::Web => vec!["sh".into(), "/srv/start.sh".into(), port.to_string()],
            Kind::Science => ["python3", "-c", IMPORTS].map(str::to_owned).to_vec(),
        }
    }

    /// Whether the command goes on after its first line and answers requests.
    pub(crate) fn serves(&self) -> bool {
        self.kind == Kind::Web
    }

    /// One line about the image.
    pub(crate) fn describe(&self) -> String {
        let (layers, image) = (self.image.layers.len(), &self.image);
        let [stored, raw] = [image.layer_bytes(), image.raw_bytes()].map(|bytes| bytes / 1_000_000);
        format!("The image ({:?}): {layers} layers, {stored} MB compressed, {raw} MB raw.", self.kind)
    }
}
