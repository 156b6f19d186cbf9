//! The whole snapshotter, spoken to over its socket by the stock containerd client, with a peer that is made up.

mod crash;
mod harness;
mod image;
mod lazy;
mod permission;
mod service;
mod suite;
