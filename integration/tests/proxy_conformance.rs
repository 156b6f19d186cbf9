//! The pull side of the OCI distribution specification, walked twice: of the registry itself and through the proxy. The
//! answers must be the same, field by field, before and after the contents are here.

use anyhow::{Context, Result};
use darter_integration::{
    Cluster, Image, Lab,
    http::{Answer, empty, send},
    run_test,
};
use http::{Method, Request, StatusCode, header};
use serde_json::Value;

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json";
/// The headers that a client goes by.
const FIELDS: [&str; 8] = [
    "content-type",
    "content-length",
    "content-range",
    "docker-content-digest",
    "docker-distribution-api-version",
    "etag",
    "link",
    "www-authenticate",
];

/// A request without its host.
#[derive(Debug, Clone)]
struct Ask {
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
}

fn get(path: impl Into<String>) -> Ask {
    Ask { method: Method::GET, path: path.into(), headers: vec![("accept", ACCEPT.to_owned())] }
}

impl Ask {
    fn head(self) -> Self {
        Self { method: Method::HEAD, ..self }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Asks a server; `query` is added to the path's own.
    async fn at(&self, server: &str, query: &str) -> Result<Answer> {
        let joint = if self.path.contains('?') { '&' } else { '?' };
        let query = if query.is_empty() { String::new() } else { format!("{joint}{query}") };
        let request =
            Request::builder().method(self.method.clone()).uri(format!("{server}{}{query}", self.path));
        let request =
            self.headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        send(request.body(empty())?).await
    }
}

/// Everything that can be pulled, in every way.
fn found(image: &Image) -> Result<Vec<Ask>> {
    let (digest, layer) = (&image.manifest.digest, &image.layers.first().context("no layer")?.blob);
    let manifest = format!("/v2/walk/a/manifests/{digest}");
    let blob = format!("/v2/walk/a/blobs/{}", layer.digest);
    let whole = [
        get("/v2/walk/a/manifests/one"),
        get(&manifest),
        get(&blob),
        get(format!("/v2/walk/a/blobs/{}", image.config.digest)),
    ];
    let mut asks: Vec<Ask> = whole.iter().flat_map(|ask| [ask.clone().head(), ask.clone()]).collect();
    let last = layer.size - 1;
    let ranges = [
        "bytes=0-".into(),
        "bytes=0-0".into(),
        "bytes=100-299999".into(),
        "bytes=-1".into(),
        format!("bytes={last}-"),
    ];
    asks.extend(ranges.map(|range| get(&blob).with("range", range)));
    for (path, tag) in [(&manifest, digest), (&blob, &layer.digest)] {
        asks.push(get(path).with("if-none-match", format!("\"{tag}\"")));
        asks.push(get(path).with("if-none-match", "\"another\""));
        asks.push(get(path).with("if-none-match", format!("\"{tag}\"")).head());
    }
    asks.push(get(&blob).with("if-none-match", format!("\"another\", W/\"{}\"", layer.digest)));
    asks.push(get("/v2/walk/a/manifests/one").with("if-none-match", format!("\"{digest}\"")));
    asks.push(get("/v2/walk/a/tags/list"));
    asks.extend(
        ["n=2", "n=2&last=one", "last=one", "n=1&last=zzz", "n=100"]
            .map(|query| get(format!("/v2/walk/a/tags/list?{query}"))),
    );
    asks.push(get("/v2/"));
    Ok(asks)
}

/// Everything that is not there, or no request at all.
fn missing() -> Vec<Ask> {
    let nothing = format!("sha256:{}", "0".repeat(64));
    let paths = [
        "/v2/walk/a/manifests/none".to_owned(),
        format!("/v2/walk/a/manifests/{nothing}"),
        format!("/v2/walk/a/blobs/{nothing}"),
        format!("/v2/walk/nowhere/manifests/{nothing}"),
        "/v2/walk/nowhere/manifests/one".to_owned(),
        format!("/v2/walk/nowhere/blobs/{nothing}"),
        "/v2/walk/nowhere/tags/list".to_owned(),
        format!("/v2/walk/a/referrers/{nothing}"),
    ];
    // docker-registry answers no HEAD of a list.
    let heads = paths.iter().filter(|path| !path.contains("tags")).map(|path| get(path).head());
    heads.chain(paths.iter().map(get)).collect()
}

fn field<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.headers.get(name).and_then(|value| value.to_str().ok())
}

/// The code of the first error, of an answer in the specification's form.
fn code(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    Some(body.get("errors")?.get(0)?.get("code")?.as_str()?.to_owned())
}

