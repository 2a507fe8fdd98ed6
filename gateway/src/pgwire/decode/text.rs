//! What PostgreSQL's input functions read, in the ISO forms that clients send.

use arrow::compute::kernels::cast_utils::string_to_datetime;
use arrow::datatypes::IntervalMonthDayNano;
use chrono::{NaiveDate, NaiveTime, Timelike, Utc};
use kymo_kernel::{Code, Error, Result};

use super::super::encode::EPOCH_DAYS;
use super::super::types::oid;
use super::{Value, invalid, type_name};

/// Bytes as UTF-8.
pub(in crate::pgwire) fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes)
        .map_err(|error| invalid(format!("invalid byte sequence for encoding \"UTF8\": {error}")))
}

/// Reads a scalar.
pub(in crate::pgwire) fn value(oid: u32, text: &str) -> Result<Value> {
    let trimmed = text.trim();
    Ok(match oid {
        oid::BOOL => Value::Bool(boolean(trimmed)?),
        oid::INT2 => Value::Int2(number(oid, trimmed)?),
        oid::INT4 => Value::Int4(number(oid, trimmed)?),
        oid::INT8 | oid::OID => Value::Int8(number(oid, trimmed)?),
        oid::FLOAT4 => Value::Float4(number(oid, trimmed)?),
        oid::FLOAT8 => Value::Float8(number(oid, trimmed)?),
        oid::NUMERIC => numeric(trimmed)?,
        oid::BYTEA => Value::Bytes(bytea(text)?),
        oid::DATE => Value::Date(date(trimmed)?),
        oid::TIME => Value::Time(time(trimmed)?),
        oid::TIMESTAMP => Value::Instant(instant(oid, trimmed)?, false),
        oid::TIMESTAMPTZ => Value::Instant(instant(oid, trimmed)?, true),
        oid::INTERVAL => Value::Interval(interval(trimmed)?),
        _ => Value::Text(text.to_owned()),
    })
}

fn bad(oid: u32, text: &str) -> Error {
    let name = type_name(oid);
    Error::new(Code::InvalidCast, format!("invalid input syntax for type {name}: \"{text}\""))
}

fn number<N: std::str::FromStr>(oid: u32, text: &str) -> Result<N> {
    text.parse().map_err(|_| bad(oid, text))
}

fn boolean(text: &str) -> Result<bool> {
    match text.to_ascii_lowercase().as_str() {
        "t" | "true" | "y" | "yes" | "on" | "1" => Ok(true),
        "f" | "false" | "n" | "no" | "off" | "0" => Ok(false),
        _ => Err(bad(oid::BOOL, text)),
    }
}

/// Digits with a point and possibly an exponent, exactly.
fn numeric(text: &str) -> Result<Value> {
    let wrong = || bad(oid::NUMERIC, text);
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => {
            let (mantissa, exponent) = text.split_at(at);
            (mantissa, exponent.get(1..).unwrap_or_default().parse::<i32>().map_err(|_| wrong())?)
        }
        None => (text, 0),
    };
    let (negative, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let all = format!("{whole}{fraction}");
    if all.is_empty() || !all.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let large = || Error::new(Code::OutOfRange, format!("numeric value {text} is too large"));
    let mut unscaled: i128 = all.parse().map_err(|_| large())?;
    let mut scale = i32::try_from(fraction.len()).map_err(|_| large())?.saturating_sub(exponent);
    while scale < 0 {
        unscaled = unscaled.checked_mul(10).ok_or_else(large)?;
        scale += 1;
    }
    let scale = i8::try_from(scale).ok().filter(|scale| *scale <= 38).ok_or_else(large)?;
    Ok(Value::Numeric(if negative { -unscaled } else { unscaled }, scale))
}

