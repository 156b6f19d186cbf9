//! Numbers as tars write them: octal or base-256 in a header, decimal in a pax record.

/// A number in a header: octal digits, or base-256 if the first bit is set (GNU tar manual, "Extensions").
pub(super) fn field(field: &[u8]) -> Option<i64> {
    match field {
        [first, rest @ ..] if first & 0x80 != 0 => base256(*first, rest),
        _ => octal(field),
    }
}

/// Octal digits between spaces and NULs; nothing is 0.
pub(super) fn octal(field: &[u8]) -> Option<i64> {
    let is_fill = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_fill(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !is_fill(byte)).map_or(start, |last| last + 1);
    let digits = field.get(start..end)?.split(|byte| *byte == 0).next()?;
    if digits.is_empty() {
        return Some(0);
    }
    digits.iter().try_fold(0i64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// Two's complement, most significant byte first, without the first bit, which only marks the encoding.
fn base256(first: u8, rest: &[u8]) -> Option<i64> {
    let negative = first & 0x40 != 0;
    let sign = if negative { 0xff } else { 0 };
    let number = rest.iter().try_fold(u64::from((first ^ sign) & 0x3f), |number, byte| {
        Some(number.checked_mul(256)? | u64::from(byte ^ sign))
    })?;
    let number = i64::try_from(number).ok()?;
    Some(if negative { !number } else { number })
}

/// A decimal number of a pax record.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A time of a pax record, `seconds` or `seconds.fraction`: whole seconds and nanoseconds since 1970.
///
/// Before 1970 the fraction is given up.
pub(super) fn time(text: &[u8]) -> Option<(i64, u32)> {
    let mut parts = text.splitn(2, |byte| *byte == b'.');
    let seconds = decimal(parts.next()?)?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0, |nanos, digit| nanos * 10 + u32::from(digit - b'0'));
    if text.starts_with(b"-") && nanos > 0 {
        return Some((seconds.min(-1), 0));
    }
    Some((seconds, nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields() {
        for (text, number) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some(0o77_777_777_777)),
            (b"8\0", None),
            (b"-1\0", None),
            (b"\x80\0\0\0\0\0\x01\0", Some(256)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(field(text), number, "{text:?}");
        }
    }

    #[test]
    fn pax_times() {
        for (text, expected) in [
            ("1", Some((1, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("1700000000.123456789987", Some((1_700_000_000, 123_456_789))),
            ("1.", Some((1, 0))),
            ("-1", Some((-1, 0))),
            ("-0.5", Some((-1, 0))),
            ("-0", Some((0, 0))),
            ("", None),
            (".5", None),
            ("1.5x", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text.as_bytes()), expected, "{text}");
        }
    }
}
