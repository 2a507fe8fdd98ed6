//! Reading a COPY command: what is copied, which way, and in what layout.

use kymo_kernel::{Code, Error, Result};

/// A COPY between a client and the server.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::pgwire) struct Copy {
    pub(super) source: Source,
    pub(super) direction: Direction,
    pub(super) options: Options,
}

/// What is copied.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Source {
    /// The rows of a query.
    Query(String),
    /// A table by the parts of its name, and which of its columns; all where empty.
    Table { name: Vec<String>, columns: Vec<String> },
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// To the client.
    Out,
    /// From the client.
    In,
}

/// How rows are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    Text,
    Csv,
    Binary,
}

/// What was written after `WITH`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Options {
    pub(super) layout: Layout,
    pub(super) delimiter: u8,
    pub(super) null: String,
    pub(super) header: bool,
    pub(super) quote: u8,
    pub(super) escape: u8,
}

impl Copy {
    /// The query whose rows go out.
    pub(super) fn query(&self) -> String {
        match &self.source {
            Source::Query(sql) => sql.clone(),
            Source::Table { name, columns } => {
                let list = |names: &[String], between| {
                    names.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(between)
                };
                let columns = if columns.is_empty() { "*".to_owned() } else { list(columns, ", ") };
                format!("SELECT {columns} FROM {}", list(name, "."))
            }
        }
    }

