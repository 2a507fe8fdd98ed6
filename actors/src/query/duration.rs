//! Lengths of time as people write them: `5m`, `1h30m`, `2 days`, `1 month`.
//!
//! One grammar serves `time_bucket`, `now() - '5m'`, `INTERVAL '5m'` and `WITH (window = …)`.
//! `m` means minutes and `mo` or `mon` months. PostgreSQL's clock form `01:30:00` is read too.

use kymo_kernel::{Code, Error, Result};

/// A length of time in the three parts that calendars keep apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    /// Whole months.
    pub(crate) months: i32,
    /// Whole days.
    pub(crate) days: i32,
    /// The rest.
    pub(crate) nanos: i64,
}

const SECOND: i64 = 1_000_000_000;

/// What one of a unit is worth: months, days, nanoseconds.
fn unit(word: &str) -> Option<(i64, i64, i64)> {
    Some(match word.to_ascii_lowercase().as_str() {
        "ns" | "nanosecond" | "nanoseconds" => (0, 0, 1),
        "us" | "µs" | "microsecond" | "microseconds" | "usec" | "usecs" => (0, 0, 1_000),
        "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => (0, 0, 1_000_000),
        "s" | "sec" | "secs" | "second" | "seconds" => (0, 0, SECOND),
        "m" | "min" | "mins" | "minute" | "minutes" => (0, 0, 60 * SECOND),
        "h" | "hr" | "hrs" | "hour" | "hours" => (0, 0, 3_600 * SECOND),
        "d" | "day" | "days" => (0, 1, 0),
        "w" | "week" | "weeks" => (0, 7, 0),
        "mo" | "mon" | "mons" | "month" | "months" => (1, 0, 0),
        "q" | "quarter" | "quarters" => (3, 0, 0),
        "y" | "yr" | "yrs" | "year" | "years" => (12, 0, 0),
        _ => return None,
    })
}

impl Span {
    /// Reads a length of time.
    ///
    /// # Errors
    /// `invalid_cast` where the text is none; `out_of_range` where it is too long to keep.
    pub(crate) fn parse(text: &str) -> Result<Span> {
        Span::read(text)?.ok_or_else(|| {
            Error::new(Code::InvalidCast, format!("{text:?} is not a length of time"))
                .with_hint("write it like '10s', '5m', '1 hour', '1h30m' or '1 month'")
        })
    }

    /// Like [`Span::parse`], with `None` for text that is not meant as a length of time.
    pub(crate) fn read(text: &str) -> Result<Option<Span>> {
        let mut rest = text.trim();
        let mut span = Span::default();
        if rest.is_empty() {
            return Ok(None);
        }
        while !rest.is_empty() {
            if let Some((nanos, tail)) = clock(rest) {
                span = span.add((0, 0, nanos), text)?;
                rest = tail.trim_start();
                continue;
            }
            let Some((number, tail)) = number(rest) else { return Ok(None) };
            let tail = tail.trim_start();
            let end = tail.find(|c: char| !c.is_alphabetic()).unwrap_or(tail.len());
            let Some(worth) = unit(&tail[..end]) else { return Ok(None) };
            span = span.add(number.times(worth, text)?, text)?;
            rest = tail[end..].trim_start();
        }
        Ok(Some(span))
    }

    fn add(self, (months, days, nanos): (i64, i64, i64), text: &str) -> Result<Span> {
        let out = || too_long(text);
        Ok(Span {
            months: i32::try_from(i64::from(self.months) + months).map_err(|_| out())?,
            days: i32::try_from(i64::from(self.days) + days).map_err(|_| out())?,
            nanos: self.nanos.checked_add(nanos).ok_or_else(out)?,
        })
    }

    /// Its length in nanoseconds, where it has one that does not depend on the calendar.
    pub(crate) fn fixed_nanos(self) -> Option<i64> {
        if self.months != 0 {
            return None;
        }
        i64::from(self.days).checked_mul(86_400 * SECOND)?.checked_add(self.nanos)
    }

    /// The form that the SQL engine's own interval parser reads without doubt.
    pub(crate) fn canonical(self) -> String {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let nanos = self.nanos.unsigned_abs();
        let second = SECOND.unsigned_abs();
        format!(
            "{} months {} days {sign}{}.{:09} seconds",
            self.months,
            self.days,
            nanos / second,
            nanos % second
        )
    }
}

fn too_long(text: &str) -> Error {
    Error::new(Code::OutOfRange, format!("{text:?} is too long a time"))
}

/// A decimal number as a whole part and billionths, so that `1.5h` is exact.
struct Number {
    negative: bool,
    whole: i64,
    billionths: i64,
}

