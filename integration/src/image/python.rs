//! The demo's image: an interpreter with its libraries.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, ensure};

use super::{Compression, Image, ImageBuilder, LayerWriter, debian};
use crate::target;

/// What each layer adds, the lowest first; each comes with what it depends on that no lower layer has.
const LAYERS: [(&str, &[&str]); 5] = [
    ("a base system", &["base-files", "coreutils", "dash"]),
    ("Python", &["python3"]),
    ("a compiler and headers", &["g++", "python3-dev"]),
    ("numpy", &["python3-numpy", "libopenblas0-pthread"]),
    ("scipy", &["python3-scipy"]),
];
/// To be raised when the same packages are made into another image.
const RECIPE: u32 = 1;

/// The packages of each layer.
#[derive(Debug)]
pub(super) struct Packages {
    /// File names, by layer.
    files: Vec<Vec<String>>,
}

// === impl Packages ===

impl Packages {
    /// Asks apt which packages are needed.
    pub(super) fn resolve() -> Result<Self> {
        let mut below = HashSet::new();
        let mut wanted = Vec::new();
        let mut files = Vec::new();
        for (_, packages) in LAYERS {
            wanted.extend(packages);
            let mut new = debian::closure(&wanted)?;
            new.retain(|file| below.insert(file.clone()));
            files.push(new);
        }
        Ok(Self { files })
    }

    /// Names the image that these packages make.
    pub(super) fn cache_key(&self) -> String {
        let hash = blake3::hash(self.files.concat().join("\n").as_bytes()).to_hex();
        format!("python-{RECIPE}-{}", hash.as_str().split_at(16).0)
    }

    /// Downloads the packages and makes the image.
    pub(super) fn build(&self, mut builder: ImageBuilder, report: &impl Fn(&str)) -> Result<Image> {
        let archives = target::cache("packages")?;
        let all: Vec<_> = LAYERS.iter().flat_map(|(_, packages)| *packages).copied().collect();
        report("downloading Debian packages");
        debian::download(&all, &archives)?;
        let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        // Where Debian's maintainer scripts, which are not run, would have linked these.
        builder = builder.env(format!("LD_LIBRARY_PATH={libraries}/openblas-pthread"));
        for ((name, _), files) in LAYERS.iter().zip(&self.files) {
            report(&format!("making the layer with {name}"));
            let lowest = *name == LAYERS[0].0;
            builder = builder.layer(Compression::Gzip, |layer| fill(layer, lowest, files, &archives))?;
        }
        builder.finish()
    }
}

fn fill(layer: &mut LayerWriter, lowest: bool, files: &[String], archives: &Path) -> Result<()> {
    if lowest {
        layer.add_all(&debian::merged_links().collect::<Vec<_>>())?;
    }
    let mut unpacker = debian::Unpacker::default();
    for file in files {
        let package = archives.join(file);
        ensure!(package.exists(), "apt-get did not download {file}");
        unpacker.unpack(&package, layer).with_context(|| format!("unpacking {file}"))?;
    }
    Ok(())
}
