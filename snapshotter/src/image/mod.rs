//! Images, as far as a snapshotter has to know them: what the labels ask for, and which layers the image has.

mod labels;
mod manifest;
mod reference;

pub(crate) use labels::{ImageName, LayerRequest, ManifestName, image_name};
pub(crate) use manifest::{Document, ImageLayer};
pub(crate) use reference::{Reference, Repository};
