use super::*;
use crate::config;
use darter_proto::manager::{
    GetConfigRequest, KeepAliveReply, KeepAliveRequest, Kind, LeaveReply, LeaveRequest, ListSchedulersReply,
    ListSchedulersRequest, ListSeedsReply, ListSeedsRequest,
    manager_server::{Manager as Service, ManagerServer},
};
use parking_lot::Mutex;
use std::net::SocketAddr;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// A manager whose answers the test sets.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Answers>>);

#[derive(Default)]
struct Answers {
    schedulers: Vec<Instance>,
    config: DynamicConfig,
    seen: Vec<Instance>,
    left: Vec<LeaveRequest>,
}

#[tonic::async_trait]
impl Service for Fake {
    async fn keep_alive(
        &self,
        request: Request<KeepAliveRequest>,
    ) -> Result<Response<KeepAliveReply>, Status> {
        let mut answers = self.0.lock();
        answers.seen.push(request.into_inner().instance.unwrap());
        Ok(Response::new(KeepAliveReply { interval_ms: 0, config_version: answers.config.version }))
    }

    async fn list_schedulers(
        &self,
        _: Request<ListSchedulersRequest>,
    ) -> Result<Response<ListSchedulersReply>, Status> {
        Ok(Response::new(ListSchedulersReply { schedulers: self.0.lock().schedulers.clone() }))
    }

    async fn list_seeds(&self, _: Request<ListSeedsRequest>) -> Result<Response<ListSeedsReply>, Status> {
        Ok(Response::new(ListSeedsReply::default()))
    }

    async fn get_config(&self, _: Request<GetConfigRequest>) -> Result<Response<DynamicConfig>, Status> {
        Ok(Response::new(self.0.lock().config))
    }

    async fn leave(&self, request: Request<LeaveRequest>) -> Result<Response<LeaveReply>, Status> {
        self.0.lock().left.push(request.into_inner());
        Ok(Response::new(LeaveReply {}))
    }
}

/// Serves the fake until the token is cancelled; then its connections are closed too.
async fn serve(fake: Fake, address: &str, stop: CancellationToken) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().add_service(ManagerServer::new(fake));
    let served = async move {
        server
            .serve_with_incoming_shutdown(TcpIncoming::from(listener), stop.cancelled_owned())
            .await
            .unwrap();
    };
    (address, tokio::spawn(served))
}

fn scheduler(id: &str) -> Instance {
    Instance { kind: Kind::Scheduler.into(), id: id.into(), ..Instance::default() }
}

#[tokio::test]
async fn answers_arrive_change_and_outlive_the_manager() {
    let (fake, stop) = (Fake::default(), CancellationToken::new());
    fake.0.lock().schedulers = vec![scheduler("a")];
    let (address, server) = serve(fake.clone(), "127.0.0.1:0", stop.clone()).await;

    let instance = Instance { kind: Kind::Peer.into(), id: "me".into(), ..Instance::default() };
    let (manager, link) = connect(&Config::new(address.to_string()), instance).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(link.run(shutdown.clone()));
    let (mut schedulers, mut config) = (manager.schedulers(), manager.config());
    schedulers.wait_for(|list| list.iter().any(|scheduler| scheduler.id == "a")).await.unwrap();
    assert_eq!(fake.0.lock().seen[0].cluster, "default");

    // A change is seen; an empty list is not believed.
    fake.0.lock().config = DynamicConfig { version: 7, parents_per_child: 3, ..DynamicConfig::default() };
    fake.0.lock().schedulers.clear();
    config.wait_for(|config| config.parents_per_child == 3).await.unwrap();
    assert_eq!(schedulers.borrow().len(), 1);

    // The manager goes: the answers stay.
    stop.cancel();
    server.await.unwrap();
    manager.reachable.clone().wait_for(|reachable| !reachable).await.unwrap();
    assert!(!manager.is_reachable());
    assert_eq!(schedulers.borrow().len(), 1);
    assert_eq!(config.borrow().version, 7);

    // It comes back at the same address with other answers, and hears the good-bye.
    fake.0.lock().schedulers = vec![scheduler("b")];
    let stop = CancellationToken::new();
    let (_, server) = serve(fake.clone(), &address.to_string(), stop.clone()).await;
    schedulers.wait_for(|list| list.iter().any(|scheduler| scheduler.id == "b")).await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(
        fake.0.lock().left,
        [LeaveRequest { kind: Kind::Peer.into(), id: "me".into(), cluster: "default".into() }]
    );
    stop.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn an_instance_of_another_kind_is_not_known_as_the_old_one_too() {
    let (fake, stop) = (Fake::default(), CancellationToken::new());
    let (address, server) = serve(fake.clone(), "127.0.0.1:0", stop.clone()).await;
    let instance = Instance { kind: Kind::Peer.into(), id: "me".into(), ..Instance::default() };
    let (manager, link) = connect(&Config::new(address.to_string()), instance).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(link.run(shutdown.clone()));
    manager.reachable.clone().wait_for(|reachable| *reachable).await.unwrap();

    manager.set_kind(Kind::Seed);
    let is_seed = || fake.0.lock().seen.last().is_some_and(|seen| seen.kind == i32::from(Kind::Seed));
    while !is_seed() {
        tokio::task::yield_now().await;
    }
    let left = |kind: Kind| LeaveRequest { kind: kind.into(), id: "me".into(), cluster: "default".into() };
    assert_eq!(fake.0.lock().left, [left(Kind::Peer)]);
    shutdown.cancel();
    task.await.unwrap();
    assert_eq!(fake.0.lock().left, [left(Kind::Peer), left(Kind::Seed)]);
    stop.cancel();
    server.await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_a_link_whose_manager_never_answers() {
    // Accepts connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (manager, link) =
        connect(&Config::new(silent.local_addr().unwrap().to_string()), scheduler("a")).unwrap();
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(link.run(shutdown.clone()));
    let (_connection, _) = silent.accept().await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
    assert!(manager.schedulers().borrow().is_empty() && !manager.is_reachable());
}

#[test]
fn addresses_are_checked_where_they_stand() {
    for good in ["manager:7420", "10.0.0.1:7420", "[::1]:7420"] {
        let read: Config = config::parse(&format!("address = \"{good}\""), "c").unwrap();
        assert_eq!(read, Config::new(good));
    }
    for bad in [
        "",
        "manager",
        "manager:0",
        "manager:99999",
        "http://manager:7420",
        "manager:7420/x",
        "a b:1",
        "me@m:1",
    ] {
        let error = config::parse::<Config>(&format!("\naddress = \"{bad}\""), "c").unwrap_err().to_string();
        assert_eq!(error, format!("c:2: the manager's address \"{bad}\" is not a host:port"));
    }
}
