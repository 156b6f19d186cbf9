//! Configuration files: TOML, read strictly.
//!
//! A configuration struct derives `Deserialize` with `#[serde(deny_unknown_fields, default)]`; then a misspelt key is
//! refused with its line and the keys that are allowed there. The values themselves never appear in an error that is
//! made here, only what serde says about their type.

pub mod duration;
pub mod size;
#[cfg(test)]
mod tests;

use serde::de::DeserializeOwned;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Why a configuration could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not TOML, has a key that does not exist, or a value that does not fit.
    #[error("{name}:{line}: {message}")]
    Invalid {
        /// The file.
        name: String,
        /// The line, counted from 1.
        line: usize,
        /// What is wrong, and for an unknown key what is allowed.
        message: String,
    },
}

/// Reads the configuration `T` from a TOML file.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.into(), source })?;
    parse(&text, &path.display().to_string())
}

/// Reads the configuration `T` from TOML text; errors call the text `name`.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| ConfigError::Invalid {
        name: name.into(),
        line: line_at(text, error.span().map_or(0, |span| span.start)),
        message: error.message().trim_end().replace('\n', "; "),
    })
}

/// The line, counted from 1, in which byte `offset` of the text lies.
fn line_at(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}
