//! What very many series, tables or columns cost a server in memory and time:
//!
//! ```sh
//! kymo start --no-auth &
//! cargo run --release -p kymo-benches --bin scale -- --pid $! series tables columns
//! ```
//!
//! `series` writes hosts with ten tags each, every host a series of its own, a few points each;
//! `tables` one row into each of very many tables, twice; `columns` rows that fill ten of very
//! many columns. Each then asks what one would ask, and prints how long the answers took, the
//! median of three, beside the resident memory of the server.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use kymo_benches::load::{self, Target};
use kymo_benches::server::{Access, Outcome, Server, exit, mib, resident};
use kymo_benches::tsbs::{START_NS, Shape};
use serde_json::Value;

/// Series, tables and columns by the thousand.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(flatten)]
    access: Access,
    /// Series to write
    #[arg(long, default_value_t = 1_000_000)]
    series: usize,
    /// Points of each series
    #[arg(long, default_value_t = 5)]
    points: usize,
    /// Tables to write
    #[arg(long, default_value_t = 10_000)]
    tables: usize,
    /// Columns to write
    #[arg(long, default_value_t = 2_000)]
    columns: usize,
    /// Rows of the table with the columns
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// Requests under way at a time
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Rows in one request
    #[arg(long, default_value_t = 10_000)]
    batch: usize,
    /// What to do, in this order
    #[arg(required = true)]
    cases: Vec<Case>,
}

/// What there are very many of.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Case {
    /// Series of one table
    Series,
    /// Tables
    Tables,
    /// Columns of one table
    Columns,
}

/// Lines of a request in which lines have few fields in common: a server refuses those that
/// would be far larger as columns than they are as text.
const SPARSE_BATCH: usize = 500;

fn main() -> ExitCode {
    exit(run(&Arguments::parse()))
}

fn run(arguments: &Arguments) -> Outcome<()> {
    let bench = Bench { arguments, server: arguments.access.server()? };
    bench.memory("before");
    for case in &arguments.cases {
        match case {
            Case::Series => bench.series()?,
            Case::Tables => bench.tables()?,
            Case::Columns => bench.columns()?,
        }
    }
    Ok(())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    server: Server,
}

