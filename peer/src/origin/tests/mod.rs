//! The client against an origin that misbehaves.

mod auth;
mod bodies;
mod redirects;
mod registries;
mod server;

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{Origin, OriginBody, OriginConfig, OriginError, Registries, Source};
use crate::limits::Limits;
use server::{BadOrigin, Reply, Step};

/// Deadlines that a test can wait for.
fn config() -> OriginConfig {
    OriginConfig {
        first_byte_timeout: Duration::from_secs(2),
        progress_timeout: Duration::from_millis(300),
        allow: vec!["127.0.0.0/8".parse().unwrap()],
        ..OriginConfig::default()
    }
}

fn client() -> Origin {
    Origin::new(&config(), Registries::new(&BTreeMap::new()).unwrap(), Limits::default())
}

fn source(url: impl Into<String>) -> Source {
    Source { url: url.into(), headers: vec![] }
}

fn with_header(mut source: Source, name: &'static str, value: &'static str) -> Source {
    source.headers.push((HeaderName::from_static(name), HeaderValue::from_static(value)));
    source
}

async fn read(mut body: OriginBody) -> Result<Vec<u8>, OriginError> {
    let mut read = vec![];
    while let Some(bytes) = body.next().await? {
        read.extend_from_slice(&bytes);
    }
    Ok(read)
}

/// Bytes that are different everywhere.
fn content(len: usize) -> Vec<u8> {
    (0..len as u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
}
