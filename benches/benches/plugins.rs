//! Plugins beside native code, measured in turns in the same run: what the boundary costs, a
//! conversion, a realistic kernel, a grouped aggregate, a fresh instance with its first batch,
//! compiling, and the same functions through SQL over ten million rows. Each line tells the
//! ratio and the aim; times are the best of many short windows, which is what a busy machine
//! leaves of the truth. The last table tells where the time of the SQL queries goes.
//!
//! `KYMO_BENCH_ROWS` sets the rows of the SQL part; 0 leaves it out.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a bench reads its files, and one that cannot run should stop"
)]

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Float64Array, RecordBatch};
use arrow::compute::unary;
use arrow::datatypes::{Float64Type, Int64Type};
use kymo_actors::Database;
use kymo_config::Settings;
use kymo_config::settings::Plugins;
use kymo_kernel::env::real;
use kymo_plugins::memory::Unlimited;
use kymo_plugins::{
    Accumulator, Argument, Compiler, LoadOptions, PluginFunction, PluginHost, PluginVersion,
    QueryContext, compile,
};

const ROWS: usize = 8192;
const GROUPS: u32 = 1000;
/// How long one window is, and how many there are.
const WINDOW: Duration = Duration::from_millis(2);
const WINDOWS: usize = 300;
/// How often each query runs.
const REPEATS: usize = 5;

/// One line of the table: seconds, and for what is compared, those of native code.
struct Line {
    what: &'static str,
    plugin: f64,
    native: Option<f64>,
    /// Divides both: rows, or 1 for what has none.
    per: f64,
    aim: Aim,
}

enum Aim {
    /// At most so many times native code.
    Ratio(f64),
    /// At most so many seconds (a row where there are rows).
    Seconds(f64),
    /// Told, not aimed at.
    None,
}

impl Line {
    fn print(&self) {
        let (plugin, native) = (self.plugin / self.per, self.native.map(|it| it / self.per));
        let ratio = native.map(|native| plugin / native);
        let (aim, held) = match self.aim {
            Aim::Ratio(most) => (format!("≤ {most} ×"), ratio.is_some_and(|it| it <= most)),
            Aim::Seconds(most) => (format!("≤ {}", time(most)), plugin <= most),
            Aim::None => (String::new(), true),
        };
        println!(
            "{:<46} {:>10} {:>10} {:>8}  {aim:<10} {}",
            self.what,
            time(plugin),
            native.map(time).unwrap_or_default(),
            ratio.map(|it| format!("{it:.2} ×")).unwrap_or_default(),
            if held { "" } else { "missed" },
        );
    }
}

fn head(what: &str) {
    println!("\n{what:<46} {:>10} {:>10} {:>8}  aim", "plugin", "native", "ratio");
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-6 => format!("{:.2} ns", s * 1e9),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// Seconds of one call of each, by their best windows; the windows take turns.
fn race(mut one: impl FnMut(), mut other: impl FnMut()) -> (f64, f64) {
    let calls = (calls_per_window(&mut one), calls_per_window(&mut other));
    let mut best = (f64::MAX, f64::MAX);
    for _ in 0..WINDOWS {
        best.0 = best.0.min(window(&mut one, calls.0));
        best.1 = best.1.min(window(&mut other, calls.1));
    }
    best
}

/// Seconds of one call, by its best window.
fn best(mut call: impl FnMut(), windows: usize) -> f64 {
    let calls = calls_per_window(&mut call);
    (0..windows).map(|_| window(&mut call, calls)).fold(f64::MAX, f64::min)
}

fn calls_per_window(call: &mut impl FnMut()) -> usize {
    let begin = Instant::now();
    let mut calls = 0;
    while begin.elapsed() < WINDOW {
        call();
        calls += 1;
    }
    calls
}

fn window(call: &mut impl FnMut(), calls: usize) -> f64 {
    let begin = Instant::now();
    for _ in 0..calls {
        call();
    }
    begin.elapsed().as_secs_f64() / calls as f64
}

fn guests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/guests")
}

