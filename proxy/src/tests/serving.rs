//! The server: protocols, shutdown, counters.

use super::*;
use hyper_util::rt::TokioExecutor;

#[tokio::test]
async fn http2_without_tls_works() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(MIB);
    let digest = registry.blob("a", &content, None);
    let stream = TcpStream::connect(world.address).await.unwrap();
    let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.unwrap();
    tokio::spawn(connection);
    let url = format!("http://{}{}", world.address, blob(&registry, "a", &digest));
    let request = Request::get(url).body(Empty::<Bytes>::new()).unwrap();
    assert!(Answer::read(sender.send_request(request).await.unwrap()).await.content() == content);
    drop(sender);
    world.stop().await;
}

#[tokio::test]
async fn a_running_answer_ends_after_shutdown() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(8 * MIB);
    let digest = registry.blob("a", &content, None);
    let path = blob(&registry, "a", &digest);
    world.get(&path).await.content();
    let mut response = world.send(Request::get(&path).body(Empty::new()).unwrap()).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    world.shutdown.cancel();
    let rest = Answer::read(response).await.content();
    assert_eq!(first.len() + rest.len(), content.len());
    world.stop().await;
}

#[tokio::test]
async fn requests_and_bytes_are_counted() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest = registry.blob("a", &bytes(1000), None);
    for _ in 0..2 {
        world.get(&blob(&registry, "a", &digest)).await.content();
    }
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &world.metrics).unwrap();
    for line in [
        "darter_proxy_requests_total{route=\"blob\",status=\"200\",source=\"origin\"} 1",
        "darter_proxy_requests_total{route=\"blob\",status=\"200\",source=\"local\"} 1",
        "darter_proxy_bytes_total{source=\"local\"} 1000",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_default_registry_that_is_none_is_refused() {
    let world = World::with(Config { default_registry: "not a host".to_owned(), ..Config::default() }).await;
    let error = world.serving.await.unwrap().unwrap_err();
    assert!(error.to_string().starts_with("proxy.default_registry \"not a host\""), "{error}");
    world.shutdown.cancel();
}
