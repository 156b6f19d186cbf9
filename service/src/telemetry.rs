//! Logs: structured events on standard error.

use serde::{Deserialize, Deserializer, Serialize, de};
use std::io::{self, IsTerminal};
use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, registry, util::SubscriberInitExt};

/// The `[log]` section of a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// What is logged: a level (`error`, `warn`, `info`, `debug`, `trace`), or a list as `info,darter_peer=debug`, in the
    /// syntax of tracing-subscriber's `EnvFilter`.
    #[serde(deserialize_with = "filter")]
    pub level: String,
    /// How an event is written.
    pub format: Format,
}

/// How an event is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A line for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `level` is not in the filter syntax.
    #[error("log level \"{0}\" is not understood; write as \"info\" or \"info,darter_peer=debug\"")]
    Level(String),
    /// Logging was started before.
    #[error("logging is already set up in this process")]
    AlreadySet,
}

/// Starts logging for the whole process; called once, first.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    let filter =
        EnvFilter::try_new(&config.level).map_err(|_| TelemetryError::Level(config.level.clone()))?;
    let lines = fmt::layer().with_writer(io::stderr);
    let set = match config.format {
        Format::Text => {
            let lines = lines.with_ansi(io::stderr().is_terminal());
            registry().with(filter).with(lines).try_init()
        }
        Format::Json => registry().with(filter).with(lines.json().flatten_event(true)).try_init(),
    };
    set.map_err(|_| TelemetryError::AlreadySet)
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Text }
    }
}

/// Checks the filter while the file is read, so that the error has its line.
fn filter<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let level = String::deserialize(deserializer)?;
    match EnvFilter::try_new(&level) {
        Ok(_) => Ok(level),
        Err(_) => Err(de::Error::custom(TelemetryError::Level(level))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn levels_are_checked_where_they_stand() {
        let read: LogConfig =
            config::parse("level = \"info,darter_peer=debug\"\nformat = \"json\"", "c").unwrap();
        assert_eq!(read, LogConfig { level: "info,darter_peer=debug".into(), format: Format::Json });
        let error = config::parse::<LogConfig>("\nlevel = \"darter=loud\"", "c").unwrap_err().to_string();
        assert!(error.starts_with("c:2: log level \"darter=loud\" is not understood"), "{error}");
    }

    #[test]
    fn logging_is_set_once() {
        init(&LogConfig::default()).unwrap();
        assert!(matches!(init(&LogConfig::default()), Err(TelemetryError::AlreadySet)));
    }
}
