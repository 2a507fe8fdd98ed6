//! `kymo query`: SQL in, rows out.

use std::io::{self, IsTerminal, Read, Write};

use kymo_kernel::{Error, Result};

use super::client::{Client, Target};
use super::{misuse, print, table};

/// Run SQL and print the rows.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The statement; read from standard input where it is absent or `-`
    #[arg(value_name = "SQL")]
    sql: Option<String>,
    /// How to print rows
    #[arg(long, short, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(flatten)]
    target: Target,
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A table for people
    Table,
    /// One JSON array of objects
    Json,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values with a header
    Csv,
    /// A Parquet file
    Parquet,
    /// Arrow IPC
    Arrow,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Table => "pretty",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Csv => "csv",
            Format::Parquet => "parquet",
            Format::Arrow => "arrow",
        }
    }
}

/// Runs the command.
///
/// # Errors
/// No statement, no connection, or what the server says is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let sql = statement(arguments.sql.as_deref())?;
    let client = Client::find(&arguments.target)?;
    match arguments.format {
        Format::Table => print(&table::format(&client.run(&sql)?)?),
        format => {
            let binary = matches!(format, Format::Parquet | Format::Arrow);
            if binary && io::stdout().is_terminal() {
                return Err(misuse(
                    format!("{} is not for a terminal", format.name()),
                    "send it to a file: kymo query … > rows",
                ));
            }
            copy(client.query(&sql, format.name())?.into_body().into_reader())
        }
    }
}

fn statement(given: Option<&str>) -> Result<String> {
    let text = match given {
        Some(text) if text != "-" => text.to_owned(),
        _ => {
            let mut text = String::new();
            io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Error::io("read SQL from standard input", error))?;
            text
        }
    };
    if text.trim().is_empty() {
        return Err(misuse("there is no SQL to run", "kymo query 'SELECT 1'"));
    }
    Ok(text)
}

/// Passes the answer on as it comes.
fn copy(mut answer: impl Read) -> Result<()> {
    let mut out = io::stdout().lock();
    match io::copy(&mut answer, &mut out).and_then(|_| out.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Error::io("pass the answer on", error)),
    }
}
