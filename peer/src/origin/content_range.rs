//! The `Content-Range` header (RFC 9110, section 14.4).

use std::ops::Range;

/// Which bytes a `206` answer holds, and how long the whole content is, if the origin says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContentRange {
    pub(super) range: Range<u64>,
    pub(super) total: Option<u64>,
}

/// Reads `bytes FIRST-LAST/TOTAL` or `bytes FIRST-LAST/*`; `None` for anything else, also if it contradicts itself.
pub(super) fn parse(value: &str) -> Option<ContentRange> {
    let (unit, rest) = value.trim().split_once(' ')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (range, total) = rest.trim_start().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let range = number(first)?..number(last)?.checked_add(1)?;
    let total = if total == "*" { None } else { Some(number(total)?) };
    let within = total.is_none_or(|total| range.end <= total);
    (!range.is_empty() && within).then_some(ContentRange { range, total })
}

/// Digits only: `u64::from_str` would take a sign.
fn number(digits: &str) -> Option<u64> {
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn reads_what_a_server_writes(start in 0u64..1 << 60, len in 1u64..1 << 60, rest in 0u64..1 << 60) {
            let total = start + len + rest;
            let value = format!("bytes {start}-{}/{total}", start + len - 1);
            let expected = ContentRange { range: start..start + len, total: Some(total) };
            prop_assert_eq!(parse(&value), Some(expected));
        }

        #[test]
        fn rubbish_never_panics_and_never_contradicts_itself(value in "(bytes )?[-/*0-9 a-z+]{0,40}") {
            if let Some(found) = parse(&value) {
                prop_assert!(found.range.start < found.range.end);
                prop_assert!(found.total.is_none_or(|total| found.range.end <= total));
            }
        }
    }

    #[test]
    fn refuses_contradictions() {
        let max = u64::MAX;
        for bad in [
            "",
            "bytes */5",
            "bytes 3-2/9",
            "bytes 0-9/9",
            "bytes +0-1/9",
            "items 0-1/9",
            &format!("bytes 0-{max}/*"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(parse("Bytes 0-8/*"), Some(ContentRange { range: 0..9, total: None }));
    }
}