impl Bench<'_> {
    fn memory(&self, when: &str) {
        if let Some(resident) = self.arguments.access.pid.and_then(resident) {
            let (now, peak) = (mib(resident.now), mib(resident.peak));
            println!("{when:<44} {now:>8.0} MiB resident, peak {peak:.0}");
        }
    }

    /// Asks three times; prints the median and the first value of the answer.
    fn ask(&self, name: &str, sql: &str) -> Outcome<Value> {
        let mut took = Vec::new();
        let mut rows = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            rows = self.server.sql(sql).map_err(|error| format!("{name}: {error}"))?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        let first = rows.first().and_then(Value::as_object).and_then(|row| row.values().next());
        let first = first.cloned().unwrap_or_default();
        let ms = took[1].as_secs_f64() * 1e3;
        println!("{name:<44} {ms:>8.1} ms, {} rows, first value {first}", rows.len());
        Ok(first)
    }

    /// Asks for a number that must be this one.
    fn expect(&self, name: &str, sql: &str, wanted: usize) -> Outcome<()> {
        let got = self.ask(name, sql)?;
        if got.as_u64() == Some(wanted as u64) {
            return Ok(());
        }
        Err(format!("{name}: {got} instead of {wanted}"))
    }

    fn series(&self) -> Outcome<()> {
        let (series, points) = (self.arguments.series, self.arguments.points);
        let access = &self.arguments.access;
        let shape = Shape { steps: points, ..Shape::new(series, 1) };
        let target = Target {
            url: access.url.trim_end_matches('/').to_owned(),
            database: "kymo".to_owned(),
            authorization: access.token.as_ref().map(|token| format!("Bearer {token}")),
            connections: self.arguments.connections.max(1),
            batch: self.arguments.batch.max(1),
        };
        let loaded = load::stream(&target, shape)?;
        let (rows, rate) = (loaded.rows, loaded.rows_per_second());
        println!("series: {series} series, {rows} rows written, {rate:.0} rows/s");
        self.memory("after writing");
        self.expect("all rows", "SELECT count(*) FROM cpu", shape.rows())?;
        self.memory("after counting");
        let one = format!("host_{}", series / 2);
        self.expect(
            "one series of all",
            &format!("SELECT count(*) FROM cpu WHERE hostname = '{one}'"),
            points,
        )?;
        self.ask(
            "its newest row",
            &format!(
                "SELECT usage_user FROM cpu WHERE hostname = '{one}' ORDER BY time DESC LIMIT 1"
            ),
        )?;
        self.ask("by one tag", "SELECT region, avg(usage_user) FROM cpu GROUP BY region")?;
        self.memory("after grouping by one tag");
        self.expect(
            "the number of series",
            "SELECT count(*) FROM (SELECT hostname FROM cpu GROUP BY hostname)",
            series,
        )?;
        self.memory("after grouping by series");
        self.ask(
            "the ten busiest series",
            "SELECT hostname, max(usage_user) AS m FROM cpu GROUP BY hostname ORDER BY m DESC, \
             hostname LIMIT 10",
        )?;
        self.memory("after all");
        Ok(())
    }

    fn tables(&self) -> Outcome<()> {
        let tables = self.arguments.tables;
        for round in 0..2u64 {
            let began = Instant::now();
            self.write_tables(round)?;
            let per_second = tables as f64 / began.elapsed().as_secs_f64();
            let what = if round == 0 { "new" } else { "known" };
            println!("tables: {tables} {what} tables written to, {per_second:.0} tables/s");
            self.memory("after writing");
        }
        let name = tables / 2;
        self.expect("one table", &format!("SELECT count(*) FROM scale_{name}"), 2)?;
        self.expect(
            "the number of tables",
            "SELECT count(*) FROM system.tables WHERE \"table\" LIKE 'scale%'",
            tables,
        )?;
        self.ask(
            "the columns of one, by the standard's view",
            &format!("SELECT column_name FROM information_schema.columns WHERE table_name = 'scale_{name}'"),
        )?;
        self.memory("after all");
        Ok(())
    }

    /// One row into each table, ten tables a request.
    fn write_tables(&self, round: u64) -> Outcome<()> {
        const TOGETHER: usize = 10;
        let next = AtomicUsize::new(0);
        let outcomes: Vec<Outcome<()>> = thread::scope(|scope| {
            let worker = || {
                let server = self.server.clone();
                loop {
                    let first = next.fetch_add(TOGETHER, Ordering::Relaxed);
                    if first >= self.arguments.tables {
                        return Ok(());
                    }
                    let mut lines = String::new();
                    for table in first..(first + TOGETHER).min(self.arguments.tables) {
                        let time = START_NS + i64::try_from(round).unwrap_or_default();
                        let _ = writeln!(lines, "scale_{table},host=a v={table}i {time}");
                    }
                    again(|| server.write(lines.clone()))?;
                }
            };
            let workers: Vec<_> =
                (0..self.arguments.connections.max(1)).map(|_| scope.spawn(worker)).collect();
            let joined = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
            joined.map(|it| it.unwrap_or_else(|_| Err("a worker panicked".to_owned()))).collect()
        });
        outcomes.into_iter().collect()
    }

    fn columns(&self) -> Outcome<()> {
        let (columns, rows) = (self.arguments.columns, self.arguments.rows);
        let began = Instant::now();
        let mut row = 0;
        while row < rows {
            let mut lines = String::new();
            for _ in 0..SPARSE_BATCH.min(rows - row) {
                let _ = write!(lines, "wide,host=h{} ", row % 100);
                for field in 0..10 {
                    let comma = if field == 0 { "" } else { "," };
                    let _ = write!(lines, "{comma}f{}={row}", (row * 10 + field) % columns);
                }
                let _ = writeln!(lines, " {}", START_NS + row as i64);
                row += 1;
            }
            again(|| self.server.write(lines.clone()))?;
        }
        let rate = rows as f64 / began.elapsed().as_secs_f64();
        println!("columns: {columns} columns, {rows} rows of ten fields written, {rate:.0} rows/s");
        self.memory("after writing");
        let filled = (0..rows).filter(|row| row * 10 % columns == 0).count();
        self.expect("the values of one column", "SELECT count(f0) FROM wide", filled)?;
        self.expect("all rows", "SELECT count(*) FROM wide", rows)?;
        self.ask("ten rows with all columns", "SELECT * FROM wide ORDER BY time DESC LIMIT 10")?;
        self.ask(
            "one host's rows with all columns",
            "SELECT * FROM wide WHERE host = 'h7' LIMIT 1000",
        )?;
        self.memory("after all");
        Ok(())
    }
}

/// Writes until the server is not too busy, for half a minute at most.
fn again(write: impl Fn() -> Outcome<()>) -> Outcome<()> {
    for _ in 0..60 {
        match write() {
            Err(error) if error.starts_with("503") => thread::sleep(Duration::from_millis(500)),
            other => return other,
        }
    }
    Err("the server stayed busy".to_owned())
}
