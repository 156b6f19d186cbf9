//! A manager on free ports of the loopback interface, for tests.

use crate::{
    config::{Cluster, Config, Database, KeepAlive, Listen},
    run::{Manager, RunError},
};
use darter_proto::manager::{self as proto, manager_client::ManagerClient};
use darter_service::admin;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) struct Running {
    pub(crate) grpc: SocketAddr,
    pub(crate) rest: SocketAddr,
    pub(crate) admin: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), RunError>>,
}

/// An answer to a GET.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: String,
}

/// A configuration with free ports and a quick keepalive.
pub(crate) fn config(dir: &Path) -> Config {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Config {
        grpc: Listen { listen },
        rest: Listen { listen },
        admin: admin::Config { listen },
        database: Database { path: dir.join("manager.db") },
        keepalive: KeepAlive { interval: Duration::from_millis(100), ..KeepAlive::default() },
        ..Config::default()
    }
}

/// The same with limits for the default cluster.
pub(crate) fn config_with(dir: &Path, cluster: Cluster) -> Config {
    let mut config = config(dir);
    config.clusters.insert(crate::ClusterName::default(), cluster);
    config
}

pub(crate) fn instance(kind: proto::Kind, id: &str) -> proto::Instance {
    proto::Instance {
        kind: kind.into(),
        id: id.into(),
        name: format!("node-{id}"),
        address: "10.0.0.1:7430".into(),
        version: "0.1.0".into(),
        region: "eu".into(),
        zone: "a".into(),
        rack: "r1".into(),
        ..proto::Instance::default()
    }
}

impl Running {
    pub(crate) async fn start(config: Config) -> Self {
        let manager = Manager::start(config).await.unwrap();
        let (grpc, rest, admin) = (
            manager.grpc_address().unwrap(),
            manager.rest_address().unwrap(),
            manager.admin_address().unwrap(),
        );
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(manager.serve(shutdown.clone()));
        Self { grpc, rest, admin, shutdown, task }
    }

    pub(crate) async fn client(&self) -> ManagerClient<Channel> {
        ManagerClient::connect(format!("http://{}", self.grpc)).await.unwrap()
    }

    pub(crate) async fn keep_alive(&self, instance: proto::Instance) -> proto::KeepAliveReply {
        let request = proto::KeepAliveRequest { instance: Some(instance) };
        self.client().await.keep_alive(request).await.unwrap().into_inner()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

pub(crate) async fn request(address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, body: body.into() }
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path).await
}
