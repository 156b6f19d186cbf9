//! Which images are lazy, and if one is not, why: read off the snapshots, so that it is known also after a restart.

use std::collections::{BTreeMap, HashMap};

use darter_peer::Digest;

use crate::{
    image::image_name,
    lazy::{LayerStatus, Seen},
    snapshots::{LAZY_LABEL, Record},
};

/// How an image is kept on this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ImageStatus {
    /// As its client named it.
    pub(crate) name: String,
    pub(crate) lazy_layers: u32,
    /// Layers that containerd unpacked.
    pub(crate) plain_layers: u32,
    /// Why layers are not lazy; `None` if all are.
    pub(crate) reason: Option<String>,
    /// Raw bytes of its lazy layers, and those of them that are here.
    pub(crate) raw_len: u64,
    pub(crate) raw_held: u64,
    /// The chainIDs of its lazy layers; the top one names its start.
    pub(crate) chains: Vec<Digest>,
    /// How well its latest start was foreseen.
    pub(crate) start: Option<Seen>,
}

/// Puts the snapshots together by image. A layer that several images share is counted for each of them.
pub(crate) fn images(snapshots: &[(String, Record)], layers: &[LayerStatus]) -> Vec<ImageStatus> {
    let by_name: HashMap<_, _> = snapshots.iter().map(|(name, record)| (name.as_str(), record)).collect();
    let layers: HashMap<_, _> = layers.iter().map(|layer| (&layer.reference.diff_id, layer)).collect();
    let mut of_image: BTreeMap<String, BTreeMap<u64, &Record>> = BTreeMap::new();
    for (_, record) in snapshots {
        let Some(image) = image_name(&record.labels) else { continue };
        let of_image = of_image.entry(image.to_owned()).or_default();
        // Layers below may have been prepared for another image.
        let mut next = Some(record);
        while let Some(record) = next {
            of_image.insert(record.id, record);
            next = by_name.get(record.parent.as_str()).copied();
        }
    }
    of_image.into_iter().map(|(name, records)| image(name, records.into_values(), &layers)).collect()
}

fn image<'a>(
    name: String,
    records: impl Iterator<Item = &'a Record>,
    layers: &HashMap<&Digest, &LayerStatus>,
) -> ImageStatus {
    let mut status = ImageStatus { name, ..ImageStatus::default() };
    for record in records {
        let Some(lazy) = &record.lazy else {
            status.plain_layers += 1;
            let why = record.labels.get(LAZY_LABEL).and_then(|label| label.strip_prefix("no: "));
            status.reason = status.reason.or_else(|| why.map(str::to_owned));
            continue;
        };
        status.lazy_layers += 1;
        status.chains.extend(lazy.target.parse::<Digest>());
        if let Some(layer) = layers.get(&lazy.layer.diff_id) {
            status.raw_len += layer.raw_len;
            status.raw_held += layer.raw_held;
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{
        image::Repository,
        lazy::LayerRef,
        snapshots::{Kind, Labels, Lazy, Usage},
    };

    fn record(id: u64, parent: &str, image: &str, lazy: Option<Lazy>, why: Option<&str>) -> (String, Record) {
        let mut labels = Labels::from([("containerd.io/snapshot/cri.image-ref".into(), image.to_owned())]);
        labels.extend(why.map(|why| (LAZY_LABEL.to_owned(), format!("no: {why}"))));
        let (created, usage) = (SystemTime::now(), Usage::default());
        let (parent, kind) = (parent.to_owned(), Kind::Committed);
        let record = Record { id, parent, kind, labels, created, updated: created, usage, lazy };
        (id.to_string(), record)
    }

    #[test]
    fn a_shared_layer_counts_for_each_image_and_a_plain_one_says_why() {
        let digest = |text: &str| Digest::sha256(text.as_bytes());
        let repository = Repository { registry: "r".into(), name: "n".into() };
        let reference = LayerRef { repository, blob: digest("blob"), diff_id: digest("diff") };
        let lazy = Lazy { target: digest("chain").to_string(), layer: reference.clone(), implies: false };
        let layer = LayerStatus { reference, raw_len: 100, raw_held: 40, mounted: true };
        let snapshots =
            [record(1, "", "one", Some(lazy), None), record(2, "1", "two", None, Some("it is odd"))];
        let images = images(&snapshots, &[layer]);
        let [one, two] = images.as_slice() else { panic!("{images:?}") };
        assert_eq!((one.lazy_layers, one.plain_layers, one.reason.as_deref()), (1, 0, None));
        assert_eq!((one.raw_len, one.raw_held, one.chains.as_slice()), (100, 40, &[digest("chain")][..]));
        assert_eq!((two.lazy_layers, two.plain_layers, two.reason.as_deref()), (1, 1, Some("it is odd")));
        assert_eq!(two.raw_held, 40);
    }
}
