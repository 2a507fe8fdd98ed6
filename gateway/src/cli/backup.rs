//! `kymo backup`: everything that a server has, copied over HTTP into a folder here, while the
//! server goes on.

use std::io::{self, Write};
use std::path::PathBuf;

use indicatif::{HumanBytes, HumanCount};
use kymo_kernel::env::failpoint::{self, Holds};
use kymo_kernel::env::real;
use kymo_kernel::storage::backup::{self, Copied, Object, Plan, Source};
use kymo_kernel::storage::segment::LocalSegments;
use kymo_kernel::{Code, Error, Result};
use serde::Deserialize;

use super::check::{Shown, print_json};
use super::client::{Client, Target};
use super::stopwatch::Stopwatch;
use super::{misuse, print};

/// Copy everything that a server has, while it goes on.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The folder for backups; a further one copies only what is new
    #[arg(value_name = "DEST")]
    place: PathBuf,
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
    let place = folder(&arguments.place)?;
    let client = Client::find(&arguments.target)?;
    let begun: Begun = serde_json::from_value(client.begin_backup()?)
        .map_err(|error| Error::internal(format!("the plan of a backup: {error}")))?;
    let remote = Remote { client: &client, number: begun.number };
    let mut shown = Shown::default();
    let copied = backup::keep(&begun.plan, &remote, &place, &mut |at| shown.at(at.done, at.total));
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

/// A place for backups on this machine.
///
/// # Errors
/// An address that is none of a folder.
pub fn folder(place: &std::path::Path) -> Result<LocalSegments> {
    if place.to_str().is_some_and(|text| text.contains("://")) {
        return Err(misuse(
            format!("{} is no folder", place.display()),
            "backups go to a folder of this machine",
        ));
    }
    let env = failpoint::armed(real::env(), place, Holds::Backups)?;
    Ok(LocalSegments::new(env.disk, place.to_owned()))
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
