//! Drives a running server with many alert rules and a steady stream of rows, and prints what
//! that costs it: processor time, the time from a commit to the end of its evaluation, and
//! transitions.
//!
//! ```sh
//! kymo start --no-auth &
//! cargo run --release -p kymo-benches --bin alerts -- --url http://127.0.0.1:7878 --pid $! \
//!     --rules 10000 --series 10000 --rows-per-second 20000 --seconds 60
//! ```
//!
//! Each rule watches one host; every host crosses its limit and comes back once in `--period`
//! seconds. Times come from the server's own histogram, so they are as exact as its buckets.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use kymo_benches::server::{Access, Outcome, exit, processor_seconds, quantile, text};

/// What to do.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    access: Access,
    /// Alert rules
    #[arg(long, default_value_t = 10_000)]
    rules: usize,
    /// Series, one a host
    #[arg(long, default_value_t = 10_000)]
    series: usize,
    /// Rows a second
    #[arg(long, default_value_t = 20_000)]
    rows_per_second: usize,
    /// Rows in one request
    #[arg(long, default_value_t = 1000)]
    batch: usize,
    /// Seconds to measure
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Seconds in which each host crosses its limit once and comes back
    #[arg(long, default_value_t = 60)]
    period: u64,
    /// Requests under way at a time while rules are created
    #[arg(long, default_value_t = 16)]
    connections: usize,
}

fn create_rules(arguments: &Arguments) -> Outcome<()> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Outcome<()>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.connections)
            .map(|_| {
                scope.spawn(|| {
                    let server = arguments.access.server()?;
                    loop {
                        let rule = next.fetch_add(1, Ordering::Relaxed);
                        if rule >= arguments.rules {
                            return Ok(());
                        }
                        let host = rule % arguments.series.max(1);
                        let limit = 80 + rule % 10;
                        server.sql(&format!(
                            "CREATE ALERT IF NOT EXISTS bench_{rule} ON (SELECT host, usage FROM \
                             bench_cpu WHERE host = 'h{host}') WHEN usage > {limit}"
                        ))?;
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|_| Err("a worker panicked".to_owned())))
            .collect()
    });
    outcomes.into_iter().collect()
}

#[expect(clippy::disallowed_methods, reason = "a bench goes by real time")]
fn drive(arguments: &Arguments) -> Outcome<(usize, Duration)> {
    let server = arguments.access.server()?;
    let step = Duration::from_secs_f64(arguments.batch as f64 / arguments.rows_per_second as f64);
    let began = Instant::now();
    let (mut sent, mut due) = (0, began);
    while began.elapsed() < Duration::from_secs(arguments.seconds) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_ns = now.map_err(text)?.as_nanos();
        let mut lines = String::with_capacity(arguments.batch * 48);
        for _ in 0..arguments.batch {
            let host = sent % arguments.series.max(1);
            let place = began.elapsed().as_secs() + (host as u64);
            let high = place % arguments.period.max(1) < arguments.period / 4;
            let usage = if high { 95.5 } else { 40.5 };
            let _ =
                writeln!(lines, "bench_cpu,host=h{host} usage={usage} {}", now_ns + sent as u128);
            sent += 1;
        }
        server.write(lines)?;
        due += step;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok((sent, began.elapsed()))
}

#[expect(clippy::disallowed_methods, reason = "a bench goes by real time")]
fn run(arguments: &Arguments) -> Outcome<()> {
    let server = arguments.access.server()?;
    server.sql(
        "CREATE TABLE IF NOT EXISTS bench_cpu (host TEXT TAG, usage DOUBLE, time TIMESTAMP TIME \
         INDEX)",
    )?;
    let began = Instant::now();
    create_rules(arguments)?;
    println!("{} rules created in {:.1} s", arguments.rules, began.elapsed().as_secs_f64());
    while !server
        .sql("SELECT rule FROM system.alerts WHERE status = 'starting' LIMIT 1")?
        .is_empty()
    {
        thread::sleep(Duration::from_millis(100));
    }
    println!("evaluated after {:.1} s", began.elapsed().as_secs_f64());
    let lag = "kymo_alert_lag_seconds";
    let (before, cpu) = (server.metrics()?, arguments.access.pid.and_then(processor_seconds));
    let (rows, took) = drive(arguments)?;
    let (after, seconds) = (server.metrics()?, took.as_secs_f64());
    println!("{rows} rows in {seconds:.1} s: {:.0} rows/s", rows as f64 / seconds);
    if let (Some(before), Some(after)) = (cpu, arguments.access.pid.and_then(processor_seconds)) {
        println!("processor: {:.0} % of one core", (after - before) / seconds * 100.0);
    }
    for cause in ["commit", "grid"] {
        let label = format!("cause=\"{cause}\"");
        let (was, is) = (before.buckets(lag, &label), after.buckets(lag, &label));
        let count = after.sum("kymo_alert_evaluations_total", &label)
            - before.sum("kymo_alert_evaluations_total", &label);
        println!(
            "{cause}: {count:.0} evaluations, lag p50 {:.2} ms, p99 {:.2} ms",
            quantile(&was, &is, 0.5) * 1e3,
            quantile(&was, &is, 0.99) * 1e3
        );
    }
    for to in ["pending", "firing", "resolved", "inactive"] {
        let label = format!("to=\"{to}\"");
        let family = "kymo_alert_transitions_total";
        println!("{to}: {:.0} transitions", after.sum(family, &label) - before.sum(family, &label));
    }
    Ok(())
}

fn main() -> ExitCode {
    exit(run(&Arguments::parse()))
}