    pub(super) fn columns(&self) -> &[String] {
        match &self.source {
            Source::Table { columns, .. } => columns,
            Source::Query(_) => &[],
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Reads a COPY whose other end is the client. Anything else is `None`: it is the session's
/// to run or to refuse, also a COPY that names a file.
///
/// # Errors
/// `syntax_error` for a COPY that cannot be read, `unsupported` for an unknown option.
pub(in crate::pgwire) fn parse(sql: &str) -> Result<Option<Copy>> {
    let mut tokens = Tokens { text: sql, at: 0 };
    if tokens.next()? != Some(Token::Word("copy".to_owned())) {
        return Ok(None);
    }
    let Some(source) = source(&mut tokens)? else { return Ok(None) };
    let direction = match (tokens.next()?, tokens.next()?) {
        (Some(Token::Word(way)), Some(Token::Word(end))) => match (way.as_str(), end.as_str()) {
            ("to", "stdout") => Direction::Out,
            ("from", "stdin") => Direction::In,
            _ => return Ok(None),
        },
        _ => return Ok(None),
    };
    let options = options(&mut tokens)?;
    Ok(Some(Copy { source, direction, options }))
}

fn source(tokens: &mut Tokens<'_>) -> Result<Option<Source>> {
    let mut name = Vec::new();
    match tokens.next()? {
        Some(Token::Sign('(')) => return Ok(Some(Source::Query(tokens.until_closing()?))),
        Some(Token::Word(part) | Token::Name(part)) => name.push(part),
        _ => return Ok(None),
    }
    while tokens.accept('.')? {
        match tokens.next()? {
            Some(Token::Word(part) | Token::Name(part)) => name.push(part),
            _ => return Err(wrong("a name after \".\"")),
        }
    }
    let mut columns = Vec::new();
    if tokens.accept('(')? {
        loop {
            match tokens.next()? {
                Some(Token::Word(column) | Token::Name(column)) => columns.push(column),
                _ => return Err(wrong("a column name")),
            }
            if !tokens.accept(',')? {
                break;
            }
        }
        if !tokens.accept(')')? {
            return Err(wrong("\")\" after the columns"));
        }
    }
    Ok(Some(Source::Table { name, columns }))
}

/// `[WITH] (name value, …)`, and the older `[WITH] CSV HEADER DELIMITER ','`.
fn options(tokens: &mut Tokens<'_>) -> Result<Options> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    let mut next = tokens.next()?;
    if next == Some(Token::Word("with".to_owned())) {
        next = tokens.next()?;
    }
    let listed = next == Some(Token::Sign('('));
    if listed {
        next = tokens.next()?;
    }
    while let Some(token) = next {
        match token {
            Token::Word(name) if listed || name != "as" => found.push((name, None)),
            Token::Word(_) | Token::Sign(';' | ',' | ')') => {}
            Token::Text(value) | Token::Name(value) => match found.last_mut() {
                Some((_, place @ None)) => *place = Some(value),
                _ => return Err(wrong("an option")),
            },
            Token::Sign(_) => return Err(wrong("an option")),
        }
        next = tokens.next()?;
    }
    assemble(found)
}

fn assemble(found: Vec<(String, Option<String>)>) -> Result<Options> {
    let mut layout = Layout::Text;
    let (mut delimiter, mut null, mut quote, mut escape) = (None, None, None, None);
    let mut header = false;
    let mut names = found.into_iter().peekable();
    while let Some((name, value)) = names.next() {
        // A value without quotes was read as a name of its own.
        let mut word = |expected: &[&str]| {
            value.clone().map(|value| value.to_ascii_lowercase()).or_else(|| {
                names.next_if(|(name, _)| expected.contains(&name.as_str())).map(|(name, _)| name)
            })
        };
        match name.as_str() {
            "format" => {
                layout = match word(&["csv", "text", "binary"]).as_deref() {
                    Some("csv") => Layout::Csv,
                    Some("text") => Layout::Text,
                    Some("binary") => Layout::Binary,
                    _ => return Err(wrong("FORMAT csv, text or binary")),
                }
            }
            "csv" => layout = Layout::Csv,
            "binary" => layout = Layout::Binary,
            "header" => {
                let choice = word(&["true", "false", "on", "off", "match"]);
                header = !matches!(choice.as_deref(), Some("false" | "off" | "0"));
            }
            "delimiter" | "delimiters" => delimiter = Some(byte("DELIMITER", value)?),
            "null" => null = value,
            "quote" => quote = Some(byte("QUOTE", value)?),
            "escape" => escape = Some(byte("ESCAPE", value)?),
            "encoding" => {
                let plain = value.unwrap_or_default().replace(['-', '_'], "");
                if !plain.eq_ignore_ascii_case("utf8") {
                    return Err(Error::new(Code::Unsupported, "COPY encodings other than UTF8"));
                }
            }
            other => {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("COPY option \"{other}\" is not supported"),
                )
                .with_hint("options: FORMAT, DELIMITER, NULL, HEADER, QUOTE, ESCAPE, ENCODING"));
            }
        }
    }
    let csv = layout == Layout::Csv;
    let quote = quote.unwrap_or(b'"');
    Ok(Options {
        layout,
        delimiter: delimiter.unwrap_or(if csv { b',' } else { b'\t' }),
        null: null.unwrap_or_else(|| if csv { String::new() } else { "\\N".to_owned() }),
        header,
        quote,
        escape: escape.unwrap_or(quote),
    })
}

fn byte(name: &str, value: Option<String>) -> Result<u8> {
    match value.as_deref().map(str::as_bytes) {
        Some([one]) if !matches!(one, b'\n' | b'\r') => Ok(*one),
        _ => Err(Error::new(
            Code::InvalidInput,
            format!("COPY {name} must be a single one-byte character"),
        )),
    }
}

fn wrong(expected: &str) -> Error {
    Error::new(Code::Syntax, format!("syntax error in COPY: expected {expected}"))
}

#[derive(Debug, PartialEq)]
enum Token {
    /// An unquoted word, in lower case.
    Word(String),
    /// `"…"`.
    Name(String),
    /// `'…'`.
    Text(String),
    Sign(char),
}

/// As much of SQL's lexical rules as a COPY needs.
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl Tokens<'_> {
    fn rest(&self) -> &str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip_blank(&mut self) {
        loop {
            let rest = self.rest();
            let blank = rest.len() - rest.trim_start().len();
            self.at += blank;
            let rest = self.rest();
            if rest.starts_with("--") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if rest.starts_with("/*") {
                self.at += rest.find("*/").map_or(rest.len(), |end| end + 2);
            } else {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Option<Token>> {
        self.skip_blank();
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        if matches!(rest.get(..2), Some("e'" | "E'")) {
            self.at += 1;
            return Ok(Some(Token::Text(escaped(&self.quoted('\'')?))));
        }
        Ok(Some(match first {
            '\'' => Token::Text(self.quoted('\'')?),
            '"' => Token::Name(self.quoted('"')?),
            _ if first.is_alphanumeric() || first == '_' => {
                let end = rest
                    .find(|each: char| !each.is_alphanumeric() && each != '_' && each != '$')
                    .unwrap_or(rest.len());
                let word = rest.get(..end).unwrap_or_default().to_ascii_lowercase();
                self.at += end;
                Token::Word(word)
            }
            _ => {
                self.at += first.len_utf8();
                Token::Sign(first)
            }
        }))
    }

    fn accept(&mut self, sign: char) -> Result<bool> {
        self.skip_blank();
        let found = self.rest().starts_with(sign);
        if found {
            self.at += sign.len_utf8();
        }
        Ok(found)
    }

    /// The content of quotes, doubled ones undone.
    fn quoted(&mut self, quote: char) -> Result<String> {
        let mut content = String::new();
        self.at += 1;
        loop {
            let rest = self.rest();
            let end = rest.find(quote).ok_or_else(|| wrong("the end of a quoted text"))?;
            content.push_str(rest.get(..end).unwrap_or_default());
            self.at += end + 1;
            if !self.rest().starts_with(quote) {
                return Ok(content);
            }
            content.push(quote);
            self.at += 1;
        }
    }

    /// The text up to the parenthesis that closes the one just read.
    fn until_closing(&mut self) -> Result<String> {
        let start = self.at;
        let mut depth = 1;
        loop {
            self.skip_blank();
            if let Some(end) = self.dollar_quoted() {
                self.at = end;
                continue;
            }
            match self.next()? {
                Some(Token::Sign('(')) => depth += 1,
                Some(Token::Sign(')')) => depth -= 1,
                Some(_) => {}
                None => return Err(wrong("\")\" after the query")),
            }
            if depth == 0 {
                return Ok(self.text.get(start..self.at - 1).unwrap_or_default().to_owned());
            }
        }
    }

    /// The end of `$tag$ … $tag$`, if one stands here.
    fn dollar_quoted(&self) -> Option<usize> {
        let rest = self.rest().strip_prefix('$')?;
        let tag = rest.get(..rest.find('$')?)?;
        if !tag.chars().all(|each| each.is_alphanumeric() || each == '_')
            || tag.starts_with(|each: char| each.is_ascii_digit())
        {
            return None;
        }
        let mark = format!("${tag}$");
        let body = self.at + mark.len();
        self.text.get(body..)?.find(&mark).map(|end| body + end + mark.len())
    }
}

/// The escapes of `E'…'` that a delimiter may need.
fn escaped(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n").replace("\\r", "\r").replace("\\\\", "\\")
}
