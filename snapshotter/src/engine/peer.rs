//! How the peer gives it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use darter_peer::{
    Class, Content, Digest, Layer, LayerDescriptor, LayerWant, Peer, TaskError, Want,
    origin::{Registries, Source},
};
use futures_util::{StreamExt, future::BoxFuture};
use http::{HeaderValue, header::ACCEPT};
use tracing::{debug, warn};

use super::{Engine, Leaves, NotAllowed, OpenLayer};
use crate::{image::Repository, lazy::LayerRef};

/// Most bytes of a manifest or an image config; registries must accept manifests of 4 MiB (OCI distribution
/// specification, "Pushing Manifests").
const MAX_DOCUMENT_LEN: u64 = 8 * 1024 * 1024;

/// The media types of manifests and indexes that are understood.
pub(crate) const MANIFEST_TYPES: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, */*";

impl Engine for Peer {
    fn manifest<'a>(
        &'a self,
        of: &'a Repository,
        digest: &'a Digest,
    ) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(async move {
            document(self, digest, manifest_source(self.registries(), of, &digest.to_string())?).await
        })
    }

    fn tagged<'a>(&'a self, of: &'a Repository, tag: &'a str) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(async move {
            let mut body = self.origin().get(&manifest_source(self.registries(), of, tag)?, None).await?;
            let mut bytes = BytesMut::new();
            while let Some(next) = body.next().await? {
                check_len((bytes.len() + next.len()) as u64, tag)?;
                bytes.extend_from_slice(&next);
            }
            Ok(bytes.freeze())
        })
    }

    fn blob<'a>(&'a self, of: &'a Repository, digest: &'a Digest) -> BoxFuture<'a, Result<Bytes, TaskError>> {
        Box::pin(async move { document(self, digest, blob_source(self.registries(), of, digest)?).await })
    }

    fn allows<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<(), NotAllowed>> {
        Box::pin(async move {
            let source = blob_source(self.registries(), &layer.repository, &layer.blob)
                .map_err(|error| NotAllowed::Refused(error.to_string()))?;
            match self.origin().allows(&source).await {
                Ok(()) => Ok(()),
                Err(error) if error.is_no_answer() => Err(NotAllowed::NoAnswer(error.to_string())),
                Err(error) => Err(NotAllowed::Refused(error.to_string())),
            }
        })
    }

    fn layer<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Result<OpenLayer, TaskError>> {
        Box::pin(async move {
            let source = blob_source(self.registries(), &layer.repository, &layer.blob)?;
            let want = LayerWant { blob: layer.blob.clone(), source, diff_id: Some(layer.diff_id.clone()) };
            Ok(Peer::layer(self, want).await?.into())
        })
    }

    fn local_layer<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, Option<OpenLayer>> {
        Box::pin(async move { Peer::local_layer(self, &layer.blob).await.map(Into::into) })
    }

    fn remove<'a>(&'a self, layer: &'a LayerRef) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            match Peer::remove_layer(self, &layer.blob).await {
                Ok(bytes) => debug!(layer = %layer.blob, bytes, "removed from the store"),
                Err(error) => warn!(layer = %layer.blob, %error, "an unused layer stays in the store"),
            }
        })
    }

    fn start_profile<'a>(&'a self, image: &'a Digest) -> BoxFuture<'a, Option<Bytes>> {
        Box::pin(Peer::start_profile(self, image))
    }

    fn share_start_profile<'a>(&'a self, image: &'a Digest, profile: Bytes) -> BoxFuture<'a, ()> {
        Box::pin(Peer::share_start_profile(self, image, profile))
    }

    fn blame<'a>(&'a self, layer: &'a LayerDescriptor) -> BoxFuture<'a, Result<(), TaskError>> {
        Box::pin(Peer::blame_layer(self, layer))
    }
}

impl From<Layer> for OpenLayer {
    fn from(layer: Layer) -> Self {
        let Layer { descriptor, table, index, leaves } = layer;
        Self { descriptor, table, index, leaves: Arc::new(leaves) }
    }
}

impl Leaves for Content {
    fn leaf(&self, leaf: u32, class: Class) -> BoxFuture<'_, Result<Bytes, TaskError>> {
        Box::pin(Content::leaf(self, leaf, class))
    }

    fn fill(&self) {
        Content::fill(self, Class::Background);
    }
}

async fn document(peer: &Peer, digest: &Digest, source: Source) -> Result<Bytes, TaskError> {
    let id = peer.registries().task(&source.url, digest);
    let content = peer.open(Want { id, source: Some(source), class: Class::Demand }).await?;
    let len = content.geometry().await?.len();
    check_len(len, &digest.to_string())?;
    let mut bytes = BytesMut::new();
    let mut stream = std::pin::pin!(content.read(0..len));
    while let Some(next) = stream.next().await {
        bytes.extend_from_slice(&next?);
    }
    content.finished().await?;
    Ok(bytes.freeze())
}

fn check_len(len: u64, what: &str) -> Result<(), TaskError> {
    if len > MAX_DOCUMENT_LEN {
        return Err(TaskError::Local(format!(
            "{what} is longer than {MAX_DOCUMENT_LEN} bytes, which is refused"
        )));
    }
    Ok(())
}

fn manifest_source(registries: &Registries, of: &Repository, reference: &str) -> Result<Source, TaskError> {
    let headers = vec![(ACCEPT, HeaderValue::from_static(MANIFEST_TYPES))];
    Ok(Source { url: url(registries, of, &format!("manifests/{reference}"))?, headers })
}

fn blob_source(registries: &Registries, of: &Repository, digest: &Digest) -> Result<Source, TaskError> {
    Ok(Source { url: url(registries, of, &format!("blobs/{digest}"))?, headers: vec![] })
}

/// Where a registry has something (OCI distribution specification, "Endpoints").
fn url(registries: &Registries, of: &Repository, what: &str) -> Result<String, TaskError> {
    let base = registries.base(&of.registry)?.to_string();
    Ok(format!("{}/v2/{}/{what}", base.trim_end_matches('/'), of.name))
}