fn bytea(text: &str) -> Result<Vec<u8>> {
    let wrong = || bad(oid::BYTEA, text);
    if let Some(hex) = text.strip_prefix("\\x") {
        let pairs = hex.as_bytes().chunks(2).map(|pair| {
            let pair = std::str::from_utf8(pair).ok().filter(|pair| pair.len() == 2)?;
            u8::from_str_radix(pair, 16).ok()
        });
        return pairs.collect::<Option<_>>().ok_or_else(wrong);
    }
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let first = bytes.next().ok_or_else(wrong)?;
        if first == b'\\' {
            out.push(first);
            continue;
        }
        let octal = [first, bytes.next().ok_or_else(wrong)?, bytes.next().ok_or_else(wrong)?];
        let digits = std::str::from_utf8(&octal).map_err(|_| wrong())?;
        out.push(u8::from_str_radix(digits, 8).map_err(|_| wrong())?);
    }
    Ok(out)
}

fn date(text: &str) -> Result<i32> {
    let day = text.get(..10).unwrap_or(text);
    let day = NaiveDate::parse_from_str(day, "%Y-%m-%d").map_err(|_| bad(oid::DATE, text))?;
    let origin = NaiveDate::from_ymd_opt(2000, 1, 1).unwrap_or_default();
    let days = day.signed_duration_since(origin).num_days();
    i32::try_from(days).map(|days| days + EPOCH_DAYS).map_err(|_| bad(oid::DATE, text))
}

fn time(text: &str) -> Result<i64> {
    let time = ["%H:%M:%S%.f", "%H:%M"]
        .iter()
        .find_map(|format| NaiveTime::parse_from_str(text, format).ok())
        .ok_or_else(|| bad(oid::TIME, text))?;
    Ok(i64::from(time.num_seconds_from_midnight()) * 1_000_000
        + i64::from(time.nanosecond() / 1000))
}

/// ISO 8601 with `T` or a blank, with or without a zone; without one it is UTC.
fn instant(oid: u32, text: &str) -> Result<i64> {
    let at = string_to_datetime(&Utc, text).map_err(|_| bad(oid, text))?;
    at.timestamp_nanos_opt().ok_or_else(|| {
        Error::new(
            Code::OutOfRange,
            format!("timestamp \"{text}\" lies outside of the years 1677 to 2262"),
        )
    })
}

/// `1 day 02:03:04.5`, `90 seconds`, `P1DT2H`: what clients and people write.
fn interval(text: &str) -> Result<IntervalMonthDayNano> {
    let wrong = || bad(oid::INTERVAL, text);
    let mut sum = Interval::default();
    if let Some(iso) = text.strip_prefix('P') {
        let (days, clock) = iso.split_once('T').unwrap_or((iso, ""));
        sum.iso(days, false).and_then(|()| sum.iso(clock, true)).ok_or_else(wrong)?;
        return sum.finish().ok_or_else(wrong);
    }
    let mut words = text.split_whitespace();
    let mut any = false;
    while let Some(word) = words.next() {
        any = true;
        if word.contains(':') {
            sum.clock(word).ok_or_else(wrong)?;
            continue;
        }
        let split = word.find(|each: char| each.is_ascii_alphabetic()).unwrap_or(word.len());
        let (count, unit) = word.split_at(split);
        let unit = if unit.is_empty() { words.next().unwrap_or("seconds") } else { unit };
        sum.add(count.parse().map_err(|_| wrong())?, unit).ok_or_else(wrong)?;
    }
    if !any {
        return Err(wrong());
    }
    sum.finish().ok_or_else(wrong)
}

#[derive(Default)]
struct Interval {
    months: f64,
    days: f64,
    ns: f64,
}

