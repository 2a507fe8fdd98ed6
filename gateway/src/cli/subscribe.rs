//! `kymo subscribe`: rows as they are committed, until it is interrupted.

use std::io::{BufRead, BufReader};

use kymo_kernel::{Code, Error, Result};
use serde_json::Value;

use super::client::{Client, Target};
use super::print;

/// Print rows as they are committed.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The query: columns and conditions of one table
    #[arg(value_name = "SQL")]
    sql: String,
    /// How to print rows
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    format: Format,
    /// Leave out the rows that are there already
    #[arg(long)]
    no_snapshot: bool,
    /// Go on where an earlier subscription broke off
    #[arg(long, value_name = "TOKEN")]
    resume: Option<String>,
    /// End after so many rows
    #[arg(long, value_name = "N")]
    rows: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// One JSON object a line
    Jsonl,
}

/// Runs the command.
///
/// # Errors
/// No connection, what the server says is wrong, or a connection that breaks off.
pub fn run(arguments: &Arguments) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    let snapshot = arguments.no_snapshot.then_some(false);
    let answer = client.subscribe(&arguments.sql, snapshot, arguments.resume.as_deref())?;
    let mut printer = Printer {
        format: arguments.format,
        left: arguments.rows.unwrap_or(u64::MAX),
        columns: Vec::new(),
        widths: Vec::new(),
        headed: false,
    };
    let mut token = arguments.resume.clone();
    for line in BufReader::new(answer.into_body().into_reader()).lines() {
        let Ok(line) = line else { break };
        match line.strip_prefix("id: ") {
            Some(id) => token = Some(id.to_owned()),
            None if line == "id" => token = None,
            None => {}
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let message: Value = serde_json::from_str(data)
            .map_err(|error| Error::internal(format!("a message is not JSON: {error}")))?;
        printer.take(&message)?;
        if printer.left == 0 {
            return Ok(());
        }
    }
    let error = Error::new(Code::Down, "the connection broke off");
    Err(match token {
        Some(token) => error.with_hint(format!("go on with --resume {token}")),
        None => error,
    })
}

struct Printer {
    format: Format,
    left: u64,
    columns: Vec<String>,
    widths: Vec<usize>,
    headed: bool,
}

impl Printer {
    fn take(&mut self, message: &Value) -> Result<()> {
        let text = |key: &str| message[key].as_str().unwrap_or_default();
        match text("type") {
            "subscribed" => {
                let columns = message["columns"].as_array().into_iter().flatten();
                let name = |column: &Value| column["name"].as_str().unwrap_or_default().to_owned();
                self.columns = columns.map(name).collect();
                self.widths = self.columns.iter().map(|name| name.chars().count()).collect();
            }
            "change" => {
                let rows = message["rows"].as_array().map_or(&[][..], Vec::as_slice);
                let most = usize::try_from(self.left).unwrap_or(usize::MAX);
                let rows = &rows[..rows.len().min(most)];
                self.left -= rows.len() as u64;
                return print(&self.shown(rows));
            }
            "lagged" => eprintln!("too slow: catching up with {} commits", message["commits"]),
            "resync" => eprintln!("begins anew: {}", text("reason")),
            "error" => {
                let error = Error::new(Code::InvalidInput, text("message"));
                return Err(match message["hint"].as_str() {
                    Some(hint) => error.with_hint(hint),
                    None => error,
                });
            }
            _ => {}
        }
        Ok(())
    }

    fn shown(&mut self, rows: &[Value]) -> String {
        if self.format == Format::Jsonl {
            return rows.iter().map(|row| format!("{row}\n")).collect();
        }
        let cells = |row: &Value| -> Vec<String> {
            self.columns.iter().map(|name| cell(&row[name])).collect()
        };
        let mut table: Vec<Vec<String>> = rows.iter().map(cells).collect();
        for row in &table {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        if !std::mem::replace(&mut self.headed, true) {
            table.insert(0, self.columns.clone());
        }
        table.iter().map(|row| self.line(row)).collect()
    }

    fn line(&self, row: &[String]) -> String {
        let cells = row.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    }
}

/// A value for people: text without quotes, nothing for NULL.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn printer(format: Format) -> Printer {
        let (columns, widths) = (Vec::new(), Vec::new());
        let mut printer = Printer { format, left: u64::MAX, columns, widths, headed: false };
        let columns = json!([{"name": "host"}, {"name": "v"}]);
        printer.take(&json!({"type": "subscribed", "columns": columns})).unwrap();
        printer
    }

    #[test]
    fn columns_are_aligned_under_one_header() {
        let mut printer = printer(Format::Table);
        let shown = printer.shown(&[json!({"host": "long-name", "v": 1.5})]);
        assert_eq!(shown, "host       v\nlong-name  1.5\n");
        let shown = printer.shown(&[json!({"host": "a", "v": null}), json!({"host": "é", "v": 2})]);
        assert_eq!(shown, "a\né          2\n");
    }

    #[test]
    fn a_fault_ends_it_with_the_words_of_the_server() {
        let fault = json!({"type": "error", "message": "gone", "hint": "look"});
        let error = printer(Format::Jsonl).take(&fault).unwrap_err();
        assert_eq!((error.message(), error.hint()), ("gone", Some("look")));
    }
}
