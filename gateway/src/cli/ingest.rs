//! `kymo ingest`: a file, standard input or made-up rows into a server, as fast as it takes
//! them, with a word on what it did not take.

mod convert;
mod csv;
mod lines;
mod sample;
mod sender;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kymo_kernel::{Code, Error, Result};

use super::client::{Client, Target};
use super::stopwatch::Stopwatch;
use super::{misuse, print};
use sender::Outcome;
pub use sender::{Batch, Places, Sender};

/// Send a file of line protocol or CSV.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The file, plain or gzip; `-` for standard input
    #[arg(value_name = "FILE", required_unless_present = "generate_sample")]
    file: Option<PathBuf>,
    /// What the file holds [default: csv for names ending in .csv, line protocol otherwise]
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Precision of timestamps that are numbers
    #[arg(long, value_enum, default_value_t = Precision::Auto)]
    precision: Precision,
    /// CSV: the table [default: the name of the file]
    #[arg(long)]
    table: Option<String>,
    /// CSV: the column with the time [default: time, timestamp or ts]
    #[arg(long, value_name = "COLUMN")]
    time: Option<String>,
    /// CSV: the columns that are tags
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    tags: Vec<String>,
    /// CSV: a text that means no value, beside the empty cell
    #[arg(long, value_name = "TEXT")]
    null: Vec<String>,
    /// CSV: what separates cells
    #[arg(long, value_name = "CHAR", default_value_t = ',')]
    delimiter: char,
    /// Rows in one request
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    batch: usize,
    /// Requests under way at a time
    #[arg(long, value_name = "N", default_value_t = 2)]
    connections: usize,
    /// How long a request that finds no server, or a busy one, is tried again
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    retry_for: Duration,
    /// Make rows up instead of reading a file
    #[arg(long, conflicts_with = "file")]
    generate_sample: bool,
    /// Made-up rows a second
    #[arg(long, value_name = "N/s", default_value = "1000/s", value_parser = parse_rate)]
    rate: u64,
    /// How long rows are made up
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = parse_duration)]
    duration: Duration,
    #[command(flatten)]
    target: Target,
}

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// Line protocol
    Lp,
    /// Comma-separated values with a header
    Csv,
}

/// What a timestamp counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Precision {
    /// Guessed from the size of each number
    Auto,
    /// Seconds
    S,
    /// Milliseconds
    Ms,
    /// Microseconds
    Us,
    /// Nanoseconds
    Ns,
}

impl Precision {
    fn name(self) -> &'static str {
        match self {
            Precision::Auto => "auto",
            Precision::S => "s",
            Precision::Ms => "ms",
            Precision::Us => "us",
            Precision::Ns => "ns",
        }
    }

    /// A number of this precision as nanoseconds; `None` beyond the range.
    fn to_ns(self, number: i64) -> Option<i64> {
        let factor = match self {
            Precision::S => 1_000_000_000,
            Precision::Ms => 1_000_000,
            Precision::Us => 1000,
            Precision::Ns => 1,
            Precision::Auto => match number.unsigned_abs() / 1_000_000_000 {
                0..5 => 1_000_000_000,
                5..5_000 => 1_000_000,
                5_000..5_000_000 => 1000,
                _ => 1,
            },
        };
        number.checked_mul(factor)
    }
}

/// Runs the command.
///
/// # Errors
/// The file cannot be read, the server cannot be reached for too long, or some rows were
/// not taken.
pub fn run(arguments: &Arguments) -> Result<()> {
    if arguments.batch == 0 || arguments.connections == 0 {
        return Err(misuse("--batch and --connections count from 1", "leave them out"));
    }
    let client = Client::find(&arguments.target)?;
    let watch = Stopwatch::start();
    let outcome = match &arguments.file {
        _ if arguments.generate_sample => generate(arguments, client),
        Some(file) => send_file(arguments, client, file),
        None => Err(misuse("there is nothing to send", "kymo ingest FILE")),
    }?;
    report(&outcome, watch.elapsed())
}

fn generate(arguments: &Arguments, client: Client) -> Result<Outcome> {
    let total = sample::rows(arguments.rate, arguments.duration);
    let bar = bar(Some(total), "{human_pos} of {human_len} rows");
    let sender = Sender::new(client, arguments.connections, arguments.retry_for, "ns");
    let batches = sample::batches(arguments.rate, arguments.duration);
    sender.send(
        batches.inspect(|batch| {
            if let Ok(batch) = batch {
                bar.inc(batch.rows);
            }
        }),
        &bar,
    )
}

fn send_file(arguments: &Arguments, client: Client, file: &Path) -> Result<Outcome> {
    let input = Input::new(file)?;
    let bar = bar(input.size, "{bytes} of {total_bytes}");
    let connections = arguments.connections;
    let sender = |precision| Sender::new(client, connections, arguments.retry_for, precision);
    match arguments.format.unwrap_or_else(|| input.format()) {
        Format::Lp => {
            let batches = lines::batches(input.open(&bar)?, arguments.batch);
            sender(arguments.precision.name()).send(batches, &bar)
        }
        Format::Csv => {
            let options = csv::Options {
                table: arguments
                    .table
                    .clone()
                    .or_else(|| input.stem())
                    .ok_or_else(|| misuse("the rows need a table", "name it with --table"))?,
                time: arguments.time.clone(),
                tags: arguments.tags.clone(),
                nulls: arguments.null.clone(),
                delimiter: u8::try_from(arguments.delimiter)
                    .map_err(|_| misuse("--delimiter is one ASCII character", "for example ';'"))?,
                precision: arguments.precision,
            };
            let input = input.twice()?;
            let plan = csv::Plan::infer(input.open(&ProgressBar::hidden())?, &options)?;
            let batches = csv::batches(input.open(&bar)?, plan, arguments.batch)?;
            sender("ns").send(batches, &bar)
        }
    }
}

