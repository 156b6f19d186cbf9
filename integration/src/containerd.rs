//! A containerd of a test's own, driven by `ctr`. The machine's containerd is never touched.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Image, ImageRef, Lab, Process, Program, RootFs, Runtime,
    command::{Command, Output},
    digest,
    wait::until,
};

/// containerd's own snapshotter.
pub const OVERLAYFS: &str = "overlayfs";
/// The name under which containerd knows Darter's snapshotter.
pub const DARTER: &str = "darter";

/// A containerd in a lab, with its own root, state, socket, namespace and cgroups.
#[derive(Debug)]
pub struct Containerd {
    name: String,
    lab: Lab,
    dir: PathBuf,
    socket: PathBuf,
    runtime: Runtime,
    /// The program itself.
    pub process: Process,
}

// === impl Containerd ===

impl Containerd {
    /// Starts a containerd with its own snapshotters only.
    pub async fn start(lab: &Lab, name: &str) -> Result<Self> {
        Self::start_with(lab, name, None).await
    }

    /// Starts one that also has the snapshotter [`DARTER`], served at the unix socket `snapshotter`.
    pub async fn start_with(lab: &Lab, name: &str, snapshotter: Option<&Path>) -> Result<Self> {
        Self::start_with_plugin(lab, name, snapshotter.map(|socket| (DARTER, socket))).await
    }

    /// Starts one that also has a snapshotter of this name, served at this unix socket.
    pub async fn start_with_plugin(
        lab: &Lab,
        name: &str,
        snapshotter: Option<(&str, &Path)>,
    ) -> Result<Self> {
        let config = config(&lab.subdir(name)?, snapshotter);
        Self::start_as(lab, name, Runtime::installed(), &config).await
    }

    /// Starts one of any version with a configuration of its own: see [`Self::place`].
    pub async fn start_as(lab: &Lab, name: &str, runtime: Runtime, config: &str) -> Result<Self> {
        let dir = lab.subdir(name)?;
        let config = lab.write(&format!("{name}/containerd.toml"), config)?;
        let program = Program::new(format!("{name}-containerd"), "containerd").arg("--config").arg(config);
        let process = Process::start(lab, program.env("PATH", runtime.path()))?;
        let socket = dir.join("containerd.sock");
        let mut containerd = Self { name: name.to_owned(), lab: lab.clone(), dir, socket, runtime, process };
        containerd.until_ready().await?;
        Ok(containerd)
    }

    /// The keys of a configuration that say where the containerd `name` of a lab keeps everything. They go before all
    /// tables.
    pub fn place(lab: &Lab, name: &str) -> String {
        let dir = lab.dir().join(name);
        let dir = dir.display();
        format!("root = \"{dir}/root\"\nstate = \"{dir}/state\"\ngrpc.address = \"{dir}/containerd.sock\"\n")
    }

    /// Where it runs.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Its gRPC socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The containerd namespace in which everything happens.
    pub fn namespace(&self) -> &str {
        self.lab.name()
    }

    /// Kills it as a crash would, and starts it again. Containers go on.
    pub async fn crash_and_restart(&mut self) -> Result<()> {
        self.process.start_again()?;
        self.until_ready().await
    }

