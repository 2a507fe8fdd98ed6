//! Booleans, numbers and bytes, as text and as PostgreSQL's binary forms.

use std::fmt::{Display, Write};

use bytes::{BufMut, BytesMut};

use super::Format;

/// `t` or `f`; one byte.
pub(super) fn boolean(value: bool, format: Format, out: &mut BytesMut) {
    match format {
        Format::Text => out.put_u8(if value { b't' } else { b'f' }),
        Format::Binary => out.put_u8(u8::from(value)),
    }
}

pub(super) fn int2(value: i16, out: &mut BytesMut) {
    out.put_i16(value);
}

pub(super) fn int4(value: i32, out: &mut BytesMut) {
    out.put_i32(value);
}

pub(super) fn int8(value: i64, out: &mut BytesMut) {
    out.put_i64(value);
}

/// An integer in digits.
pub(super) fn integer<N: lexical_core::ToLexical>(value: N, out: &mut BytesMut) {
    let mut digits = [0; lexical_core::BUFFER_SIZE];
    out.put_slice(lexical_core::write(value, &mut digits));
}

/// `\x` and two hexadecimal digits a byte.
pub(super) fn hex(value: &[u8], out: &mut BytesMut) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.put_slice(b"\\x");
    for byte in value {
        for half in [byte >> 4, byte & 15] {
            out.put_u8(DIGITS.get(usize::from(half)).copied().unwrap_or(b'0'));
        }
    }
}

/// A text of at most 64 bytes on the stack.
struct Short {
    bytes: [u8; 64],
    len: usize,
}