fn wasm(guest: &str) -> Vec<u8> {
    std::fs::read(guests().join(guest).join(format!("{guest}.wasm"))).unwrap()
}

/// The laboratory of the plugin tests: its `echo` hands its argument back.
fn laboratory() -> Vec<u8> {
    std::fs::read(guests().join("../tests/fixtures/lab.wasm")).unwrap()
}

/// The overload of `echo` for doubles.
const ECHO_DOUBLES: usize = 5;

fn context() -> QueryContext {
    QueryContext {
        cancel: Arc::default(),
        deadline: None,
        time_ns: 0,
        timezone: "UTC".to_owned(),
        seed: 0,
        memory: Arc::new(Unlimited),
        usage: Arc::default(),
    }
}

/// Readings of which every sixteenth is missing.
fn values() -> Float64Array {
    (0..ROWS).map(|row| (row % 16 != 0).then_some(row as f64 / 100.0)).collect()
}

/// The realistic kernel, natively.
fn calibrated(x: f64) -> f64 {
    const CURVE: [f64; 8] = [0.5, -1.25, 0.75, 2.0, -0.125, 0.0625, -0.03125, 0.015625];
    let curve = CURVE.iter().rev().fold(0.0, |sum, coefficient| sum * x + coefficient);
    curve.abs().sqrt() / (1.0 + x * x)
}

fn load(host: &PluginHost, name: &str, wasm: &[u8]) -> Arc<PluginVersion> {
    host.load(name, wasm, &LoadOptions::default()).unwrap()
}

/// A function of a guest and the same in this program, which the compiler sees and may inline:
/// through a pointer, the native one would be slower than it is.
fn scalar(
    host: &Arc<PluginHost>,
    function: &PluginFunction,
    overload: usize,
    native: impl Fn(f64) -> f64 + Copy,
) -> (f64, f64) {
    let query = host.query(context());
    let column = values();
    let argument = [Argument::Column(Arc::new(column.clone()))];
    race(
        || drop(black_box(query.scalar(function, overload, &argument, ROWS).unwrap())),
        || drop(black_box(unary::<_, _, Float64Type>(black_box(&column), native))),
    )
}

fn scalars(host: &Arc<PluginHost>) {
    head("a batch of 8,192 rows");
    let per = ROWS as f64;
    let echo = PluginFunction::named(&load(host, "lab", &laboratory()), "echo").unwrap();
    let (plugin, native) = scalar(host, &echo, ECHO_DOUBLES, |x| x);
    let aim = Aim::Seconds(0.8e-9);
    Line { what: "boundary: x", plugin, native: Some(native), per, aim }.print();
    let c2f = PluginFunction::named(&load(host, "c2f", &wasm("c2f")), "c2f").unwrap();
    let (plugin, native) = scalar(host, &c2f, 0, |x| x * 1.8 + 32.0);
    let aim = Aim::Ratio(6.0);
    Line { what: "x * 1.8 + 32", plugin, native: Some(native), per, aim }.print();
    let kernel = load(host, "kernel", &wasm("kernel"));
    let kernel = PluginFunction::named(&kernel, "calibrated").unwrap();
    let (plugin, native) = scalar(host, &kernel, 0, calibrated);
    let aim = Aim::Ratio(1.6);
    let what = "kernel: degree 7, square root, division";
    Line { what, plugin, native: Some(native), per, aim }.print();
    grouped(host);
}

/// Count, mean, and the sum of squared distances from it.
type Two = (f64, f64, f64);