    /// From here on pulls from the registry at `registry`, its name in image references, go to `mirror` first and
    /// then to the registry itself.
    pub fn mirror(&self, registry: &str, mirror: &str) -> Result<()> {
        // Without a `server` containerd knows by itself where a registry with a public name is.
        let server = if registry.starts_with("127.") {
            format!("server = \"http://{registry}\"\n")
        } else {
            String::new()
        };
        let hosts = format!("{server}[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        self.lab.write(&format!("{}/certs.d/{registry}/hosts.toml", self.name), &hosts)?;
        Ok(())
    }

    /// Pulls an image and unpacks it with overlayfs.
    pub async fn pull(&self, image: &ImageRef) -> Result<Output> {
        self.pull_with(OVERLAYFS, image).await
    }

    /// Pulls an image and has this snapshotter unpack it, or take it as it can.
    pub async fn pull_with(&self, snapshotter: &str, image: &ImageRef) -> Result<Output> {
        let command = self.ctr(["images", "pull", "--hosts-dir"]).arg(self.dir.join("certs.d"));
        command.args(["--snapshotter", snapshotter]).arg(image.to_string()).run().await
    }

    /// Runs a command in a new container of a pulled image, and removes the container.
    pub async fn run(&self, image: &ImageRef, command: impl IntoIterator<Item = &str>) -> Result<Output> {
        self.run_with(OVERLAYFS, image, command).await
    }

    /// Runs a command in a new container whose layers this snapshotter has, and removes the container.
    pub async fn run_with(
        &self,
        snapshotter: &str,
        image: &ImageRef,
        command: impl IntoIterator<Item = &str>,
    ) -> Result<Output> {
        static CONTAINERS: AtomicU32 = AtomicU32::new(0);
        let id = format!("run-{}", CONTAINERS.fetch_add(1, Ordering::Relaxed));
        self.ctr_run(snapshotter, &["--rm"], image, &id).args(command).run().await
    }

    /// Runs a command in a new container whose root is the host's user `root`, and removes the container. The snapshotter
    /// is told so, if `told`; otherwise containerd gives a copy of all files to other owners.
    pub async fn run_as(
        &self,
        snapshotter: &str,
        image: &ImageRef,
        id: &str,
        root: u32,
        told: bool,
        command: impl IntoIterator<Item = &str>,
    ) -> Result<Output> {
        let map = format!("0:{root}:65536");
        let mut flags = vec!["--rm", "--uidmap", &map, "--gidmap", &map];
        flags.extend(told.then_some("--remap-labels"));
        self.ctr_run(snapshotter, &flags, image, id).args(command).run().await
    }

    /// Starts a container that goes on running; [`Self::exec`] runs commands in it.
    pub async fn run_detached(
        &self,
        snapshotter: &str,
        image: &ImageRef,
        id: &str,
        command: &[&str],
    ) -> Result<Output> {
        self.ctr_run(snapshotter, &["--detach", "--null-io"], image, id).args(command).run().await
    }

    /// Runs a command that serves something at a port of the host, until [`Self::quit`] ends it; then the container is
    /// removed.
    pub async fn serve(
        &self,
        snapshotter: &str,
        image: &ImageRef,
        id: &str,
        command: impl IntoIterator<Item = &str>,
    ) -> Result<Output> {
        self.ctr_run(snapshotter, &["--rm", "--net-host"], image, id).args(command).run().await
    }

    /// Asks what [`Self::serve`] runs to end.
    pub async fn quit(&self, id: &str) -> Result<()> {
        self.ctr(["tasks", "kill", "--signal", "SIGQUIT"]).arg(self.container(id)).run().await?;
        Ok(())
    }

    fn ctr_run(&self, snapshotter: &str, flags: &[&str], image: &ImageRef, id: &str) -> Command {
        let run = self.ctr(["run", "--snapshotter", snapshotter]).args(flags);
        let run = run.arg("--fifo-dir").arg(&self.dir).arg("--runc-root").arg(self.dir.join("runc"));
        run.arg(image.to_string()).arg(self.container(id))
    }

    /// Runs a command in a running container.
    pub async fn exec(&self, id: &str, command: &[&str]) -> Result<Output> {
        static EXECS: AtomicU32 = AtomicU32::new(0);
        let exec_id = format!("exec-{}", EXECS.fetch_add(1, Ordering::Relaxed));
        let exec = self.ctr(["tasks", "exec", "--fifo-dir"]).arg(&self.dir).args(["--exec-id", &exec_id]);
        exec.arg(self.container(id)).args(command).run().await
    }

    /// Kills and removes a container.
    pub async fn remove_container(&self, id: &str) -> Result<()> {
        self.ctr(["tasks", "rm", "--force"]).arg(self.container(id)).run().await?;
        self.ctr(["containers", "rm"]).arg(self.container(id)).run().await?;
        Ok(())
    }

    /// Removes an image and waits until containerd has collected what only it needed.
    pub async fn remove_image(&self, image: &ImageRef) -> Result<()> {
        self.ctr(["images", "rm", "--sync"]).arg(image.to_string()).run().await?;
        Ok(())
    }

    /// Reads the whole root file system that a container of the image sees, from the layers that this snapshotter has.
    pub async fn root_fs(&self, snapshotter: &str, image: &Image) -> Result<RootFs> {
        let target = self.lab.subdir(&format!("{}/root-fs", self.name))?;
        self.mount_root(snapshotter, image, &target).await?;
        let root = target.clone();
        let read = tokio::task::spawn_blocking(move || RootFs::read(&root)).await?;
        Command::new(&self.lab, "umount").arg(&target).run().await?;
        read
    }

    /// Where containerd has mounted the root file system of a running container.
    pub fn root_of(&self, id: &str) -> PathBuf {
        let tasks = self.dir.join("state/io.containerd.runtime.v2.task");
        tasks.join(self.namespace()).join(self.container(id)).join("rootfs")
    }

    /// Reads the whole root file system of a running container.
    pub async fn root_fs_of(&self, id: &str) -> Result<RootFs> {
        let root = self.root_of(id);
        tokio::task::spawn_blocking(move || RootFs::read(&root)).await?
    }

    /// Mounts, read-only, the root file system that a container of the image sees, from the layers that this snapshotter
    /// has.
    pub async fn mount_root(&self, snapshotter: &str, image: &Image, target: &Path) -> Result<()> {
        static VIEWS: AtomicU32 = AtomicU32::new(0);
        let key = format!("view-{}", VIEWS.fetch_add(1, Ordering::Relaxed));
        // `ctr images mount` would be shorter, but in containerd 1.6 it always takes the default snapshotter. The view
        // belongs to nothing, so containerd's garbage collector removes it sooner or later.
        let view = self.snapshots(snapshotter).args(["view", "--target"]).arg(target);
        let mount = view.args([&key, &image.chain_id()]).run().await?.stdout;
        Command::new(&self.lab, "sh").arg("-c").arg(mount).run().await?;
        Ok(())
    }

    /// Waits until containerd has found its way back to Darter's snapshotter, which it tries every few seconds.
    pub async fn until_snapshotter_answers(&self) -> Result<()> {
        let answers = async || self.snapshots(DARTER).arg("ls").run().await.is_ok();
        until("reached by containerd: the snapshotter", answers).await
    }

    fn snapshots(&self, snapshotter: &str) -> Command {
        self.ctr(["snapshots", "--snapshotter", snapshotter])
    }

    /// Compares every blob of the image in containerd's content store with what was pushed.
    pub fn check_content(&self, image: &Image) -> Result<()> {
        for blob in image.blobs() {
            let stored = digest::of_file(&self.content_path(&blob.digest));
            let (digest, len) = stored.with_context(|| format!("{} is not stored", blob.digest))?;
            ensure!(
                digest == blob.digest && len == blob.size,
                "{} is stored as {digest}, {len} bytes",
                blob.digest
            );
        }
        Ok(())
    }

    /// Bytes of blobs that containerd has stored or is just receiving.
    pub fn content_bytes(&self) -> u64 {
        let store = self.dir.join("root/io.containerd.content.v1.content");
        bytes_below(&store.join("blobs")) + bytes_below(&store.join("ingest"))
    }

    /// Whether containerd's content store has the blob.
    pub fn has_content(&self, digest: &str) -> bool {
        self.content_path(digest).exists()
    }

    /// `ctr` on this containerd and namespace, with arguments to be added.
    pub fn ctr<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let command = self.runtime.command(&self.lab, "ctr").arg("--address").arg(&self.socket);
        command.args(["--namespace", self.namespace()]).args(args)
    }

