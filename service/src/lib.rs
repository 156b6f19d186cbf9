//! What all services share: configuration files, telemetry, the admin server, shutdown, the client of
//! the manager, and the choice of one of several.
//!
//! Nothing here knows what a task or a layer is; a service takes what it needs and joins the parts in its own `run`.

pub mod admin;
pub mod backoff;
pub mod config;
pub mod http;
pub mod listen;
pub mod manager;
pub mod rendezvous;
pub mod shutdown;
pub mod telemetry;

pub use prometheus_client::registry::Registry;
