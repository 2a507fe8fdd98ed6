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
use serde_json::json;

/// What to do.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:7878")]
    url: String,
    /// Token to come in with
    #[arg(long, env = "KYMO_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// The server's process, to read its processor time of
    #[arg(long)]
    pid: Option<u32>,
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

type Done<T> = Result<T, String>;

/// A client of the server.
struct Server<'a> {
    arguments: &'a Arguments,
    client: reqwest::blocking::Client,
}

impl<'a> Server<'a> {
    fn new(arguments: &'a Arguments) -> Done<Server<'a>> {
        let client = reqwest::blocking::Client::builder().timeout(None).build();
        Ok(Server { arguments, client: client.map_err(|error| error.to_string())? })
    }

    fn send(&self, request: reqwest::blocking::RequestBuilder) -> Done<String> {
        let request = match &self.arguments.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        let answer = request.send().map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.text().map_err(|error| error.to_string())?;
        if status.is_success() { Ok(text) } else { Err(format!("{status}: {text}")) }
    }

    fn sql(&self, sql: &str) -> Done<String> {
        let url = format!("{}/api/v3/query_sql", self.arguments.url);
        self.send(self.client.post(url).json(&json!({ "db": "kymo", "q": sql, "format": "json" })))
    }

    fn write(&self, lines: String) -> Done<()> {
        let url = format!("{}/api/v3/write_lp?db=kymo&precision=ns", self.arguments.url);
        self.send(self.client.post(url).body(lines)).map(drop)
    }

    fn metrics(&self) -> Done<Metrics> {
        let url = format!("{}/metrics", self.arguments.url);
        Ok(Metrics(self.send(self.client.get(url))?))
    }
}

/// The server's metrics, as text.
struct Metrics(String);

impl Metrics {
    /// The sum of all samples of a family whose labels hold a text.
    fn sum(&self, family: &str, labels: &str) -> f64 {
        let samples = self.0.lines().filter(|line| {
            let name = line.split(['{', ' ']).next();
            name == Some(family) && line.contains(labels)
        });
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// The cumulative counts of a histogram by their upper bounds.
    fn buckets(&self, family: &str, labels: &str) -> Vec<(f64, f64)> {
        let name = format!("{family}_bucket");
        let lines = self.0.lines().filter(|line| line.starts_with(&name) && line.contains(labels));
        let bucket = |line: &str| {
            let bound = line.split("le=\"").nth(1)?.split('"').next()?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, line.rsplit(' ').next()?.parse().ok()?))
        };
        lines.filter_map(bucket).collect()
    }
}

/// The bound below which a share of what was counted between two looks lies.
fn quantile(before: &[(f64, f64)], after: &[(f64, f64)], share: f64) -> f64 {
    let counts: Vec<(f64, f64)> = after
        .iter()
        .map(|(bound, count)| {
            let known = before.iter().find(|(other, _)| other == bound);
            (*bound, count - known.map_or(0.0, |(_, count)| *count))
        })
        .collect();
    let wanted = counts.last().map_or(0.0, |(_, all)| all * share);
    let mut below = (0.0, 0.0);
    for (bound, count) in counts {
        if count >= wanted && count > below.1 {
            let part = (wanted - below.1) / (count - below.1);
            return if bound.is_finite() { below.0 + part * (bound - below.0) } else { below.0 };
        }
        below = (bound, count);
    }
    below.0
}

/// Seconds of processor time that a process has used.
fn processor_seconds(pid: u32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit(')').next()?.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    // A tick is a hundredth of a second on every Linux that there is.
    Some(ticks / 100.0)
}

fn create_rules(arguments: &Arguments) -> Done<()> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Done<()>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.connections)
            .map(|_| {
                scope.spawn(|| {
                    let server = Server::new(arguments)?;
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
fn drive(arguments: &Arguments) -> Done<(usize, Duration)> {
    let server = Server::new(arguments)?;
    let step = Duration::from_secs_f64(arguments.batch as f64 / arguments.rows_per_second as f64);
    let began = Instant::now();
    let (mut sent, mut due) = (0, began);
    while began.elapsed() < Duration::from_secs(arguments.seconds) {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let now_ns = now.map_err(|error| error.to_string())?.as_nanos();
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
fn run(arguments: &Arguments) -> Done<()> {
    let server = Server::new(arguments)?;
    server.sql(
        "CREATE TABLE IF NOT EXISTS bench_cpu (host TEXT TAG, usage DOUBLE, time TIMESTAMP TIME \
         INDEX)",
    )?;
    let began = Instant::now();
    create_rules(arguments)?;
    println!("{} rules created in {:.1} s", arguments.rules, began.elapsed().as_secs_f64());
    while server.sql("SELECT rule FROM system.alerts WHERE status = 'starting' LIMIT 1")? != "[]" {
        thread::sleep(Duration::from_millis(100));
    }
    println!("evaluated after {:.1} s", began.elapsed().as_secs_f64());
    let lag = "kymo_alert_lag_seconds";
    let (before, cpu) = (server.metrics()?, arguments.pid.and_then(processor_seconds));
    let (rows, took) = drive(arguments)?;
    let (after, seconds) = (server.metrics()?, took.as_secs_f64());
    println!("{rows} rows in {seconds:.1} s: {:.0} rows/s", rows as f64 / seconds);
    if let (Some(before), Some(after)) = (cpu, arguments.pid.and_then(processor_seconds)) {
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
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_came_between_two_looks() {
        let before = [(0.001, 10.0), (0.01, 10.0), (f64::INFINITY, 10.0)];
        let after = [(0.001, 60.0), (0.01, 109.0), (f64::INFINITY, 110.0)];
        assert!((quantile(&before, &after, 0.5) - 0.001).abs() < 1e-9);
        assert!((quantile(&before, &after, 0.99) - 0.01).abs() < 1e-9);
        let text = "a_total{to=\"x\"} 3\na_total{to=\"y\"} 4\na_totals 9\n\
                    h_bucket{to=\"x\",le=\"0.5\"} 2\nh_bucket{to=\"x\",le=\"+Inf\"} 3\n";
        let metrics = Metrics(text.to_owned());
        assert_eq!(metrics.sum("a_total", "to=\"x\""), 3.0);
        assert_eq!(metrics.buckets("h", "to=\"x\""), [(0.5, 2.0), (f64::INFINITY, 3.0)]);
    }
}
