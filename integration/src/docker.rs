//! A dockerd of a test's own. The machine's Docker is never touched.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::{
    Lab, Process, Program, Runtime,
    command::{Command, Output},
};

/// A dockerd in a lab, without any network.
#[derive(Debug)]
pub struct Docker {
    lab: Lab,
    socket: PathBuf,
    runtime: Runtime,
    /// The program itself.
    pub process: Process,
}

// === impl Docker ===

impl Docker {
    /// Starts a dockerd that pulls from `mirror` what it would pull from Docker's own registry.
    pub async fn start(lab: &Lab, mirror: &str) -> Result<Self> {
        let config = serde_json::json!({ "registry-mirrors": [mirror] });
        Self::start_as(lab, Runtime::installed(), config, None).await
    }

    /// Starts a dockerd of any version with a configuration of its own, on a containerd of its own or on this one.
    pub async fn start_as(
        lab: &Lab,
        runtime: Runtime,
        mut config: serde_json::Value,
        containerd: Option<&Path>,
    ) -> Result<Self> {
        let dir = lab.subdir("docker")?;
        let place = serde_json::json!({
            "cgroup-parent": format!("/{}", lab.name()),
            "data-root": dir.join("data"),
            "exec-root": dir.join("exec"),
            "pidfile": dir.join("pid"),
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
        });
        if let (Some(config), Some(place)) = (config.as_object_mut(), place.as_object()) {
            config.extend(place.clone());
            let key = key_path(lab, &runtime).await?.map(|path| path.display().to_string().into());
            config.extend(key.map(|path| ("deprecated-key-path".to_owned(), path)));
        }
        let config = lab.write("docker/daemon.json", &config.to_string())?;
        let socket = dir.join("docker.sock");
        let program = Program::new("dockerd", "dockerd").arg("--config-file").arg(config);
        let program = program.arg("--host").arg(format!("unix://{}", socket.display()));
        let program = containerd
            .iter()
            .fold(program, |program, containerd| program.arg("--containerd").arg(containerd));
        let process = Process::start(lab, program.env("PATH", runtime.path()))?;
        let mut docker = Self { lab: lab.clone(), socket, runtime, process };
        docker.process.until_log("API listen on").await?;
        Ok(docker)
    }

    /// Pulls an image of Docker's own registry by its short name, such as `tiny:1` for `library/tiny:1`.
    pub async fn pull(&self, image: &str) -> Result<Output> {
        self.docker(["pull", "--quiet", image]).run().await
    }

    /// Runs a command in a new container of a pulled image, and removes the container.
    pub async fn run(&self, image: &str, command: impl IntoIterator<Item = &str>) -> Result<Output> {
        self.docker(["run", "--rm", "--network", "none", "--pull", "never", image]).args(command).run().await
    }

    /// `docker` on this dockerd, with arguments to be added.
    pub fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Command {
        let command = self.runtime.command(&self.lab, "docker").arg("--host");
        command.arg(format!("unix://{}", self.socket.display())).args(args)
    }
}

/// Docker 20, Debian 12's, puts a key into /etc/docker if it is not told another path; later ones know no such option.
async fn key_path(lab: &Lab, runtime: &Runtime) -> Result<Option<PathBuf>> {
    let version = runtime.version(lab, "dockerd").await?;
    Ok(version.starts_with("20.").then(|| lab.dir().join("docker/key.json")))
}
