//! The unit of timestamps.

/// What one step of a timestamp in a request stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Guessed for each timestamp from its magnitude, as InfluxDB 3 does.
    Auto,
    /// Nanoseconds.
    Nanoseconds,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Minutes.
    Minutes,
    /// Hours.
    Hours,
}

impl Precision {
    /// Nanoseconds in one step; of the guess, that of its finest outcome.
    #[must_use]
    pub fn step_ns(self) -> i64 {
        match self {
            Precision::Auto | Precision::Nanoseconds => 1,
            Precision::Microseconds => 1000,
            Precision::Milliseconds => 1_000_000,
            Precision::Seconds => 1_000_000_000,
            Precision::Minutes => 60_000_000_000,
            Precision::Hours => 3_600_000_000_000,
        }
    }

    /// A timestamp in nanoseconds, or `None` beyond the years 1677 to 2262.
    #[must_use]
    pub fn to_ns(self, timestamp: i64) -> Option<i64> {
        let exact = if self == Precision::Auto { guess(timestamp) } else { self };
        timestamp.checked_mul(exact.step_ns())
    }

    /// An instant cut down to whole steps.
    #[must_use]
    pub fn truncate(self, ns: i64) -> i64 {
        ns - ns.rem_euclid(self.step_ns())
    }
}

/// Up to about the year 2128 in each unit: seconds below 5e9, milliseconds below 5e12, and
/// so on.
fn guess(timestamp: i64) -> Precision {
    match timestamp.unsigned_abs() / 1_000_000_000 {
        0..5 => Precision::Seconds,
        5..5_000 => Precision::Milliseconds,
        5_000..5_000_000 => Precision::Microseconds,
        _ => Precision::Nanoseconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magnitude_gives_its_unit_away() {
        let auto = Precision::Auto;
        assert_eq!(auto.to_ns(1_700_000_000), Some(1_700_000_000_000_000_000));
        assert_eq!(auto.to_ns(1_700_000_000_000), Some(1_700_000_000_000_000_000));
        assert_eq!(auto.to_ns(1_700_000_000_000_000), Some(1_700_000_000_000_000_000));
        assert_eq!(auto.to_ns(1_700_000_000_000_000_000), Some(1_700_000_000_000_000_000));
        assert_eq!(auto.to_ns(-1), Some(-1_000_000_000));
        assert_eq!(auto.to_ns(i64::MIN), Some(i64::MIN));
        assert_eq!(auto.to_ns(4_999_999_999), Some(4_999_999_999_000_000_000));
        assert_eq!(auto.to_ns(5_000_000_000), Some(5_000_000_000_000_000));
    }

    #[test]
    fn a_multiplication_that_overflows_is_none() {
        assert_eq!(Precision::Seconds.to_ns(i64::MAX), None);
        assert_eq!(Precision::Hours.to_ns(-2_562_048), None);
        assert_eq!(Precision::Nanoseconds.to_ns(i64::MIN), Some(i64::MIN));
    }

    #[test]
    fn cutting_goes_down_also_before_1970() {
        assert_eq!(Precision::Seconds.truncate(1_999_999_999), 1_000_000_000);
        assert_eq!(Precision::Seconds.truncate(-1), -1_000_000_000);
        assert_eq!(Precision::Auto.truncate(17), 17);
    }
}
