//! The same language read the plain way, one character after the other and without memory
//! between lines: what the fast parser is compared with.

use std::collections::BTreeMap;

/// A field's value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Float(f64),
    Int(i64),
    UInt(u64),
    Bool(bool),
    Text(Vec<u8>),
}

/// A good line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub line: u32,
    pub measurement: Vec<u8>,
    pub tags: Tags,
    pub fields: BTreeMap<Vec<u8>, Value>,
    pub time: Option<i64>,
}

type Tags = BTreeMap<Vec<u8>, Vec<u8>>;

struct Reader<'a> {
    body: &'a [u8],
    at: usize,
    line: u32,
}

/// The good lines and the numbers of the bad ones.
pub(super) fn read(body: &[u8]) -> (Vec<Row>, Vec<u32>) {
    let mut reader = Reader { body, at: 0, line: 1 };
    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    while reader.at < body.len() {
        let start = reader.at;
        reader.spaces();
        if reader.at_line_end() || reader.peek() == Some(b'#') {
            reader.skip_line();
        } else {
            let number = reader.line;
            let row = reader.row(number);
            match row.filter(|_| std::str::from_utf8(&body[start..reader.at]).is_ok()) {
                Some(row) => rows.push(row),
                None => bad.push(number),
            }
            reader.skip_line();
        }
    }
    (rows, bad)
}

impl Reader<'_> {
    fn peek(&self) -> Option<u8> {
        self.body.get(self.at).copied()
    }

    fn spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    fn at_line_end(&self) -> bool {
        matches!(&self.body[self.at..], [] | [b'\n', ..] | [b'\r'] | [b'\r', b'\n', ..])
    }

    fn skip_line(&mut self) {
        while let Some(byte) = self.peek() {
            self.at += 1;
            if byte == b'\n' {
                break;
            }
        }
        self.line += 1;
    }

    /// Characters up to one of `stops`; a backslash takes the meaning from those in `escapes`.
    fn token(&mut self, stops: &[u8], escapes: &[u8]) -> Vec<u8> {
        let mut token = Vec::new();
        while let Some(byte) = self.peek() {
            let next = self.body.get(self.at + 1).copied();
            if byte == b'\\' && next.is_some_and(|next| escapes.contains(&next)) {
                token.extend(next);
                self.at += 2;
            } else if byte == b'\n' || stops.contains(&byte) {
                break;
            } else {
                token.push(byte);
                self.at += 1;
            }
        }
        token
    }

    /// Goes to the end of `measurement,tags`, as the fast parser does before it looks inside.
    fn row(&mut self, line: u32) -> Option<Row> {
        let start = self.at;
        let mut previous = 0;
        while let Some(byte) = self.peek() {
            if byte == b'\n' || (byte == b' ' && previous != b'\\') {
                break;
            }
            previous = byte;
            self.at += 1;
        }
        let end = self.at;
        if self.peek() != Some(b' ') {
            return None;
        }
        let key = &self.body[start..end];
        let mut inner = Reader { body: key, at: 0, line };
        let key = inner.key();
        let fields = self.fields()?;
        let time = self.time()?;
        let ((measurement, tags), Some(fields)) = (key?, fields) else { return None };
        Some(Row { line, measurement, tags, fields, time })
    }

    fn key(&mut self) -> Option<(Vec<u8>, Tags)> {
        let measurement = name(self.token(b",", b", "))?;
        let mut tags = BTreeMap::new();
        while self.peek() == Some(b',') {
            self.at += 1;
            let key = name(self.token(b"=,", b",= "))?;
            if self.peek() != Some(b'=') {
                return None;
            }
            self.at += 1;
            let value = self.token(b",=", b",= ");
            if value.is_empty() || self.peek() == Some(b'=') || key == b"time" {
                return None;
            }
            if tags.insert(key, value).is_some() {
                return None;
            }
        }
        Some((measurement, tags))
    }

    /// `None` where the text is not a field set, `Some(None)` where a field may not be.
    fn fields(&mut self) -> Option<Option<BTreeMap<Vec<u8>, Value>>> {
        let mut fields = BTreeMap::new();
        let mut good = true;
        self.spaces();
        loop {
            let key = name(self.token(b"=, ", b",= "))?;
            if self.peek() != Some(b'=') {
                return None;
            }
            self.at += 1;
            let value = if self.peek() == Some(b'"') { self.text()? } else { self.scalar()? };
            let one_type =
                |old: &Value| std::mem::discriminant(old) == std::mem::discriminant(&value);
            good &= key != b"time" && fields.get(&key).is_none_or(one_type);
            fields.insert(key, value);
            if self.peek() != Some(b',') {
                return Some(good.then_some(fields));
            }
            self.at += 1;
        }
    }

    fn text(&mut self) -> Option<Value> {
        let opening = self.at;
        let lines = self.line;
        let mut text = Vec::new();
        self.at += 1;
        loop {
            match (self.peek(), self.body.get(self.at + 1)) {
                (None, _) => {
                    self.at = opening;
                    self.line = lines;
                    return None;
                }
                (Some(b'"'), _) => break,
                (Some(b'\\'), Some(next @ (b'"' | b'\\'))) => {
                    text.push(*next);
                    self.at += 1;
                }
                (Some(byte), _) => {
                    self.line += u32::from(byte == b'\n');
                    text.push(byte);
                }
            }
            self.at += 1;
        }
        self.at += 1;
        let ends = self.at_line_end() || matches!(self.peek(), Some(b',' | b' '));
        ends.then_some(Value::Text(text))
    }

    fn scalar(&mut self) -> Option<Value> {
        let start = self.at;
        self.token(b", \r", b"");
        // A backslash has no meaning here; the fast parser reads over an escaped stop, and
        // both then refuse the token.
        let token = std::str::from_utf8(&self.body[start..self.at]).ok()?;
        match token {
            "t" | "T" | "true" | "True" | "TRUE" => return Some(Value::Bool(true)),
            "f" | "F" | "false" | "False" | "FALSE" => return Some(Value::Bool(false)),
            _ => {}
        }
        if let Some(number) = token.strip_suffix('i') {
            return number.parse().ok().map(Value::Int);
        }
        if let Some(number) = token.strip_suffix('u') {
            return number.parse().ok().filter(|_| !number.starts_with('+')).map(Value::UInt);
        }
        let plain = token.bytes().all(|byte| b"0123456789.+-eE".contains(&byte));
        let value = token.parse::<f64>().ok().filter(|value| plain && value.is_finite());
        value.map(Value::Float)
    }

    fn time(&mut self) -> Option<Option<i64>> {
        self.spaces();
        if self.at_line_end() {
            return Some(None);
        }
        let token = self.token(b" \r", b"");
        let text = String::from_utf8(token).ok().filter(|text| !text.starts_with('+'))?;
        let time = text.parse().ok()?;
        self.spaces();
        self.at_line_end().then_some(Some(time))
    }
}

fn name(name: Vec<u8>) -> Option<Vec<u8>> {
    let bad = |byte: &u8| *byte < 0x20 || *byte == 0x7F;
    let text = std::str::from_utf8(&name).is_ok();
    (text && !name.is_empty() && !name.iter().any(bad)).then_some(name)
}
