//! The image's repository, read through the node's peer.

use std::path::Path;

use bytes::Bytes;
use darter_peer::Digest;
use darter_proto::peer::{
    GetReply, GetRequest, Header, RegistryRequest, get_reply::Message, peer_client::PeerClient,
};
use tonic::{Status, Streaming, transport::Channel};

use super::PullError;
use crate::image::Repository;

/// Longest manifest or config; the OCI distribution specification lets registries refuse manifests above 4 MiB.
const MAX_DOCUMENT: u64 = 4 * 1024 * 1024;

/// A repository as the peer reaches it.
pub(super) struct Origin {
    peer: PeerClient<Channel>,
    /// `https://registry/v2/name`.
    base: String,
}

impl Origin {
    /// Asks the peer where the registry is.
    pub(super) async fn of(
        mut peer: PeerClient<Channel>,
        repository: &Repository,
    ) -> Result<Self, PullError> {
        let request = RegistryRequest { name: repository.registry.clone() };
        let reply = peer.registry(request).await.map_err(fetch_error(&repository.registry))?.into_inner();
        Ok(Self { peer, base: format!("{}/v2/{}", reply.base.trim_end_matches('/'), repository.name) })
    }

    /// A manifest or index by tag or digest.
    pub(super) async fn manifest(
        &self,
        reference: &str,
        digest: Option<&Digest>,
    ) -> Result<Bytes, PullError> {
        let url = format!("{}/manifests/{reference}", self.base);
        self.document(&url, digest, crate::engine::MANIFEST_TYPES).await
    }

    /// An image's config.
    pub(super) async fn config(&self, digest: &Digest) -> Result<Bytes, PullError> {
        self.document(&format!("{}/blobs/{digest}", self.base), Some(digest), "*/*").await
    }

    /// A layer's blob as it arrives.
    pub(super) async fn blob(&self, digest: &Digest) -> Result<Streaming<GetReply>, PullError> {
        let url = format!("{}/blobs/{digest}", self.base);
        Ok(self.get(&url, Some(digest), "*/*").await?.1)
    }

    async fn document(&self, url: &str, digest: Option<&Digest>, accept: &str) -> Result<Bytes, PullError> {
        let (length, mut replies) = self.get(url, digest, accept).await?;
        let what =
            || Path::new(url).file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if length > MAX_DOCUMENT {
            return Err(PullError::Document { what: what(), reason: format!("{length} bytes are too many") });
        }
        let mut bytes = Vec::new();
        while let Some(reply) = replies.message().await.map_err(fetch_error(&what()))? {
            if let Some(Message::Data(data)) = reply.message {
                bytes.extend_from_slice(&data);
            }
        }
        Ok(bytes.into())
    }

    async fn get(
        &self,
        url: &str,
        digest: Option<&Digest>,
        accept: &str,
    ) -> Result<(u64, Streaming<GetReply>), PullError> {
        let request = GetRequest {
            url: url.to_owned(),
            headers: vec![Header { name: "accept".to_owned(), value: accept.as_bytes().to_vec().into() }],
            digest: digest.map(Digest::to_string).unwrap_or_default(),
            ..GetRequest::default()
        };
        let mut replies = self.peer.clone().get(request).await.map_err(fetch_error(url))?.into_inner();
        match replies.message().await.map_err(fetch_error(url))? {
            Some(GetReply { message: Some(Message::Info(info)) }) => Ok((info.length, replies)),
            _ => Err(fetch_error(url)(Status::internal("the peer did not describe the content"))),
        }
    }
}

fn fetch_error(what: &str) -> impl Fn(Status) -> PullError {
    let what = what.to_owned();
    move |status| PullError::Fetch { what: what.clone(), message: status.message().to_owned() }
}
