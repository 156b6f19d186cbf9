//! What a name may look like, wherever it comes from: configuration, gRPC or REST.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The cluster of an instance that names none.
const DEFAULT_CLUSTER: &str = "default";
/// The longest name of a cluster.
const MAX_CLUSTER_LEN: usize = 63;

/// A value from outside that cannot be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Invalid {
    pub(crate) field: &'static str,
    pub(crate) problem: String,
}

/// The name of a cluster: 1 to 63 letters, digits, `.`, `_` and `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(try_from = "String")]
#[sqlx(transparent)]
pub struct ClusterName(String);

impl ClusterName {
    /// The name that came over gRPC; empty means the default cluster.
    pub(crate) fn from_wire(name: String) -> Result<Self, Invalid> {
        if name.is_empty() { Ok(Self::default()) } else { name.try_into() }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for ClusterName {
    fn default() -> Self {
        Self(DEFAULT_CLUSTER.into())
    }
}

impl TryFrom<String> for ClusterName {
    type Error = Invalid;

    fn try_from(name: String) -> Result<Self, Invalid> {
        required("cluster", &name)?;
        check("cluster", &name, MAX_CLUSTER_LEN, "._-")?;
        Ok(Self(name))
    }
}

impl FromStr for ClusterName {
    type Err = Invalid;

    fn from_str(name: &str) -> Result<Self, Invalid> {
        name.to_owned().try_into()
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Refuses an empty value.
pub(crate) fn required(field: &'static str, value: &str) -> Result<(), Invalid> {
    if value.is_empty() {
        return Err(Invalid { field, problem: "is empty".into() });
    }
    Ok(())
}

/// Refuses more than `max` bytes, and anything but ASCII letters, digits and `signs`.
pub(crate) fn check(field: &'static str, value: &str, max: usize, signs: &str) -> Result<(), Invalid> {
    if value.len() > max {
        return Err(Invalid {
            field,
            problem: format!("has {} bytes; at most {max} are allowed", value.len()),
        });
    }
    match value.chars().find(|c| !c.is_ascii_alphanumeric() && !signs.contains(*c)) {
        None => Ok(()),
        Some(c) => Err(Invalid {
            field,
            problem: format!("contains {c:?}; allowed are ASCII letters, digits and {signs:?}"),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_names_are_checked() {
        assert_eq!(ClusterName::from_wire(String::new()), Ok(ClusterName::default()));
        assert_eq!("eu-1.prod_a".parse::<ClusterName>().unwrap().as_str(), "eu-1.prod_a");
        for (name, says) in [
            ("", "cluster is empty"),
            ("a b", "cluster contains ' '; allowed are ASCII letters, digits and \"._-\""),
            ("ü", "cluster contains 'ü'; allowed are ASCII letters, digits and \"._-\""),
            ("a\nb", "cluster contains '\\n'; allowed are ASCII letters, digits and \"._-\""),
        ] {
            assert_eq!(name.parse::<ClusterName>().unwrap_err().to_string(), says);
        }
        assert!("a".repeat(64).parse::<ClusterName>().unwrap_err().to_string().contains("at most 63"));
    }
}
