//! Rules for registries.

use super::*;
use crate::{Action, RuleConfig, server::Server};

fn rule(repository: &str, action: Action) -> RuleConfig {
    RuleConfig { repository: Some(repository.into()), action, ..RuleConfig::default() }
}

#[tokio::test]
async fn rules_choose_between_peers_origin_and_nothing() {
    let registry = Registry::start().await;
    let rules = vec![rule("denied/*", Action::Deny), rule("direct/*", Action::Direct)];
    let world = World::with(Config { rules, ..Config::default() }).await;
    let content = bytes(MIB);
    for repository in ["denied/a", "direct/a", "other/a"] {
        let path = blob(&registry, repository, &registry.blob(repository, &content, None));
        let answers = [world.get(&path).await, world.get(&path).await];
        let said =
            answers.each_ref().map(|answer| answer.header("x-darter-source").unwrap_or("none").to_owned());
        match repository {
            "denied/a" => assert_eq!((answers[0].status, answers[0].code().as_str()), (403, "DENIED")),
            "direct/a" => assert_eq!(said, ["origin", "origin"]),
            _ => assert_eq!(said, ["origin", "local"]),
        }
    }
    assert_eq!(world.get(&manifest(&registry, "denied/a", "latest")).await.status, 403);
    // Two passed on and three refused: two blobs, one tag.
    world.expect_metric("darter_proxy_decisions_total{p2p=\"no\",why=\"rule\"} 5");
    world.expect_metric("darter_proxy_decisions_total{p2p=\"yes\",why=\"default\"} 2");
    world.stop().await;
}

#[tokio::test]
async fn rules_can_change_while_it_serves() {
    let world = World::start().await;
    let mut metrics = darter_service::Registry::default();
    let server = Server::new(Config::default(), world.peer.clone(), &mut metrics).unwrap();
    let bad = RuleConfig { url: Some("(".into()), ..RuleConfig::default() };
    assert!(server.reload(&Config { rules: vec![bad], ..Config::default() }).is_err());
    server.reload(&Config { rules: vec![rule("a", Action::Deny)], ..Config::default() }).unwrap();
    world.stop().await;
}

#[tokio::test]
async fn rules_hold_for_files_that_are_wanted_otherwise() {
    let world = World::start().await;
    let url =
        |pattern: &str, action| RuleConfig { url: Some(pattern.into()), action, ..RuleConfig::default() };
    let signed = RuleConfig { ignored_query: vec!["sig".into()], ..url("/signed/", Action::P2p) };
    let rules =
        vec![signed, url("/direct/", Action::Direct), url("/denied/", Action::Deny), rule("a", Action::Deny)];
    let mut metrics = darter_service::Registry::default();
    let config = Config { rules, ..Config::default() };
    let server = Server::new(config, world.peer.clone(), &mut metrics).unwrap();
    let said = |path: &str| server.file_rules()(&format!("https://h.example{path}").parse().unwrap());
    assert_eq!(said("/signed/x"), Ok(vec!["sig".to_owned()]));
    assert_eq!(said("/other/x"), Ok(vec![]));
    // Who asks for peers gets them.
    assert_eq!(said("/direct/x"), Ok(vec![]));
    assert!(said("/denied/x").is_err());
    assert!(said(&format!("/v2/a/blobs/{}", Digest::sha256(b"x"))).is_err());
    world.stop().await;
}
