//! Byte counts as `"50GiB"`, `"200MB"` or `4096`: `#[serde(with = "darter_service::config::size")]` on a `u64`.
//!
//! The same is used for rates, which are bytes per second.

use bytesize::ByteSize;
use serde::{Deserializer, Serializer, de};
use std::fmt;

const UNITS: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Writes the size exactly, in the largest unit that divides it.
pub fn serialize<S: Serializer>(size: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    match UNITS.iter().find(|(_, unit)| *size > 0 && size.is_multiple_of(*unit)) {
        Some((name, unit)) => serializer.collect_str(&format_args!("{}{name}", size / unit)),
        None => serializer.collect_str(&format_args!("{size}B")),
    }
}

/// Reads a string with a unit (`KiB` is 1024 bytes, `KB` is 1000), or a plain number of bytes.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct Size;

    impl de::Visitor<'_> for Size {
        type Value = u64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a size in quotes, as \"50GiB\", \"200MB\" or \"0\"")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<u64, E> {
            let size: Result<ByteSize, _> = text.parse();
            size.map(|size| size.as_u64()).map_err(|_| E::invalid_value(de::Unexpected::Str(text), &self))
        }

        fn visit_u64<E: de::Error>(self, size: u64) -> Result<u64, E> {
            Ok(size)
        }

        fn visit_i64<E: de::Error>(self, size: i64) -> Result<u64, E> {
            u64::try_from(size).map_err(|_| E::invalid_value(de::Unexpected::Signed(size), &self))
        }
    }

    deserializer.deserialize_any(Size)
}
