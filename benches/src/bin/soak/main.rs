//! Half an hour of everything at once, and a picture of it:
//!
//! ```sh
//! cargo build --release
//! cargo run --release -p kymo-benches --bin soak -- --plot docs/soak.svg
//! ```
//!
//! Writers send rows of now, late ones and overwrites; readers ask; rows are deleted, expire,
//! and are kept up to date in a continuous query; segments are merged; and every few minutes
//! the server is stopped, politely and by SIGKILL in turns, and started again. A checker compares
//! what the table shows for random seconds with what was acknowledged: one row too few or too
//! many ends the run. Limits are small, so that a steady state comes within minutes; what then
//! still grows is a leak. Each second gives a line of figures (`--csv`).

#![expect(clippy::disallowed_methods, reason = "a soak goes by real time, in threads of its own")]

mod ledger;
mod load;
mod plot;
mod process;
mod samples;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use kymo_benches::server::{Outcome, Server, exit, mib, text};

use crate::load::Shared;
use crate::process::{End, Process};
use crate::samples::{Sampler, Samples};

/// Mixed load for a long time.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// The binary to run
    #[arg(long, default_value = "target/release/kymo")]
    kymo: PathBuf,
    /// A folder for its data, new by default
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Port for HTTP
    #[arg(long, default_value_t = 17878)]
    port: u16,
    /// Minutes to go on for
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// Seconds between two restarts
    #[arg(long, default_value_t = 300)]
    restart_seconds: u64,
    /// Rows a second, of all writers
    #[arg(long, default_value_t = 20_000)]
    rows_per_second: usize,
    /// Writers
    #[arg(long, default_value_t = 4)]
    writers: usize,
    /// Hosts of each writer
    #[arg(long, default_value_t = 250)]
    hosts: usize,
    /// Where to draw the picture (SVG)
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Where to keep the figures
    #[arg(long)]
    csv: Option<PathBuf>,
}

impl Arguments {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn server(&self) -> Outcome<Server> {
        Server::new(&self.url(), None)
    }
}

fn main() -> ExitCode {
    exit(run(Arguments::parse()))
}

fn run(arguments: Arguments) -> Outcome<()> {
    let fresh = tempfile::tempdir().map_err(text)?;
    let folder = arguments.data_dir.clone().unwrap_or_else(|| fresh.path().join("data"));
    let mut process = Process::start(&arguments.kymo, &folder, arguments.port)?;
    load::prepare(&arguments.server()?)?;
    let shared = Arc::new(Shared::new(arguments));
    let mut workers = load::start(&shared);
    let mut sampler = Sampler::new(folder);
    let (began, mut next) = (Instant::now(), Instant::now());
    let arguments = &shared.arguments;
    let whole = Duration::from_secs(arguments.minutes * 60);
    let mut restarted = Instant::now();
    let mut polite = false;
    while began.elapsed() < whole && !shared.stop.load(Ordering::Relaxed) {
        next += Duration::from_secs(1);
        thread::sleep(next.saturating_duration_since(Instant::now()));
        if restarted.elapsed() >= Duration::from_secs(arguments.restart_seconds) {
            polite = !polite;
            let end = if polite { End::Stopped } else { End::Killed };
            process = process.restart(end)?;
            sampler.restarted(began.elapsed(), end);
            restarted = Instant::now();
        }
        sampler.look(began.elapsed(), process.id(), &shared);
    }
    shared.stop.store(true, Ordering::Relaxed);
    let ends = workers.drain(..).map(|worker| worker.join());
    let ends: Vec<Outcome<()>> =
        ends.map(|it| it.unwrap_or_else(|_| Err("a thread panicked".to_owned()))).collect();
    let samples = sampler.samples;
    finish(arguments, &samples, &shared)?;
    ends.into_iter().collect::<Outcome<()>>()?;
    process.stop()
}

fn finish(arguments: &Arguments, samples: &Samples, shared: &Shared) -> Outcome<()> {
    if let Some(path) = &arguments.csv {
        std::fs::write(path, samples.csv()).map_err(text)?;
    }
    if let Some(path) = &arguments.plot {
        plot::draw(path, samples).map_err(text)?;
    }
    let count = |of: &std::sync::atomic::AtomicU64| of.load(Ordering::Relaxed);
    println!(
        "{} rows acknowledged, {} queries, {} looks of the checker at one second each ({} rows), \
         {} deletions, {} restarts",
        count(&shared.rows),
        count(&shared.queries),
        count(&shared.checks),
        count(&shared.checked_rows),
        count(&shared.deletions),
        samples.restarts.len(),
    );
    for (name, part) in [("second", 1), ("third", 2), ("last", 5)] {
        let medians = samples.medians_of_sixth(part);
        println!(
            "{name:<7} sixth: median {:.0} MiB resident, {} files, {:.0} MiB stored",
            mib(medians.resident),
            medians.files,
            mib(medians.stored)
        );
    }
    Ok(())
}