/// The same states natively and in a guest: a bare sum, which is all memory and no arithmetic,
/// and Welford's variance, which has as much arithmetic as an aggregate worth a plugin.
fn grouped(host: &Arc<PluginHost>) {
    let moments = load(host, "moments", &wasm("moments"));
    let (plugin, native) =
        in_groups(host, &moments, "moments_mean", |(sum, rows): &mut (f64, f64), value| {
            *sum += value;
            *rows += 1.0;
        });
    let (what, per) = ("mean in 1,000 groups", ROWS as f64);
    Line { what, plugin, native: Some(native), per, aim: Aim::Ratio(2.0) }.print();
    let (plugin, native) =
        in_groups(host, &moments, "moments_stddev", |(count, mean, m2): &mut Two, value| {
            *count += 1.0;
            let delta = value - *mean;
            *mean += delta / *count;
            *m2 += delta * (value - *mean);
        });
    let what = "standard deviation in 1,000 groups";
    Line { what, plugin, native: Some(native), per, aim: Aim::Ratio(2.0) }.print();
}

/// Times for a batch in 1,000 groups: by an aggregate of a plugin, and by a native one with
/// these states.
fn in_groups<S: Clone + Default>(
    host: &Arc<PluginHost>,
    version: &Arc<PluginVersion>,
    aggregate: &str,
    add: impl Fn(&mut S, f64),
) -> (f64, f64) {
    let query = host.query(context());
    let function = PluginFunction::named(version, aggregate).unwrap();
    let column: ArrayRef =
        Arc::new(Float64Array::from_iter_values((0..ROWS).map(|row| row as f64)));
    let groups: Vec<u32> = (0..ROWS as u32).map(|row| row.wrapping_mul(7919) % GROUPS).collect();
    let mut accumulator = Accumulator::open(&query, &function, 0).unwrap();
    let columns = [column.clone()];
    let mut states = vec![S::default(); GROUPS as usize];
    let native = column.as_primitive::<Float64Type>();
    let times = race(
        || accumulator.update(&columns, Some(&groups), GROUPS, None).unwrap(),
        || {
            for (value, group) in native.values().iter().zip(black_box(&groups)) {
                add(&mut states[*group as usize], *value);
            }
        },
    );
    black_box(states);
    times
}

fn life(host: &Arc<PluginHost>) {
    head("once");
    let function = PluginFunction::named(&load(host, "c2f", &wasm("c2f")), "c2f").unwrap();
    let line = |what, plugin, aim| Line { what, plugin, native: None, per: 1.0, aim }.print();
    let query = host.query(context());
    let one = [Argument::Column(Arc::new(Float64Array::from(vec![1.0])) as ArrayRef)];
    let call = best(|| drop(query.scalar(&function, 0, &one, 1).unwrap()), WINDOWS);
    line("a call with one row", call, Aim::None);
    let argument = [Argument::Column(Arc::new(values()))];
    let fresh = || drop(host.query(context()).scalar(&function, 0, &argument, ROWS).unwrap());
    line(
        "a fresh instance, its start, one batch, its end",
        best(fresh, WINDOWS),
        Aim::Seconds(100e-6),
    );
    let component = wasm("c2f");
    let again = || drop(load(host, "c2f", &component));
    line("load from the cache and describe", best(again, 50), Aim::None);
    let compiler = Compiler::in_process(&Plugins::default());
    let clock = real::env().clock;
    let compiling = || drop(compiler.compile(&component, clock.as_ref()).unwrap());
    line("compile", best(compiling, 10), Aim::Seconds(0.3));
}

/// A database with the guests installed and rows in it.
fn database(folder: &Path, rows: usize) -> Database {
    let mut settings = Settings::default();
    settings.server.data_dir = folder.to_owned();
    settings.plugins.install_folder = guests();
    let database = Database::open_with(settings).unwrap();
    for (name, guest) in [("c2f", "c2f"), ("kernel", "kernel"), ("golden", "golden-0.1.0")] {
        let sql = format!("CREATE PLUGIN {name} FROM 'file:{guest}/{guest}.wasm'");
        database.query(&sql).unwrap();
    }
    database.query("CREATE TABLE t (host TEXT TAG, x DOUBLE, time TIMESTAMP TIME INDEX)").unwrap();
    const PIECE: usize = 500_000;
    for first in (0..rows).step_by(PIECE) {
        let last = (first + PIECE).min(rows) - 1;
        database
            .query(&format!(
                "INSERT INTO t SELECT 'host_' || n % {GROUPS}, n % 10000 / 100.0, \
                 to_timestamp(n / 1000.0) FROM generate_series({first}, {last}) AS s(n)"
            ))
            .unwrap();
        eprint!("\r{} of {rows} rows", last + 1);
    }
    eprintln!();
    let count = database.query("SELECT count(*) FROM t").unwrap();
    assert_eq!(count[0].column(0).as_primitive::<Int64Type>().value(0), rows as i64);
    database
}