impl Number {
    fn times(&self, worth: (i64, i64, i64), text: &str) -> Result<(i64, i64, i64)> {
        let (months, days, nanos) = worth;
        let sign = if self.negative { -1 } else { 1 };
        // A fraction of a month is days of a 30-day month, of a day nanoseconds, as in PostgreSQL.
        let part = |of: i64| i128::from(of) * i128::from(self.billionths) / 1_000_000_000;
        let day_nanos = 86_400 * SECOND;
        let (extra_days, extra_nanos) = if months != 0 {
            (part(months * 30), part(months * 30 * day_nanos) % i128::from(day_nanos))
        } else {
            (0, part(days * day_nanos) + part(nanos))
        };
        let whole = |of: i64| i128::from(of) * i128::from(self.whole);
        let narrow = |value: i128| i64::try_from(value * sign).map_err(|_| too_long(text));
        Ok((
            narrow(whole(months))?,
            narrow(whole(days) + extra_days)?,
            narrow(whole(nanos) + extra_nanos)?,
        ))
    }
}

fn number(text: &str) -> Option<(Number, &str)> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (whole, mut rest) = digits.split_at(end);
    let mut billionths = 0;
    if let Some(tail) = rest.strip_prefix('.') {
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let shown: String = tail[..end].chars().chain("000000000".chars()).take(9).collect();
        billionths = shown.parse().ok()?;
        rest = &tail[end..];
        if whole.is_empty() && end == 0 {
            return None;
        }
    } else if whole.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    Some((Number { negative, whole, billionths }, rest))
}

/// `[-]hh:mm[:ss[.fff]]` at the front of a text.
fn clock(text: &str) -> Option<(i64, &str)> {
    let end = text.find(char::is_whitespace).unwrap_or(text.len());
    let (word, rest) = text.split_at(end);
    let (sign, word) = word.strip_prefix('-').map_or((1, word), |word| (-1, word));
    let mut parts = word.split(':');
    let hours: i64 = parts.next()?.parse().ok()?;
    let minutes: i64 = parts.next().filter(|part| part.len() == 2)?.parse().ok()?;
    let seconds = match parts.next() {
        None => 0,
        Some(part) => {
            let (number, rest) = number(part).filter(|(number, _)| !number.negative)?;
            if !rest.is_empty() {
                return None;
            }
            number.whole.checked_mul(SECOND)?.checked_add(number.billionths)?
        }
    };
    if parts.next().is_some() {
        return None;
    }
    let minutes = hours.checked_mul(60)?.checked_add(minutes)?;
    let nanos = minutes.checked_mul(60 * SECOND)?.checked_add(seconds)?;
    Some((sign * nanos, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(months: i32, days: i32, nanos: i64) -> Span {
        Span { months, days, nanos }
    }

    #[test]
    fn reads_what_people_write() {
        for (text, expected) in [
            ("5m", span(0, 0, 300 * SECOND)),
            ("10s", span(0, 0, 10 * SECOND)),
            ("1 hour", span(0, 0, 3600 * SECOND)),
            ("1h30m", span(0, 0, 5400 * SECOND)),
            ("1.5 h", span(0, 0, 5400 * SECOND)),
            ("2 days", span(0, 2, 0)),
            ("1w", span(0, 7, 0)),
            ("1 month", span(1, 0, 0)),
            ("1 year 2 mons 3 days", span(14, 3, 0)),
            ("-5m", span(0, 0, -300 * SECOND)),
            ("250ms", span(0, 0, 250_000_000)),
            (".5s", span(0, 0, 500_000_000)),
            ("1 day 01:30:00.25", span(0, 1, 5400 * SECOND + 250_000_000)),
            ("1.5 months", span(1, 15, 0)),
        ] {
            assert_eq!(Span::parse(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn leaves_other_text_alone_and_refuses_what_is_too_long() {
        for text in ["", "5", "hello", "2024-01-01", "5 apples", "5m later", "m", "1:2:3:4"] {
            assert_eq!(Span::read(text).unwrap(), None, "{text}");
        }
        assert_eq!(Span::parse("9999999999 days").unwrap_err().code(), Code::OutOfRange);
        assert_eq!(Span::parse("300000 h").unwrap().fixed_nanos(), Some(300_000 * 3600 * SECOND));
        assert_eq!(Span::parse("99999999999999999 h").unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn the_canonical_form_reads_back() {
        for text in ["5m", "-90s", "1 month 2 days 3.25s"] {
            let span = Span::parse(text).unwrap();
            assert_eq!(Span::parse(&span.canonical()).unwrap(), span, "{text}");
        }
    }
}
