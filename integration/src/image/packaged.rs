//! Images out of Debian's packages: an interpreter with its libraries, and what benchmarks start.

use std::{collections::HashSet, path::Path};

use anyhow::{Context, Result, ensure};

use super::{Compression, Image, ImageBuilder, LayerWriter, Node, debian};
use crate::target;

/// What an image is made of.
#[derive(Debug)]
pub(super) struct Recipe {
    name: &'static str,
    /// To be raised when the same packages are made into another image.
    version: u32,
    /// What each layer adds, the lowest first; each comes with what it depends on that no lower layer has.
    layers: &'static [(&'static str, &'static [&'static str])],
    /// Files of an application layer on top of them, none if there are none.
    application: &'static [(&'static str, &'static str)],
}

/// The demo's.
pub(super) const PYTHON: Recipe = Recipe {
    name: "python",
    version: 1,
    layers: &[
        ("a base system", &["base-files", "coreutils", "dash"]),
        ("Python", &["python3"]),
        ("a compiler and headers", &["g++", "python3-dev"]),
        ("numpy", &["python3-numpy", "libopenblas0-pthread"]),
        ("scipy", &["python3-scipy"]),
    ],
    application: &[],
};

/// An application that prints a line when it has its libraries, runs a program in a large binary, and then serves a
/// page at the port of 127.0.0.1 that it is told.
pub(super) const WEB: Recipe = Recipe {
    name: "web",
    version: 2,
    layers: &[
        ("a base system", &["base-files", "coreutils", "dash"]),
        ("nginx", &["nginx-light"]),
        ("Python", &["python3"]),
        ("a compiler and headers", &["g++", "python3-dev"]),
        ("numpy and scipy", &["python3-numpy", "libopenblas0-pthread", "python3-scipy"]),
        ("Node.js", &["nodejs"]),
    ],
    application: &[
        // nginx asks for the user and the group that it would run as.
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\n"),
        ("srv/site/index.html", "served\n"),
        ("srv/app.py", "import numpy, scipy.linalg\nprint(scipy.linalg.det(numpy.eye(3)), flush=True)\n"),
        (
            "srv/start.sh",
            "set -e\n\
             python3 /srv/app.py\n\
             node -e 'require(\"fs\").writeFileSync(\"/tmp/version\", process.version)'\n\
             echo \"listen 127.0.0.1:$1;\" > /tmp/listen.conf\n\
             exec nginx -c /srv/nginx.conf\n",
        ),
        (
            "srv/nginx.conf",
            "user root root;\ndaemon off;\nmaster_process off;\npid /tmp/nginx.pid;\nerror_log stderr;\nevents {}\nhttp {\n\
             access_log off;\nclient_body_temp_path /tmp/body;\nproxy_temp_path /tmp/proxy;\n\
             fastcgi_temp_path /tmp/fastcgi;\nuwsgi_temp_path /tmp/uwsgi;\nscgi_temp_path /tmp/scgi;\n\
             server { include /tmp/listen.conf; root /srv/site; }\n}\n",
        ),
    ],
};

/// Scientific Python: what its users wait longest for.
pub(super) const SCIENCE: Recipe = Recipe {
    name: "science",
    version: 1,
    layers: &[
        ("a base system", &["base-files", "coreutils", "dash"]),
        ("Python", &["python3"]),
        (
            "libraries",
            &[
                "python3-numpy",
                "libopenblas0-pthread",
                "python3-scipy",
                "python3-pandas",
                "python3-sklearn",
                "python3-django",
                "g++",
                "python3-dev",
            ],
        ),
    ],
    application: &[],
};

/// The packages of each layer.
#[derive(Debug)]
pub(super) struct Packages {
    recipe: &'static Recipe,
    /// File names, by layer.
    files: Vec<Vec<String>>,
}

// === impl Packages ===

impl Packages {
    /// Asks apt which packages are needed.
    pub(super) fn resolve(recipe: &'static Recipe) -> Result<Self> {
        let mut below = HashSet::new();
        let mut wanted = Vec::new();
        let mut files = Vec::new();
        for (_, packages) in recipe.layers {
            wanted.extend_from_slice(packages);
            let mut new = debian::closure(&wanted)?;
            new.retain(|file| below.insert(file.clone()));
            files.push(new);
        }
        Ok(Self { recipe, files })
    }

    /// Names the image that these packages make.
    pub(super) fn cache_key(&self) -> String {
        let hash = blake3::hash(self.files.concat().join("\n").as_bytes()).to_hex();
        format!("{}-{}-{}", self.recipe.name, self.recipe.version, hash.as_str().split_at(16).0)
    }

    /// Downloads the packages and makes the image.
    pub(super) fn build(&self, mut builder: ImageBuilder, report: &impl Fn(&str)) -> Result<Image> {
        let archives = target::cache("packages")?;
        let layers = self.recipe.layers;
        let all: Vec<_> = layers.iter().flat_map(|(_, packages)| *packages).copied().collect();
        report("downloading Debian packages");
        debian::download(&all, &archives)?;
        let libraries = format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        // Where Debian's maintainer scripts, which are not run, would have linked these.
        builder = builder.env(format!("LD_LIBRARY_PATH={libraries}/openblas-pthread"));
        for (at, ((name, _), files)) in layers.iter().zip(&self.files).enumerate() {
            report(&format!("making the layer with {name}"));
            builder = builder.layer(Compression::Gzip, |layer| fill(layer, at == 0, files, &archives))?;
        }
        if !self.recipe.application.is_empty() {
            let files = self.recipe.application.iter().map(|(path, content)| Node::file(*path, *content));
            let nodes: Vec<_> = ["etc", "srv", "srv/site"].into_iter().map(Node::dir).chain(files).collect();
            builder = builder.layer(Compression::Gzip, |layer| layer.add_all(&nodes))?;
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
