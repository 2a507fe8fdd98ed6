//! The small pieces of a line: names, values, numbers.

use std::borrow::Cow;

use crate::columns::Value;

/// Why a line cannot be read, as the message that names it.
pub(super) type Fault = &'static str;

/// Whether the byte at `at` has a backslash before it, within the token that began at `start`.
fn escaped(body: &[u8], start: usize, at: usize) -> bool {
    at > start && body[at - 1] == b'\\'
}

/// The end of `measurement,tags`: the first space that is not escaped, or where the line
/// ends. A line end cannot be escaped.
pub(super) fn key_end(body: &[u8], start: usize) -> usize {
    let mut at = start;
    while let Some(found) = memchr::memchr2(b' ', b'\n', &body[at..]) {
        let place = at + found;
        if body[place] == b'\n' || !escaped(body, start, place) {
            return place;
        }
        at = place + 1;
    }
    body.len()
}

/// The first of the bytes in `stops` from `start` on that is not escaped; line ends always stop.
pub(super) fn token_end(body: &[u8], start: usize, stops: [u8; 3]) -> usize {
    let mut at = start;
    while at < body.len() {
        let byte = body[at];
        if byte == b'\n' || (stops.contains(&byte) && !escaped(body, start, at)) {
            return at;
        }
        at += 1;
    }
    at
}

/// A name without its backslashes before `,`, space and, if `equals`, `=`.
pub(super) fn unescape(raw: &[u8], equals: bool) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut name = Vec::with_capacity(raw.len());
    let mut bytes = raw.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match (byte, bytes.peek()) {
            (b'\\', Some(b',' | b' ')) => {}
            (b'\\', Some(b'=')) if equals => {}
            _ => name.push(byte),
        }
    }
    Cow::Owned(name)
}

/// Whether a byte may not stand in a name.
pub(super) fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7F
}

/// Whether the line ends at `at`, and how many bytes its end takes.
pub(super) fn line_end(body: &[u8], at: usize) -> Option<usize> {
    match body.get(at) {
        None => Some(0),
        Some(b'\n') => Some(1),
        Some(b'\r') => match body.get(at + 1) {
            None => Some(1),
            Some(b'\n') => Some(2),
            Some(_) => None,
        },
        Some(_) => None,
    }
}

/// Skips spaces.
pub(super) fn spaces(body: &[u8], mut at: usize) -> usize {
    while body.get(at) == Some(&b' ') {
        at += 1;
    }
    at
}

/// Reads a string whose opening quote is at `at`: its value, the place behind the closing
/// quote, and how many line ends it holds. `None` if it is not closed.
pub(super) fn string(body: &[u8], at: usize) -> Option<(Value<'_>, usize, u32)> {
    let start = at + 1;
    let mut place = start;
    let mut has_escapes = false;
    loop {
        place += memchr::memchr2(b'"', b'\\', body.get(place..)?)?;
        if body[place] == b'"' {
            break;
        }
        match body.get(place + 1) {
            Some(b'"' | b'\\') => {
                has_escapes = true;
                place += 2;
            }
            _ => place += 1,
        }
    }
    let raw = &body[start..place];
    let line_ends = memchr::memchr_iter(b'\n', raw).count();
    let value = Value::Text { raw, escaped: has_escapes };
    Some((value, place + 1, u32::try_from(line_ends).unwrap_or(u32::MAX)))
}

/// Reads a number or a truth value from its whole text.
pub(super) fn scalar(token: &[u8]) -> Result<Value<'static>, Fault> {
    match token {
        [] => Err("missing field value"),
        [b'0'..=b'9' | b'-' | b'+', .., b'i'] => integer(&token[..token.len() - 1]).map(Value::Int),
        [b'0'..=b'9' | b'-' | b'+', .., b'u'] => {
            unsigned(&token[..token.len() - 1]).map(Value::UInt)
        }
        b"t" | b"T" | b"true" | b"True" | b"TRUE" => Ok(Value::Bool(true)),
        b"f" | b"F" | b"false" | b"False" | b"FALSE" => Ok(Value::Bool(false)),
        _ => float(token).map(Value::Float),
    }
}

fn integer(token: &[u8]) -> Result<i64, Fault> {
    let digits = match token {
        [b'-' | b'+', digits @ ..] => digits,
        digits => digits,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("invalid number");
    }
    lexical_core::parse(token)
        .map_err(|_| "integer out of range: use -9223372036854775808i to 9223372036854775807i")
}

fn unsigned(token: &[u8]) -> Result<u64, Fault> {
    if token.is_empty() || !token.iter().all(u8::is_ascii_digit) {
        return Err("invalid number");
    }
    lexical_core::parse(token)
        .map_err(|_| "unsigned integer out of range: use 0u to 18446744073709551615u")
}

/// Only plain decimal notation: neither NaN nor infinity has a place in a table.
fn float(token: &[u8]) -> Result<f64, Fault> {
    let plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'.' | b'+' | b'-' | b'e' | b'E');
    if !token.iter().all(plain) {
        return Err("invalid field value: expected a number, a truth value or a quoted string");
    }
    match lexical_core::parse::<f64>(token) {
        Ok(value) if value.is_finite() => Ok(value),
        Ok(_) => Err("number out of range"),
        Err(_) => Err("invalid number"),
    }
}

/// Reads a timestamp from its whole text.
pub(super) fn timestamp(token: &[u8]) -> Result<i64, Fault> {
    let digits = match token {
        [b'-', digits @ ..] => digits,
        digits => digits,
    };
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("bad timestamp");
    }
    lexical_core::parse(token).map_err(|_| "timestamp out of range: it does not fit 64 bits")
}
