//! Dates, times, instants and intervals in PostgreSQL's ISO style and binary forms.

use arrow::array::timezone::Tz;
use bytes::{BufMut, BytesMut};
use chrono::{DateTime, Offset, TimeZone};

use super::Format;
use super::number::integer;

/// Days from 1970-01-01 to 2000-01-01, where PostgreSQL counts from.
pub(in crate::pgwire) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(in crate::pgwire) const EPOCH_MICROS: i64 = 946_684_800_000_000;
pub(super) const DAY_MICROS: i64 = 86_400_000_000;

/// Whole days of a count of milliseconds.
pub(super) fn days_of_ms(ms: i64) -> i32 {
    i32::try_from(ms.div_euclid(86_400_000)).unwrap_or(if ms < 0 { i32::MIN } else { i32::MAX })
}

/// A date, given in days since 1970-01-01, in binary.
pub(super) fn date(days: i32, out: &mut BytesMut) {
    out.put_i32(days.saturating_sub(EPOCH_DAYS));
}

/// An instant, given in microseconds since 1970, in binary.
pub(super) fn instant(micros: i64, out: &mut BytesMut) {
    out.put_i64(micros.saturating_sub(EPOCH_MICROS));
}

/// A date as `YYYY-MM-DD`, with ` BC` where it is.
pub(super) fn date_text(days: i32, out: &mut BytesMut) {
    let before_christ = day(i64::from(days), out);
    era(before_christ, out);
}

/// A date and time of day without a zone.
pub(super) fn instant_text(micros: i64, out: &mut BytesMut) {
    let before_christ = day(micros.div_euclid(DAY_MICROS), out);
    out.put_u8(b' ');
    clock_text(micros.rem_euclid(DAY_MICROS), out);
    era(before_christ, out);
}

/// An instant in a zone: local time and the zone's distance to UTC.
pub(super) fn zoned_text(micros: i64, zone: Option<&Tz>, out: &mut BytesMut) {
    let seconds = zone.zip(DateTime::from_timestamp_micros(micros)).map_or(0, |(zone, at)| {
        zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()
    });
    let local = micros.saturating_add(i64::from(seconds) * 1_000_000);
    let before_christ = day(local.div_euclid(DAY_MICROS), out);
    out.put_u8(b' ');
    clock_text(local.rem_euclid(DAY_MICROS), out);
    out.put_u8(if seconds < 0 { b'-' } else { b'+' });
    let minutes = seconds.unsigned_abs() / 60;
    two(minutes / 60, out);
    if !minutes.is_multiple_of(60) {
        out.put_u8(b':');
        two(minutes % 60, out);
    }
    era(before_christ, out);
}

/// A time of day, given in microseconds since midnight; no zeros at the end of the fraction.
pub(super) fn clock_text(micros: i64, out: &mut BytesMut) {
    let seconds = u32::try_from(micros / 1_000_000).unwrap_or_default();
    two(seconds / 3600, out);
    out.put_u8(b':');
    two(seconds / 60 % 60, out);
    out.put_u8(b':');
    two(seconds % 60, out);
    fraction(u32::try_from(micros % 1_000_000).unwrap_or_default(), out);
}

fn fraction(micros: u32, out: &mut BytesMut) {
    if micros == 0 {
        return;
    }
    out.put_u8(b'.');
    let mut rest = micros;
    let mut unit = 100_000;
    while rest > 0 {
        out.put_u8(digit(rest / unit));
        rest %= unit;
        unit /= 10;
    }
}

fn digit(value: u32) -> u8 {
    b'0' + u8::try_from(value % 10).unwrap_or_default()
}

fn two(value: u32, out: &mut BytesMut) {
    if value >= 100 {
        return integer(value, out);
    }
    out.put_u8(digit(value / 10));
    out.put_u8(digit(value));
}

fn era(before_christ: bool, out: &mut BytesMut) {
    if before_christ {
        out.put_slice(b" BC");
    }
}

/// Writes the calendar day of a count of days since 1970; tells whether it is before Christ.
/// The algorithm is Howard Hinnant's `civil_from_days`.
fn day(days: i64, out: &mut BytesMut) -> bool {
    let shifted = days + 719_468;
    let cycle = shifted.div_euclid(146_097);
    let of_cycle = shifted.rem_euclid(146_097);
    let year_of_cycle = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_cycle + cycle * 400 + i64::from(month <= 2);
    let before_christ = year <= 0;
    let shown = u32::try_from(if before_christ { 1 - year } else { year }).unwrap_or_default();
    if shown < 10_000 {
        two(shown / 100, out);
        two(shown % 100, out);
    } else {
        integer(shown, out);
    }
    out.put_u8(b'-');
    two(u32::try_from(month).unwrap_or_default(), out);
    out.put_u8(b'-');
    two(u32::try_from(day).unwrap_or_default(), out);
    before_christ
}

/// An interval in the `postgres` style, or as microseconds, days and months.
pub(super) fn interval(months: i32, days: i32, micros: i64, format: Format, out: &mut BytesMut) {
    if format == Format::Binary {
        out.put_i64(micros);
        out.put_i32(days);
        out.put_i32(months);
        return;
    }
    let start = out.len();
    let mut negative_before = false;
    let parts = [(months / 12, "year"), (months % 12, "mon"), (days, "day")];
    for (count, unit) in parts {
        if count == 0 {
            continue;
        }
        if out.len() > start {
            out.put_u8(b' ');
        }
        if negative_before && count > 0 {
            out.put_u8(b'+');
        }
        integer(count, out);
        out.put_u8(b' ');
        out.put_slice(unit.as_bytes());
        if count != 1 {
            out.put_u8(b's');
        }
        negative_before = count < 0;
    }
    if micros == 0 && out.len() > start {
        return;
    }
    if out.len() > start {
        out.put_u8(b' ');
    }
    if micros < 0 {
        out.put_u8(b'-');
    } else if negative_before {
        out.put_u8(b'+');
    }
    let size = micros.unsigned_abs();
    let seconds = size / 1_000_000;
    let hours = seconds / 3600;
    if hours < 10 {
        out.put_u8(b'0');
    }
    integer(hours, out);
    out.put_u8(b':');
    two(u32::try_from(seconds / 60 % 60).unwrap_or_default(), out);
    out.put_u8(b':');
    two(u32::try_from(seconds % 60).unwrap_or_default(), out);
    fraction(u32::try_from(size % 1_000_000).unwrap_or_default(), out);
}
