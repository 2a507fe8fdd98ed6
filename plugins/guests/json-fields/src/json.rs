//! A small reader of JSON texts (RFC 8259): values, numbers as they are written, and an error
//! that says at which byte. Deep nesting is an error, not a trap.

/// How deep arrays and objects may lie in each other.
const DEPTH: usize = 64;

/// A JSON value.
#[derive(Debug, PartialEq)]
pub enum Value {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    String(String),
    Array(Vec<Value>),
    /// In the order of the text; the first of equal names counts.
    Object(Vec<(String, Value)>),
}

/// Reads a whole text.
pub fn parse(text: &str) -> Result<Value, String> {
    let mut reader = Reader { text, at: 0 };
    let value = reader.value(0)?;
    reader.blank();
    if reader.at == text.len() { Ok(value) } else { Err(reader.wrong("the end")) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn wrong(&self, wanted: &str) -> String {
        format!("no JSON: {wanted} is missing at byte {}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn blank(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.text.as_bytes()[self.at..].starts_with(token.as_bytes());
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn need(&mut self, token: &str) -> Result<(), String> {
        if self.eat(token) { Ok(()) } else { Err(self.wrong(token)) }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        if depth > DEPTH {
            return Err(format!("JSON nested deeper than {DEPTH}"));
        }
        self.blank();
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.array(depth),
            Some(b'"') => self.string().map(Value::String),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ if self.eat("true") => Ok(Value::Bool(true)),
            _ if self.eat("false") => Ok(Value::Bool(false)),
            _ if self.eat("null") => Ok(Value::Null),
            _ => Err(self.wrong("a value")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Value, String> {
        let mut members = Vec::new();
        self.need("{")?;
        self.blank();
        if self.eat("}") {
            return Ok(Value::Object(members));
        }
        loop {
            self.blank();
            let name = self.string()?;
            self.blank();
            self.need(":")?;
            members.push((name, self.value(depth + 1)?));
            self.blank();
            if !self.eat(",") {
                self.need("}")?;
                return Ok(Value::Object(members));
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Value, String> {
        let mut values = Vec::new();
        self.need("[")?;
        self.blank();
        if self.eat("]") {
            return Ok(Value::Array(values));
        }
        loop {
            values.push(self.value(depth + 1)?);
            self.blank();
            if !self.eat(",") {
                self.need("]")?;
                return Ok(Value::Array(values));
            }
        }
    }

    fn digits(&mut self) -> Result<(), String> {
        let from = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        if self.at > from { Ok(()) } else { Err(self.wrong("a digit")) }
    }

    fn number(&mut self) -> Result<Value, String> {
        let from = self.at;
        self.eat("-");
        if !self.eat("0") {
            self.digits()?;
        }
        if self.eat(".") {
            self.digits()?;
        }
        if self.eat("e") || self.eat("E") {
            let _ = self.eat("+") || self.eat("-");
            self.digits()?;
        }
        Ok(Value::Number(self.text[from..self.at].to_owned()))
    }

    fn string(&mut self) -> Result<String, String> {
        self.need("\"")?;
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ');
            let plain = plain.ok_or_else(|| self.wrong("\""))?;
            out.push_str(&rest[..plain]);
            self.at += plain;
            if self.eat("\"") {
                return Ok(out);
            }
            self.need("\\")?;
            out.push(self.escape()?);
        }
    }

    fn escape(&mut self) -> Result<char, String> {
        const SHORT: [(&str, char); 8] = [
            ("\"", '"'),
            ("\\", '\\'),
            ("/", '/'),
            ("b", '\u{8}'),
            ("f", '\u{c}'),
            ("n", '\n'),
            ("r", '\r'),
            ("t", '\t'),
        ];
        for (token, meaning) in SHORT {
            if self.eat(token) {
                return Ok(meaning);
            }
        }
        self.need("u")?;
        let first = self.unit()?;
        if !(0xd800..0xdc00).contains(&first) {
            return char::from_u32(first).ok_or_else(|| self.wrong("a character"));
        }
        self.need("\\u")?;
        let second = self.unit()?.checked_sub(0xdc00).filter(|low| *low < 0x400);
        let second = second.ok_or_else(|| self.wrong("the second half of a character"))?;
        char::from_u32(0x10000 + ((first - 0xd800) << 10) + second)
            .ok_or_else(|| self.wrong("a character"))
    }

    fn unit(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4);
        let good = digits.filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let number = good.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let number = number.ok_or_else(|| self.wrong("four hexadecimal digits"))?;
        self.at += 4;
        Ok(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_is_refused_with_its_place() {
        for bad in [
            "",
            "{",
            "[1,]",
            "01",
            "1.",
            "1e",
            "\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "nul",
            "1 2",
            "\"\n\"",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(parse("[1,]").unwrap_err(), "no JSON: a value is missing at byte 3");
        assert!(parse(&"[".repeat(100_000)).unwrap_err().contains("deeper"));
    }

    #[test]
    fn characters_beyond_the_first_plane() {
        assert_eq!(parse(r#""\ud83d\ude00""#), Ok(Value::String("😀".to_owned())));
        assert_eq!(parse("-0.5e+3"), Ok(Value::Number("-0.5e+3".to_owned())));
    }
}
