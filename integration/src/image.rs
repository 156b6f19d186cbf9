//! Images made on the spot: from a table of files, or from Debian's packages.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use self::{
    layer::{Compression, LayerWriter},
    node::{Kind, Node},
};
use crate::{Lab, digest, target};

mod debian;
mod layer;
mod node;
mod packaged;
mod tiny;

const BUSYBOX: &str = "/bin/busybox";

/// The same bytes for the same seed each time; no compressor finds anything in them.
pub fn noise(seed: impl AsRef<[u8]>, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(seed.as_ref()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `bin` with busybox in it and links to it for these of its applets.
pub fn busybox(applets: &[&str]) -> Result<Vec<Node>> {
    let program = fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX}: install busybox-static"))?;
    let mut nodes = vec![Node::dir("bin"), Node::file("bin/busybox", program).mode(0o755)];
    nodes.extend(applets.iter().map(|applet| Node::symlink(format!("bin/{applet}"), "busybox")));
    Ok(nodes)
}

/// An image in a directory, with its blobs under `blobs/sha256` as in an OCI image layout.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Image {
    #[serde(skip)]
    dir: PathBuf,
    /// What a registry gives for a tag.
    pub manifest: Descriptor,
    /// The image's config.
    pub config: Descriptor,
    /// The lowest layer first.
    pub layers: Vec<Layer>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// The layer as it is pushed.
    pub blob: Descriptor,
    /// SHA-256 of the raw tar.
    pub diff_id: String,
    /// Length of the raw tar in bytes.
    pub raw_len: u64,
}

/// A blob as a manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What kind of a thing it is.
    pub media_type: String,
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// How manifests, configs and layers are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// OCI image specification 1.0.
    Oci,
    /// Docker image manifest version 2, schema 2.
    Docker,
}

/// Makes an image layer by layer.
#[derive(Debug)]
pub struct ImageBuilder {
    dir: PathBuf,
    format: Format,
    environment: Vec<String>,
    layers: Vec<Layer>,
}

// === impl Image ===

impl Image {
    /// A small image with a shell (busybox) and one of everything that a layer can contain, in three layers.
    pub fn tiny(lab: &Lab) -> Result<Self> {
        tiny::build(ImageBuilder::new(&lab.dir().join("tiny"), Format::Oci)?)
    }

    /// [`Self::tiny`] in Docker's format.
    pub fn tiny_docker(lab: &Lab) -> Result<Self> {
        tiny::build(ImageBuilder::new(&lab.dir().join("tiny-docker"), Format::Docker)?)
    }

    /// Python with numpy and scipy out of Debian's packages: a few hundred MB in several layers. `report` is told
    /// what is being done; it takes a while when it is not in the cache yet.
    pub fn python(report: impl Fn(&str)) -> Result<Self> {
        Self::packaged(&packaged::PYTHON, report)
    }

    /// An application in Python, a large binary and nginx, out of Debian's packages: `sh /srv/start.sh PORT` prints a
    /// line and then serves a page at that port of 127.0.0.1.
    pub fn web(report: impl Fn(&str)) -> Result<Self> {
        Self::packaged(&packaged::WEB, report)
    }

    /// Python with numpy, scipy, pandas, scikit-learn and Django out of Debian's packages.
    pub fn science(report: impl Fn(&str)) -> Result<Self> {
        Self::packaged(&packaged::SCIENCE, report)
    }

    fn packaged(recipe: &'static packaged::Recipe, report: impl Fn(&str)) -> Result<Self> {
        let packages = packaged::Packages::resolve(recipe)?;
        Self::cached(&packages.cache_key(), |dir| {
            packages.build(ImageBuilder::new(dir, Format::Oci)?, &report)
        })
    }

