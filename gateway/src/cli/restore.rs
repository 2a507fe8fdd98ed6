//! `kymo restore`: a data folder made of a backup.

use std::path::PathBuf;

use chrono::{DateTime, SecondsFormat};
use indicatif::{HumanBytes, HumanCount};
use kymo_kernel::Result;
use kymo_kernel::storage::backup::{self, Restored};
use kymo_kernel::storage::segment::LocalSegments;

use super::check::{Shown, print_json};
use super::place::{Backups, Config, of_store};
use super::{misuse, print};

/// Make a data folder of a backup.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder or bucket for backups, as `kymo backup` had it
    #[arg(value_name = "SRC")]
    place: PathBuf,
    #[command(flatten)]
    config: Config,
    /// The new data folder; it must be empty, and so must be the bucket of storage.url
    #[arg(long, value_name = "DIR", required_unless_present_any = ["list", "verify"])]
    data_dir: Option<PathBuf>,
    /// The backup to take [default: the newest]
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// Show the backups that there are
    #[arg(long)]
    list: bool,
    /// Read the backup and verify every byte of it, and write nothing
    #[arg(long, conflicts_with = "data_dir")]
    verify: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// There is no such backup, it is damaged, or the folder is not empty or cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let settings = arguments.config.settings()?;
    let place = Backups::at(&arguments.place, &settings)?;
    let files = &place.files;
    if arguments.list {
        return list(files, arguments.json);
    }
    let (mut shown, name) = (Shown::default(), arguments.backup.as_deref());
    if arguments.verify {
        let verified = backup::verify(files, name, &mut |at| shown.at(at.done, at.total));
        shown.clear();
        return told(arguments, &verified?, "verified");
    }
    let Some(data_dir) = &arguments.data_dir else {
        return Err(misuse("no data folder was named", "name it with --data-dir DIR"));
    };
    let env = of_store(data_dir, &settings)?;
    let restored = backup::restore(files, name, &env, data_dir, &mut |at| {
        shown.at(at.done, at.total);
    });
    shown.clear();
    let folder = data_dir.display();
    let done = format!("restored to {folder}; start it with `kymo start --data-dir {folder}`");
    told(arguments, &restored?, &done)
}

fn told(arguments: &Arguments, done: &Restored, what: &str) -> Result<()> {
    if arguments.json {
        return print_json(done);
    }
    print(&format!(
        "backup {} of {}: {} files with {} {what}\n",
        done.name,
        instant(done.taken_ns),
        HumanCount(done.objects as u64),
        HumanBytes(done.bytes)
    ))
}

fn list(place: &LocalSegments, json: bool) -> Result<()> {
    let backups = backup::list(place)?;
    if json {
        return print_json(&backups);
    }
    let mut text = String::new();
    for each in &backups {
        let bytes: u64 = each.objects.iter().map(|kept| kept.object.bytes).sum();
        text.push_str(&format!(
            "{}  {} files, {}\n",
            each.name,
            HumanCount(each.objects.len() as u64),
            HumanBytes(bytes)
        ));
    }
    if backups.is_empty() {
        text.push_str("there is no complete backup\n");
    }
    print(&text)
}

fn instant(ns: i64) -> String {
    DateTime::from_timestamp_nanos(ns).to_rfc3339_opts(SecondsFormat::Secs, true)
}
