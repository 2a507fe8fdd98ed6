//! `kymo backup`: everything that a server has, copied over HTTP into a folder here or
//! a bucket, while the server goes on.

use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{HumanBytes, HumanCount};
use kymo_kernel::storage::backup::{self, Copied, Object, Plan, Source};
use kymo_kernel::{Code, Error, Result};
use serde::Deserialize;

use super::check::{Shown, print_json};
use super::client::{Client, Target};
use super::place::{Backups, Config};
use super::print;
use super::stopwatch::Stopwatch;

/// Copy everything that a server has, while it goes on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder or the bucket (s3://bucket/prefix) for backups; a further one copies only what
    /// is new
    #[arg(value_name = "DEST")]
    place: PathBuf,
    #[command(flatten)]
    config: Config,
    /// Print what was copied as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// What a server answers when a backup begins.
#[derive(Deserialize)]
struct Begun {
    number: u64,
    plan: Plan,
}

/// Runs the command.
///
/// # Errors
/// No connection, what the server says is wrong, damage, or a folder that cannot be written.
pub fn run(arguments: &Arguments) -> Result<()> {
    let watch = Stopwatch::start();
    let place = Backups::at(&arguments.place, &arguments.config.settings()?)?;
    let client = Client::find(&arguments.target)?;
    let begun: Begun = serde_json::from_value(client.begin_backup()?)
        .map_err(|error| Error::internal(format!("the plan of a backup: {error}")))?;
    let remote = Remote { client: &client, number: begun.number };
    let mut shown = Shown::default();
    let mut show = |at: backup::Progress| shown.at(at.done, at.total);
    let copied = backup::keep(&begun.plan, &remote, &place.files, &mut show);
    shown.clear();
    let ended = client.end_backup(begun.number);
    let copied = copied?;
    ended?;
    if arguments.json {
        return print_json(&copied);
    }
    print(&told(&copied, &arguments.place, watch))
}

fn told(copied: &Copied, place: &std::path::Path, watch: Stopwatch) -> String {
    format!(
        "backup {} in {}: {} files with {}, of which {} with {} were copied, in {:.1} s\n",
        copied.name,
        place.display(),
        HumanCount(copied.objects as u64),
        HumanBytes(copied.bytes),
        HumanCount(copied.copied_objects as u64),
        HumanBytes(copied.copied_bytes),
        watch.elapsed().as_secs_f64()
    )
}

/// The objects of a backup that a server has begun.
struct Remote<'a> {
    client: &'a Client,
    number: u64,
}

impl Source for Remote<'_> {
    fn read(&self, object: &Object, to: &mut dyn Write) -> Result<()> {
        let answer = self.client.backup_object(self.number, &object.path)?;
        let mut body = answer.into_body().into_with_config().limit(u64::MAX).reader();
        let copied = io::copy(&mut body, to).map_err(|error| {
            Error::new(Code::Io, format!("copy {}: {error}", object.path))
                .with_hint("run the same command again: what is there is not copied again")
        });
        copied.map(drop)
    }
}
