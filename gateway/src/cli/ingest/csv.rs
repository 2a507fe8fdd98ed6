//! CSV as line protocol: which column is what, and rows into batches.
//!
//! Types come from all of a file's cells, so the input is read twice: an integer column
//! with one fraction on its last line is a float column.

use std::io::Read;

use csv::{Reader, ReaderBuilder, StringRecord};
use kymo_kernel::{Code, Error, Result};

use super::Precision;
use super::convert::{Kind, can_be_key, push_key, push_table, push_value, time};
use super::sender::{Batch, Places, until_error};
use crate::cli::misuse;

/// The columns that hold the time where none is named.
const TIME_NAMES: [&str; 3] = ["time", "timestamp", "ts"];

/// A batch is sent when it has this size, however few rows it has.
const BATCH_BYTES: usize = 4 << 20;

/// What the user says about a file.
#[derive(Debug, Clone)]
pub struct Options {
    /// The table.
    pub table: String,
    /// The column with the time.
    pub time: Option<String>,
    /// The columns that are tags.
    pub tags: Vec<String>,
    /// Texts that mean no value, beside the empty one.
    pub nulls: Vec<String>,
    /// What separates cells.
    pub delimiter: u8,
    /// Precision of times that are numbers.
    pub precision: Precision,
}

/// What a column is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Role {
    Time,
    Tag,
    Field(Kind),
}

/// How the rows of a file become lines.
#[derive(Debug)]
pub struct Plan {
    options: Options,
    columns: Vec<(String, Role)>,
    time: usize,
}

impl Plan {
    /// Reads everything once and decides on the columns.
    ///
    /// # Errors
    /// Columns that do not exist, or cells that are not CSV.
    pub fn infer(input: impl Read, options: &Options) -> Result<Plan> {
        let mut reader = reader(input, options.delimiter);
        let header = reader.headers().map_err(broken)?.clone();
        let mut plan = Plan::of_header(&header, options)?;
        let mut kinds = vec![Kind::Empty; plan.columns.len()];
        let mut record = StringRecord::new();
        while reader.read_record(&mut record).map_err(broken)? {
            for (kind, cell) in kinds.iter_mut().zip(&record) {
                if *kind != Kind::Text && !plan.is_null(cell) {
                    *kind = kind.with(Kind::of(cell));
                }
            }
        }
        for ((_, role), kind) in plan.columns.iter_mut().zip(kinds) {
            if let Role::Field(is) = role {
                *is = kind;
            }
        }
        Ok(plan)
    }

    fn of_header(header: &StringRecord, options: &Options) -> Result<Plan> {
        let names: Vec<&str> = header.iter().map(str::trim).collect();
        let all = || names.join(", ");
        let wanted: Vec<&str> = match &options.time {
            Some(name) => vec![name],
            None => TIME_NAMES.to_vec(),
        };
        let time = names.iter().position(|name| wanted.contains(name)).ok_or_else(|| {
            misuse(
                match &options.time {
                    Some(name) => format!("there is no column {name:?}"),
                    None => "no column is called time, timestamp or ts".to_owned(),
                },
                format!("name the column with the time by --time; there are: {}", all()),
            )
        })?;
        if let Some(tag) = options.tags.iter().find(|tag| !names.contains(&tag.as_str())) {
            return Err(misuse(
                format!("there is no column {tag:?} to be a tag"),
                format!("there are: {}", all()),
            ));
        }
        if let Some(name) = names.iter().find(|name| !can_be_key(name)) {
            return Err(misuse(
                format!("{name:?} cannot be the name of a column"),
                "give every column of the header a name",
            ));
        }
        let role = |(index, name): (usize, &&str)| {
            let role = if index == time {
                Role::Time
            } else if options.tags.iter().any(|tag| tag == name) {
                Role::Tag
            } else {
                Role::Field(Kind::Empty)
            };
            ((*name).to_owned(), role)
        };
        let columns = names.iter().enumerate().map(role).collect();
        Ok(Plan { options: options.clone(), columns, time })
    }

    fn is_null(&self, cell: &str) -> bool {
        cell.is_empty() || self.options.nulls.iter().any(|null| null == cell)
    }

