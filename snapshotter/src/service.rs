//! containerd's snapshots service: translates between its messages and [`Core`].

use std::{pin::Pin, sync::Arc, time::SystemTime};

use darter_proto::snapshots as proto;
use futures_util::Stream;
use prost_types::Timestamp;
use tonic::{Request, Response, Status, async_trait};

use crate::{
    core::Core,
    snapshots::{Filters, Kind, LabelUpdate, Labels, Record, SnapshotError},
};

/// Snapshots in one message of a list, as containerd's own server sends them.
const LIST_BATCH: usize = 100;
/// Most bytes of a label's key and value together (containerd, `pkg/labels`).
const MAX_LABEL_LEN: usize = 4096;

/// The service.
pub(crate) struct Service {
    core: Arc<Core>,
}

impl Service {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[async_trait]
impl proto::snapshots_server::Snapshots for Service {
    async fn prepare(
        &self,
        request: Request<proto::PrepareSnapshotRequest>,
    ) -> Result<Response<proto::PrepareSnapshotResponse>, Status> {
        let proto::PrepareSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.core.create(Kind::Active, &key, &parent, checked(labels)?).await?;
        Ok(Response::new(proto::PrepareSnapshotResponse { mounts }))
    }

    async fn view(
        &self,
        request: Request<proto::ViewSnapshotRequest>,
    ) -> Result<Response<proto::ViewSnapshotResponse>, Status> {
        let proto::ViewSnapshotRequest { key, parent, labels, .. } = request.into_inner();
        let mounts = self.core.create(Kind::View, &key, &parent, checked(labels)?).await?;
        Ok(Response::new(proto::ViewSnapshotResponse { mounts }))
    }

    async fn mounts(
        &self,
        request: Request<proto::MountsRequest>,
    ) -> Result<Response<proto::MountsResponse>, Status> {
        let mounts = self.core.mounts(&request.into_inner().key).await?;
        Ok(Response::new(proto::MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<proto::CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let proto::CommitSnapshotRequest { name, key, labels, parent, .. } = request.into_inner();
        if !parent.is_empty() {
            return Err(Status::unimplemented(
                "this snapshotter does not rebase snapshots when they are committed",
            ));
        }
        self.core.commit(name, key, checked(labels)?).await?;
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<proto::RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        self.core.remove(request.into_inner().key).await?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<proto::StatSnapshotRequest>,
    ) -> Result<Response<proto::StatSnapshotResponse>, Status> {
        let name = request.into_inner().key;
        let record = self.core.stat(&name).await?;
        Ok(Response::new(proto::StatSnapshotResponse { info: Some(info(name, record)) }))
    }

    async fn update(
        &self,
        request: Request<proto::UpdateSnapshotRequest>,
    ) -> Result<Response<proto::UpdateSnapshotResponse>, Status> {
        let proto::UpdateSnapshotRequest { info: wanted, update_mask, .. } = request.into_inner();
        let proto::Info { name, labels, .. } =
            wanted.ok_or_else(|| Status::invalid_argument("the snapshot to update is missing"))?;
        let which = label_update(&update_mask.unwrap_or_default().paths, &name)?;
        let record = self.core.update(name.clone(), checked(labels)?, which).await?;
        Ok(Response::new(proto::UpdateSnapshotResponse { info: Some(info(name, record)) }))
    }

    type ListStream = Pin<Box<dyn Stream<Item = Result<proto::ListSnapshotsResponse, Status>> + Send>>;

    async fn list(
        &self,
        request: Request<proto::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = Filters::parse(&request.into_inner().filters)?;
        let snapshots = self.core.list(filters).await?;
        let infos: Vec<_> = snapshots.into_iter().map(|(name, record)| info(name, record)).collect();
        let batches: Vec<_> = infos
            .chunks(LIST_BATCH)
            .map(|batch| Ok(proto::ListSnapshotsResponse { info: batch.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(batches))))
    }

    async fn usage(
        &self,
        request: Request<proto::UsageRequest>,
    ) -> Result<Response<proto::UsageResponse>, Status> {
        let usage = self.core.usage(request.into_inner().key).await?;
        let signed = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
        Ok(Response::new(proto::UsageResponse { size: signed(usage.size), inodes: signed(usage.inodes) }))
    }

    async fn cleanup(&self, _: Request<proto::CleanupRequest>) -> Result<Response<()>, Status> {
        self.core.cleanup().await?;
        Ok(Response::new(()))
    }
}

fn checked(labels: impl IntoIterator<Item = (String, String)>) -> Result<Labels, SnapshotError> {
    let labels: Labels = labels.into_iter().collect();
    match labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL_LEN) {
        Some((key, _)) => {
            let key: String = key.chars().take(64).collect();
            Err(SnapshotError::Invalid(format!(
                "label {key:?} and its value are longer than {MAX_LABEL_LEN} bytes"
            )))
        }
        None => Ok(labels),
    }
}

fn label_update(paths: &[String], name: &str) -> Result<LabelUpdate, SnapshotError> {
    if paths.is_empty() {
        return Ok(LabelUpdate::All);
    }
    let mut keys = Vec::new();
    let mut all = false;
    for path in paths {
        match path.strip_prefix("labels.") {
            Some(key) => keys.push(key.to_owned()),
            None if path == "labels" => all = true,
            None => {
                return Err(SnapshotError::Invalid(format!(
                    "cannot update field {path:?} of snapshot {name:?}"
                )));
            }
        }
    }
    Ok(if all { LabelUpdate::All } else { LabelUpdate::Some(keys) })
}

fn info(name: String, record: Record) -> proto::Info {
    let kind = match record.kind {
        Kind::View => proto::Kind::View,
        Kind::Active => proto::Kind::Active,
        Kind::Committed => proto::Kind::Committed,
    };
    proto::Info {
        name,
        parent: record.parent,
        kind: kind.into(),
        created_at: Some(timestamp(record.created)),
        updated_at: Some(timestamp(record.updated)),
        labels: record.labels.into_iter().collect(),
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    time.into()
}
