//! The loop over lines, and what it remembers between them.

use foldhash::fast::RandomState;
use hashbrown::HashMap;
use kymo_kernel::schema::{TableName, check_table};
use kymo_kernel::{Code, Error, Result};

use super::scan::{self, Fault};
use super::{LineError, Options, Parsed};
use crate::columns::{Columns, Mark, Refusal, Types, Value};

/// Why a line is refused, without text of its own until it is reported.
enum Trouble {
    /// The text is not line protocol.
    Syntax(Fault),
    /// A number or timestamp does not fit.
    Range(Fault),
    /// The line is longer than allowed.
    TooLong,
    /// The rows have so few values in common that the columns would be mostly NULL.
    Sparse,
    /// There are too many tables.
    TooManyTables,
    /// The measurement's name is not allowed.
    Measurement(Box<Error>),
    /// A tag or field does not fit the table.
    Refused(u32, Box<Refusal>),
}

impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Self {
        if fault.contains("out of range") { Trouble::Range(fault) } else { Trouble::Syntax(fault) }
    }
}

type Line<T> = std::result::Result<T, Trouble>;

/// A field that the next line of a table is expected to have at some place.
struct Expected<'a> {
    raw_name: &'a [u8],
    column: u32,
}

/// A table of the body, with the fields of its last line in their order.
struct Table<'a> {
    columns: Columns,
    expected: Vec<Expected<'a>>,
}

/// Where a series was put.
#[derive(Clone, Copy)]
struct Place {
    table: u32,
    series: u32,
}

/// The state of parsing one body.
pub(super) struct Parser<'a> {
    body: &'a [u8],
    types: &'a dyn Types,
    options: &'a Options,
    /// Whether the body as a whole is UTF-8; otherwise each line is looked at.
    utf8: bool,
    at: usize,
    line: u32,
    tables: Vec<Table<'a>>,
    by_measurement: HashMap<Box<[u8]>, u32, RandomState>,
    series: HashMap<&'a [u8], Place, RandomState>,
    values: Vec<(u32, Value<'a>)>,
    /// Rows times columns of all tables so far, and how many may be made.
    cells: usize,
    max_cells: usize,
    missing_time: i64,
    /// The first refusal of the current line, which is read on to find its end.
    refused: Option<Box<Refusal>>,
    rows: u64,
    errors: Vec<LineError>,
    bad_lines: u64,
}

