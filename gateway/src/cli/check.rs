//! `kymo check`: everything in a data folder and its bucket, verified while no server uses it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use chrono::{DateTime, SecondsFormat};
use indicatif::{HumanCount, ProgressBar};
use kymo_kernel::storage::integrity::{self, Finding, Progress, Report, Severity};
use kymo_kernel::{Error, Result};
use serde::Serialize;

use super::ingest::bar;
use super::place::{Config, of_store};
use super::{misuse, print};

/// The exit code where a folder is damaged; 1 says that it could not be checked.
pub const DAMAGED: u8 = 2;

/// Verify everything in a data folder.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    folder: Folder,
    #[command(flatten)]
    config: Config,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

/// A data folder, named in either of two ways.
#[derive(Debug, clap::Args)]
pub struct Folder {
    /// The data folder
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// The same, as `kymo start` has it
    #[arg(long, value_name = "DIR", conflicts_with = "folder")]
    data_dir: Option<PathBuf>,
}

impl Folder {
    /// The folder.
    ///
    /// # Errors
    /// None was named.
    pub fn path(&self) -> Result<&Path> {
        let path = self.folder.as_deref().or(self.data_dir.as_deref());
        path.ok_or_else(|| misuse("no folder was named", "name the data folder of the server"))
    }
}

/// Runs the command; tells a whole folder from a damaged one.
///
/// # Errors
/// The folder holds no store, is in use, or cannot be read.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let folder = arguments.folder.path()?;
    let mut shown = Shown::default();
    let env = of_store(folder, &arguments.config.settings()?)?;
    let report = integrity::check(&env, folder, &mut |at| shown.to(at));
    shown.clear();
    let report = report?;
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&render(&report))?;
    }
    Ok(code(&report))
}

/// The exit code that a report comes to.
pub fn code(report: &Report) -> ExitCode {
    if report.is_whole() { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) }
}

/// Prints anything as JSON for people and programs.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::internal(format!("write JSON: {error}")))?;
    print(&(text + "\n"))
}

/// A progress bar over bytes whose number is known with the first word.
#[derive(Default)]
pub struct Shown(Option<ProgressBar>);

impl Shown {
    /// Moves it.
    pub fn to(&mut self, at: Progress) {
        self.at(at.done, at.total);
    }

    /// Moves it, in bytes.
    pub fn at(&mut self, done: u64, total: u64) {
        let shown = self.0.get_or_insert_with(|| bar(Some(total), "{bytes} of {total_bytes}"));
        if shown.length() != Some(total) {
            shown.set_length(total);
        }
        shown.set_position(done);
    }

    /// Takes it away.
    pub fn clear(&mut self) {
        if let Some(shown) = self.0.take() {
            shown.finish_and_clear();
        }
    }
}

/// A report for people.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        text.push_str(&render_finding(finding));
    }
    let counts = format!(
        "{} tables, {} segments with {} rows, {} records in the journal",
        HumanCount(report.tables as u64),
        HumanCount(report.segments as u64),
        HumanCount(report.segment_rows),
        HumanCount(report.records)
    );
    let damaged = report.damage().count();
    let folder = report.folder.display();
    text.push_str(&match damaged {
        0 => format!("{folder} is whole: {counts}\n"),
        1 => format!("{folder} is DAMAGED in one place: {counts}\n"),
        many => format!("{folder} is DAMAGED in {many} places: {counts}\n"),
    });
    if report.damage().any(|finding| finding.repairable) {
        text.push_str("`kymo repair` saves what can be saved, and deletes nothing\n");
    }
    text
}

fn render_finding(finding: &Finding) -> String {
    let word = match finding.severity {
        Severity::Note => "note",
        Severity::Damage => "DAMAGE",
    };
    let place = finding.offset.map(|offset| format!(" at offset {offset}")).unwrap_or_default();
    let mut text = format!("{word}: {}{place}: {}\n", finding.object, finding.what);
    if !finding.tables.is_empty() {
        text.push_str(&format!("  tables: {}\n", finding.tables.join(", ")));
    }
    if let Some(time) = finding.time {
        text.push_str(&format!("  times:  {} to {}\n", instant(time.first), instant(time.last)));
    }
    if let Some(left) = finding.rows_left {
        text.push_str(&format!("  rows that verify: {}\n", HumanCount(left)));
    }
    text.push_str(&format!("  lost:   {}\n", finding.lost));
    text.push_str(&format!("  remedy: {}\n", finding.remedy));
    text
}

fn instant(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::AutoSi, true)
}
