//! `kymo snapshot`: a moment of a server, kept in its data folder under second names of its files.

use kymo_kernel::storage::backup::Snapshot;
use kymo_kernel::{Error, Result};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::check::print_json;
use super::client::{Client, Target};
use super::print;
use super::stopwatch::Stopwatch;

/// Keep this moment of a server in its data folder, in an instant.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Show the snapshots that there are
    #[arg(long)]
    list: bool,
    /// Remove a snapshot
    #[arg(long, value_name = "NAME", conflicts_with = "list")]
    drop: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Runs the command.
///
/// # Errors
/// No connection, or what the server says is wrong.
pub fn run(arguments: &Arguments) -> Result<()> {
    let client = Client::find(&arguments.target)?;
    if arguments.list {
        return list(&decode::<Vec<Snapshot>>(client.get("/api/v1/snapshots")?)?, arguments.json);
    }
    if let Some(name) = &arguments.drop {
        client.drop_snapshot(name)?;
        return print(&format!("snapshot {name} is removed\n"));
    }
    let watch = Stopwatch::start();
    let taken: Snapshot = decode(client.take_snapshot()?)?;
    if arguments.json {
        return print_json(&taken);
    }
    let (name, folder) = (&taken.name, taken.folder.display());
    let seconds = watch.elapsed().as_secs_f64();
    print(&format!(
        "snapshot {name} in {seconds:.3} s; on the server, `kymo start --data-dir {folder}` opens it\n"
    ))
}

fn decode<T: DeserializeOwned>(answer: Value) -> Result<T> {
    serde_json::from_value(answer)
        .map_err(|error| Error::internal(format!("what the server says of snapshots: {error}")))
}

fn list(snapshots: &[Snapshot], json: bool) -> Result<()> {
    if json {
        return print_json(&snapshots);
    }
    if snapshots.is_empty() {
        return print("there is no snapshot\n");
    }
    let line = |each: &Snapshot| format!("{}  {}\n", each.name, each.folder.display());
    print(&snapshots.iter().map(line).collect::<String>())
}
