//! How long a write takes from the request to its acknowledgement, for some numbers of writers,
//! and beside it what the disk itself gives:
//!
//! ```sh
//! cargo run --release -p kymo-benches --bin acks -- --url http://127.0.0.1:7878 --token T --folder /data
//! ```
//!
//! Each writer sends the next request when the one before it was answered. The server
//! acknowledges after an fsync unless `--durability` asks for less. The first line is the disk
//! alone: one thread that appends a block to a file and syncs it, again and again, in a folder
//! that should be on the same disk as the server's. `fsyncs/s` of the other lines are those of
//! the server's journal meanwhile; where writers are more than one, several writes share one.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time, with tasks of its own")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use futures::future::join_all;
use kymo_benches::server::{Outcome, exit, text};
use reqwest::{Client, RequestBuilder};

/// Acknowledgement latency.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:7878")]
    url: String,
    /// Token of an account that may write
    #[arg(long, env = "KYMO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// A folder on the disk of the server's data, for the raw fsyncs
    #[arg(long, default_value = ".")]
    folder: PathBuf,
    /// Numbers of concurrent writers
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    writers: Vec<usize>,
    /// Rows of a request
    #[arg(long, default_value_t = 10)]
    rows: usize,
    /// Seconds for each number of writers
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// When to acknowledge, instead of as the server is configured to
    #[arg(long)]
    durability: Option<String>,
    /// Bytes of a block of the raw fsyncs
    #[arg(long, default_value_t = 4096)]
    block: usize,
}

#[tokio::main]
async fn main() -> ExitCode {
    exit(run(Arc::new(Arguments::parse())).await)
}

async fn run(arguments: Arc<Arguments>) -> Outcome<()> {
    println!(
        "{:<14} {:>9} {:>9} {:>9} {:>9} {:>10} {:>10} {:>9}",
        "writers", "p50 ms", "p99 ms", "max ms", "acks/s", "rows/s", "fsyncs/s", "acks/sync"
    );
    let raw = arguments.clone();
    let took = tokio::task::spawn_blocking(move || raw_syncs(&raw)).await.map_err(text)??;
    let syncs = took.len() as u64;
    print(&arguments, "disk alone", took, 0, syncs);
    for writers in &arguments.writers {
        let before = journal_syncs(&arguments).await?;
        let took = measure(&arguments, *writers).await?;
        let syncs = journal_syncs(&arguments).await?.saturating_sub(before);
        print(&arguments, &writers.to_string(), took, arguments.rows, syncs);
    }
    Ok(())
}

/// One line of figures, of durations in microseconds.
fn print(arguments: &Arguments, name: &str, mut took: Vec<u64>, rows: usize, syncs: u64) {
    took.sort_unstable();
    let at = |share: f64| {
        let index = ((took.len() as f64 - 1.0) * share) as usize;
        took.get(index).map_or(f64::NAN, |us| *us as f64 / 1e3)
    };
    let seconds = arguments.seconds.max(1) as f64;
    let count = took.len() as f64;
    println!(
        "{name:<14} {:>9.2} {:>9.2} {:>9.2} {:>9.0} {:>10.0} {:>10.0} {:>9.1}",
        at(0.5),
        at(0.99),
        at(1.0),
        count / seconds,
        count * rows as f64 / seconds,
        syncs as f64 / seconds,
        count / syncs.max(1) as f64,
    );
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Appends and syncs as the journal does, with nothing around it.
fn raw_syncs(arguments: &Arguments) -> Outcome<Vec<u64>> {
    let mut file = tempfile::tempfile_in(&arguments.folder).map_err(text)?;
    let block = vec![0x5a; arguments.block];
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let mut took = Vec::new();
    while Instant::now() < end {
        let began = Instant::now();
        file.write_all(&block).and_then(|()| file.sync_data()).map_err(text)?;
        took.push(micros(began));
    }
    Ok(took)
}

/// Writes with so many writers for the time; gives how long each request took.
async fn measure(arguments: &Arc<Arguments>, writers: usize) -> Outcome<Vec<u64>> {
    let client = Client::new();
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let writer = |number| tokio::spawn(write_until(arguments.clone(), client.clone(), number, end));
    let mut took = Vec::new();
    for done in join_all((0..writers).map(writer)).await {
        took.extend(done.map_err(text)??);
    }
    Ok(took)
}

async fn write_until(
    arguments: Arc<Arguments>,
    client: Client,
    writer: usize,
    end: Instant,
) -> Outcome<Vec<u64>> {
    let durability = arguments.durability.as_ref();
    let durability = durability.map(|mode| format!("&durability={mode}")).unwrap_or_default();
    let path = format!("/api/v3/write_lp?db=kymo&precision=ns{durability}");
    let (mut took, mut body, mut time) = (Vec::new(), String::new(), started()?);
    while Instant::now() < end {
        body.clear();
        for row in 0..arguments.rows {
            time += 1;
            writeln!(body, "acks_bench,writer=w{writer},sensor=s{row} v={row},n={time}i {time}")
                .map_err(text)?;
        }
        let request = request(&arguments, client.post(url(&arguments, &path)));
        let began = Instant::now();
        let answer = request.body(body.clone()).send().await.map_err(text)?;
        if !answer.status().is_success() {
            return Err(format!("{}: {}", answer.status(), answer.text().await.map_err(text)?));
        }
        took.push(micros(began));
    }
    Ok(took)
}

/// Rows of a later run are other rows.
fn started() -> Outcome<u64> {
    let since = std::time::UNIX_EPOCH.elapsed().map_err(text)?;
    u64::try_from(since.as_nanos()).map_err(text)
}

/// How many fsyncs the server's journal has done.
async fn journal_syncs(arguments: &Arguments) -> Outcome<u64> {
    let request = request(arguments, Client::new().get(url(arguments, "/metrics")));
    let metrics = request.send().await.map_err(text)?.text().await.map_err(text)?;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("kymo_journal_sync_seconds_count "));
    let count = line.and_then(|count| count.trim().parse::<f64>().ok());
    count.map(|count| count as u64).ok_or_else(|| "/metrics tells no fsyncs".to_owned())
}

fn url(arguments: &Arguments, path: &str) -> String {
    format!("{}{path}", arguments.url.trim_end_matches('/'))
}

fn request(arguments: &Arguments, request: RequestBuilder) -> RequestBuilder {
    match &arguments.token {
        Some(token) => request.bearer_auth(token),
        None => request,
    }
}
