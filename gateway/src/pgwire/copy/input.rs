//! Records out of the bytes of a COPY, however the client cut them into messages.

use bytes::{Buf, BytesMut};
use kymo_kernel::{Code, Error, Result};

use super::super::decode::{self, Value};
use super::super::wire::protocol;
use super::command::{Layout, Options};
use super::output::SIGNATURE;

/// A record: its line, or its number, and its values.
pub(super) struct Record {
    pub(super) line: u32,
    pub(super) values: Vec<Option<Value>>,
}

/// Cuts bytes into records and reads their values.
pub(super) struct Records {
    options: Options,
    oids: Vec<u32>,
    max_bytes: usize,
    line: u32,
    /// Bytes at the front that were looked at already, and whether they end inside quotes.
    scanned: usize,
    in_quotes: bool,
    begun: bool,
    ended: bool,
}

impl Records {
    pub(super) fn new(options: &Options, oids: &[u32], max_bytes: usize) -> Self {
        Records {
            options: options.clone(),
            oids: oids.to_vec(),
            max_bytes,
            line: 0,
            scanned: 0,
            in_quotes: false,
            begun: false,
            ended: false,
        }
    }

    /// The next record; `None` where more bytes are needed, or at the end.
    ///
    /// # Errors
    /// Names the line.
    pub(super) fn next(&mut self, bytes: &mut BytesMut, last: bool) -> Result<Option<Record>> {
        let record = match self.options.layout {
            Layout::Binary => self.binary(bytes, last),
            Layout::Text | Layout::Csv => self.line(bytes, last),
        };
        record.map_err(|error| error.context(format!("COPY line {}", self.line)))
    }

