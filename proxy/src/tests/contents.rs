//! Contents named by digests.

use super::*;

#[tokio::test]
async fn a_blob_comes_from_the_origin_once_and_then_from_here() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(3 * MIB + 17);
    let digest = registry.blob("a", &content, None);
    let path = blob(&registry, "a", &digest);
    for source in ["origin", "local"] {
        let answer = world.get(&path).await;
        assert_eq!(answer.header("content-length"), Some(content.len().to_string().as_str()));
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        assert_eq!(answer.header("docker-content-digest"), Some(digest.to_string().as_str()));
        assert_eq!(answer.header("etag"), Some(format!("\"{digest}\"").as_str()));
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        assert_eq!(answer.header("x-darter-source"), Some(source));
        assert!(answer.content() == content, "{source}");
    }
    assert_eq!(registry.count(Method::GET, &digest.to_string()), 1);
    world.stop().await;
}

#[tokio::test]
async fn ranges_are_exact_whether_the_blob_is_here_or_not() {
    let registry = Registry::start().await;
    let content = bytes(2 * MIB + 5);
    let digest = registry.blob("a", &content, None);
    let (path, len) = (blob(&registry, "a", &digest), content.len());
    let cases = [
        ("bytes=0-", 0..len),
        ("bytes=0-0", 0..1),
        ("bytes=300000-1500000", 300_000..1_500_001),
        ("bytes=2000000-", 2_000_000..len),
        ("bytes=-10", len - 10..len),
        ("bytes=5-99999999999", 5..len),
    ];
    let warm = World::start().await;
    warm.get(&path).await.content();
    for (header, range) in cases {
        let cold = World::start().await;
        for world in [&cold, &warm] {
            let answer = world.ask(Method::GET, &path, &[("range", header)]).await;
            assert_eq!(answer.status, 206, "{header}");
            let expected = format!("bytes {}-{}/{len}", range.start, range.end - 1);
            assert_eq!(answer.header("content-range"), Some(expected.as_str()));
            assert_eq!(answer.header("content-length"), Some(range.len().to_string().as_str()));
            assert!(answer.content() == content[range.clone()], "{header}");
        }
        cold.stop().await;
    }
    let answer = warm.ask(Method::GET, &path, &[("range", "bytes=99999999-")]).await;
    assert_eq!(
        (answer.status, answer.header("content-range")),
        (416, Some(format!("bytes */{len}").as_str()))
    );
    let several = warm.ask(Method::GET, &path, &[("range", "bytes=0-1,5-6")]).await;
    assert_eq!(several.status, 200);
    assert!(several.content() == content);
    let other = warm.ask(Method::GET, &path, &[("range", "bytes=0-1"), ("if-range", "\"other\"")]).await;
    assert_eq!(other.status, 200);
    warm.stop().await;
}

#[tokio::test]
async fn who_has_a_content_already_is_told_so() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest = registry.blob("a", &bytes(MIB), None);
    let path = blob(&registry, "a", &digest);
    let tag = format!("\"{digest}\"");
    for tags in [tag.as_str(), "*", &format!("W/\"x\", {tag}")] {
        let answer = world.ask(Method::GET, &path, &[("if-none-match", tags)]).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{tags}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
    }
    let other = world.ask(Method::GET, &path, &[("if-none-match", "\"x\"")]).await;
    assert_eq!(other.content().len(), MIB);
    world.stop().await;
}

#[tokio::test]
async fn a_head_starts_no_download() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let content = bytes(MIB);
    let digest = registry.blob("a", &content, None);
    let path = blob(&registry, "a", &digest);
    let len = content.len().to_string();
    let cold = world.ask(Method::HEAD, &path, &[]).await;
    assert_eq!((cold.status, cold.header("content-length")), (200, Some(len.as_str())));
    assert_eq!(cold.header("docker-content-digest"), Some(digest.to_string().as_str()));
    assert_eq!(registry.count(Method::GET, &digest.to_string()), 0);

    world.get(&path).await.content();
    let warm = world.ask(Method::HEAD, &path, &[("range", "bytes=10-19")]).await;
    assert_eq!((warm.status, warm.header("content-length")), (206, Some("10")));
    assert_eq!((warm.header("x-darter-source"), warm.body.len()), (Some("local"), 0));
    world.stop().await;
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest = registry.blob("a", b"", None);
    for _ in 0..2 {
        let answer = world.ask(Method::GET, &blob(&registry, "a", &digest), &[("range", "bytes=0-")]).await;
        assert_eq!((answer.status, answer.header("content-length")), (200, Some("0")));
    }
    world.stop().await;
}

