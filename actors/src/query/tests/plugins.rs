//! Functions of plugins in statements: they answer as the engine's own do, end when they must,
//! and change their version between statements and never within one.

mod preview;
mod work;

use std::time::Duration;

use kymo_plugins::{LoadOptions, PluginVersion};
use tempfile::TempDir;

use super::*;

/// Something of everything.
const GOLDEN: &[u8] = include_bytes!("../../../../plugins/guests/golden-0.1.0/golden-0.1.0.wasm");
/// `c2f` and `f2c`.
const TEMPERATURE: &[u8] = include_bytes!("../../../../plugins/guests/c2f/c2f.wasm");
/// `tdigest_quantile`, which cannot take rows out again.
const TDIGEST: &[u8] = include_bytes!("../../../../plugins/guests/tdigest/tdigest.wasm");

/// Twenty thousand rows, of which every seventh has no value.
const ROWS: &str = "(SELECT value AS n, CASE WHEN value % 7 = 0 THEN NULL \
                    ELSE CAST(value AS DOUBLE) END AS x FROM generate_series(1, 20000))";

struct Lab {
    house: House,
    _folder: TempDir,
}

impl Lab {
    fn new(change: impl FnOnce(&mut Settings)) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let change = |settings: &mut Settings| {
            settings.plugins.start_timeout_ms = 10_000;
            settings.plugins.call_timeout_ms = 60_000;
            change(settings);
        };
        Lab { house: House::over(change, Some(folder.path())), _folder: folder }
    }

    fn golden() -> Lab {
        let lab = Lab::new(|_| {});
        lab.install("golden", GOLDEN);
        lab
    }

    fn host(&self) -> &Arc<PluginHost> {
        self.house.plugins.as_ref().unwrap()
    }

    fn install(&self, name: &str, wasm: &[u8]) -> Arc<PluginVersion> {
        let version = self.host().load(name, wasm, &LoadOptions::default()).unwrap();
        self.host().registry().publish(version.clone()).unwrap();
        version
    }

    fn one(&self, sql: &str) -> String {
        self.house.rows(sql).join("\n")
    }
}

/// The plugin with other code in the place of the factor 1.8: for rows one by one, and for
/// blocks of rows.
fn changed(one: [u8; 9], block: [u8; 18]) -> Vec<u8> {
    let factor = 1.8f64.to_le_bytes();
    let found_one = [&[0x44][..], &factor].concat();
    let found_block = [&[0xfd, 0x0c][..], &factor, &factor].concat();
    let mut wasm = TEMPERATURE.to_vec();
    let mut places = 0;
    for at in 0..wasm.len() {
        for (found, put) in [(&found_one, &one[..]), (&found_block, &block[..])] {
            if wasm[at..].starts_with(found) {
                wasm[at..at + put.len()].copy_from_slice(put);
                places += 1;
            }
        }
    }
    assert_eq!(places, 4, "the plugin was built anew");
    wasm
}

/// Code and as many no-ops as there is room for.
fn padded<const N: usize>(code: &[u8]) -> [u8; N] {
    let mut all = [0x01; N];
    all[..code.len()].copy_from_slice(code);
    all
}

fn with_factor(factor: f64) -> Vec<u8> {
    let factor = factor.to_le_bytes();
    let one = [&[0x44][..], &factor].concat();
    let block = [&[0xfd, 0x0c][..], &factor, &factor].concat();
    changed(padded(&one), padded(&block))
}

/// `loop (result t) br 0 end`.
fn endless() -> Vec<u8> {
    changed(padded(&[0x03, 0x7c, 0x0c, 0, 0x0b]), padded(&[0x03, 0x7b, 0x0c, 0, 0x0b]))
}

/// `unreachable`.
fn trapping() -> Vec<u8> {
    changed(padded(&[0]), padded(&[0]))
}

/// For blocks of rows: `loop (br_if 0 (memory.grow 16) != -1) end unreachable`.
fn hoarding() -> Vec<u8> {
    let hoard = [0x03, 0x40, 0x41, 0x10, 0x40, 0, 0x41, 0x7f, 0x47, 0x0d, 0, 0x0b, 0];
    changed(padded(&[0]), padded(&hoard))
}

