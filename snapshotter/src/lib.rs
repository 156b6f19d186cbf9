//! The snapshotter: containerd's snapshots service with layers that are mounted before they have arrived.
//!
//! [`server`] serves it on a unix socket. `service` translates containerd's messages, `core` decides between an
//! ordinary snapshot (`snapshots`, as containerd's overlayfs snapshotter makes it) and a lazy one: `image` and `images`
//! find out which layers an image has and whether all can be mounted, `lazy` mounts them, `implied` gives
//! directories the attributes that a layer lacks. [`layer`] makes a layer out
//! of a blob, on a seed peer or where there is none. [`pull`] is `darter image pull`. `engine` is all that is asked of the peer.

mod config;
mod core;
mod engine;
mod image;
mod images;
mod implied;
pub mod layer;
mod lazy;
mod metrics;
pub mod pull;
mod report;
mod server;
mod service;
mod snapshots;
#[cfg(test)]
mod tests;

pub use config::{Config, MountKind};
pub use lazy::keeper;
pub use server::{ServeError, Snapshotter, serve};
