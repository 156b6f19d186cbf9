//! What a request asks for: the paths of the OCI distribution specification, pull side, and the registry they mean.

use darter_peer::{Digest, digest::Algorithm};
use url::form_urlencoded;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// `/v2/`: does this speak the protocol?
    Ping,
    /// Anything whose bytes a digest names.
    Content(Named),
    /// Everything else: tags, lists of tags, referrers.
    Forward(Forward),
}

/// A content of a repository, named by its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) kind: Kind,
    pub(crate) digest: Digest,
}

/// What a digest names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Manifest,
    Blob,
}

/// A request that only the origin can answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) registry: String,
    /// The repository whose tag is asked for, if a tag is.
    pub(crate) tag_of: Option<String>,
    /// Path and query at the origin.
    pub(crate) path: String,
    /// How the request named the registry, so that links in the answer can name it too.
    pub(crate) naming: Naming,
}

/// How a request names its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Naming {
    /// By `?ns=`.
    Query,
    /// By the first part of its path.
    Path,
    /// Not at all.
    Default,
}

/// Why a path is no request of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// It does not begin with `/v2/`.
    NotV2,
    /// The name of the repository is against the grammar.
    Name,
    /// What names the manifest or blob is neither a tag nor a digest.
    Reference,
    /// The path has parts that no registry's path has.
    Path,
}

impl Forward {
    /// The repository that is asked for, if it is one.
    pub(crate) fn repository(&self) -> Option<&str> {
        let path = self.path.split('?').next().unwrap_or_default().strip_prefix("/v2/")?;
        let lists = || path.rsplit_once("/tags/").or_else(|| path.rsplit_once("/referrers/"));
        self.tag_of.as_deref().or_else(|| lists().map(|(repository, _)| repository))
    }
}

impl Named {
    /// Path of this content at its registry.
    pub(crate) fn path(&self) -> String {
        let kind = match self.kind {
            Kind::Manifest => "manifests",
            Kind::Blob => "blobs",
        };
        format!("/v2/{}/{kind}/{}", self.repository, self.digest)
    }
}

/// Reads a request's path and query.
///
/// The registry is what `?ns=` names (containerd); else the first part of the path if `knows` says that it is one
/// (podman, CRI-O); else `default` (docker).
pub(crate) fn parse(
    path: &str,
    query: Option<&str>,
    default: &str,
    knows: impl Fn(&str) -> bool,
) -> Result<Route, Malformed> {
    let rest = path.strip_prefix("/v2").ok_or(Malformed::NotV2)?;
    let rest = match rest.strip_prefix('/') {
        Some(rest) => rest,
        None if rest.is_empty() => rest,
        None => return Err(Malformed::NotV2),
    };
    if rest.is_empty() {
        return Ok(Route::Ping);
    }
    let (registry, rest, naming) = match (namespace(query), rest.split_once('/')) {
        (Some(registry), _) => (registry, rest, Naming::Query),
        (None, Some((first, rest))) if knows(first) => (first.to_owned(), rest, Naming::Path),
        _ => (default.to_owned(), rest, Naming::Default),
    };
    if !rest.split('/').all(is_plain) {
        return Err(Malformed::Path);
    }
    let forward = |tag_of| {
        Route::Forward(Forward { registry: registry.clone(), tag_of, path: upstream(rest, query), naming })
    };
    let Some((repository, kind, reference)) = split(rest) else {
        return Ok(forward(None));
    };
    if !is_name(repository) {
        return Err(Malformed::Name);
    }
    match (reference.parse::<Digest>(), kind) {
        (Ok(digest), kind) if digest.algorithm() != Algorithm::Blake3 => {
            Ok(Route::Content(Named { registry, repository: repository.to_owned(), kind, digest }))
        }
        (_, Kind::Manifest) if is_tag(reference) => Ok(forward(Some(repository.to_owned()))),
        _ => Err(Malformed::Reference),
    }
}

/// Splits `NAME/manifests/REFERENCE` or `NAME/blobs/DIGEST`.
fn split(rest: &str) -> Option<(&str, Kind, &str)> {
    let (front, reference) = rest.rsplit_once('/')?;
    let (repository, word) = front.rsplit_once('/')?;
    match word {
        "manifests" => Some((repository, Kind::Manifest, reference)),
        "blobs" => Some((repository, Kind::Blob, reference)),
        _ => None,
    }
}

/// The registry in containerd's `ns` parameter.
fn namespace(query: Option<&str>) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query?.as_bytes());
    pairs.find(|(name, _)| name == "ns").map(|(_, value)| value.into_owned()).filter(|ns| !ns.is_empty())
}

/// Path and query at the origin, which knows nothing of `ns`.
fn upstream(rest: &str, query: Option<&str>) -> String {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).filter(|(name, _)| name != "ns");
    let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish();
    if query.is_empty() { format!("/v2/{rest}") } else { format!("/v2/{rest}?{query}") }
}

/// Whether a part of a path is made of what registries' paths are made of, and leads nowhere else.
fn is_plain(part: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-:+=@~".contains(&b);
    part != "." && part != ".." && part.bytes().all(plain)
}

/// The specification's grammar of a repository name; 255 characters at most.
fn is_name(name: &str) -> bool {
    name.len() <= 255 && name.split('/').all(is_name_part)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_name_part(part: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let separators =
        part.split(|c: char| c.is_ascii() && is_word(c as u8)).filter(|separator| !separator.is_empty());
    let mut ends = part.bytes().next().into_iter().chain(part.bytes().last());
    let good =
        |separator: &str| matches!(separator, "." | "_" | "__") || separator.bytes().all(|b| b == b'-');
    !part.is_empty() && ends.all(is_word) && separators.into_iter().all(good)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=128).contains(&tag.len()) && tag.bytes().all(plain) && !tag.starts_with(['.', '-'])
}

/// A link of the origin (RFC 8288) as the client has to ask for it here: with the registry named as before.
pub(crate) fn localized(link: &str, registry: &str, naming: Naming) -> Option<String> {
    let (before, rest) = link.split_once('<')?;
    let (target, after) = rest.split_once('>')?;
    let path = match url::Url::parse(target) {
        Ok(url) => url[url::Position::BeforePath..].to_owned(),
        Err(_) => target.to_owned(),
    };
    let path = path.strip_prefix("/v2/")?;
    let local = match naming {
        Naming::Default => format!("/v2/{path}"),
        Naming::Path => format!("/v2/{registry}/{path}"),
        Naming::Query => {
            let name: String = form_urlencoded::byte_serialize(registry.as_bytes()).collect();
            format!("/v2/{path}{}ns={name}", if path.contains('?') { '&' } else { '?' })
        }
    };
    Some(format!("{before}<{local}>{after}"))
}

#[cfg(test)]
mod tests;
