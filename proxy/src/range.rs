//! The `Range` header of a request (RFC 9110, section 14.2).

use std::ops::Range;

/// What part of a content a request gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selection {
    /// All of it, as 200.
    Whole,
    /// These bytes, as 206.
    Part(Range<u64>),
    /// Nothing, as 416.
    Unsatisfiable,
}

/// Applies a `Range` header to a content of `len` bytes.
///
/// A header that is not understood, or that names several ranges, is ignored, as the RFC allows. An empty content is
/// always given whole: runtimes send `bytes=0-` with every request.
pub fn select(header: Option<&str>, len: u64) -> Selection {
    let Some(spec) = header.and_then(parse).filter(|_| len > 0) else {
        return Selection::Whole;
    };
    let range = match spec {
        Spec::From(first, last) => first..last.map_or(len, |last| last.saturating_add(1).min(len)),
        Spec::Last(count) => len.saturating_sub(count)..len,
    };
    if range.is_empty() { Selection::Unsatisfiable } else { Selection::Part(range) }
}

enum Spec {
    /// First byte, and last byte if named.
    From(u64, Option<u64>),
    /// So many bytes at the end.
    Last(u64),
}

fn parse(header: &str) -> Option<Spec> {
    let (unit, set) = header.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = set.trim().split_once('-')?;
    match (first.trim(), last.trim()) {
        ("", count) => Some(Spec::Last(number(count)?)),
        (first, "") => Some(Spec::From(number(first)?, None)),
        (first, last) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some(Spec::From(first, Some(last)))
        }
    }
}

/// Digits only: `u64::from_str` would take a sign. Numbers that are too large mean the end.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ranges_of_the_rfc() {
        let of = |header| select(Some(header), 10_000);
        assert_eq!(of("bytes=0-499"), Selection::Part(0..500));
        assert_eq!(of("bytes=9500-"), Selection::Part(9500..10_000));
        assert_eq!(of("bytes=-500"), Selection::Part(9500..10_000));
        assert_eq!(of("bytes=-20000"), Selection::Part(0..10_000));
        assert_eq!(of("Bytes = 9999-99999999999999999999999"), Selection::Part(9999..10_000));
        assert_eq!(of("bytes=10000-"), Selection::Unsatisfiable);
        assert_eq!(of("bytes=-0"), Selection::Unsatisfiable);
        for ignored in
            ["", "bytes", "bytes=", "bytes=-", "bytes=5-4", "bytes=0-1,3-4", "items=0-1", "bytes=+1-2"]
        {
            assert_eq!(of(ignored), Selection::Whole, "{ignored}");
        }
        assert_eq!(select(Some("bytes=0-"), 0), Selection::Whole);
        assert_eq!(select(None, 5), Selection::Whole);
    }

    proptest! {
        #[test]
        fn a_part_lies_within_the_content(header in "(bytes=)?[-,0-9 ]{0,30}", len: u64) {
            if let Selection::Part(range) = select(Some(&header), len) {
                prop_assert!(range.start < range.end && range.end <= len);
            }
        }

        #[test]
        fn rubbish_never_panics(header in "\\PC{0,60}", len: u64) {
            select(Some(&header), len);
        }
    }
}
