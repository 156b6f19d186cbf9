//! What is measured: one large layer, compressed in several ways, and the layers that it is put together from.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use darter_integration::{Image, target};
use flate2::read::MultiGzDecoder;

/// What ends a tar as the image's layers are written, in bytes.
const END_MARKER_LEN: u64 = 1024;

/// One large layer, and the image it is made of.
pub(crate) struct Subject {
    /// Uncompressed.
    pub(crate) raw: PathBuf,
    pub(crate) raw_len: u64,
    /// The blobs of the image's layers.
    pub(crate) layers: Vec<PathBuf>,
}

/// A program to measure.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) command: Vec<String>,
}

/// Where the subject lies.
pub(crate) fn dir() -> Result<PathBuf> {
    target::cache("bench-layer")
}

impl Subject {
    /// Makes what is not there yet.
    pub(crate) fn get() -> Result<Self> {
        let image = Image::python(|what| eprintln!("{what}"))?;
        let layers: Vec<_> = image.layers.iter().map(|layer| image.path_of(&layer.blob)).collect();
        let raw = dir()?.join(format!("{}.tar", image.chain_id().replace("sha256:", "")));
        if !raw.exists() {
            eprintln!("putting the image's layers together");
            join(&layers, &raw)?;
        }
        for (suffix, compress) in [("gz", &["gzip", "-6"][..]), ("zst", &["zstd", "-q", "-3"])] {
            let blob = raw.with_added_extension(suffix);
            if !blob.exists() {
                eprintln!("{} …", compress.join(" "));
                self::compress(compress, &raw, &blob)?;
            }
        }
        let raw_len = fs::metadata(&raw)?.len();
        Ok(Self { raw, raw_len, layers })
    }

    /// Everything that is measured; the first two are what the others are compared with.
    pub(crate) fn kinds(&self) -> Result<Vec<Kind>> {
        let (gzip, zstd) = (self.raw.with_added_extension("gz"), self.raw.with_added_extension("zst"));
        let shell = |name, script: &str| Kind {
            name,
            command: ["sh", "-c", script, "sh", &text(&gzip)].map(str::to_owned).to_vec(),
        };
        let own = text(&std::env::current_exe()?);
        let make = |name, blobs: &[PathBuf]| Kind {
            name,
            command: [own.clone(), "make".into()]
                .into_iter()
                .chain(blobs.iter().map(|blob| text(blob)))
                .collect(),
        };
        let unpacked = text(&dir()?.join("unpacked"));
        let unpack = format!(
            "mkdir {unpacked} && gzip -dc \"$1\" | tar x -C {unpacked}; rc=$?; rm -rf {unpacked}; exit $rc"
        );
        Ok(vec![
            shell("gzip -dc", "gzip -dc \"$1\" >/dev/null"),
            shell("gzip -dc | tar x", &unpack),
            make("make, gzip", std::slice::from_ref(&gzip)),
            make("make, zstd", &[zstd]),
            make("make, plain", std::slice::from_ref(&self.raw)),
            make("make, layers at once", &self.layers),
        ])
    }
}

/// Joins layers as if all had been written as one.
fn join(layers: &[PathBuf], raw: &Path) -> Result<()> {
    let unfinished = raw.with_extension("unfinished");
    let mut out = BufWriter::new(File::create(&unfinished)?);
    for layer in layers {
        let mut blob = MultiGzDecoder::new(BufReader::new(File::open(layer)?));
        io::copy(&mut blob, &mut out)?;
        let file = out.into_inner()?;
        let len = file.metadata()?.len();
        file.set_len(len - END_MARKER_LEN)?;
        let file = File::options().append(true).open(&unfinished)?;
        out = BufWriter::new(file);
    }
    out.write_all(&[0; END_MARKER_LEN as usize])?;
    out.flush()?;
    Ok(fs::rename(&unfinished, raw)?)
}

fn compress(command: &[&str], raw: &Path, blob: &Path) -> Result<()> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let unfinished = raw.with_extension("unfinished");
    let out = File::create(&unfinished)?;
    let status = Command::new(program).args(arguments).arg("-c").arg(raw).stdout(out).status()?;
    ensure!(status.success(), "{program}: {status}");
    Ok(fs::rename(&unfinished, blob)?)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