    /// Appends one row; false where it has no value to store.
    fn push(&self, body: &mut Vec<u8>, record: &StringRecord, line: u64) -> Result<bool> {
        let start = body.len();
        push_table(body, &self.options.table);
        for ((name, role), cell) in self.columns.iter().zip(record) {
            if *role == Role::Tag && !self.is_null(cell) {
                if !can_be_key(cell) {
                    return Err(misuse(
                        format!("line {line}, column {name}: {cell:?} cannot be a tag"),
                        "make it a field: leave the column out of --tags",
                    ));
                }
                body.push(b',');
                push_key(body, name);
                body.push(b'=');
                push_key(body, cell);
            }
        }
        let mut separator = b' ';
        for ((name, role), cell) in self.columns.iter().zip(record) {
            if let Role::Field(kind) = role
                && !self.is_null(cell)
            {
                body.push(separator);
                separator = b',';
                push_key(body, name);
                body.push(b'=');
                push_value(body, *kind, cell);
            }
        }
        if separator == b' ' {
            body.truncate(start);
            return Ok(false);
        }
        let cell = record.get(self.time).unwrap_or_default();
        let ns = time(cell, self.options.precision).ok_or_else(|| {
            let name = &self.columns[self.time].0;
            misuse(
                format!("line {line}, column {name}: {cell:?} is no time"),
                "use 2026-01-31T12:00:00Z, 2026-01-31 12:00:00 or a number (see --precision)",
            )
        })?;
        body.push(b' ');
        body.extend_from_slice(ns.to_string().as_bytes());
        body.push(b'\n');
        Ok(true)
    }
}

/// The rows of a file as batches of at most so many rows.
///
/// # Errors
/// The header cannot be read.
pub fn batches(
    input: impl Read,
    plan: Plan,
    rows: usize,
) -> Result<impl Iterator<Item = Result<Batch>>> {
    let mut reader = reader(input, plan.options.delimiter);
    reader.headers().map_err(broken)?;
    let mut cutter = Cutter { reader, record: StringRecord::new(), plan, rows };
    Ok(until_error(move || cutter.fill()))
}

struct Cutter<R> {
    reader: Reader<R>,
    record: StringRecord,
    plan: Plan,
    rows: usize,
}

impl<R: Read> Cutter<R> {
    fn fill(&mut self) -> Result<Option<Batch>> {
        let mut body = Vec::new();
        let mut lines = Vec::new();
        while lines.len() < self.rows && body.len() < BATCH_BYTES {
            if !self.reader.read_record(&mut self.record).map_err(broken)? {
                break;
            }
            let line = self.record.position().map_or(0, csv::Position::line);
            if self.plan.push(&mut body, &self.record, line)? {
                lines.push(line);
            }
        }
        let rows = lines.len() as u64;
        Ok((rows > 0).then_some(Batch { body, rows, places: Places::Listed(lines) }))
    }
}

fn reader<R: Read>(input: R, delimiter: u8) -> Reader<R> {
    ReaderBuilder::new().delimiter(delimiter).has_headers(true).from_reader(input)
}

fn broken(error: csv::Error) -> Error {
    let hint = "every row has as many cells as the header, in UTF-8";
    Error::new(Code::InvalidInput, format!("not CSV: {error}")).with_hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options {
            table: "weather".into(),
            time: Some("at".into()),
            tags: vec!["place".into()],
            nulls: vec!["NA".into()],
            delimiter: b',',
            precision: Precision::Auto,
        }
    }

    fn convert(text: &str) -> Result<String> {
        let plan = Plan::infer(text.as_bytes(), &options())?;
        let mut body = Vec::new();
        for batch in batches(text.as_bytes(), plan, 2)? {
            body.extend(batch?.body);
        }
        Ok(String::from_utf8(body).unwrap())
    }

    #[test]
    fn rows_become_lines_and_missing_cells_are_left_out() {
        let text = "place,at,temp,gust,note,nothing\n\
                    A B,2013-01-01T06:00:00Z,1,,\"x, y\",\n\
                    C,2013-01-01T06:00:01Z,2.5,3,,NA\n\
                    C,2013-01-01T06:00:02Z,,NA,,\n\
                    ,2013-01-01T06:00:03Z,4,NA,007,\n";
        assert_eq!(
            convert(text).unwrap(),
            "weather,place=A\\ B temp=1,note=\"x, y\" 1357020000000000000\n\
             weather,place=C temp=2.5,gust=3i 1357020001000000000\n\
             weather temp=4,note=\"007\" 1357020003000000000\n"
        );
    }

    #[test]
    fn mistakes_name_their_place() {
        let no_time = convert("place,when,temp\nA,1,2\n").unwrap_err();
        assert!(no_time.hint().unwrap().contains("place, when, temp"), "{no_time:?}");
        let bad_time = convert("place,at,temp\nA,soon,2\n").unwrap_err();
        assert!(bad_time.message().starts_with("line 2, column at"), "{bad_time}");
        let ragged = convert("place,at,temp\nA,1\n").unwrap_err();
        assert!(ragged.message().contains("line: 2"), "{ragged}");
    }
}