impl Short {
    fn new(arguments: std::fmt::Arguments<'_>) -> Self {
        let mut short = Short { bytes: [0; 64], len: 0 };
        // 64 bytes hold every float in exponent form and every 128-bit integer.
        let _fits = short.write_fmt(arguments);
        short
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let end = self.len + text.len();
        let place = self.bytes.get_mut(self.len..end).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// `double precision` as PostgreSQL 12 and later print it: the shortest digits that read
/// back as the same number, with an exponent from 1e15 and below 1e-4.
pub(super) fn float8_text(value: f64, out: &mut BytesMut) {
    #[expect(clippy::cast_possible_truncation, reason = "checked to be a whole number below 1e15")]
    if value.fract() == 0.0 && value.abs() < 1e15 && (value != 0.0 || value.is_sign_positive()) {
        return integer(value as i64, out);
    }
    if !special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out) {
        shortest(&Short::new(format_args!("{value:e}")), 15, out);
    }
}

/// `real` as PostgreSQL 12 and later print it, with an exponent from 1e6.
pub(super) fn float4_text(value: f32, out: &mut BytesMut) {
    if !special(value.is_nan(), value.is_infinite(), value.is_sign_negative(), out) {
        shortest(&Short::new(format_args!("{value:e}")), 6, out);
    }
}

fn special(nan: bool, infinite: bool, negative: bool, out: &mut BytesMut) -> bool {
    if nan {
        out.put_slice(b"NaN");
    } else if infinite {
        out.put_slice(if negative { b"-Infinity" } else { b"Infinity" });
    }
    nan || infinite
}

/// Rewrites `d.ddde±x` the way C's `%g` places the point.
fn shortest(text: &Short, limit: i32, out: &mut BytesMut) {
    let mut bytes = text.as_bytes();
    if let Some(rest) = bytes.strip_prefix(b"-") {
        out.put_u8(b'-');
        bytes = rest;
    }
    let split = bytes.iter().position(|byte| *byte == b'e').unwrap_or(bytes.len());
    let (mantissa, exponent) = bytes.split_at(split);
    let exponent: i32 = exponent
        .get(1..)
        .and_then(|digits| std::str::from_utf8(digits).ok())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or_default();
    let whole = mantissa.first().copied().unwrap_or(b'0');
    let fraction = mantissa.get(2..).unwrap_or_default();
    if (-4..limit).contains(&exponent) {
        plain(whole, fraction, exponent, out);
    } else {
        out.put_u8(whole);
        if !fraction.is_empty() {
            out.put_u8(b'.');
            out.put_slice(fraction);
        }
        out.put_slice(if exponent < 0 { b"e-" } else { b"e+" });
        let size = exponent.unsigned_abs();
        if size < 10 {
            out.put_u8(b'0');
        }
        integer(size, out);
    }
}

fn plain(whole: u8, fraction: &[u8], exponent: i32, out: &mut BytesMut) {
    let Ok(shift) = usize::try_from(exponent) else {
        out.put_slice(b"0.");
        out.put_bytes(b'0', usize::try_from(-exponent - 1).unwrap_or_default());
        out.put_u8(whole);
        out.put_slice(fraction);
        return;
    };
    out.put_u8(whole);
    if fraction.len() <= shift {
        out.put_slice(fraction);
        out.put_bytes(b'0', shift - fraction.len());
    } else {
        let (before, after) = fraction.split_at(shift);
        out.put_slice(before);
        out.put_u8(b'.');
        out.put_slice(after);
    }
}

/// The digits of an unscaled number, its sign, and how many of the digits are behind the point.
fn digits(value: impl Display, scale: i8, with: impl FnOnce(bool, &[u8], usize)) {
    let mut text = Short::new(format_args!("{value}"));
    let mut long = String::new();
    if text.len == 0 || text.len == text.bytes.len() {
        // Only 256-bit decimals are longer than the stack buffer.
        long = value.to_string();
    }
    if scale < 0 {
        for _ in 0..scale.unsigned_abs() {
            if long.is_empty() {
                long = String::from_utf8_lossy(text.as_bytes()).into_owned();
                text.len = 0;
            }
            long.push('0');
        }
    }
    let bytes = if long.is_empty() { text.as_bytes() } else { long.as_bytes() };
    let (negative, bytes) = match bytes.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    with(negative, bytes, usize::try_from(scale).unwrap_or_default());
}

/// `numeric` as text, with as many digits behind the point as its scale says.
pub(super) fn numeric_text(value: impl Display, scale: i8, out: &mut BytesMut) {
    digits(value, scale, |negative, digits, behind| {
        if negative {
            out.put_u8(b'-');
        }
        let before = digits.len().saturating_sub(behind);
        if before == 0 {
            out.put_u8(b'0');
        } else {
            out.put_slice(digits.get(..before).unwrap_or_default());
        }
        if behind > 0 {
            out.put_u8(b'.');
            out.put_bytes(b'0', behind.saturating_sub(digits.len()));
            out.put_slice(digits.get(before..).unwrap_or_default());
        }
    });
}

/// `numeric` in binary: groups of four decimal digits with the weight of the first.
pub(super) fn numeric_binary(value: impl Display, scale: i8, out: &mut BytesMut) {
    digits(value, scale, |negative, digits, behind| {
        // Digit i stands for 10^(power - i); groups are aligned to the point.
        let before = i32::try_from(digits.len()).unwrap_or(i32::MAX)
            - i32::try_from(behind).unwrap_or_default();
        let mut weight = (before + 3).div_euclid(4) - 1;
        let lead = usize::try_from((weight + 1) * 4 - before).unwrap_or_default();
        let start = out.len();
        out.put_slice(&[0; 8]);
        let mut groups = 0_u16;
        let mut end = out.len();
        let mut group = 0_u16;
        let total = (lead + digits.len()).div_ceil(4) * 4;
        for place in 0..total {
            let digit = place
                .checked_sub(lead)
                .and_then(|index| digits.get(index))
                .map_or(0, |byte| u16::from(byte - b'0'));
            group = group * 10 + digit;
            if place % 4 == 3 {
                if groups == 0 && group == 0 {
                    weight -= 1;
                } else {
                    out.put_u16(group);
                    groups += 1;
                    if group != 0 {
                        end = out.len();
                    }
                }
                group = 0;
            }
        }
        // Trailing groups of zeros are not stored.
        groups -= u16::try_from((out.len() - end) / 2).unwrap_or_default();
        out.truncate(end);
        if groups == 0 {
            weight = 0;
        }
        let sign = if negative && groups > 0 { 0x4000_u16 } else { 0 };
        let scale = u16::try_from(behind).unwrap_or_default();
        let weight = i16::try_from(weight).unwrap_or_default().cast_unsigned();
        let head = [groups, weight, sign, scale];
        for (index, part) in head.iter().enumerate() {
            let at = start + index * 2;
            if let Some(place) = out.get_mut(at..at + 2) {
                place.copy_from_slice(&part.to_be_bytes());
            }
        }
    });
}
