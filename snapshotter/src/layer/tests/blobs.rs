//! Blobs of every compression, whole and broken.

use std::io::{self, Read, Write};

use darter_peer::{Digest, LayerMaker, LeafSink, MakeError};
use flate2::{Compression, write::GzEncoder};

use super::{
    Leaves, Maker,
    archive::{archive, file, hard_link},
    make,
};

fn raw() -> Vec<u8> {
    let noise = |seed: u8, len: usize| {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let mut raw = archive(&[
        file("noise", &noise(1, 3_000_000)),
        file("zeros", &[0; 3_000_000]),
        file("text", b"all work and no play\n".repeat(100_000).as_slice()),
        hard_link("other", "text"),
    ]);
    // What follows the end marker is part of the raw tar.
    raw.extend(noise(2, 10_000));
    raw
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// A zstd frame that decoders pass over (RFC 8878, 3.1.2).
const SKIPPABLE: &[u8] = b"\x50\x2a\x4d\x18\x05\0\0\0hello";

#[test]
fn every_compression_makes_the_same_layer() {
    let raw = raw();
    let (start, end) = raw.split_at(1_234_567);
    let plain = make(&raw).unwrap();
    assert_eq!(plain.raw, raw);
    assert_eq!(plain.layer.diff_id, Digest::sha256(&raw));
    assert_eq!(plain.layer.raw_len, raw.len() as u64);
    for blob in [
        gzip(&raw),
        [gzip(start), gzip(end)].concat(),
        zstd(&raw),
        [zstd(start), SKIPPABLE.to_vec(), zstd(end)].concat(),
        [SKIPPABLE.to_vec(), zstd(&raw)].concat(),
    ] {
        let made = make(&blob).unwrap();
        assert_eq!(made.leaves, plain.leaves);
        assert_eq!(made.layer.table, plain.layer.table);
        assert_eq!(made.layer.index, plain.layer.index);
        assert_eq!(made.layer.diff_id, plain.layer.diff_id);
    }
}

/// Seeds check each other, so a layer must come out the same on every machine and in every version. If this fails after
/// an update of a package, a cluster whose nodes run both versions would distrust its own seeds: say so in its notes.
#[test]
fn layers_are_the_same_in_all_versions() {
    let layer = make(&raw()).unwrap().layer;
    let (table, index) = (layer.table.root(), Digest::blake3(&layer.index));
    assert_eq!(table.hex(), "18f3a89e545d540bd10dc4a09cde7217de3598769bfdf5efdd976624b6bd6d8b");
    assert_eq!(index.hex(), "c93237a1a14604492dea79c558870a62794ca8ec099c183223c6eca620f15858");
}

#[test]
fn leaves_are_checked_by_the_table() {
    let made = make(&raw()).unwrap();
    assert_eq!(made.layer.table.leaves() as usize, made.leaves.len());
    for (leaf, stored) in (0..).zip(&made.leaves) {
        assert!(made.layer.table.verifies(leaf, stored));
    }
    assert!(made.layer.table.stored_len() < made.layer.raw_len);
}

#[test]
fn broken_blobs_are_refused() {
    let raw = raw();
    let (gzip, zstd) = (gzip(&raw), zstd(&raw));
    let mut wrong_sum = gzip.clone();
    *wrong_sum.iter_mut().nth_back(5).unwrap() ^= 1;
    for blob in [
        &gzip[..gzip.len() - 9],
        &gzip[..5],
        &wrong_sum,
        &[&gzip[..], b"more"].concat(),
        &zstd[..zstd.len() - 1],
        &raw[..2_000_000],
        b"neither compressed nor a tar",
    ] {
        assert!(matches!(make(blob), Err(MakeError::Refused(_))), "{} bytes", blob.len());
    }
}

#[test]
fn refusals_name_the_entry() {
    let Err(MakeError::Refused(why)) = make(&archive(&[hard_link("bin/sh", "bin/busybox")])) else {
        panic!("it should be refused");
    };
    assert_eq!(
        why,
        "entry \"bin/sh\" is a hard link to \"bin/busybox\", which is no file before it in this layer"
    );
}

struct FailingBlob<'a>(&'a [u8]);

impl Read for FailingBlob<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.0.read(buffer)? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer went away")),
            len => Ok(len),
        }
    }
}

#[test]
fn a_failing_blob_is_no_refusal() {
    let raw = raw();
    for blob in [&raw[..2_000_000], &gzip(&raw)[..1_000_000], &zstd(&raw)[..1_000_000], b""] {
        let made = Maker::new().make(&mut FailingBlob(blob), &mut Leaves::default());
        let Err(MakeError::Io(err)) = made else { panic!("{made:?}") };
        assert_eq!(err.to_string(), "the peer went away");
    }
}

struct FullSink(usize);

impl LeafSink for FullSink {
    fn leaf(&mut self, _stored: &[u8]) -> io::Result<()> {
        self.0 = self.0.checked_sub(1).ok_or_else(|| io::Error::from(io::ErrorKind::StorageFull))?;
        Ok(())
    }
}

#[test]
fn a_failing_sink_ends_the_making() {
    let raw = raw();
    for room in [0, 1, 5] {
        let made = Maker::new().make(&mut raw.as_slice(), &mut FullSink(room));
        let Err(MakeError::Io(err)) = made else { panic!("{made:?}") };
        assert_eq!(err.kind(), io::ErrorKind::StorageFull);
    }
}
