//! Image references: which registry, which repository, which tag or digest.

use std::{fmt, str::FromStr};

use darter_peer::Digest;
use serde::{Deserialize, Serialize};

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Repository {
    /// `HOST[:PORT]`, as `docker.io`.
    pub(crate) registry: String,
    /// The path in the registry, as `library/python`.
    pub(crate) name: String,
}

/// A full image reference as containerd hands it over, as `docker.io/library/python:3.12@sha256:…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    pub(crate) repository: Repository,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

/// A string that is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an image reference with a registry, a repository and a tag or digest")]
pub(crate) struct InvalidReference(String);

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).ok_or_else(|| InvalidReference(text.chars().take(300).collect()))
    }
}

fn parse(text: &str) -> Option<Reference> {
    let (named, digest) = match text.split_once('@') {
        Some((named, digest)) => (named, Some(digest.parse().ok()?)),
        None => (text, None),
    };
    let (registry, path) = named.split_once('/')?;
    let (name, tag) = match path.rsplit_once(':') {
        Some((name, tag)) => (name, Some(tag)),
        None => (path, None),
    };
    let usable = is_registry(registry) && is_repository(name) && tag.is_none_or(is_tag);
    let named_well = usable && (tag.is_some() || digest.is_some());
    let repository = Repository { registry: registry.to_owned(), name: name.to_owned() };
    named_well.then(|| Reference { repository, tag: tag.map(str::to_owned), digest })
}

fn is_registry(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']');
    !text.is_empty() && text.bytes().all(allowed)
}

/// OCI distribution specification, "Pulling manifests": `<name>`.
fn is_repository(text: &str) -> bool {
    let is_component = |part: &str| {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        part.bytes().all(allowed)
            && part.bytes().next().is_some_and(edge)
            && part.bytes().last().is_some_and(edge)
    };
    text.split('/').all(is_component)
}

/// OCI distribution specification, "Pulling manifests": `<reference>` as a tag.
fn is_tag(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= 128 && text.bytes().all(allowed) && !text.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn finds_the_parts() {
        let digest = Digest::sha256(b"x");
        for (text, registry, name, tag, with_digest) in [
            ("docker.io/library/python:3.12".to_owned(), "docker.io", "library/python", Some("3.12"), false),
            ("127.0.0.1:5000/sci:1".to_owned(), "127.0.0.1:5000", "sci", Some("1"), false),
            (format!("[::1]:5000/a/b_c/d.e@{digest}"), "[::1]:5000", "a/b_c/d.e", None, true),
            (format!("ghcr.io/x/y:v1@{digest}"), "ghcr.io", "x/y", Some("v1"), true),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.repository, Repository { registry: registry.into(), name: name.into() });
            assert_eq!(reference.tag.as_deref(), tag);
            assert_eq!(reference.digest, with_digest.then(|| digest.clone()));
        }
    }

    #[test]
    fn refuses_what_would_lead_elsewhere() {
        for bad in [
            "",
            "python",
            "docker.io/python",
            "docker.io/:x",
            "docker.io/../x:1",
            "docker.io/a//b:1",
            "a@b/c:1",
            "docker.io/A:1",
            "u:p@h/x:1",
            "h/x:a b",
            "h/x?y:1",
            "h/x@sha256:00",
            "/x:1",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    /// The text that an accepted reference came from.
    fn print(reference: &Reference) -> String {
        let Reference { repository: Repository { registry, name }, tag, digest } = reference;
        let tag = tag.iter().map(|tag| format!(":{tag}"));
        let digest = digest.iter().map(|digest| format!("@{digest}"));
        [format!("{registry}/{name}")].into_iter().chain(tag).chain(digest).collect()
    }

    /// A good reference with a few characters taken away, put in or replaced.
    fn nearly_good() -> impl Strategy<Value = String> {
        let good = prop::sample::select(vec![
            "docker.io/library/python:3.12".to_owned(),
            "127.0.0.1:5000/sci:1".to_owned(),
            format!("[::1]:5000/a/b_c/d.e@{}", Digest::sha256(b"x")),
            format!("ghcr.io/x/y:v1@{}", Digest::sha256(b"y")),
        ]);
        let edit = (any::<prop::sample::Index>(), 0..3, "[a-z0-9/:@.?#%\\[ \u{0}é-]");
        (good, prop::collection::vec(edit, 0..4)).prop_map(|(good, edits)| {
            let mut text: Vec<char> = good.chars().collect();
            for (at, kind, put) in edits {
                let at = at.index(text.len().max(1)).min(text.len());
                let until = if kind == 0 { at } else { text.len().min(at + 1) };
                text.splice(at..until, put.chars().filter(|_| kind < 2));
            }
            text.into_iter().collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_written(text in nearly_good()) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(print(&reference), text);
            }
        }

        #[test]
        fn rubbish_is_refused_or_understood(text in "\\PC{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(print(&reference), text);
            }
        }
    }
}
