//! Between the wire's messages and the engine's types: what comes from outside is checked here.

use darter_proto::scheduler::{self as proto, claim};
use http::{HeaderName, HeaderValue};

use crate::{Border, Digest, LayerDescriptor, LayerFormat, Site, TaskId, origin::Source, plan::Claim};

/// A message whose contents make no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

impl Malformed {
    pub(crate) fn of(error: impl std::fmt::Display) -> Self {
        Self(error.to_string())
    }
}

pub(crate) fn layer_to_proto(layer: &LayerDescriptor) -> proto::LayerDescriptor {
    proto::LayerDescriptor {
        format: layer.format.into(),
        blob: layer.blob.to_string(),
        diff_id: layer.diff_id.to_string(),
        raw_len: layer.raw_len,
        index: layer.index.to_string(),
        index_len: layer.index_len,
        table: layer.table.to_string(),
        table_len: layer.table_len,
    }
}

pub(crate) fn layer_from_proto(layer: &proto::LayerDescriptor) -> Result<LayerDescriptor, Malformed> {
    let digest = |text: &str| text.parse::<Digest>().map_err(Malformed::of);
    Ok(LayerDescriptor {
        format: LayerFormat::try_from(layer.format).map_err(Malformed::of)?,
        blob: digest(&layer.blob)?,
        diff_id: digest(&layer.diff_id)?,
        raw_len: layer.raw_len,
        index: digest(&layer.index)?,
        index_len: layer.index_len,
        table: digest(&layer.table)?,
        table_len: layer.table_len,
    })
}

pub(crate) fn site_from_proto(place: &proto::Place) -> Site {
    Site::new(&place.region, &place.zone, &place.rack)
}

/// `None` for a border that is not known here.
pub(crate) fn claim_from_proto(claim: &proto::Claim) -> Option<(Border, Claim)> {
    let border = match claim.border() {
        claim::Border::Unknown => return None,
        claim::Border::Rack => Border::Rack,
        claim::Border::Zone => Border::Zone,
        claim::Border::Region => Border::Region,
    };
    Some((border, Claim { classes: claim.classes, mine: claim.mine }))
}

pub(crate) fn task_to_proto(id: &TaskId, source: Option<&Source>) -> proto::Task {
    proto::Task {
        id: id.to_string(),
        source: source.map(|source| proto::Source {
            url: source.url.clone(),
            headers: source
                .headers
                .iter()
                .map(|(name, value)| proto::Header {
                    name: name.to_string(),
                    value: value.as_bytes().to_vec().into(),
                })
                .collect(),
        }),
    }
}

pub(crate) fn task_from_proto(task: &proto::Task) -> Result<(TaskId, Option<Source>), Malformed> {
    let id = TaskId::parse(&task.id).map_err(Malformed::of)?;
    let source = task.source.as_ref().map(source_from_proto).transpose()?;
    Ok((id, source))
}

fn source_from_proto(source: &proto::Source) -> Result<Source, Malformed> {
    let headers = source.headers.iter().map(|header| header_from(&header.name, &header.value));
    Ok(Source { url: source.url.clone(), headers: headers.collect::<Result<_, _>>()? })
}

/// A request header that came over the wire; its value is treated as a secret.
pub(crate) fn header_from(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), Malformed> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(Malformed::of)?;
    let mut value = HeaderValue::from_bytes(value).map_err(Malformed::of)?;
    value.set_sensitive(true);
    Ok((name, value))
}
