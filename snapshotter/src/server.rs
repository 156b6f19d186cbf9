//! Starts the snapshotter and serves it on its unix socket.

use std::{
    fmt, fs, io,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use darter_peer::Peer;
use darter_proto::{
    MAX_MESSAGE_LEN,
    peer::{Image, Layer},
    snapshots::snapshots_server::SnapshotsServer,
};
use darter_service::Registry;
use parking_lot::Mutex;
use tokio::{
    net::{UnixListener, UnixStream},
    time::sleep,
};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use crate::{
    config::Config, core::Core, engine::Engine, lazy::keeper, metrics::Metrics, report::ImageStatus,
    service::Service,
};

/// How long requests may go on after the shutdown began.
const DRAIN_DEADLINE: Duration = Duration::from_secs(3);

/// A running snapshotter; clones are the same one.
#[derive(Clone)]
pub struct Snapshotter {
    core: Arc<Core>,
    socket: PathBuf,
    /// Listens there already; taken by [`Self::run`].
    listener: Arc<Mutex<Option<UnixListener>>>,
}

/// Why the snapshotter cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The directory, its database or the mounts in it cannot be used.
    #[error("the snapshotter cannot use {}: {reason}", root.display())]
    Root {
        /// The configured directory.
        root: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source}", socket.display())]
    Listen {
        /// The configured socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The gRPC server failed.
    #[error("serving containerd failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Starts the snapshotter and serves it until the shutdown; then unmounts what no container uses.
///
/// # Errors
/// If the directory or the socket cannot be used. That lazy layers do not work on this machine is no error.
pub async fn serve(
    config: Config,
    peer: Peer,
    metrics: &mut Registry,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    Snapshotter::start(&config, peer, metrics).await?.run(shutdown).await
}

impl Snapshotter {
    /// Opens the snapshots, makes lazy layers ready to be mounted and listens on the socket; needs no network.
    ///
    /// # Errors
    /// If the directory or the socket cannot be used.
    pub async fn start(config: &Config, peer: Peer, metrics: &mut Registry) -> Result<Self, ServeError> {
        Self::with_engine(config, Arc::new(peer), Metrics::register(metrics), keeper::start).await
    }

    pub(crate) async fn with_engine(
        config: &Config,
        engine: Arc<dyn Engine>,
        metrics: Metrics,
        start_keeper: keeper::Start,
    ) -> Result<Self, ServeError> {
        let refuse = |reason: String| ServeError::Root { root: config.root.clone(), reason };
        prepare_root(&config.root).map_err(&refuse)?;
        let core = Core::start(config, engine, metrics, start_keeper)
            .await
            .map_err(|err| refuse(err.to_string()))?;
        let listener = bind(&config.socket).await;
        let listener =
            listener.map_err(|source| ServeError::Listen { socket: config.socket.clone(), source })?;
        let listener = Arc::new(Mutex::new(Some(listener)));
        Ok(Self { core: Arc::new(core), socket: config.socket.clone(), listener })
    }

    /// The lazy layers of this node, for `darter status`.
    pub fn status(&self) -> Vec<Layer> {
        let layers = self.core.layers().into_iter().map(|layer| Layer {
            blob: layer.reference.blob.to_string(),
            diff_id: layer.reference.diff_id.to_string(),
            raw_len: layer.raw_len,
            raw_held: layer.raw_held,
            mounted: layer.mounted,
        });
        layers.collect()
    }

    /// The images that were pulled with this snapshotter, for `darter image status`. Blocks for a read of the disk.
    pub fn images(&self) -> Vec<Image> {
        let images = self.core.images().unwrap_or_else(|error| {
            warn!(%error, "the images are not known");
            Vec::new()
        });
        let image = |image: ImageStatus| Image {
            name: image.name,
            lazy_layers: image.lazy_layers,
            plain_layers: image.plain_layers,
            reason: image.reason.unwrap_or_default(),
            raw_len: image.raw_len,
            raw_held: image.raw_held,
            start_read: image.start.map_or(0, |start| start.read),
            start_foreseen: image.start.and_then(|start| start.foreseen),
        };
        images.into_iter().map(image).collect()
    }

    /// Serves containerd until the shutdown; then unmounts what no container uses.
    ///
    /// # Errors
    /// If the gRPC server fails.
    pub async fn run(&self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let result = self.listen(shutdown).await;
        self.core.stop().await;
        result
    }

    async fn listen(&self, shutdown: CancellationToken) -> Result<(), ServeError> {
        let Some(listener) = self.listener.lock().take() else { return Ok(()) };
        info!(socket = %self.socket.display(), "serving containerd's snapshots");
        let service = SnapshotsServer::new(Service::new(self.core.clone()))
            .max_decoding_message_size(MAX_MESSAGE_LEN)
            .max_encoding_message_size(MAX_MESSAGE_LEN);
        let server = Server::builder().add_service(service);
        let drained = async {
            shutdown.cancelled().await;
            sleep(DRAIN_DEADLINE).await;
        };
        let served = tokio::select! {
            served = server.serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown.cancelled()) => {
                served.map_err(Into::into)
            }
            () = drained => {
                warn!("requests were still running at the shutdown");
                Ok(())
            }
        };
        fs::remove_file(&self.socket).unwrap_or_else(|error| warn!(%error, "the socket stays behind"));
        served
    }
}

impl fmt::Debug for Snapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshotter").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Makes the directory, readable for root alone.
fn prepare_root(root: &Path) -> Result<(), String> {
    let text = root.to_str().unwrap_or_default();
    if !root.is_absolute() || text.is_empty() || text.contains([',', ':', '\\', '\n']) {
        return Err("it must be an absolute path, and mount options take no ',', ':' or '\\'".into());
    }
    fs::create_dir_all(root).map_err(|err| err.to_string())?;
    fs::set_permissions(root, fs::Permissions::from_mode(0o700)).map_err(|err| err.to_string())
}

/// Listens on a socket that only root can use, in the place of one that a dead process left behind.
async fn bind(socket: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = socket.parent() {
        fs::create_dir_all(dir)?;
    }
    if fs::symlink_metadata(socket).is_ok_and(|meta| meta.file_type().is_socket()) {
        if UnixStream::connect(socket).await.is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another snapshotter is listening there"));
        }
        fs::remove_file(socket)?;
    }
    let listener = UnixListener::bind(socket)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}
