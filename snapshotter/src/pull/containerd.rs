//! containerd as a pull needs it: contents, snapshots, diffs, images, and a lease that keeps them until the image does.

use std::{
    collections::HashMap,
    path::Path,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use containerd_client::{
    Client, connect,
    services::v1::{
        ApplyRequest, CreateImageRequest, CreateRequest, DeleteRequest, Image, Info, UpdateImageRequest,
        UpdateRequest, WriteAction, WriteContentRequest,
        snapshots::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest,
        },
    },
    types::{Descriptor as Described, Mount},
};
use darter_peer::Digest;
use darter_proto::peer::{GetReply, get_reply::Message};
use futures_util::stream;
use tonic::{Code, Request, Status, Streaming, metadata::AsciiMetadataValue};

use super::{PullError, documents::Descriptor};

/// A lease that was not ended, because the pull was killed, ends by itself after this.
const LEASE: Duration = Duration::from_secs(24 * 3600);

/// A connection to containerd, in one namespace and under one lease.
pub(super) struct Containerd {
    client: Client,
    namespace: AsciiMetadataValue,
    lease: AsciiMetadataValue,
    lease_id: String,
}

impl Containerd {
    pub(super) async fn connect(socket: &Path, namespace: &str) -> Result<Self, PullError> {
        let no = |reason: String| PullError::NoContainerd { socket: socket.to_owned(), reason };
        let channel = connect(socket).await.map_err(|error| no(error.to_string()))?;
        let value = |text: &str| text.parse::<AsciiMetadataValue>().map_err(|error| no(error.to_string()));
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let lease_id = format!("darter-pull-{}-{}", std::process::id(), now.as_nanos());
        Ok(Self { client: channel.into(), namespace: value(namespace)?, lease: value(&lease_id)?, lease_id })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("containerd-namespace", self.namespace.clone());
        metadata.insert("containerd-lease", self.lease.clone());
        request
    }

    pub(super) async fn lease(&self) -> Result<(), PullError> {
        let expire = humantime::format_rfc3339_seconds(SystemTime::now() + LEASE).to_string();
        let labels = HashMap::from([("containerd.io/gc.expire".to_owned(), expire)]);
        let request = self.request(CreateRequest { id: self.lease_id.clone(), labels });
        self.client.leases().create(request).await.map_err(PullError::containerd("creating a lease"))?;
        Ok(())
    }

    pub(super) async fn end_lease(&self) -> Result<(), PullError> {
        let request = self.request(DeleteRequest { id: self.lease_id.clone(), sync: false });
        self.client.leases().delete(request).await.map_err(PullError::containerd("ending the lease"))?;
        Ok(())
    }

    /// Stores a small content; labels are set also if it is there already.
    pub(super) async fn write(
        &self,
        content: &Descriptor,
        bytes: Bytes,
        labels: HashMap<String, String>,
    ) -> Result<(), PullError> {
        let message = WriteContentRequest {
            action: WriteAction::Commit.into(),
            data: bytes.to_vec(),
            labels: labels.clone(),
            ..self.writing(content)
        };
        if written(self.send(stream::iter([message])).await)? {
            return Ok(());
        }
        if labels.is_empty() { Ok(()) } else { self.label(&content.digest, labels).await }
    }

