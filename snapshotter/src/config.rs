//! The `[snapshotter]` section of a peer's configuration.

use std::{path::PathBuf, time::Duration};

use darter_service::config::duration;
use serde::{Deserialize, Serialize};

/// How containerd reaches the snapshotter, where it keeps things, and how patient lazy layers are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The unix socket that containerd's `proxy_plugins` entry names.
    pub socket: PathBuf,
    /// Directory of all snapshots, layers and mounts. Absolute, without `,` and `:`; not on overlayfs.
    pub root: PathBuf,
    /// Whether layers are mounted before they have arrived. Without it everything is unpacked as by overlayfs.
    pub lazy: bool,
    /// How lazy layers are mounted.
    pub mount: MountKind,
    /// How long a pull waits for a layer to become mountable before the image is unpacked the ordinary way.
    #[serde(with = "duration")]
    pub prepare_timeout: Duration,
    /// How long a container's read waits for missing bytes before it fails with an I/O error.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// Whether mounted layers are filled to completeness in the background.
    pub fill: bool,
    /// Whether what starts of containers read is noted, told to other nodes, and fetched ahead of the next start.
    pub start_profiles: bool,
}

/// How lazy layers are mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// As EROFS if that works on this machine, else by FUSE alone.
    Auto,
    /// By the kernel's EROFS, with the bytes from FUSE. Needs Linux 6.12.
    Erofs,
    /// By FUSE alone.
    Fuse,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/darter/snapshotter.sock".into(),
            root: "/var/lib/darter/snapshotter".into(),
            lazy: true,
            mount: MountKind::Auto,
            prepare_timeout: Duration::from_secs(30),
            read_timeout: Duration::from_secs(60),
            fill: true,
            start_profiles: true,
        }
    }
}