#[test]
fn scalar_functions_answer_as_native_ones() {
    let lab = Lab::golden();
    lab.install("temperature", TEMPERATURE);
    for difference in [
        "golden.twice(x) IS DISTINCT FROM 2.0 * x",
        "golden.twice(n) IS DISTINCT FROM 2 * n",
        "golden.first_of(x, CAST(n AS DOUBLE)) IS DISTINCT FROM CAST(n AS DOUBLE)",
        "golden.above(x, 9000) IS DISTINCT FROM (x > 9000)",
        "golden.reversed(CAST(n AS TEXT)) IS DISTINCT FROM reverse(CAST(n AS TEXT))",
        "temperature.c2f(x) IS DISTINCT FROM x * 1.8 + 32",
    ] {
        let count = lab.one(&format!("SELECT count(*) FROM {ROWS} AS t WHERE {difference}"));
        assert_eq!(count, "0", "{difference}");
    }
    assert_eq!(
        lab.one("SELECT Temperature.C2F(100), golden.twice(3), golden.twice(NULL)"),
        "212.0|6|NULL"
    );
    assert_eq!(lab.one("SELECT golden.from_now(0) = golden.from_now(0)"), "true");
    assert_eq!(lab.one("SELECT golden.root(4) ORDER BY root"), "2.0");
}

#[test]
fn explain_analyze_tells_what_plugins_took() {
    let lab = Lab::golden();
    let sql =
        format!("EXPLAIN ANALYZE SELECT golden.golden_mean(golden.twice(x)) FROM {ROWS} AS t");
    let told = lab.one(&sql);
    let line = |call: &str| {
        let found = told.lines().find(|line| line.contains(call));
        found.unwrap_or_else(|| panic!("no {call} in {told}")).to_owned()
    };
    assert!(line("golden.twice (").contains("rows=20000, time="), "{told}");
    assert!(line("golden.golden_mean.update (").contains("calls="), "{told}");
    assert!(line("golden.instantiate (").contains("rows=0"), "{told}");
    let native = lab.one(&format!("EXPLAIN ANALYZE SELECT avg(2 * x) FROM {ROWS} AS t"));
    assert!(!native.contains("Plugins"), "{native}");
}

#[test]
fn tags_are_asked_for_once_a_value() {
    let lab = Lab::golden();
    lab.one("CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ)");
    lab.one(
        "INSERT INTO t SELECT 'host' || value % 5, value, to_timestamp(value) \
         FROM generate_series(1, 5000)",
    );
    let count = "SELECT count(*) FROM t WHERE golden.reversed(host) <> reverse(host)";
    assert_eq!(lab.one(count), "0");
    let map = lab.host().registry().snapshot();
    let version = map.get("golden").unwrap().active.clone().unwrap();
    assert!(version.stats().counts().rows < 5000, "{:?}", version.stats().counts());
    assert_eq!(
        lab.one("SELECT golden.reversed(host) AS r, count(*) FROM t GROUP BY r ORDER BY r LIMIT 1"),
        "0tsoh|1000"
    );
}

#[test]
fn aggregates_answer_as_native_ones() {
    let lab = Lab::golden();
    for (plugin, native) in [
        ("golden.golden_mean(x)", "avg(x)"),
        ("golden.golden_mean(x) FILTER (WHERE n % 3 = 0)", "avg(x) FILTER (WHERE n % 3 = 0)"),
        ("golden.golden_mean(DISTINCT x)", "avg(DISTINCT x)"),
        ("golden.golden_mean(DISTINCT n % 10)", "avg(DISTINCT n % 10)"),
        ("golden.golden_mean(x ORDER BY n DESC)", "avg(x)"),
    ] {
        let differ = format!(
            "SELECT count(*) FROM (SELECT n % 500 AS k, {plugin} AS a, {native} AS b, max(n) \
             FROM {ROWS} AS t GROUP BY k) AS g WHERE a IS DISTINCT FROM b"
        );
        assert_eq!(lab.one(&differ), "0", "{plugin}");
        for rows in ["true", "x IS NULL", "n < 0"] {
            let same = format!(
                "SELECT a IS NOT DISTINCT FROM b FROM (SELECT {plugin} AS a, {native} AS b \
                 FROM {ROWS} AS t WHERE {rows}) AS g"
            );
            assert_eq!(lab.one(&same), "true", "{plugin}, {rows}");
        }
    }
    let having = format!(
        "SELECT count(*) FROM (SELECT n % 5 AS k FROM {ROWS} AS t GROUP BY k \
         HAVING golden.golden_mean(x) > 0) AS g"
    );
    assert_eq!(lab.one(&having), "5");
}