impl<'a> Parser<'a> {
    pub(super) fn new(
        body: &'a [u8],
        types: &'a dyn Types,
        options: &'a Options,
    ) -> Result<Parser<'a>> {
        if i32::try_from(body.len()).is_err() {
            return Err(Error::new(Code::TooLarge, "a body of 2 GiB or more")
                .with_hint("split it into several requests"));
        }
        Ok(Parser {
            body,
            types,
            options,
            utf8: std::str::from_utf8(body).is_ok(),
            at: 0,
            line: 1,
            tables: Vec::new(),
            by_measurement: HashMap::default(),
            series: HashMap::default(),
            values: Vec::new(),
            cells: 0,
            // A field takes at least four bytes, so two cells a byte leave room for rows
            // that fill one column of eight.
            max_cells: body.len().saturating_mul(2).max(1 << 20),
            missing_time: options.precision.truncate(options.now_ns),
            refused: None,
            rows: 0,
            errors: Vec::new(),
            bad_lines: 0,
        })
    }

    pub(super) fn run(mut self) -> Result<Parsed> {
        while self.at < self.body.len() {
            let start = self.at;
            let first = scan::spaces(self.body, start);
            if let Some(end) = scan::line_end(self.body, first) {
                self.at = first + end;
                self.line += 1;
            } else if self.body[first] == b'#' {
                self.skip_behind(first);
            } else {
                self.at = first;
                self.row(start);
            }
        }
        let mut batches = Vec::with_capacity(self.tables.len());
        for table in self.tables {
            batches.extend(table.columns.finish()?);
        }
        Ok(Parsed { batches, rows: self.rows, errors: self.errors, bad_lines: self.bad_lines })
    }

    /// Goes behind the first line end from `place` on.
    fn skip_behind(&mut self, place: usize) {
        let rest = self.body.get(place..).unwrap_or_default();
        self.at = memchr::memchr(b'\n', rest).map_or(self.body.len(), |found| place + found + 1);
        self.line += 1;
    }

    /// Reads the line at `self.at`, which began at `start`; keeps it or reports it.
    fn row(&mut self, start: usize) {
        let number = self.line;
        let key_start = self.at;
        let key_end = scan::key_end(self.body, key_start);
        let key = &self.body[key_start..key_end];
        self.at = key_end;
        let known = self.series.get(key).copied();
        let mut undo: Option<(u32, Mark)> =
            known.map(|place| (place.table, self.tables[place.table as usize].columns.mark()));
        let cells = self.cells;
        let place = match known {
            Some(place) => Ok(place),
            None => self.new_series(key, &mut undo),
        };
        let result = match place {
            Ok(place) => self.fields(place, start, number),
            Err(trouble) => {
                // Only to find the line's end, which a string may have moved; what else is
                // wrong with the line does not matter any more.
                let _ = self.walk(start);
                Err(trouble)
            }
        };
        match result {
            Ok(()) => {
                self.at += scan::line_end(self.body, self.at).unwrap_or_default();
                self.line += 1;
            }
            Err(trouble) => {
                self.cells = cells;
                self.report(number, start, &trouble);
                if let Some((table, mark)) = undo {
                    let table = &mut self.tables[table as usize];
                    table.columns.rollback(mark);
                    table.expected.clear();
                    if known.is_none() {
                        self.series.remove(key);
                    }
                }
            }
        }
    }

    /// Counts a bad line, keeps its error where there is room, and goes behind it.
    fn report(&mut self, number: u32, start: usize, trouble: &Trouble) {
        self.skip_behind(self.at);
        self.bad_lines += 1;
        if self.errors.len() >= self.options.max_errors {
            return;
        }
        let mut end = self.at;
        for line_end in [b'\n', b'\r'] {
            if end > start && self.body[end - 1] == line_end {
                end -= 1;
            }
        }
        let error = self.error(trouble);
        self.errors.push(LineError { line: number, span: start..end, error });
    }

    fn error(&self, trouble: &Trouble) -> Error {
        match trouble {
            Trouble::Syntax(fault) => Error::new(Code::InvalidInput, *fault),
            Trouble::Range(fault) => Error::new(Code::OutOfRange, *fault),
            Trouble::TooLong => Error::new(
                Code::TooLarge,
                format!("line is longer than {} bytes", self.options.max_line_bytes),
            )
            .with_hint("raise ingest.max_line_bytes"),
            Trouble::Sparse => Error::new(
                Code::LimitReached,
                "the lines of this request have too few fields in common",
            )
            .with_hint("send fewer lines in a request, or lines of different shape in requests of their own"),
            Trouble::TooManyTables => Error::new(
                Code::LimitReached,
                format!("more than {} measurements in one request", self.options.max_tables),
            ),
            Trouble::Measurement(error) => error.as_ref().clone(),
            Trouble::Refused(table, refusal) => {
                refusal.error(&self.tables[*table as usize].columns.table().table)
            }
        }
    }

    /// Reads fields and timestamp, from the space behind the key to the line's end, and adds
    /// the row.
    fn fields(&mut self, place: Place, start: usize, number: u32) -> Line<()> {
        self.values.clear();
        self.refused = None;
        self.start_fields()?;
        loop {
            self.field(place.table)?;
            if !self.next_field(start)? {
                break;
            }
        }
        let time = self.time()?;
        self.check_line(start)?;
        if let Some(refusal) = self.refused.take() {
            return Err(Trouble::Refused(place.table, refusal));
        }
        let columns = &mut self.tables[place.table as usize].columns;
        self.cells = self.cells.saturating_add(columns.width());
        columns.row(place.series, time, number, &self.values);
        self.rows += 1;
        Ok(())
    }

    /// Reads fields and timestamp and keeps nothing.
    fn walk(&mut self, start: usize) -> Line<()> {
        self.start_fields()?;
        loop {
            self.field_name()?;
            self.value()?;
            if !self.next_field(start)? {
                break;
            }
        }
        self.time().map(drop)
    }

    fn start_fields(&mut self) -> Line<()> {
        self.at = scan::spaces(self.body, self.at);
        match scan::line_end(self.body, self.at) {
            Some(_) => Err(Trouble::Syntax("missing fields")),
            None => Ok(()),
        }
    }

    /// Goes over the comma behind a field, and says whether there was one.
    fn next_field(&mut self, start: usize) -> Line<bool> {
        // Looked at on the way, so that one endless line cannot fill the memory.
        if self.at - start > self.options.max_line_bytes {
            return Err(Trouble::TooLong);
        }
        let more = self.body.get(self.at) == Some(&b',');
        self.at += usize::from(more);
        Ok(more)
    }

    /// Reads one `name=value`. A refusal is kept for the line's end.
    fn field(&mut self, table: u32) -> Line<()> {
        let nth = self.values.len();
        let rest = &self.body[self.at..];
        let expected = self.tables[table as usize].expected.get(nth).and_then(|expected| {
            let len = expected.raw_name.len();
            (rest.get(len) == Some(&b'=') && rest.starts_with(expected.raw_name))
                .then_some((len, expected.column))
        });
        if let Some((len, column)) = expected {
            self.at += len + 1;
            let value = self.value()?;
            let columns = &mut self.tables[table as usize].columns;
            match columns.admit(column, &value) {
                Ok(()) => self.values.push((column, value)),
                Err(refusal) => self.refuse(refusal),
            }
            return Ok(());
        }
        let raw_name = self.field_name()?;
        let value = self.value()?;
        let table = &mut self.tables[table as usize];
        let name = scan::unescape(raw_name, true);
        let width = table.columns.width();
        let column = match table.columns.take(&name, &value) {
            Ok(column) => column,
            Err(refusal) => {
                self.refuse(refusal);
                return Ok(());
            }
        };
        if table.columns.width() > width {
            self.cells = self.cells.saturating_add(table.columns.rows());
        }
        let expected = Expected { raw_name, column };
        if let Some(place) = table.expected.get_mut(nth) {
            *place = expected;
        } else {
            table.expected.push(expected);
        }
        self.values.push((column, value));
        Ok(())
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.refused.get_or_insert_with(|| Box::new(refusal));
    }

    fn field_name(&mut self) -> Line<&'a [u8]> {
        let start = self.at;
        self.at = scan::token_end(self.body, start, *b"=, ");
        let raw = &self.body[start..self.at];
        if raw.is_empty() {
            return Err(Trouble::Syntax("missing field key"));
        }
        if self.body.get(self.at) != Some(&b'=') {
            return Err(Trouble::Syntax("missing field value"));
        }
        if raw.iter().any(|byte| scan::is_control(*byte)) {
            return Err(Trouble::Syntax("control character in a field key"));
        }
        if !self.utf8 && std::str::from_utf8(raw).is_err() {
            return Err(Trouble::Syntax("invalid UTF-8"));
        }
        self.at += 1;
        Ok(raw)
    }

    fn value(&mut self) -> Line<Value<'a>> {
        let body = self.body;
        if body.get(self.at) == Some(&b'"') {
            let (value, end, line_ends) = scan::string(body, self.at).ok_or("unbalanced quotes")?;
            self.at = end;
            self.line += line_ends;
            return match body.get(end) {
                Some(b',' | b' ') => Ok(value),
                _ if scan::line_end(body, end).is_some() => Ok(value),
                _ => Err(Trouble::Syntax("unexpected text behind a string")),
            };
        }
        let start = self.at;
        self.at = scan::token_end(body, start, *b",\r ");
        Ok(scan::scalar(&body[start..self.at])?)
    }

    /// Reads the timestamp, where there is one, up to the line's end.
    fn time(&mut self) -> Line<i64> {
        self.at = scan::spaces(self.body, self.at);
        if scan::line_end(self.body, self.at).is_some() {
            return Ok(self.missing_time);
        }
        let start = self.at;
        self.at = scan::token_end(self.body, start, *b"\r\r ");
        let timestamp = scan::timestamp(&self.body[start..self.at])?;
        let time = self
            .options
            .precision
            .to_ns(timestamp)
            .ok_or("timestamp out of range: use the years 1677 to 2262")?;
        self.at = scan::spaces(self.body, self.at);
        match scan::line_end(self.body, self.at) {
            Some(_) => Ok(time),
            None => Err(Trouble::Syntax("unexpected text behind the timestamp")),
        }
    }

    /// What can be said only of a whole line.
    fn check_line(&mut self, start: usize) -> Line<()> {
        let line = &self.body[start..self.at];
        if line.len() > self.options.max_line_bytes {
            return Err(Trouble::TooLong);
        }
        if !self.utf8 && std::str::from_utf8(line).is_err() {
            return Err(Trouble::Syntax("invalid UTF-8"));
        }
        if self.cells > self.max_cells {
            return Err(Trouble::Sparse);
        }
        Ok(())
    }

    /// Registers a series that this body has not had before.
    fn new_series(&mut self, key: &'a [u8], undo: &mut Option<(u32, Mark)>) -> Line<Place> {
        let measurement_end = scan::token_end(key, 0, *b",,,");
        let raw = &key[..measurement_end];
        // A carriage return here belongs to the line's end: the line has no fields.
        if scan::line_end(self.body, self.at).is_some() {
            return Err(Trouble::Syntax("missing fields"));
        }
        if raw.is_empty() {
            return Err(Trouble::Syntax("missing measurement"));
        }
        if raw.iter().any(|byte| scan::is_control(*byte)) {
            return Err(Trouble::Syntax("control character in a measurement"));
        }
        if !self.utf8 && std::str::from_utf8(key).is_err() {
            return Err(Trouble::Syntax("invalid UTF-8"));
        }
        let table = self.table(&scan::unescape(raw, false))?;
        let columns = &mut self.tables[table as usize].columns;
        *undo = Some((table, columns.mark()));
        let series = columns.start_series();
        let mut rest = &key[measurement_end..];
        while let [b',', tag @ ..] = rest {
            rest = read_tag(tag, table, columns)?;
        }
        let place = Place { table, series };
        self.series.insert(key, place);
        Ok(place)
    }

    fn table(&mut self, measurement: &[u8]) -> Line<u32> {
        if let Some(table) = self.by_measurement.get(measurement) {
            return Ok(*table);
        }
        if self.tables.len() >= self.options.max_tables {
            return Err(Trouble::TooManyTables);
        }
        let text = String::from_utf8_lossy(measurement).into_owned();
        check_table("measurement", &text).map_err(|error| Trouble::Measurement(Box::new(error)))?;
        let name = TableName::new(self.options.database.as_str(), text);
        let known = self.types.table(&name);
        let columns = Columns::new(name, known.as_deref(), self.options.max_columns);
        let table = u32::try_from(self.tables.len()).unwrap_or(u32::MAX);
        self.tables.push(Table { columns, expected: Vec::new() });
        self.by_measurement.insert(measurement.into(), table);
        Ok(table)
    }
}

/// Reads one `key=value` of a tag set; gives what follows it.
fn read_tag<'a>(tag: &'a [u8], table: u32, columns: &mut Columns) -> Line<&'a [u8]> {
    let key_end = scan::token_end(tag, 0, *b"=,,");
    let (key, rest) = tag.split_at(key_end);
    if key.is_empty() {
        return Err(Trouble::Syntax("missing tag key"));
    }
    let [b'=', rest @ ..] = rest else { return Err(Trouble::Syntax("missing tag value")) };
    if key.iter().any(|byte| scan::is_control(*byte)) {
        return Err(Trouble::Syntax("control character in a tag key"));
    }
    let value_end = scan::token_end(rest, 0, *b",==");
    let (value, rest) = rest.split_at(value_end);
    if value.is_empty() {
        return Err(Trouble::Syntax("missing tag value"));
    }
    if rest.first() == Some(&b'=') {
        return Err(Trouble::Syntax("invalid tag format: `=` in a value must be escaped"));
    }
    columns
        .tag(&scan::unescape(key, true), &scan::unescape(value, true))
        .map_err(|refusal| Trouble::Refused(table, Box::new(refusal)))?;
    Ok(rest)
}
