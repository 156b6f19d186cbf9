//! End-to-end tests and the demo, on real containerd, runc, docker and registries.
//!
//! A test opens a [`Lab`], its own piece of the machine, starts real programs in it and talks to them as a user would:
//!
//! ```no_run
//! use darter_integration::{Containerd, Image, Registry, run_test};
//!
//! fn a_container_prints_a_line() -> anyhow::Result<()> {
//!     run_test(async |lab| {
//!         let registry = Registry::start(&lab).await?;
//!         let image = registry.push("tiny:1", &Image::tiny(&lab)?).await?;
//!         let node = Containerd::start(&lab, "node").await?;
//!         node.pull(&image).await?;
//!         assert_eq!(node.run(&image, ["echo", "hello"]).await?.stdout, "hello\n");
//!         Ok(())
//!     })
//! }
//! ```
//!
//! Whatever happens, nothing of it outlives the test: see [`Lab`].

pub mod cluster;
pub mod command;
pub mod containerd;
pub mod darter;
mod digest;
pub mod docker;
pub mod http;
pub mod image;
pub mod lab;
pub mod machine;
pub mod network;
pub mod nginx;
pub mod process;
pub mod registry;
pub mod rootfs;
pub mod runtime;
pub mod scenario;
pub mod table;
pub mod target;
pub mod throttle;
pub mod usage;
pub mod wait;

pub use self::{
    cluster::{Cluster, Node},
    containerd::Containerd,
    docker::Docker,
    image::Image,
    lab::{Lab, run_test},
    process::{Process, Program},
    registry::{ImageRef, Registry},
    rootfs::RootFs,
    runtime::Runtime,
    throttle::Throttle,
};
