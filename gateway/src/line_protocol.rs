//! Line protocol, parsed straight into typed columns.
//!
//! `measurement,tag=value field=1,other="text" timestamp`: one row a line, each kept or
//! refused for itself. The bytes `measurement,tags` of a line are looked up as a whole, so a
//! series that was seen before costs one hash; the fields are expected in the order of the
//! table's line before, so a known field costs one comparison. A good line allocates nothing.
//!
//! Where the protocol leaves room, this parser decides:
//! * A backslash escapes `,` and space, in tags and field names also `=`, and `"` and `\` in
//!   strings; before anything else it is a character like any other.
//! * A tag that occurs twice is an error, of a field that occurs twice the last value stays.
//! * Strings may hold line ends; lines may end with `\r\n`. Control characters are refused
//!   in names and accepted in values.
//! * Behind a line that is no line protocol, reading goes on after the first line end from
//!   the place of the error; an unclosed string costs only the line where it begins.
//! * Lines without a timestamp share one server time, cut to the precision.

pub mod parser;
pub mod precision;
mod scan;

use std::ops::Range;

use kymo_kernel::schema::TableBatch;
use kymo_kernel::{Error, Result};

use crate::columns::Types;
pub use precision::Precision;

/// How a body is read.
#[derive(Debug, Clone)]
pub struct Options {
    /// The database that the measurements belong to.
    pub database: String,
    /// The unit of the timestamps.
    pub precision: Precision,
    /// The server's time, for lines without a timestamp.
    pub now_ns: i64,
    /// Length of one line.
    pub max_line_bytes: usize,
    /// Columns of one table.
    pub max_columns: usize,
    /// Tables in one body.
    pub max_tables: usize,
    /// Errors that are kept; the rest is counted.
    pub max_errors: usize,
}

/// What a body held.
#[derive(Debug)]
pub struct Parsed {
    /// The rows, each table once.
    pub batches: Vec<TableBatch>,
    /// How many rows the batches hold.
    pub rows: u64,
    /// The first bad lines.
    pub errors: Vec<LineError>,
    /// How many lines were bad.
    pub bad_lines: u64,
}

/// A line that was refused.
#[derive(Debug, Clone)]
pub struct LineError {
    /// Its number, from 1.
    pub line: u32,
    /// Where it stands in the body.
    pub span: Range<usize>,
    /// Why.
    pub error: Error,
}

impl LineError {
    /// The beginning of the line, at most `max` bytes of it, for an error message.
    #[must_use]
    pub fn quote(&self, body: &[u8], max: usize) -> String {
        let line = body.get(self.span.clone()).unwrap_or_default();
        let mut cut = line.len().min(max);
        // Not in the middle of a character, where the text is UTF-8 at all.
        while cut > 0 && cut < line.len() && line[cut] & 0xC0 == 0x80 {
            cut -= 1;
        }
        String::from_utf8_lossy(&line[..cut]).into_owned()
    }
}

/// Parses a body. Bad lines do not fail it: they are in [`Parsed::errors`].
///
/// # Errors
/// `too_large` for a body of 2 GiB and more, `internal` for a defect.
pub fn parse(body: &[u8], types: &dyn Types, options: &Options) -> Result<Parsed> {
    parser::Parser::new(body, types, options)?.run()
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
