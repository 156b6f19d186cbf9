//! The manager: clusters, their dynamic configuration, and which of their instances are alive.
//!
//! Schedulers and peers speak gRPC with it ([`darter_proto::manager`]), people and tools read over REST. All of it
//! is kept in one SQLite file, so a restart forgets nothing; and nothing breaks while the manager is away, because
//! schedulers and peers go on with its last answers.

mod config;
mod db;
mod grpc;
mod instance;
mod liveness;
mod metrics;
mod name;
mod rest;
mod run;
#[cfg(test)]
mod testing;
mod time;

pub use config::{Cluster, Config, Database, KeepAlive, Listen};
pub use db::OpenError;
pub use name::{ClusterName, Invalid};
pub use run::{Manager, RunError, run};