#[test]
fn what_is_there_is_answered_as_by_the_registry() -> Result<()> {
    run_test(async |lab| {
        let (cluster, image) = start(&lab).await?;
        let (registry, proxy) = (cluster.registry.url(), cluster.nodes[0].peer.proxy_url());
        let namespace = format!("ns={}", cluster.origin.address);
        let mut differences = vec![];
        for time in ["first", "second"] {
            for ask in found(&image)? {
                let theirs = ask.at(&registry, "").await?;
                let ours = ask.at(&proxy, &namespace).await?;
                let mut differ = |what: &str, theirs: &str, ours: &str| {
                    differences.push(format!("{time} time: {ask:?}: {what} {ours:?} instead of {theirs:?}"));
                };
                if ours.status != theirs.status {
                    differ("status", theirs.status.as_str(), ours.status.as_str());
                }
                let status = theirs.status;
                for name in FIELDS.into_iter().filter(|name| *name != "link") {
                    let (theirs, ours) = (field(&theirs, name), field(&ours, name));
                    // RFC 9110, section 15.4.5, wants more in it than docker-registry says.
                    let only_ours = status == StatusCode::NOT_MODIFIED && theirs.is_none();
                    // A refusal's own text is nobody's business.
                    if theirs != ours
                        && !only_ours
                        && !(name.starts_with("content-") && ask.path.contains("x-refused"))
                    {
                        differ(name, theirs.unwrap_or("none"), ours.unwrap_or("none"));
                    }
                }
                if theirs.status.is_success() && ours.body != theirs.body {
                    differ(
                        "body",
                        &format!("{} bytes", theirs.body.len()),
                        &format!("{} bytes", ours.body.len()),
                    );
                }
            }
        }
        assert!(differences.is_empty(), "{}", differences.join("\n"));
        Ok(())
    })
}

#[test]
fn what_is_missing_is_missing_in_the_same_form() -> Result<()> {
    run_test(async |lab| {
        let (cluster, _) = start(&lab).await?;
        let (registry, proxy) = (cluster.registry.url(), cluster.nodes[0].peer.proxy_url());
        let namespace = format!("ns={}", cluster.origin.address);
        for ask in missing() {
            let theirs = ask.at(&registry, "").await?;
            let ours = ask.at(&proxy, &namespace).await?;
            assert_eq!(ours.status, theirs.status, "{ask:?}");
            assert_eq!(theirs.status, 404, "{ask:?}");
            if ask.method == Method::HEAD {
                assert!(ours.body.is_empty(), "{ask:?}");
                continue;
            }
            // A registry without referrers answers with plain text.
            let known = code(&theirs);
            assert_eq!(code(&ours).is_some(), known.is_some(), "{ask:?}");
            let allowed = ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN"];
            assert!(
                code(&ours).is_none_or(|code| allowed.contains(&code.as_str())),
                "{ask:?}: {:?}",
                code(&ours)
            );
            assert_eq!(
                field(&ours, "content-type").map(|t| t.starts_with("application/json")),
                field(&theirs, "content-type").map(|t| t.starts_with("application/json")),
                "{ask:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn what_no_registry_serves_is_refused_in_json() -> Result<()> {
    run_test(async |lab| {
        let (cluster, _) = start(&lab).await?;
        let proxy = cluster.nodes[0].peer.proxy_url();
        let namespace = format!("ns={}", cluster.origin.address);
        for (method, path, status, expected) in [
            (Method::GET, "/v2/walk/a/blobs/sha256:short", 400, "DIGEST_INVALID"),
            (Method::GET, "/v2/walk/a/manifests/-tag", 400, "DIGEST_INVALID"),
            (Method::GET, "/v2/Walk/manifests/one", 400, "NAME_INVALID"),
            (Method::POST, "/v2/walk/a/blobs/uploads/", 405, "UNSUPPORTED"),
            (Method::PUT, "/v2/walk/a/manifests/one", 405, "UNSUPPORTED"),
            (Method::DELETE, "/v2/walk/a/manifests/one", 405, "UNSUPPORTED"),
        ] {
            let ask = Ask { method, ..get(path) };
            let answer = ask.at(&proxy, &namespace).await?;
            assert_eq!(
                (answer.status.as_u16(), code(&answer).as_deref()),
                (status, Some(expected)),
                "{ask:?}"
            );
            assert_eq!(field(&answer, "content-type"), Some("application/json"), "{ask:?}");
        }
        Ok(())
    })
}

#[test]
fn a_list_of_tags_can_be_followed_through_the_proxy() -> Result<()> {
    run_test(async |lab| {
        let (cluster, _) = start(&lab).await?;
        let proxy = cluster.nodes[0].peer.proxy_url();
        for first in [
            format!("/v2/walk/a/tags/list?n=2&ns={}", cluster.origin.address),
            "/v2/docker.io/walk/a/tags/list?n=2".to_owned(),
        ] {
            let (mut tags, mut next) = (vec![], Some(first));
            while let Some(path) = next {
                let answer = get(&path).at(&proxy, "").await?;
                assert_eq!(answer.status, 200, "{path}");
                let list: Value = serde_json::from_slice(&answer.body)?;
                tags.extend(list["tags"].as_array().context("no tags")?.iter().cloned());
                let link = answer.headers.get(header::LINK).map(|link| link.to_str()).transpose()?;
                next = link.map(|link| {
                    link.trim_start_matches('<').split('>').next().unwrap_or_default().to_owned()
                });
            }
            tags.sort_by_key(ToString::to_string);
            assert_eq!(tags, ["four", "one", "three", "two"]);
        }
        Ok(())
    })
}

async fn start(lab: &Lab) -> Result<(Cluster, Image)> {
    let alone = Cluster::with_nodes(1).without_manager().without_scheduler().without_seed();
    let cluster = alone.standing_for_docker_hub().start(lab).await?;
    let image = Image::tiny(lab)?;
    for tag in ["one", "two", "three", "four"] {
        cluster.push(&format!("walk/a:{tag}"), &image).await?;
    }
    Ok((cluster, image))
}