    fn content_path(&self, digest: &str) -> PathBuf {
        let blobs = self.dir.join("root/io.containerd.content.v1.content/blobs");
        blobs.join(digest.replace(':', "/"))
    }

    /// Cgroups are of the lab, not of one containerd, so container ids carry the containerd's name.
    fn container(&self, id: &str) -> String {
        format!("{}-{id}", self.name)
    }

    async fn until_ready(&mut self) -> Result<()> {
        let socket = self.socket.clone();
        self.process.until_socket(&socket).await
    }
}

/// Configuration version 2 is read by every containerd from 1.3 to 2.x.
fn config(dir: &Path, snapshotter: Option<(&str, &Path)>) -> String {
    let dir = dir.display();
    let mut config = format!(
        r#"version = 2
root = "{dir}/root"
state = "{dir}/state"

[grpc]
  address = "{dir}/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  # Lowering the score needs CAP_SYS_RESOURCE, which a test in a container may lack.
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{dir}/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    # Without these labels a remote snapshotter does not learn which layer it is asked for.
    disable_snapshot_annotations = false
"#
    );
    if let Some((name, socket)) = snapshotter {
        let socket = socket.display();
        config.push_str(&format!(
            "\n[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"{socket}\"\n"
        ));
    }
    config
}

/// Sum of the lengths of all files below a directory that is being written to.
fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let bytes = entries.map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}
