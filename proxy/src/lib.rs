//! The OCI registry proxy: a mirror for container runtimes on top of the peer, and a forward proxy for all else.
//!
//! It speaks the pull side of the OCI distribution specification. Tags, and everything that is not named by a digest,
//! are asked at the origin; contents named by a digest come through the peer, streamed while they arrive. What it
//! guarantees: it fails before the first byte, with the origin's own status where the origin gave one, or it breaks
//! the connection, but never ends a body early; the bytes are those of the registry, never transcoded; and nobody
//! reads a content here whom the origin would not let read it.

mod access;
mod answer;
mod config;
mod content;
mod delivery;
mod dragonfly;
mod forward;
mod forward_proxy;
mod log;
mod manifest;
mod metrics;
mod outlet;
mod patience;
mod proxy;
pub mod range;
mod route;
mod rules;
mod server;
mod tags;
#[cfg(test)]
mod tests;
mod tls;

pub use config::{Config, ForwardConfig, Offline};
pub use forward_proxy::AuthorityError;
pub use rules::{Action, RuleConfig, RuleError};
pub use server::{ServeError, Server, serve};
