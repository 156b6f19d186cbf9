use crate::testing::{Running, config, get, instance, request};
use darter_proto::manager::{Kind, LeaveRequest};
use serde_json::Value;
use std::net::SocketAddr;

async fn json(address: SocketAddr, path: &str) -> Value {
    let answer = get(address, path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    serde_json::from_str(&answer.body).unwrap()
}

async fn refused(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = get(address, path).await;
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    (answer.status, body["error"].as_str().unwrap().into())
}

#[tokio::test]
async fn clusters_are_shown_with_their_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config
        .clusters
        .insert("eu-1".parse().unwrap(), crate::Cluster { parents_per_child: 3, ..Default::default() });
    let running = Running::start(config).await;
    let all = json(running.rest, "/api/v1/clusters").await;
    assert_eq!(all["total"], 2);
    assert_eq!(all["items"][1]["name"], "eu-1");
    let one = json(running.rest, "/api/v1/clusters/eu-1").await;
    assert_eq!(one["config"]["parents_per_child"], 3);
    assert_eq!(one["active_peers"], 0);
    let (status, error) = refused(running.rest, "/api/v1/clusters/none").await;
    assert_eq!((status, error.as_str()), (404, "there is no cluster \"none\""));
    assert_eq!(refused(running.rest, "/api/v1/clusters/a%20b").await.0, 400);
    running.stop().await;
}

#[tokio::test]
async fn instances_are_shown_with_state_version_place_and_last_keepalive() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.keepalive.interval = std::time::Duration::from_secs(60);
    let running = Running::start(config).await;
    running.keep_alive(instance(Kind::Scheduler, "s1")).await;
    running.keep_alive(instance(Kind::Seed, "p1")).await;
    running.keep_alive(instance(Kind::Peer, "p2")).await;
    let leave = LeaveRequest { kind: Kind::Peer.into(), id: "p2".into(), cluster: String::new() };
    running.client().await.leave(leave).await.unwrap();

    let schedulers = json(running.rest, "/api/v1/schedulers").await;
    assert_eq!(schedulers["total"], 1);
    let scheduler = &schedulers["items"][0];
    for (key, value) in [
        ("cluster", "default"),
        ("kind", "scheduler"),
        ("id", "s1"),
        ("name", "node-s1"),
        ("address", "10.0.0.1:7430"),
        ("version", "0.1.0"),
        ("region", "eu"),
        ("zone", "a"),
        ("rack", "r1"),
        ("state", "active"),
    ] {
        assert_eq!(scheduler[key], value, "{key}");
    }
    assert!(scheduler["last_seen"].as_str().unwrap().ends_with('Z'));

    let ids = |list: &Value| -> Vec<String> {
        list["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().into()).collect()
    };
    assert_eq!(ids(&json(running.rest, "/api/v1/peers").await), ["p2", "p1"]);
    assert_eq!(ids(&json(running.rest, "/api/v1/peers?state=active&cluster=default").await), ["p1"]);
    assert_eq!(ids(&json(running.rest, "/api/v1/peers?state=inactive").await), ["p2"]);
    let page = json(running.rest, "/api/v1/peers?limit=1&offset=1").await;
    assert_eq!((ids(&page), page["total"].as_i64()), (vec!["p1".into()], Some(2)));
    assert_eq!(json(running.rest, "/api/v1/peers?cluster=other").await["total"], 0);
    assert_eq!(json(running.rest, "/api/v1/clusters/default").await["active_seeds"], 1);
    running.stop().await;
}

#[tokio::test]
async fn bad_questions_are_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    for (path, says) in [
        ("/api/v1/peers?state=asleep", "asleep"),
        ("/api/v1/peers?limit=-1", "limit"),
        ("/api/v1/peers?cluster=a%20b", "contains ' '"),
        ("/api/v1/peers?color=red", "unknown field `color`"),
    ] {
        let (status, error) = refused(running.rest, path).await;
        assert!(status == 400 && error.contains(says), "{path}: {status} {error}");
    }
    assert_eq!(refused(running.rest, "/api/v2").await.0, 404);
    assert_eq!(request(running.rest, "DELETE", "/api/v1/clusters/default").await.status, 405);
    running.stop().await;
}

#[tokio::test]
async fn openapi_lists_every_route() {
    let dir = tempfile::tempdir().unwrap();
    let running = Running::start(config(dir.path())).await;
    let description = json(running.rest, "/api/v1/openapi.json").await;
    assert!(description["openapi"].as_str().unwrap().starts_with("3."));
    let paths: Vec<_> = description["paths"].as_object().unwrap().keys().cloned().collect();
    assert_eq!(paths, ["/api/v1/clusters", "/api/v1/clusters/{name}", "/api/v1/peers", "/api/v1/schedulers"]);
    for path in &paths {
        let get = &description["paths"][path]["get"];
        assert!(get["responses"]["200"]["content"]["application/json"]["schema"].is_object(), "{path}");
    }
    let parameters = description["paths"]["/api/v1/peers"]["get"]["parameters"].as_array().unwrap();
    let names: Vec<_> = parameters.iter().map(|parameter| parameter["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["cluster", "state", "offset", "limit"]);
    running.stop().await;
}