#[test]
fn window_frames_answer_as_native_ones() {
    let lab = Lab::golden();
    lab.install("tdigest", TDIGEST);
    for over in [
        "ORDER BY n",
        "ORDER BY n ROWS BETWEEN 5 PRECEDING AND 2 FOLLOWING",
        "PARTITION BY n % 600 ORDER BY n",
        "PARTITION BY n % 600 ORDER BY n ROWS BETWEEN 3 PRECEDING AND CURRENT ROW",
        "PARTITION BY n % 10",
        "ORDER BY n RANGE BETWEEN 10 PRECEDING AND CURRENT ROW",
        "ORDER BY n / 7 GROUPS BETWEEN 2 PRECEDING AND 1 PRECEDING",
        "PARTITION BY n % 10 ORDER BY n DESC ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING",
        "PARTITION BY n % 10 ORDER BY n ROWS BETWEEN 5 FOLLOWING AND 9 FOLLOWING",
    ] {
        for (plugin, native) in
            [("golden.golden_mean(x)", "avg(x)"), ("tdigest.tdigest_quantile(x, 0)", "min(x)")]
        {
            // Two statements: the engine's planner, built for debugging, refuses some pairs of
            // aggregates over one window, also native ones (`stddev` of whole numbers, `min`).
            let of = |call: &str| {
                let rows =
                    format!("SELECT n, {call} OVER ({over}) FROM {ROWS} AS t WHERE n <= 3000");
                lab.house.rows(&format!("SELECT * FROM ({rows}) AS g ORDER BY 1"))
            };
            assert_eq!(of(plugin), of(native), "{plugin} over ({over})");
        }
    }
}

#[test]
fn failures_name_their_plugin_and_the_next_query_works() {
    let lab = Lab::golden();
    lab.install("trap", &trapping());
    let trap = lab.house.fails("SELECT golden.panics(value) FROM generate_series(1, 10)");
    assert_eq!(trap.code(), Code::PluginFailed);
    assert!(trap.message().contains("golden"), "{trap:?}");
    // A constant is evaluated in planning.
    let folded = lab.house.fails("EXPLAIN SELECT trap.c2f(1)");
    assert_eq!(folded.code(), Code::PluginFailed, "{folded:?}");
    assert_eq!(lab.house.code("SELECT golden.root(-1)"), Code::InvalidInput);
    assert_eq!(
        lab.house.code("SELECT golden.root(CAST(-value AS DOUBLE)) FROM generate_series(1, 9)"),
        Code::InvalidInput
    );
    assert_eq!(lab.one("SELECT golden.twice(2)"), "4");
    for (call, code) in [
        ("golden.twice(now())", Code::FunctionNotFound),
        ("golden.twice(1, 2)", Code::FunctionNotFound),
        ("golden.nothing(1)", Code::FunctionNotFound),
        ("nothing.twice(1)", Code::FunctionNotFound),
    ] {
        assert_eq!(lab.house.code(&format!("SELECT {call}")), code, "{call}");
    }
}

#[test]
fn what_is_put_aside_says_why_when_a_statement_is_planned() {
    let lab = Lab::golden();
    lab.host().registry().suspend("golden", "it was rude").unwrap();
    for sql in ["SELECT golden.twice(1)", "EXPLAIN SELECT golden.twice(1)"] {
        let error = lab.house.fails(sql);
        assert_eq!(error.code(), Code::PluginUnavailable);
        assert!(error.message().contains("it was rude"), "{error:?}");
    }
    lab.host().registry().resume("golden").unwrap();
    assert_eq!(lab.one("SELECT golden.twice(1)"), "2");
}

/// Where a call that never returns can stand.
const STUCK: [&str; 5] = [
    "SELECT count(*) FROM generate_series(1, 100) WHERE stuck.c2f(value) > 0",
    "SELECT value % 3 FROM generate_series(1, 100) GROUP BY 1 HAVING stuck.c2f(count(*)) > 0",
    "SELECT value FROM generate_series(1, 100) ORDER BY stuck.c2f(value)",
    "SELECT stuck.c2f(1)",
    "SELECT CASE WHEN value > 5 THEN stuck.c2f(value) END FROM generate_series(1, 100)",
];

#[test]
fn a_call_that_never_returns_ends_by_the_statements_timeout() {
    let lab = Lab::new(|_| {});
    lab.install("stuck", &endless());
    for sql in STUCK {
        let session = lab.house.session();
        let took = lab.house.run(async move {
            let clock = real::env().clock;
            rows(&session, "SET statement_timeout = '200ms'").await.unwrap();
            let error = rows(&session, sql).await.unwrap_err();
            assert_eq!(error.code(), Code::Deadline, "{sql}");
            clock.monotonic()
        });
        assert!(took < Duration::from_secs(20), "{sql}: {took:?}");
        super::limits::nothing_runs(&lab.house);
    }
    assert_eq!(lab.host().engine().instances(), 0);
}