/// What the counters of all plugins say: calls, rows, milliseconds within.
fn counters(database: &Database) -> [i64; 3] {
    let sql = "SELECT sum(calls), sum(rows), sum(busy_ms) FROM system.plugins";
    let found: Vec<RecordBatch> = database.query(sql).unwrap();
    let cast = |column: &ArrayRef| {
        let column = arrow::compute::cast(column, &arrow::datatypes::DataType::Int64).unwrap();
        column.as_primitive::<Int64Type>().value(0)
    };
    [0, 1, 2].map(|index| cast(found[0].column(index)))
}

fn through_sql(rows: usize) {
    let folder = tempfile::tempdir().unwrap();
    let database = database(folder.path(), rows);
    let curve = "(0.5 + x*(-1.25 + x*(0.75 + x*(2.0 + x*(-0.125 + x*(0.0625 + x*(-0.03125 + \
                 x*0.015625)))))))";
    let native = format!("sqrt(abs({curve})) / (1.0 + x*x)");
    let queries = [
        ("avg(x * 1.8 + 32)", "avg(c2f.c2f(x))".to_owned(), "avg(x * 1.8 + 32.0)".to_owned(), ""),
        ("avg(kernel)", "avg(kernel.calibrated(x))".to_owned(), format!("avg({native})"), ""),
        ("mean by host", "golden.golden_mean(x)".to_owned(), "avg(x)".to_owned(), " GROUP BY host"),
    ];
    head(&format!("SQL over {rows} rows"));
    let mut spent = Vec::new();
    for (what, plugin, native, rest) in queries {
        let query = |expression: &str| {
            let begin = Instant::now();
            black_box(database.query(&format!("SELECT {expression} FROM t{rest}")).unwrap());
            begin.elapsed().as_secs_f64()
        };
        let mut times = (f64::MAX, f64::MAX);
        let before = counters(&database);
        for _ in 0..REPEATS {
            times = (times.0.min(query(&plugin)), times.1.min(query(&native)));
        }
        let after = counters(&database);
        let each = [0, 1, 2].map(|index| (after[index] - before[index]) as f64 / REPEATS as f64);
        spent.push((what, times.0, each));
        Line { what, plugin: times.0, native: Some(times.1), per: 1.0, aim: Aim::None }.print();
    }
    println!(
        "\n{:<46} {:>10} {:>10} {:>10} {:>12}",
        "where a query spends its time", "whole", "calls", "rows", "in plugins*"
    );
    for (what, whole, [calls, rows, busy]) in spent {
        let busy = format!("{busy:.0} ms");
        println!("{what:<46} {:>10} {calls:>10.0} {rows:>10.0} {busy:>12}", time(whole));
    }
    println!("* added up over the workers, copies across the boundary included");
    database.close().unwrap();
}

fn main() -> ExitCode {
    // The database compiles plugins in a process of this very program.
    if std::env::args().nth(1).as_deref() == Some(compile::SUBCOMMAND) {
        return compile::child(std::env::args().nth(2).as_deref());
    }
    let settings = Plugins { preview: true, ..Plugins::default() };
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::in_process(&settings);
    let host = PluginHost::start(&settings, folder.path(), real::env(), compiler).unwrap();
    scalars(&host);
    life(&host);
    let rows = std::env::var("KYMO_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok());
    match rows.unwrap_or(10_000_000) {
        0 => {}
        rows => through_sql(rows),
    }
    ExitCode::SUCCESS
}
