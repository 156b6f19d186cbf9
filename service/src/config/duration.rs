//! Durations as `"5s"`, `"1m 30s"`, `"200ms"`: `#[serde(with = "darter_service::config::duration")]`.

use serde::{Deserializer, Serializer, de};
use std::{fmt, time::Duration};

/// Writes the duration so that [`deserialize`] reads the same one.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads a string with a unit; a bare number is refused, because it does not say what it counts.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    struct Text;

    impl de::Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration with a unit in quotes, as \"200ms\", \"5s\" or \"1m 30s\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
            humantime::parse_duration(text).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }

    deserializer.deserialize_str(Text)
}
