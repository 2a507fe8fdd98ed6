//! Line protocol cut into batches at the ends of lines.
//!
//! A newline inside a quoted field value does not end a line, so the cutter follows the
//! form of a line: measurement and tags up to the first bare space, where quotes mean
//! nothing; then fields, where a quote after an equals sign opens a text.

use std::io::{self, BufRead, BufReader, Read};

use kymo_kernel::{Code, Error, Result};

use super::sender::{Batch, Places, until_error};

/// A batch is sent when it has this size, however few rows it has.
const BATCH_BYTES: usize = 4 << 20;

/// One line may be this long; a quote that is never closed would read the whole file.
const LINE_BYTES: usize = 1 << 20;

/// What a reader holds, as batches of at most so many rows.
pub fn batches(input: impl Read, rows: usize) -> impl Iterator<Item = Result<Batch>> {
    let input = BufReader::with_capacity(1 << 20, input);
    let mut cutter = Cutter { input, rows, line: 1 };
    until_error(move || cutter.fill())
}

struct Cutter<R> {
    input: BufReader<R>,
    rows: usize,
    line: u64,
}

impl<R: Read> Cutter<R> {
    fn fill(&mut self) -> Result<Option<Batch>> {
        let mut batch = Batch { places: Places::From(self.line), ..Batch::default() };
        while batch.rows < self.rows as u64 && batch.body.len() < BATCH_BYTES {
            let start = batch.body.len();
            if !self.read_line(&mut batch.body)? {
                break;
            }
            let line = batch.body[start..].trim_ascii_start();
            batch.rows += u64::from(!line.is_empty() && !line.starts_with(b"#"));
        }
        Ok((!batch.body.is_empty()).then_some(batch))
    }

    /// Appends one line with its newline; false at the end.
    fn read_line(&mut self, body: &mut Vec<u8>) -> Result<bool> {
        let first = self.line;
        let start = body.len();
        let mut state = State::Start;
        loop {
            let before = body.len();
            let read = self.input.read_until(b'\n', body);
            let read = read.map_err(|error: io::Error| Error::io("read the input", error))?;
            if read == 0 {
                return Ok(body.len() > start);
            }
            self.line += 1;
            state = body[before..].iter().fold(state, |state, byte| state.after(*byte));
            if !state.in_text() {
                return Ok(true);
            }
            if body.len() - start > LINE_BYTES {
                return Err(Error::new(
                    Code::TooLarge,
                    format!("line {first}: a quoted value does not end within {LINE_BYTES} bytes"),
                )
                .with_hint("close the quote, or write \\\" for a quote inside of a value"));
            }
        }
    }
}

/// Where in a line a byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Comment,
    /// Measurement and tags; whether the last byte was a backslash.
    Key(bool),
    /// Field names and bare values; the last byte.
    Fields(u8),
    /// A quoted value; whether the last byte was a backslash.
    Text(bool),
}

impl State {
    fn in_text(self) -> bool {
        matches!(self, State::Text(_))
    }

    fn after(self, byte: u8) -> State {
        match (self, byte) {
            (State::Text(true), _) => State::Text(false),
            (State::Text(false), b'\\') => State::Text(true),
            (State::Text(false), b'"') => State::Fields(b'"'),
            (State::Text(false), _) => State::Text(false),
            (_, b'\n') => State::Start,
            (State::Start, b' ' | b'\r') => State::Start,
            (State::Start, b'#') | (State::Comment, _) => State::Comment,
            (State::Start | State::Key(false), b'\\') => State::Key(true),
            (State::Key(false), b' ') => State::Fields(b' '),
            (State::Start | State::Key(_), _) => State::Key(false),
            (State::Fields(b'='), b'"') => State::Text(false),
            // An escaped equals sign belongs to the name.
            (State::Fields(b'\\'), _) => State::Fields(b'\0'),
            (State::Fields(_), byte) => State::Fields(byte),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str, rows: usize) -> Vec<(String, u64, u64)> {
        batches(text.as_bytes(), rows)
            .map(|batch| {
                let batch = batch.unwrap();
                let Places::From(line) = batch.places else { panic!("listed places") };
                (String::from_utf8(batch.body).unwrap(), batch.rows, line)
            })
            .collect()
    }

    #[test]
    fn batches_end_at_the_ends_of_lines() {
        let text = "# note\nm v=1\n\nm v=2\nm v=3";
        assert_eq!(
            cut(text, 2),
            [("# note\nm v=1\n\nm v=2\n".to_owned(), 2, 1), ("m v=3".to_owned(), 1, 5)]
        );
        assert!(cut("", 2).is_empty());
    }

    #[test]
    fn a_newline_in_a_quoted_value_does_not_end_a_line() {
        let whole = ["m,t=\"x v=\"a\nb\",w=1\n", "m v=\"a\\\"\nb\" 5\n", "m\\ n v=1\n"];
        for line in whole {
            let text = format!("{line}{line}");
            let batches = cut(&text, 1);
            assert_eq!(batches.len(), 2, "{line:?}");
            assert!(batches.iter().all(|(body, _, _)| body == line), "{batches:?}");
        }
    }

    #[test]
    fn a_quote_that_never_closes_is_an_error_with_its_line() {
        let text = format!("m v=1\nm v=\"open\n{}", "x\n".repeat(LINE_BYTES));
        let error = batches(text.as_bytes(), 10).find_map(Result::err).unwrap();
        assert!(error.message().starts_with("line 2:"), "{error}");
    }
}