#[test]
fn a_call_that_never_returns_ends_by_cancelling() {
    let lab = Lab::new(|_| {});
    lab.install("stuck", &endless());
    for sql in STUCK {
        let session = Arc::new(lab.house.session());
        let canceller = session.canceller();
        let running = lab
            .house
            .pools
            .spawn(kymo_kernel::pools::Pool::Io, "stuck", async move { rows(&session, sql).await });
        super::limits::wait_until(&lab.house, 1);
        canceller.cancel();
        let outcome = lab.house.run(running).unwrap();
        assert_eq!(outcome.unwrap_err().code(), Code::Cancelled, "{sql}");
        super::limits::nothing_runs(&lab.house);
    }
    assert_eq!(lab.one("SELECT 1"), "1");
}

#[test]
fn memory_of_plugins_is_bounded_by_their_limit_and_by_that_of_queries() {
    let hoard = "SELECT sum(hoard.c2f(value)) FROM generate_series(1, 100)";
    for change in [
        |settings: &mut Settings| settings.plugins.memory_bytes = 8 << 20,
        |settings: &mut Settings| settings.query.memory_bytes = 8 << 20,
    ] {
        let lab = Lab::new(change);
        lab.install("hoard", &hoarding());
        let error = lab.house.fails(hoard);
        assert_eq!(error.code(), Code::OutOfMemory, "{error:?}");
        lab.install("temperature", TEMPERATURE);
        assert_eq!(
            lab.one("SELECT count(temperature.c2f(value)) FROM generate_series(1, 100)"),
            "100"
        );
    }
}

#[test]
fn a_prepared_statement_follows_its_plugin_and_never_mixes_versions() {
    let lab = Lab::new(|_| {});
    lab.install("t", TEMPERATURE);
    let session = Arc::new(lab.house.session());
    let held = session.clone();
    let prepared = lab.house.run(async move {
        let sql = "SELECT t.c2f($1), t.c2f(CAST(value AS DOUBLE)) FROM generate_series(10, 10)";
        let statement = held.parse(sql).await.unwrap().remove(0);
        held.prepare(statement, Vec::new()).await.unwrap()
    });
    let execute = |session: &Arc<Session>| {
        let (session, prepared) = (session.clone(), prepared.clone());
        lab.house.run(async move {
            let ten: ArrayRef = Arc::new(datafusion::arrow::array::StringArray::from(vec!["10"]));
            let ten = match prepared.parameters.first() {
                Some(datafusion::arrow::datatypes::DataType::Float64) => {
                    Arc::new(datafusion::arrow::array::Float64Array::from(vec![10.0])) as ArrayRef
                }
                _ => ten,
            };
            let outcome = session.execute(Runnable::Prepared(prepared), vec![ten], None).await?;
            collect(outcome).await
        })
    };
    assert_eq!(execute(&session).unwrap(), ["50.0|50.0"]);
    assert_eq!(execute(&session).unwrap(), ["50.0|50.0"]);
    lab.install("t", &with_factor(2.0));
    assert_eq!(execute(&session).unwrap(), ["52.0|52.0"]);
    lab.host().registry().disable("t", "closed").unwrap();
    assert_eq!(execute(&session).unwrap_err().code(), Code::PluginUnavailable);
    assert_eq!(lab.host().engine().instances(), 0, "a plan at rest has no instance");
}

#[test]
fn each_result_comes_from_one_version_while_plugins_are_swapped() {
    const SWAPS: usize = 1000;
    let lab = Lab::new(|_| {});
    let versions = [with_factor(2.0), with_factor(3.0)];
    lab.install("t", &versions[0]);
    let done = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let (session, done) = (lab.house.session(), done.clone());
            lab.house.pools.spawn(kymo_kernel::pools::Pool::Io, "load", async move {
                let sql = "SELECT DISTINCT (t.c2f(value) - 32) / value \
                           FROM generate_series(1, 20000) WHERE t.c2f(value) > 0";
                let mut seen = std::collections::BTreeMap::<String, usize>::new();
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let found = rows(&session, sql).await.unwrap();
                    assert_eq!(found.len(), 1, "{found:?}");
                    *seen.entry(found[0].clone()).or_default() += 1;
                }
                seen
            })
        })
        .collect();
    for swap in 0..SWAPS {
        lab.install("t", &versions[swap % 2]);
    }
    done.store(true, std::sync::atomic::Ordering::Relaxed);
    for worker in workers {
        let seen = lab.house.run(worker).unwrap();
        assert!(seen.keys().all(|factor| factor == "2.0" || factor == "3.0"), "{seen:?}");
        assert!(!seen.is_empty());
    }
    assert!(lab.host().registry().loaded().len() <= 4, "old versions have gone");
}
