//! Prints the rows of the TSBS "cpu-only" case as line protocol, or loads them into a
//! server and says how fast that went:
//!
//! ```sh
//! cargo run --release -p kymo-benches --bin tsbs -- --url http://127.0.0.1:7878 --token T
//! cargo run --release -p kymo-benches --bin tsbs -- --hosts 4000 --hours 6 > rows.lp
//! ```

use std::io;
use std::process::ExitCode;

use clap::Parser;
use kymo_benches::load::{self, Target};
use kymo_benches::server::exit;
use kymo_benches::tsbs::Shape;

/// TSBS-like rows: ten tags, ten integer fields, every ten seconds.
#[derive(Debug, Parser)]
struct Arguments {
    /// Hosts that report
    #[arg(long, default_value_t = 100)]
    hosts: usize,
    /// Hours they report for
    #[arg(long, default_value_t = 24)]
    hours: usize,
    /// Seed of the values
    #[arg(long, default_value_t = 123)]
    seed: u64,
    /// Load into this server instead of printing
    #[arg(long)]
    url: Option<String>,
    /// Database to load into
    #[arg(long, default_value = "kymo")]
    database: String,
    /// Token to load with
    #[arg(long, env = "KYMO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Requests under way at a time
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Rows in one request
    #[arg(long, default_value_t = 10_000)]
    batch: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let shape = Shape { seed: arguments.seed, ..Shape::new(arguments.hosts, arguments.hours) };
    let done = match &arguments.url {
        None => load::print(shape, &mut io::stdout().lock()).map_err(|error| error.to_string()),
        Some(url) => into(url, &arguments, shape),
    };
    exit(done)
}

fn into(url: &str, arguments: &Arguments, shape: Shape) -> Result<(), String> {
    let target = Target {
        url: url.trim_end_matches('/').to_owned(),
        database: arguments.database.clone(),
        authorization: arguments.token.as_ref().map(|token| format!("Bearer {token}")),
        connections: arguments.connections.max(1),
        batch: arguments.batch.max(1),
    };
    let loaded = load::load(&target, shape)?;
    println!(
        "{} rows ({:.0} MB) in {:.2} s: {:.0} rows/s",
        loaded.rows,
        loaded.bytes as f64 / 1e6,
        loaded.took.as_secs_f64(),
        loaded.rows_per_second()
    );
    Ok(())
}