impl Interval {
    fn add(&mut self, count: f64, unit: &str) -> Option<()> {
        const SECOND: f64 = 1e9;
        let unit = unit.to_ascii_lowercase();
        match unit.trim_end_matches('s') {
            "year" | "yr" | "y" => self.months += count * 12.0,
            "month" | "mon" => self.months += count,
            "week" | "w" => self.days += count * 7.0,
            "day" | "d" => self.days += count,
            "hour" | "hr" | "h" => self.ns += count * 3600.0 * SECOND,
            "minute" | "min" | "m" if unit != "ms" => self.ns += count * 60.0 * SECOND,
            "second" | "sec" | "" => self.ns += count * SECOND,
            "millisecond" | "msec" | "m" => self.ns += count * 1e6,
            "microsecond" | "usec" | "u" => self.ns += count * 1e3,
            "nanosecond" | "n" => self.ns += count,
            _ => return None,
        }
        Some(())
    }

    fn clock(&mut self, word: &str) -> Option<()> {
        let (sign, word) = match word.strip_prefix('-') {
            Some(rest) => (-1.0, rest),
            None => (1.0, word.strip_prefix('+').unwrap_or(word)),
        };
        let mut parts = word.split(':');
        let units = ["hour", "minute", "second"];
        for unit in units {
            if let Some(part) = parts.next() {
                self.add(sign * part.parse::<f64>().ok()?, unit)?;
            }
        }
        parts.next().is_none().then_some(())
    }

    fn iso(&mut self, mut text: &str, clock: bool) -> Option<()> {
        while !text.is_empty() {
            let at = text.find(|each: char| each.is_ascii_alphabetic())?;
            let count = text.get(..at)?.parse().ok()?;
            let unit = match (text.get(at..=at)?, clock) {
                ("Y", false) => "year",
                ("M", false) => "month",
                ("W", false) => "week",
                ("D", false) => "day",
                ("H", true) => "hour",
                ("M", true) => "minute",
                ("S", true) => "second",
                _ => return None,
            };
            self.add(count, unit)?;
            text = text.get(at + 1..)?;
        }
        Some(())
    }

    /// Fractions flow down as in PostgreSQL: a month has 30 days, a day 24 hours.
    fn finish(self) -> Option<IntervalMonthDayNano> {
        let months = self.months.trunc();
        let days = self.days + (self.months - months) * 30.0;
        let ns = self.ns + (days - days.trunc()) * 86_400e9;
        let fits = |value: f64, limit: f64| value.is_finite() && value.abs() < limit;
        if !fits(months, 2e9) || !fits(days, 2e9) || !fits(ns, 9.2e18) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked above")]
        let parts = (months as i32, days.trunc() as i32, ns.round() as i64);
        Some(IntervalMonthDayNano::new(parts.0, parts.1, parts.2))
    }
}

/// The elements of a one-dimensional array: `{a,"b c",NULL}`.
pub(super) fn elements(text: &str) -> Result<Vec<Option<String>>> {
    let wrong = || {
        Error::new(Code::InvalidCast, format!("malformed array literal: \"{text}\""))
            .with_hint("arrays look like {1,2,3} and have one dimension here")
    };
    let inner =
        text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(wrong)?;
    let mut elements = Vec::new();
    if inner.trim().is_empty() {
        return Ok(elements);
    }
    let mut letters = inner.chars().peekable();
    loop {
        let mut element = String::new();
        let mut quoted = false;
        loop {
            match letters.next() {
                None | Some(',') => break,
                Some('"') => {
                    quoted = true;
                    loop {
                        match letters.next().ok_or_else(wrong)? {
                            '"' => break,
                            '\\' => element.push(letters.next().ok_or_else(wrong)?),
                            letter => element.push(letter),
                        }
                    }
                }
                Some('\\') => element.push(letters.next().ok_or_else(wrong)?),
                Some('{' | '}') => return Err(wrong()),
                Some(letter) if letter.is_whitespace() && (quoted || element.is_empty()) => {}
                Some(letter) => element.push(letter),
            }
        }
        if !quoted {
            element.truncate(element.trim_end().len());
        }
        let null = !quoted && element.eq_ignore_ascii_case("null");
        elements.push((!null).then_some(element));
        if letters.peek().is_none() {
            return Ok(elements);
        }
    }
}
