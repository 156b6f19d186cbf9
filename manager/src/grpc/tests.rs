use crate::{
    config::Cluster,
    testing::{Running, config, config_with, get, instance},
};
use darter_proto::manager::{
    self as proto, GetConfigRequest, KeepAliveRequest, Kind, LeaveRequest, ListSchedulersRequest,
    ListSeedsRequest,
};
use darter_service::manager;
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::Code;

#[tokio::test]
async fn the_living_are_handed_out_each_to_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.keepalive.interval = Duration::from_secs(60);
    let running = Running::start(config).await;
    let mut client = running.client().await;
    let reply = running.keep_alive(instance(Kind::Scheduler, "s1")).await;
    assert_eq!(reply.interval_ms, 60_000);
    running.keep_alive(instance(Kind::Seed, "p1")).await;
    running.keep_alive(instance(Kind::Peer, "p2")).await;

    let listed = |kind, id| proto::Instance { cluster: "default".into(), ..instance(kind, id) };
    let schedulers = client.list_schedulers(ListSchedulersRequest::default()).await.unwrap().into_inner();
    assert_eq!(schedulers.schedulers, [listed(Kind::Scheduler, "s1")]);
    let seeds = client.list_seeds(ListSeedsRequest { cluster: "default".into() }).await.unwrap().into_inner();
    assert_eq!(seeds.seeds, [listed(Kind::Seed, "p1")]);
    running.stop().await;
}

#[tokio::test]
async fn the_silent_are_no_longer_handed_out() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    let mut client = running.client().await;
    running.keep_alive(instance(Kind::Seed, "p1")).await;
    while !client.list_seeds(ListSeedsRequest::default()).await.unwrap().into_inner().seeds.is_empty() {
        sleep(Duration::from_millis(20)).await;
    }
    let inactive = get(running.rest, "/api/v1/peers?state=inactive").await;
    assert!(inactive.body.contains("node-p1"), "{}", inactive.body);
    running.stop().await;
}

#[tokio::test]
async fn bad_requests_are_told_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    let mut client = running.client().await;
    let error = client.keep_alive(KeepAliveRequest { instance: None }).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "instance is missing"));
    let mut bad = instance(Kind::Peer, "p1");
    bad.address = "somewhere".into();
    let error = client.keep_alive(KeepAliveRequest { instance: Some(bad) }).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("address is not an ip:port"), "{error}");
    let error = client.get_config(GetConfigRequest { cluster: "x".into() }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("add [clusters.\"x\"]"), "{error}");
    let mut huge = instance(Kind::Peer, "p1");
    huge.name = "n".repeat(100_000);
    let error = client.keep_alive(KeepAliveRequest { instance: Some(huge) }).await.unwrap_err();
    assert_eq!(error.code(), Code::OutOfRange);
    running.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_instances_and_shows_a_changed_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    let first = running.keep_alive(instance(Kind::Seed, "p1")).await.config_version;
    running.stop().await;

    let limits = Cluster { upload_bytes_per_second: 5, ..Cluster::default() };
    let running = Running::start(config_with(dir.path(), limits)).await;
    let listed = get(running.rest, "/api/v1/peers").await;
    assert!(listed.body.contains("node-p1"), "{}", listed.body);
    let config = running.client().await.get_config(GetConfigRequest::default()).await.unwrap().into_inner();
    assert!(config.version > first);
    assert_eq!(config.upload_bytes_per_second, 5);
    assert_eq!(running.keep_alive(instance(Kind::Seed, "p1")).await.config_version, config.version);
    running.stop().await;
}

/// The client that schedulers and peers use, with the real manager.
#[tokio::test]
async fn a_peer_learns_of_a_scheduler_and_of_its_good_bye() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Cluster { parents_per_child: 4, ..Cluster::default() };
    let running = Running::start(config_with(dir.path(), limits)).await;
    let address = manager::Config::new(running.grpc.to_string());
    let link = |kind, id| manager::connect(&address, instance(kind, id)).unwrap();
    let (scheduler, scheduler_link) = link(Kind::Scheduler, "s1");
    let (peer, peer_link) = link(Kind::Peer, "p1");
    let (stop_scheduler, stop_peer) = (CancellationToken::new(), CancellationToken::new());
    let scheduler_task = tokio::spawn(scheduler_link.run(stop_scheduler.clone()));
    let peer_task = tokio::spawn(peer_link.run(stop_peer.clone()));

    peer.schedulers().wait_for(|list| list.iter().any(|scheduler| scheduler.id == "s1")).await.unwrap();
    peer.config().wait_for(|config| config.parents_per_child == 4).await.unwrap();
    scheduler.config().wait_for(|config| config.parents_per_child == 4).await.unwrap();
    assert!(peer.seeds().borrow().is_empty());

    stop_scheduler.cancel();
    scheduler_task.await.unwrap();
    let inactive = get(running.rest, "/api/v1/schedulers?state=inactive").await;
    assert!(inactive.body.contains("node-s1"), "{}", inactive.body);
    stop_peer.cancel();
    peer_task.await.unwrap();
    running.stop().await;
}

#[tokio::test]
async fn health_and_metrics_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    running.keep_alive(instance(Kind::Seed, "p1")).await;
    let request = LeaveRequest { kind: 0, id: "p1".into(), cluster: String::new() };
    assert_eq!(running.client().await.leave(request).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(get(running.rest, "/nowhere").await.status, 404);
    loop {
        let metrics = get(running.admin, "/metrics").await.body;
        let counted = ["active", "inactive"].iter().any(|state| {
            let line =
                format!("darter_manager_instances{{cluster=\"default\",kind=\"seed\",state=\"{state}\"}} 1");
            metrics.contains(&line)
        });
        if counted && get(running.admin, "/readyz").await.status == 200 {
            assert!(
                metrics.contains("requests_total{api=\"grpc\",method=\"KeepAlive\",result=\"Ok\"} 1"),
                "{metrics}"
            );
            assert!(metrics.contains("method=\"Leave\",result=\"InvalidArgument\"} 1"), "{metrics}");
            assert!(metrics.contains("api=\"rest\",method=\"\",result=\"404\"} 1"), "{metrics}");
            break;
        }
        sleep(Duration::from_millis(20)).await;
    }
    running.stop().await;
}