#[tokio::test]
async fn manifests_by_digest_have_their_media_type() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    let named = format!(r#"{{"mediaType": "{docker}", "config": {{}}, "layers": []}}"#);
    for (json, media_type) in [
        (named.as_str(), docker),
        (r#"{"manifests": []}"#, "application/vnd.oci.image.index.v1+json"),
        (r#"{"config": {}, "layers": []}"#, "application/vnd.oci.image.manifest.v1+json"),
    ] {
        let digest = registry.manifest("a", json.as_bytes(), docker);
        let path = manifest(&registry, "a", &digest);
        for source in ["origin", "local"] {
            let answer = world.ask(Method::GET, &path, &[("accept", media_type), ("accept", "*/*")]).await;
            assert_eq!(answer.header("content-type"), Some(media_type));
            assert_eq!(answer.header("x-darter-source"), Some(source));
            assert_eq!(answer.content(), json.as_bytes());
        }
        let head = world.ask(Method::HEAD, &path, &[]).await;
        assert_eq!(head.header("content-type"), Some(media_type));
        assert_eq!(head.header("content-length"), Some(json.len().to_string().as_str()));
        let part = world.ask(Method::GET, &path, &[("range", "bytes=0-3")]).await;
        assert_eq!((part.status, part.content()), (206, json.as_bytes()[..4].to_vec()));
        assert_eq!(registry.count(Method::GET, &digest.to_string()), 1);
        let asked = registry.seen().into_iter().rfind(|seen| seen.method == Method::GET).unwrap();
        assert_eq!(asked.headers.get_all("accept").iter().count(), 2);
    }
    world.stop().await;
}

#[tokio::test]
async fn too_long_a_manifest_is_refused() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let digest = registry.manifest("a", &bytes(4 * MIB + 1), "text/x");
    let answer = world.get(&manifest(&registry, "a", &digest)).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "MANIFEST_INVALID"));
    world.stop().await;
}

#[tokio::test]
async fn two_at_once_are_one_fetch() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let (release, released) = tokio::sync::watch::channel(false);
    let content = bytes(3 * MIB);
    let digest = registry.blob("a", &content, Some(Fault::Holds { after: MIB, released }));
    let path = blob(&registry, "a", &digest);
    let one = async {
        let request = Request::get(&path).body(Empty::new()).unwrap();
        // The first bytes are here although the origin holds the rest back.
        let mut response = world.send(request).await;
        let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(content.starts_with(&first));
        release.send_replace(true);
        [first.to_vec(), Answer::read(response).await.content()].concat()
    };
    let (one, two) = tokio::join!(one, world.get(&path));
    assert!(one == content && two.content() == content);
    assert_eq!(registry.count(Method::GET, &digest.to_string()), 1);
    world.stop().await;
}

#[tokio::test]
async fn the_first_bytes_wait_for_neither_their_leaf_nor_a_question() {
    let (world, registry) = (World::start().await, Registry::start().await);
    let image = registry.manifest("a", b"{\"layers\": []}", "text/x");
    world.get(&manifest(&registry, "a", &image)).await.content();
    let (release, released) = tokio::sync::watch::channel(false);
    let content = bytes(MIB);
    let digest = registry.blob("a", &content, Some(Fault::Holds { after: 100_000, released }));
    let request = Request::get(blob(&registry, "a", &digest)).body(Empty::new()).unwrap();
    let mut response = world.send(request).await;
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(!first.is_empty() && content.starts_with(&first));
    release.send_replace(true);
    assert!([first.to_vec(), Answer::read(response).await.content()].concat() == content);
    assert_eq!(registry.count(Method::HEAD, &digest.to_string()), 0);
    world.stop().await;
}
