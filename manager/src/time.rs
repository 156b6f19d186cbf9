//! Points in time as the database keeps them.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The last millisecond that RFC 3339 can write, with its four digits for the year.
const END_OF_9999: i64 = 253_402_300_799_999;

/// Milliseconds since 1970-01-01 UTC, never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, sqlx::Type)]
#[sqlx(transparent)]
pub(crate) struct Time(i64);

impl Time {
    /// The system's clock; a clock before 1970 counts as 1970.
    pub(crate) fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(millis(since))
    }

    pub(crate) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    pub(crate) fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(millis(duration)).max(0))
    }
}

/// RFC 3339, as `2026-03-01T12:00:00.000Z`.
impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.clamp(0, END_OF_9999).unsigned_abs();
        humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_millis(millis)).fmt(f)
    }
}

fn millis(duration: Duration) -> i64 {
    duration.as_millis().try_into().unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_shown_as_rfc_3339() {
        assert_eq!(Time(1_772_366_400_123).to_string(), "2026-03-01T12:00:00.123Z");
        assert_eq!(Time(i64::MAX).to_string(), "9999-12-31T23:59:59.999Z");
        assert!(Time(10).before(Duration::from_secs(1)) < Time::now());
    }
}