    fn line(&mut self, bytes: &mut BytesMut, last: bool) -> Result<Option<Record>> {
        loop {
            let Some(end) = self.end_of_line(bytes, last)? else { return Ok(None) };
            let mut line = bytes.split_to(end);
            if bytes.first() == Some(&b'\n') {
                bytes.advance(1);
            }
            self.scanned = 0;
            self.in_quotes = false;
            self.line = self.line.saturating_add(1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            let first = !std::mem::replace(&mut self.begun, true);
            self.ended |= &line[..] == b"\\.";
            if self.ended || (first && self.options.header) {
                continue;
            }
            let text = std::str::from_utf8(&line).map_err(|_| {
                Error::new(Code::InvalidEncoding, "invalid byte sequence for encoding \"UTF8\"")
            })?;
            let fields = match self.options.layout {
                Layout::Csv => self.csv(text)?,
                _ => self.plain(text)?,
            };
            return self.values(fields).map(Some);
        }
    }

    fn end_of_line(&mut self, bytes: &BytesMut, last: bool) -> Result<Option<usize>> {
        let csv = self.options.layout == Layout::Csv;
        let rest = bytes.get(self.scanned..).unwrap_or_default();
        for (index, byte) in rest.iter().enumerate() {
            if csv && *byte == self.options.quote {
                self.in_quotes = !self.in_quotes;
            } else if *byte == b'\n' && !self.in_quotes {
                return Ok(Some(self.scanned + index));
            }
        }
        self.scanned = bytes.len();
        if bytes.len() > self.max_bytes {
            return Err(Error::new(
                Code::TooLarge,
                format!("a line has more than {} bytes", self.max_bytes),
            )
            .with_hint("the limit is ingest.max_line_bytes; a quote may not be closed"));
        }
        if last && self.in_quotes {
            return Err(Error::new(Code::InvalidCast, "unterminated CSV quoted field"));
        }
        Ok((last && !bytes.is_empty()).then_some(bytes.len()))
    }

    fn csv(&self, text: &str) -> Result<Vec<Option<String>>> {
        let Options { delimiter, quote, escape, .. } = self.options;
        let (delimiter, quote, escape) =
            (char::from(delimiter), char::from(quote), char::from(escape));
        let mut fields = Vec::with_capacity(self.oids.len());
        let mut letters = text.chars().peekable();
        loop {
            let mut field = String::new();
            let mut quoted = false;
            let mut inside = false;
            let mut more = false;
            while let Some(letter) = letters.next() {
                if inside && letter == escape && letters.peek().is_some_and(|next| *next == quote) {
                    field.extend(letters.next());
                } else if letter == quote {
                    inside = !inside;
                    quoted = true;
                } else if letter == delimiter && !inside {
                    more = true;
                    break;
                } else {
                    field.push(letter);
                }
            }
            let null = !quoted && field == self.options.null;
            fields.push((!null).then_some(field));
            if !more {
                return Ok(fields);
            }
        }
    }

    fn plain(&self, text: &str) -> Result<Vec<Option<String>>> {
        let delimiter = char::from(self.options.delimiter);
        let mut fields = Vec::with_capacity(self.oids.len());
        let mut start = 0;
        let mut escaped = false;
        let ends = text.char_indices().filter(|(_, letter)| {
            let end = *letter == delimiter && !escaped;
            escaped = *letter == '\\' && !escaped;
            end
        });
        let ends: Vec<usize> = ends.map(|(at, _)| at).chain([text.len()]).collect();
        for end in ends {
            let field = text.get(start..end).unwrap_or_default();
            let null = field == self.options.null;
            fields.push((!null).then(|| unescaped(field)));
            start = end + 1;
        }
        Ok(fields)
    }

    fn values(&self, fields: Vec<Option<String>>) -> Result<Record> {
        if fields.len() != self.oids.len() {
            return Err(Error::new(
                Code::InvalidCast,
                format!("{} values where {} columns are copied", fields.len(), self.oids.len()),
            ));
        }
        let values = fields.into_iter().zip(&self.oids).map(|(field, oid)| match field {
            Some(text) => decode::text_value(*oid, &text).map(Some),
            None => Ok(None),
        });
        Ok(Record { line: self.line, values: values.collect::<Result<_>>()? })
    }

    fn binary(&mut self, bytes: &mut BytesMut, last: bool) -> Result<Option<Record>> {
        if !self.begun {
            if bytes.len() < SIGNATURE.len() {
                return if last { Err(ends_early()) } else { Ok(None) };
            }
            let head = bytes.split_to(SIGNATURE.len());
            if head.get(..11) != SIGNATURE.get(..11) {
                return Err(protocol("COPY file signature not recognized"));
            }
            self.begun = true;
        }
        if self.ended {
            bytes.clear();
            return Ok(None);
        }
        let mut rest: &[u8] = bytes;
        match self.tuple(&mut rest)? {
            Some(record) => {
                let used = bytes.len() - rest.len();
                bytes.advance(used);
                Ok(record)
            }
            None if last && !bytes.is_empty() => Err(ends_early()),
            None if bytes.len() > self.max_bytes => {
                Err(Error::new(Code::TooLarge, "a row has more than ingest.max_line_bytes"))
            }
            None => Ok(None),
        }
    }

    /// One tuple; the outer `None` where it has not arrived in full, the inner at the end.
    fn tuple(&mut self, rest: &mut &[u8]) -> Result<Option<Option<Record>>> {
        let Some(count) = take::<2>(rest).map(i16::from_be_bytes) else { return Ok(None) };
        if count == -1 {
            self.ended = true;
            return Ok(Some(None));
        }
        if usize::try_from(count) != Ok(self.oids.len()) {
            return Err(Error::new(
                Code::InvalidCast,
                format!("{count} values where {} columns are copied", self.oids.len()),
            ));
        }
        let mut values = Vec::with_capacity(self.oids.len());
        for oid in &self.oids {
            let Some(length) = take::<4>(rest).map(i32::from_be_bytes) else { return Ok(None) };
            let Ok(length) = usize::try_from(length) else {
                values.push(None);
                continue;
            };
            let Some((value, after)) = rest.split_at_checked(length) else { return Ok(None) };
            values.push(Some(decode::binary_value(*oid, value)?));
            *rest = after;
        }
        self.line = self.line.saturating_add(1);
        Ok(Some(Some(Record { line: self.line, values })))
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (front, after) = rest.split_at_checked(N)?;
    *rest = after;
    front.try_into().ok()
}

fn ends_early() -> Error {
    protocol("unexpected EOF in COPY data")
}

/// Undoes the backslashes of the text layout.
fn unescaped(field: &str) -> String {
    if !field.contains('\\') {
        return field.to_owned();
    }
    let mut out = String::with_capacity(field.len());
    let mut letters = field.chars();
    while let Some(letter) = letters.next() {
        if letter != '\\' {
            out.push(letter);
            continue;
        }
        match letters.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('b') => out.push('\u{8}'),
            Some('v') => out.push('\u{b}'),
            Some('f') => out.push('\u{c}'),
            Some(other) => out.push(other),
            None => out.push('\\'),
        }
    }
    out
}