    /// The image of that name from the cache under cargo's target directory, made by `build` if it is not there yet.
    fn cached(name: &str, build: impl FnOnce(&Path) -> Result<Image>) -> Result<Self> {
        let cache = target::cache("images")?;
        let lock = File::create(cache.join(format!("{name}.lock")))?;
        flock(&lock, FlockOperation::LockExclusive)?;
        let dir = cache.join(name);
        let description = dir.join("image.json");
        if let Ok(description) = fs::read(&description) {
            return Ok(Self { dir, ..serde_json::from_slice(&description)? });
        }
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        let image = build(&dir).with_context(|| format!("making the image {name}"))?;
        fs::write(&description, serde_json::to_vec(&image)?)?;
        Ok(image)
    }

    /// The file that a blob of this image is in.
    pub fn path_of(&self, blob: &Descriptor) -> PathBuf {
        blob_path(&self.dir, &blob.digest)
    }

    /// Manifest, config and layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.manifest, &self.config].into_iter().chain(self.layers.iter().map(|layer| &layer.blob))
    }

    /// Names all layers, one on the other: OCI image specification, "Layer ChainID".
    pub fn chain_id(&self) -> String {
        let mut diff_ids = self.layers.iter().map(|layer| layer.diff_id.clone());
        let lowest = diff_ids.next().unwrap_or_default();
        diff_ids.fold(lowest, |below, diff_id| digest::of(format!("{below} {diff_id}").as_bytes()))
    }

    /// Bytes of all layers as they are pushed.
    pub fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.size).sum()
    }

    /// Bytes of all layers as raw tars.
    pub fn raw_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.raw_len).sum()
    }
}

fn blob_path(dir: &Path, digest: &str) -> PathBuf {
    dir.join("blobs").join(digest.replace(':', "/"))
}

// === impl ImageBuilder ===

impl ImageBuilder {
    /// Begins an image in a new directory.
    pub fn new(dir: &Path, format: Format) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256"))?;
        let environment =
            vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
        Ok(Self { dir: dir.to_owned(), format, environment, layers: Vec::new() })
    }

    /// Sets an environment variable of the containers: `NAME=value`.
    pub fn env(mut self, variable: impl Into<String>) -> Self {
        self.environment.push(variable.into());
        self
    }

    /// Adds a layer with what `fill` writes to it.
    pub fn layer(
        mut self,
        compression: Compression,
        fill: impl FnOnce(&mut LayerWriter) -> Result<()>,
    ) -> Result<Self> {
        let unfinished = self.dir.join("unfinished");
        let mut writer = LayerWriter::create(&unfinished, compression)?;
        fill(&mut writer)?;
        let written = writer.finish()?;
        fs::rename(&unfinished, blob_path(&self.dir, &written.digest))?;
        let media_type = self.format.layer_type(compression).to_owned();
        let blob = Descriptor { media_type, digest: written.digest, size: written.len };
        self.layers.push(Layer { blob, diff_id: written.diff_id, raw_len: written.raw_len });
        Ok(self)
    }

    /// Writes the config and the manifest.
    pub fn finish(self) -> Result<Image> {
        let diff_ids: Vec<_> = self.layers.iter().map(|layer| &layer.diff_id).collect();
        let config = self.write_json(
            self.format.config_type(),
            &json!({
                "architecture": architecture(),
                "os": "linux",
                "config": { "Env": self.environment, "Cmd": ["/bin/sh"] },
                "rootfs": { "type": "layers", "diff_ids": diff_ids },
            }),
        )?;
        let layers: Vec<_> = self.layers.iter().map(|layer| &layer.blob).collect();
        let manifest = self.write_json(
            self.format.manifest_type(),
            &json!({
                "schemaVersion": 2,
                "mediaType": self.format.manifest_type(),
                "config": config,
                "layers": layers,
            }),
        )?;
        Ok(Image { dir: self.dir, manifest, config, layers: self.layers })
    }

    fn write_json(&self, media_type: &str, value: &Value) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest::of(&bytes);
        fs::write(blob_path(&self.dir, &digest), &bytes)?;
        Ok(Descriptor { media_type: media_type.to_owned(), digest, size: bytes.len() as u64 })
    }
}

// === impl Format ===

impl Format {
    fn manifest_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    fn config_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    fn layer_type(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Docker, Compression::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
        }
    }
}

/// This machine's architecture as images call it, which is as Go does.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