    /// Stores a layer's blob while it arrives.
    pub(super) async fn write_stream(
        &self,
        content: &Descriptor,
        replies: Streaming<GetReply>,
        arrived: impl Fn(u64),
    ) -> Result<(), PullError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let writing = self.writing(content);
        let feed = async move {
            let mut replies = replies;
            let mut offset = 0;
            loop {
                let reply = replies.message().await;
                let failed = |status: Status| PullError::Fetch {
                    what: content.digest.to_string(),
                    message: status.message().to_owned(),
                };
                let (action, data) = match reply.map_err(failed)? {
                    Some(GetReply { message: Some(Message::Data(data)) }) => (WriteAction::Write, data),
                    Some(_) => continue,
                    None => (WriteAction::Commit, Bytes::new()),
                };
                let message = WriteContentRequest {
                    action: action.into(),
                    offset,
                    data: data.to_vec(),
                    ..writing.clone()
                };
                offset += i64::try_from(data.len()).unwrap_or(i64::MAX);
                // A closed channel means that containerd ended the write; its answer says why.
                if sender.send(message).await.is_err() || action == WriteAction::Commit {
                    return Ok(());
                }
                arrived(data.len() as u64);
            }
        };
        let messages = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let (fed, sent) = tokio::join!(feed, self.send(messages));
        fed?;
        written(sent)?;
        Ok(())
    }

    async fn send(
        &self,
        messages: impl futures_util::Stream<Item = WriteContentRequest> + Send + 'static,
    ) -> Result<(), Status> {
        let mut answers = self.client.content().write(self.request(messages)).await?.into_inner();
        while answers.message().await?.is_some() {}
        Ok(())
    }

    fn writing(&self, content: &Descriptor) -> WriteContentRequest {
        WriteContentRequest {
            r#ref: format!("{}-{}", self.lease_id, content.digest),
            total: i64::try_from(content.size).unwrap_or(i64::MAX),
            expected: content.digest.to_string(),
            ..WriteContentRequest::default()
        }
    }

    /// Adds labels to a content.
    pub(super) async fn label(
        &self,
        digest: &Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), PullError> {
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let info = Info { digest: digest.to_string(), labels, ..Info::default() };
        let request = UpdateRequest { info: Some(info), update_mask: Some(prost_types::FieldMask { paths }) };
        let labelled = self.client.content().update(self.request(request)).await;
        labelled.map_err(PullError::containerd("labelling a content"))?;
        Ok(())
    }

    pub(super) async fn has_snapshot(&self, snapshotter: &str, key: &str) -> Result<bool, PullError> {
        let request = StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        match self.client.snapshots().stat(self.request(request)).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(PullError::containerd("looking for a snapshot")(status)),
        }
    }

    pub(super) async fn prepare(&self, request: PrepareSnapshotRequest) -> Result<Vec<Mount>, Status> {
        let mut snapshots = self.client.snapshots();
        Ok(snapshots.prepare(self.request(request)).await?.into_inner().mounts)
    }

    pub(super) async fn commit(
        &self,
        snapshotter: &str,
        key: &str,
        name: &str,
        labels: HashMap<String, String>,
    ) -> Result<(), PullError> {
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            name: name.to_owned(),
            labels,
        };
        match self.client.snapshots().commit(self.request(request)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                self.remove_snapshot(snapshotter, key).await
            }
            Err(status) => Err(PullError::containerd("committing a snapshot")(status)),
        }
    }

    pub(super) async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), PullError> {
        let request = RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
        let removed = self.client.snapshots().remove(self.request(request)).await;
        removed.map_err(PullError::containerd("removing a snapshot"))?;
        Ok(())
    }

    /// Unpacks a layer; the answer is its diffID.
    pub(super) async fn apply(&self, blob: &Descriptor, mounts: Vec<Mount>) -> Result<String, PullError> {
        let request = ApplyRequest { diff: Some(described(blob)), mounts, ..ApplyRequest::default() };
        let applied = self.client.diff().apply(self.request(request)).await;
        let applied = applied.map_err(PullError::containerd("unpacking a layer"))?.into_inner();
        Ok(applied.applied.unwrap_or_default().digest)
    }

    /// Gives the image its name, or moves an old one.
    pub(super) async fn name(&self, name: &str, target: &Descriptor) -> Result<(), PullError> {
        let image = Image { name: name.to_owned(), target: Some(described(target)), ..Image::default() };
        let create = CreateImageRequest { image: Some(image.clone()), ..CreateImageRequest::default() };
        match self.client.images().create(self.request(create)).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let paths = vec!["target".to_owned()];
                let update = UpdateImageRequest {
                    image: Some(image),
                    update_mask: Some(prost_types::FieldMask { paths }),
                    ..UpdateImageRequest::default()
                };
                let updated = self.client.images().update(self.request(update)).await;
                updated.map_err(PullError::containerd("naming the image")).map(|_| ())
            }
            Err(status) => Err(PullError::containerd("naming the image")(status)),
        }
    }
}

/// False if the content was there already.
fn written(result: Result<(), Status>) -> Result<bool, PullError> {
    match result {
        Ok(()) => Ok(true),
        Err(status) if status.code() == Code::AlreadyExists => Ok(false),
        Err(status) => Err(PullError::containerd("storing a content")(status)),
    }
}

fn described(content: &Descriptor) -> Described {
    Described {
        media_type: content.media_type.clone(),
        digest: content.digest.to_string(),
        size: i64::try_from(content.size).unwrap_or(i64::MAX),
        ..Described::default()
    }
}
