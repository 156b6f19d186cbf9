//! The scheduler: a pure state machine inside a thin gRPC service.
//!
//! [`state`] decides who serves whom, who may go to an origin and who makes a layer; it has no clock, no network and
//! no runtime. The service around it ([`run`]) carries one stream per peer, ticks, and tells the manager
//! that this scheduler is alive.

mod config;
mod manager;
mod metrics;
mod run;
mod service;
pub mod state;

pub use config::{Config, Limits};
pub use run::{RunError, Scheduler, run};