/// Standard input that has to be read twice may have this size.
const HELD_BYTES: u64 = 1 << 30;

/// A file or standard input.
struct Input {
    path: Option<PathBuf>,
    size: Option<u64>,
    /// What standard input held, where it has to be read twice.
    held: Option<bytes::Bytes>,
}

impl Input {
    fn new(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Input { path: None, size: None, held: None });
        }
        let size = std::fs::metadata(path)
            .map_err(|error| {
                Error::io(format_args!("read {}", path.display()), error)
                    .with_hint("name a file, or - for standard input")
            })?
            .len();
        Ok(Input { path: Some(path.to_owned()), size: Some(size), held: None })
    }

    fn format(&self) -> Format {
        let Some(path) = &self.path else { return Format::Lp };
        let name = path.to_string_lossy().to_lowercase();
        if name.trim_end_matches(".gz").ends_with(".csv") { Format::Csv } else { Format::Lp }
    }

    /// The file's name without its endings.
    fn stem(&self) -> Option<String> {
        let name = self.path.as_ref()?.file_name()?.to_str()?;
        name.split('.').find(|part| !part.is_empty()).map(str::to_owned)
    }

    /// An input that can be opened more than once: standard input is read into memory.
    fn twice(mut self) -> Result<Self> {
        if self.path.is_none() {
            let mut text = Vec::new();
            io::stdin()
                .take(HELD_BYTES + 1)
                .read_to_end(&mut text)
                .map_err(|error| Error::io("read standard input", error))?;
            if text.len() as u64 > HELD_BYTES {
                return Err(Error::new(Code::TooLarge, "more than 1 GiB of CSV on standard input")
                    .with_hint("name a file: it is read twice instead of kept in memory"));
            }
            self.held = Some(text.into());
        }
        Ok(self)
    }

    /// Opens it; `bar` moves with the bytes read from the disk.
    fn open(&self, bar: &ProgressBar) -> Result<Box<dyn Read + Send>> {
        if let Some(held) = &self.held {
            return Ok(Box::new(io::Cursor::new(held.clone())));
        }
        let Some(path) = &self.path else { return Ok(Box::new(io::stdin())) };
        let file = std::fs::OpenOptions::new()
            .read(true)
            .open(path)
            .map_err(|error| Error::io(format_args!("open {}", path.display()), error))?;
        let reader = io::BufReader::with_capacity(1 << 20, bar.wrap_read(file));
        if path.extension().is_some_and(|ending| ending == "gz") {
            return Ok(Box::new(MultiGzDecoder::new(reader)));
        }
        Ok(Box::new(reader))
    }
}

/// A bar with its length known, a spinner without.
pub fn bar(length: Option<u64>, counts: &str) -> ProgressBar {
    let (bar, template) = match length {
        Some(length) => (
            ProgressBar::new(length),
            format!("{{bar:30}} {{percent:>3}}%  {counts}  {{msg}}  {{eta}} left"),
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {msg}".to_owned()),
    };
    match ProgressStyle::with_template(&template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn report(outcome: &Outcome, took: Duration) -> Result<()> {
    let seconds = took.as_secs_f64();
    let rate = (outcome.rows as f64 / seconds.max(1e-9)) as u64;
    print(&format!(
        "{} rows in {seconds:.1} s ({} rows/s)\n",
        HumanCount(outcome.rows),
        HumanCount(rate)
    ))?;
    if outcome.rejected == 0 {
        return Ok(());
    }
    let mut message = format!("{} rows were not taken:", HumanCount(outcome.rejected));
    for each in &outcome.reasons {
        message.push_str("\n  ");
        message.push_str(each);
    }
    if outcome.rejected > outcome.reasons.len() as u64 {
        message.push_str("\n  …");
    }
    Err(Error::new(Code::InvalidInput, message)
        .with_hint("correct these rows and send them again; the others are stored"))
}

/// `90`, `90s`, `500ms`, `2m`, `1h`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| "not a time such as 60s".to_owned())?;
    let milliseconds = match &text[digits..] {
        "ms" => Some(number),
        "" | "s" => number.checked_mul(1000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err("the unit is ms, s, m or h".to_owned()),
    };
    milliseconds.map(Duration::from_millis).ok_or_else(|| "too long".to_owned())
}

/// `1000`, `1000/s`.
fn parse_rate(text: &str) -> Result<u64, String> {
    match text.strip_suffix("/s").unwrap_or(text).parse() {
        Ok(rate) if rate > 0 => Ok(rate),
        _ => Err("not a rate such as 1000/s".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_rates_are_read() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("7"), Ok(Duration::from_secs(7)));
        assert!(parse_duration("s").is_err() && parse_duration("1d").is_err());
        assert_eq!(parse_rate("250/s"), Ok(250));
        assert!(parse_rate("0/s").is_err() && parse_rate("fast").is_err());
    }

    #[test]
    fn precision_is_guessed_by_size() {
        let instant = 1_700_000_000;
        let ns = Some(instant * 1_000_000_000);
        for number in [instant, instant * 1000, instant * 1_000_000, instant * 1_000_000_000] {
            assert_eq!(Precision::Auto.to_ns(number), ns, "{number}");
        }
        assert_eq!(Precision::S.to_ns(i64::MAX), None);
    }
}
