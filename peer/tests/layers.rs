//! Layers at a peer that makes them by itself: nothing is published that was not checked.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a failure here is a failed test")]

mod common;

use std::{collections::BTreeMap, io::Read, sync::Arc};

use common::{Faults, Node, Origin, Scheduler, blob};
use darter_peer::{
    Class, Digest, Layer, LayerMaker, LayerWant, LeafSink, LeafTable, MadeLayer, MakeError, TaskError,
    digest::leaf_digest, layer::LeafEntry,
};

const LEN: usize = 3_000_017;
const LEAF_LEN: usize = 100_000;

/// Takes the blob for the raw tar, and its first bytes for the index.
struct Cutting {
    lie: Option<Lie>,
}

/// What is not made of the blob as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    /// The second leaf.
    Leaf,
    Index,
}

impl LayerMaker for Cutting {
    fn make(&self, blob: &mut dyn Read, leaves: &mut dyn LeafSink) -> Result<MadeLayer, MakeError> {
        let mut raw = Vec::new();
        blob.read_to_end(&mut raw)?;
        let diff_id = Digest::sha256(&raw);
        if self.lie == Some(Lie::Leaf) {
            raw[LEAF_LEN] ^= 1;
        }
        let mut entries = Vec::new();
        for leaf in raw.chunks(LEAF_LEN) {
            leaves.leaf(leaf)?;
            let len = leaf.len() as u32;
            entries.push(LeafEntry { raw_len: len, stored_len: len, digest: leaf_digest(leaf) });
        }
        let table = LeafTable::new(entries).map_err(|error| MakeError::Refused(error.to_string()))?;
        let mut index = raw[..1000].to_vec();
        if self.lie == Some(Lie::Index) {
            index[0] ^= 1;
        }
        Ok(MadeLayer { diff_id, raw_len: raw.len() as u64, index, table })
    }
}

/// A peer that makes layers, an origin with a blob, and what is wanted of them.
async fn start(faults: Faults) -> (Node, Origin, LayerWant, Vec<u8>) {
    let (origin, want, bytes) = origin(faults).await;
    let node =
        Node::start_making(tempfile::tempdir().unwrap(), Some(Arc::new(Cutting { lie: None })), |_| {}).await;
    (node, origin, want, bytes)
}

async fn origin(faults: Faults) -> (Origin, LayerWant, Vec<u8>) {
    let (bytes, id) = blob(LEN, 7);
    let origin = Origin::start(BTreeMap::from([("b", bytes.clone())]), faults).await;
    let blob = id.digest().unwrap();
    let want = LayerWant { diff_id: Some(blob.clone()), blob, source: origin.source("b") };
    (origin, want, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_is_made_once_however_many_want_it_and_stays_over_a_restart() {
    let (node, origin, want, bytes) = start(Faults::default()).await;
    let wanted = (0..8).map(|_| node.peer.layer(want.clone()));
    for layer in futures_util::future::join_all(wanted).await {
        let layer = layer.unwrap();
        assert_eq!((layer.descriptor.raw_len, &layer.descriptor.diff_id), (LEN as u64, &want.blob));
        assert_eq!(layer.index, bytes[..1000]);
        assert_eq!(layer.leaves.leaf(1, Class::Demand).await.unwrap(), bytes[LEAF_LEN..2 * LEAF_LEN]);
    }
    assert_eq!(origin.sent(), LEN as u64);

    let again = Node::start_in(node.stop().await, |_| {}).await;
    let layer = again.peer.local_layer(&want.blob).await.unwrap();
    assert_eq!(layer.leaves.leaf(2, Class::Demand).await.unwrap(), bytes[2 * LEAF_LEN..3 * LEAF_LEN]);
    assert_eq!(origin.sent(), LEN as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_without_its_diff_id_is_not_published() {
    let (node, _origin, mut want, _) = start(Faults::default()).await;
    let other = Digest::sha256(b"another raw tar");
    want.diff_id = Some(other.clone());
    let refused = node.peer.layer(want.clone()).await.unwrap_err();
    assert!(matches!(&refused, TaskError::WrongDiffId { expected, .. } if *expected == other), "{refused}");
    assert!(node.peer.local_layer(&want.blob).await.is_none());
    assert!(node.peer.store().layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_without_its_digest_does_not_become_a_layer() {
    let (node, _origin, want, _) = start(Faults { flip: true, ..Faults::default() }).await;
    let refused = node.peer.layer(want.clone()).await.unwrap_err();
    assert!(matches!(refused, TaskError::WrongDigest { .. }), "{refused}");
    assert!(node.peer.local_layer(&want.blob).await.is_none());
    assert!(node.peer.store().layers().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_layer_is_made_anew_and_goes_from_its_maker_when_two_have_found_out() {
    made_anew(Lie::Leaf).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_one_whose_index_alone_is_wrong() {
    made_anew(Lie::Index).await;
}

async fn made_anew(lie: Lie) {
    let (_origin, want, bytes) = origin(Faults::default()).await;
    let is_right = async |layer: &Layer| {
        let second = layer.leaves.leaf(1, Class::Demand).await.unwrap();
        (second == bytes[LEAF_LEN..2 * LEAF_LEN], layer.index == bytes[..1000])
    };
    let scheduler = Scheduler::start().await;
    let seed = scheduler.maker(Arc::new(Cutting { lie: Some(lie) }), true).await;
    for _ in 0..2 {
        let node = scheduler.maker(Arc::new(Cutting { lie: None }), false).await;
        let wrong = node.peer.layer(want.clone()).await.unwrap();
        assert_eq!(is_right(&wrong).await, (lie != Lie::Leaf, lie != Lie::Index));
        assert!(seed.peer.store().layer(&want.blob).is_some(), "one node alone is not believed");
        node.peer.blame_layer(&wrong.descriptor).await.unwrap();
        assert!(node.peer.local_layer(&want.blob).await.is_none());
        let right = node.peer.layer(want.clone()).await.unwrap();
        assert_eq!(is_right(&right).await, (true, true));
        node.stop().await;
    }
    while seed.peer.store().layer(&want.blob).is_some() {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_made_wrong_here_is_not_used() {
    let (node, _origin, want, _) = start(Faults::default()).await;
    let made = node.peer.layer(want.clone()).await.unwrap();
    node.peer.blame_layer(&made.descriptor).await.unwrap();
    let refused = node.peer.layer(want).await.unwrap_err();
    assert!(matches!(refused, TaskError::LayerRefused(_)), "{refused}");
}
