//! Debian's docker-registry: the origin of every image in a test.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use http::{Request, StatusCode, header};
use serde_json::{Value, json};

pub use self::{
    guarded::{Guarded, PrivateCa},
    tokens::{PASSWORD, TokenServer},
    traffic::{Sent, Traffic},
};
use crate::{
    Image, Lab, Process, Program,
    http::{Body, empty, full, send},
    image::Descriptor,
    process::free_address,
};

mod guarded;
mod tokens;
mod traffic;

/// A registry in a lab. It speaks plain HTTP and has what was pushed to it.
#[derive(Debug)]
pub struct Registry {
    /// Where it listens.
    pub address: SocketAddr,
    /// The program itself.
    pub process: Process,
    /// Where it stores everything.
    data: PathBuf,
}

/// An image as a runtime names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// `host:port` of the registry.
    pub registry: String,
    /// Its name in the registry.
    pub repository: String,
    /// Its tag; after it perhaps `@` and its digest.
    pub tag: String,
}

/// A place in the registry's log, to ask what was sent since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark(usize);

// === impl Registry ===

impl Registry {
    /// Starts an empty registry on a free port.
    pub async fn start(lab: &Lab) -> Result<Self> {
        let address = free_address()?;
        let data = lab.dir().join("registry/data");
        let config = lab.write(
            "registry/config.json",
            &config(&data, &json!({ "addr": address.to_string() })).to_string(),
        )?;
        let program = Program::new("registry", "docker-registry").arg("serve").arg(config);
        let mut process = Process::start(lab, program)?;
        process.until_http(&format!("http://{address}/v2/")).await?;
        Ok(Self { address, process, data })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Pushes an image under `name`, which is a repository and a tag: `library/python:3`.
    pub async fn push(&self, name: &str, image: &Image) -> Result<ImageRef> {
        let (repository, tag) = name.split_once(':').with_context(|| format!("{name} has no tag"))?;
        for blob in image.layers.iter().map(|layer| &layer.blob).chain([&image.config]) {
            self.push_blob(repository, image, blob).await?;
        }
        let manifest = std::fs::read(image.path_of(&image.manifest))?;
        let request = Request::put(format!("{}/v2/{repository}/manifests/{tag}", self.url()))
            .header(header::CONTENT_TYPE, &image.manifest.media_type)
            .body(full(manifest))?;
        expect(StatusCode::CREATED, request).await?;
        Ok(ImageRef { registry: self.address.to_string(), repository: repository.into(), tag: tag.into() })
    }

    /// A monolithic upload: OCI distribution specification, "Pushing a blob monolithically", POST then PUT.
    async fn push_blob(&self, repository: &str, image: &Image, blob: &Descriptor) -> Result<()> {
        let blobs = format!("{}/v2/{repository}/blobs", self.url());
        let known = send(Request::head(format!("{blobs}/{}", blob.digest)).body(empty())?).await?;
        if known.status.is_success() {
            return Ok(());
        }
        let upload =
            expect(StatusCode::ACCEPTED, Request::post(format!("{blobs}/uploads/")).body(empty())?).await?;
        let location = upload.headers.get(header::LOCATION).context("no Location")?.to_str()?;
        let separator = if location.contains('?') { '&' } else { '?' };
        let request = Request::put(format!("{location}{separator}digest={}", blob.digest))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::CONTENT_LENGTH, blob.size)
            .body(crate::http::file(&image.path_of(blob)).await?)?;
        expect(StatusCode::CREATED, request).await?;
        Ok(())
    }

    /// Changes one byte in the middle of a blob as it is stored, or changes it back. The registry does not notice.
    pub fn flip_byte_of(&self, blob: &Descriptor) -> Result<()> {
        let name = blob.digest.strip_prefix("sha256:").context("no SHA-256")?;
        let shard = name.get(..2).context("a short digest")?;
        let path = self.data.join("docker/registry/v2/blobs/sha256").join(shard).join(name).join("data");
        let mut bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let middle = bytes.len() / 2;
        *bytes.get_mut(middle).context("an empty blob")? ^= 1;
        Ok(std::fs::write(&path, bytes)?)
    }

    /// Where its log ends now.
    pub fn mark(&self) -> Mark {
        Mark(self.process.log().len())
    }

    /// What it has sent in answers that ended after `mark` was taken.
    ///
    /// An answer is logged just after its last byte is sent, so this first waits until nothing more is logged.
    pub async fn traffic_since(&self, mark: Mark) -> Traffic {
        let mut log = self.process.log();
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            let later = self.process.log();
            if later.len() == log.len() {
                return Traffic::parse(log.get(mark.0..).unwrap_or_default());
            }
            log = later;
        }
    }
}

/// docker-registry's configuration is YAML, of which JSON is a part.
fn config(data: &Path, http: &Value) -> Value {
    json!({
        "version": "0.1",
        "log": { "level": "info", "formatter": "json", "accesslog": { "disabled": true } },
        "storage": {
            "filesystem": { "rootdirectory": data },
            "delete": { "enabled": true },
        },
        "http": http,
    })
}

async fn expect(status: StatusCode, request: Request<Body>) -> Result<crate::http::Answer> {
    let what = format!("{} {}", request.method(), request.uri());
    let answer = send(request).await?;
    ensure!(answer.status == status, "{what}: {} {}", answer.status, String::from_utf8_lossy(&answer.body));
    Ok(answer)
}

// === impl ImageRef ===

impl ImageRef {
    /// The same image with its digest in the name, so that nobody needs to ask what the tag stands for.
    pub fn pinned(&self, image: &Image) -> Self {
        Self { tag: format!("{}@{}", self.tag, image.manifest.digest), ..self.clone() }
    }
}

impl std::fmt::Display for ImageRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}:{}", self.registry, self.repository, self.tag)
    }
}

impl FromStr for ImageRef {
    type Err = anyhow::Error;

    /// A full name with a tag; the short names that Docker also knows would not say which registry is meant.
    fn from_str(name: &str) -> Result<Self> {
        let parts =
            name.split_once('/').and_then(|(registry, rest)| Some((registry, rest.rsplit_once(':')?)));
        let Some((registry, (repository, tag))) = parts.filter(|(registry, _)| registry.contains(['.', ':']))
        else {
            bail!("{name:?} is no full name of an image, as docker.io/library/python:3 is");
        };
        Ok(Self { registry: registry.into(), repository: repository.into(), tag: tag.into() })
    }
}
