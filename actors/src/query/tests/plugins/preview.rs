//! Window and table functions of plugins, which are preview interfaces.

use super::*;

/// Window function `peers`, table functions `numbers`, `stuck` and `broken`.
const PREVIEW: &[u8] = include_bytes!("../../../../../plugins/tests/fixtures/preview.wasm");

fn lab() -> Lab {
    let lab = Lab::new(|settings| settings.plugins.preview = true);
    lab.install("preview", PREVIEW);
    lab
}

fn with_table() -> Lab {
    let lab = lab();
    lab.one("CREATE TABLE t (host TEXT TAG, v DOUBLE PRECISION, time TIMESTAMPTZ)");
    lab.one(
        "INSERT INTO t SELECT 'host' || value % 5, CASE WHEN value % 7 > 0 THEN value END, \
         to_timestamp(value / 3) FROM generate_series(1, 3000)",
    );
    lab
}

/// Up to the end of a row's peers there are as many rows as the frame has that ends there.
#[test]
fn window_functions_see_their_partition_its_order_and_its_peers() {
    let lab = with_table();
    for over in [
        "",
        "PARTITION BY host",
        "ORDER BY time",
        "ORDER BY v",
        "ORDER BY v DESC NULLS LAST, host",
        "PARTITION BY host ORDER BY time",
        "PARTITION BY host ORDER BY date_trunc('minute', time) DESC",
        "PARTITION BY v > 1500, host ORDER BY host",
        "PARTITION BY date_trunc('minute', time) ORDER BY host",
    ] {
        let rows = |call: &str| {
            let call = format!("{call} OVER ({over}) AS found");
            lab.house.rows(&format!("SELECT host, time, v, {call} FROM t ORDER BY 1, 2, 3"))
        };
        assert_eq!(rows("preview.peers(v)"), rows("count(*)"), "over ({over})");
        assert_eq!(rows("preview.peers(host, 3)"), rows("count(*)"), "tags, over ({over})");
    }
    let named = "SELECT DISTINCT preview.peers(v) OVER w - count(*) OVER w FROM t \
                 WINDOW w AS (PARTITION BY host ORDER BY time)";
    assert_eq!(lab.one(named), "0");
    let frame = "SELECT preview.peers(v) OVER (ORDER BY v ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) \
                 FROM t ORDER BY 1 LIMIT 1";
    assert_eq!(lab.one(frame), "1", "a frame means nothing to it");
    assert_eq!(lab.one("SELECT preview.peers(v) OVER () FROM t WHERE false"), "");
    assert_eq!(lab.host().engine().instances(), 0);
}

#[test]
fn window_functions_say_how_they_are_called() {
    let lab = lab();
    let error = lab.house.fails("SELECT preview.peers(1.5)");
    assert_eq!(error.code(), Code::FunctionNotFound);
    assert!(error.hint().is_some_and(|hint| hint.contains("OVER")), "{error:?}");
    for (call, code) in [
        ("preview.peers(1.5) FILTER (WHERE true) OVER ()", Code::Unsupported),
        ("preview.peers(1.5) IGNORE NULLS OVER ()", Code::Unsupported),
        ("preview.peers(DISTINCT 1.5) OVER ()", Code::Unsupported),
        ("preview.peers() OVER ()", Code::FunctionNotFound),
        ("preview.peers(now()) OVER ()", Code::FunctionNotFound),
        ("preview.piers(1.5) OVER ()", Code::FunctionNotFound),
        ("nothing.peers(1.5) OVER ()", Code::FunctionNotFound),
    ] {
        let error = lab.house.fails(&format!("SELECT {call}"));
        assert_eq!(error.code(), code, "{call}: {error:?}");
    }
}

#[test]
fn table_functions_are_tables_of_their_rows() {
    let lab = lab();
    for (sql, expected) in [
        ("SELECT count(*), sum(x), max(x) FROM preview.numbers(20000)", "20000|199990000|19999"),
        ("SELECT * FROM preview.numbers(1 + 2, 'x')", "0\n1\n2"),
        ("SELECT x FROM Preview.Numbers(9223372036854775807) LIMIT 2 OFFSET 20000", "20000\n20001"),
        ("SELECT numbers.x FROM preview.numbers(2) ORDER BY x DESC", "1\n0"),
        ("SELECT n FROM preview.numbers(2) AS t(n) ORDER BY n DESC", "1\n0"),
        ("SELECT count(*) FROM preview.numbers(0)", "0"),
        ("SELECT 7 FROM preview.numbers(2)", "7\n7"),
        (
            "SELECT a.x + b.x FROM preview.numbers(3) AS a JOIN preview.numbers(9) AS b \
             ON a.x = b.x ORDER BY 1",
            "0\n2\n4",
        ),
        ("SELECT (SELECT max(x) FROM preview.numbers(5))", "4"),
        (
            "SELECT count(*) FROM preview.numbers(5) WHERE x IN (SELECT x FROM preview.numbers(2))",
            "2",
        ),
        ("WITH n AS (SELECT * FROM preview.numbers(3)) SELECT sum(x) FROM n", "3"),
        ("SELECT x FROM preview.numbers('3') ORDER BY x LIMIT 1", "0"),
    ] {
        assert_eq!(lab.one(sql), expected, "{sql}");
    }
    assert_eq!(lab.one("SELECT count(*) FROM pg_catalog.generate_series(1, 3)"), "3");
    let plan = lab.one("EXPLAIN SELECT * FROM preview.numbers(3) LIMIT 2");
    assert!(plan.contains("preview.numbers(3), plugin=preview 1.2.3, limit=2"), "{plan}");
    assert_eq!(lab.host().engine().instances(), 0);
}

#[test]
fn table_functions_take_constants_and_parameters() {
    let lab = lab();
    let session = Arc::new(lab.house.session());
    let held = session.clone();
    let (once, twice) = lab.house.run(async move {
        let sql = "SELECT sum(x) FROM preview.numbers($1)";
        let three: ArrayRef = Arc::new(datafusion::arrow::array::Int64Array::from(vec![3]));
        let once = prepared(&held, sql, vec![three]).await.unwrap();
        // Without parameters in it, the table is a part of the plan that is kept.
        let sql = "SELECT sum(x) + $1 FROM preview.numbers(4)";
        let statement = held.parse(sql).await.unwrap().remove(0);
        let statement = held.prepare(statement, Vec::new()).await.unwrap();
        let mut twice = Vec::new();
        for value in [10, 20] {
            let value: ArrayRef = Arc::new(datafusion::arrow::array::Int64Array::from(vec![value]));
            let run = Runnable::Prepared(statement.clone());
            let outcome = held.execute(run, vec![value], None).await.unwrap();
            twice.extend(collect(outcome).await.unwrap());
        }
        (once, twice)
    });
    assert_eq!(once, ["3"]);
    assert_eq!(twice, ["16", "26"]);
    assert_eq!(lab.host().engine().instances(), 0, "a plan at rest has no instance");
    for (sql, code) in [
        ("SELECT * FROM preview.numbers(now())", Code::FunctionNotFound),
        ("SELECT * FROM preview.numbers()", Code::FunctionNotFound),
        ("SELECT * FROM preview.numbers('many')", Code::InvalidCast),
        ("SELECT * FROM preview.nombers(1)", Code::FunctionNotFound),
        ("SELECT * FROM nothing.numbers(1)", Code::FunctionNotFound),
        ("SELECT preview.numbers(1)", Code::Unsupported),
        ("SELECT * FROM preview.peers(1.5)", Code::Unsupported),
        ("SELECT * FROM preview.numbers(random())", Code::Unsupported),
        (
            "SELECT * FROM generate_series(1, 2) AS g, LATERAL preview.numbers(g.value)",
            Code::Unsupported,
        ),
    ] {
        let error = lab.house.fails(sql);
        assert_eq!(error.code(), code, "{sql}: {error:?}");
    }
}

/// Calls of the plugin since it was installed.
fn calls(lab: &Lab) -> u64 {
    let map = lab.host().registry().snapshot();
    map.get("preview").unwrap().active.clone().unwrap().stats().counts().calls
}

#[test]
fn a_table_function_is_asked_for_no_more_than_its_reader_takes() {
    let lab = Lab::new(|settings| {
        settings.plugins.preview = true;
        settings.query.stream_batches = 2;
    });
    lab.install("preview", PREVIEW);
    let before = calls(&lab);
    assert_eq!(lab.one("SELECT x FROM preview.numbers(9223372036854775807) LIMIT 1"), "0");
    assert_eq!(calls(&lab) - before, 3, "start, open and one batch");
    let before = calls(&lab);
    let session = lab.house.session();
    let host = lab.host().clone();
    let asked = lab.house.run(async move {
        let sql = "SELECT x FROM preview.numbers(9223372036854775807)";
        let statement = session.parse(sql).await.unwrap().remove(0);
        let outcome =
            session.execute(Runnable::Statement(statement), Vec::new(), None).await.unwrap();
        let Outcome::Rows { mut stream, .. } = outcome else { panic!("no rows") };
        let calls = || {
            let map = host.registry().snapshot();
            map.get("preview").unwrap().active.clone().unwrap().stats().counts().calls - before
        };
        for _ in 0..5 {
            assert!(stream.next().await.unwrap().unwrap().num_rows() > 0);
        }
        // Start and open; what was read, what the channel holds, and what waits for room in it.
        let most = 2 + 5 + 2 + 1;
        while calls() < most {
            tokio::task::yield_now().await;
        }
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        calls() - most
    });
    assert_eq!(asked, 0);
    super::super::limits::nothing_runs(&lab.house);
    assert_eq!(lab.host().engine().instances(), 0);
}

/// Where a table function that never answers can stand.
const STUCK: [&str; 3] = [
    "SELECT * FROM preview.stuck(1)",
    "SELECT count(*) FROM generate_series(1, 10) WHERE value IN (SELECT x FROM preview.stuck(1))",
    // It answers, and never comes to its end.
    "SELECT count(*) FROM preview.numbers(9223372036854775807)",
];

#[test]
fn a_table_function_that_never_ends_ends_by_cancelling_and_by_timeout() {
    let lab = lab();
    for sql in STUCK {
        let session = Arc::new(lab.house.session());
        let canceller = session.canceller();
        let running = lab
            .house
            .pools
            .spawn(kymo_kernel::pools::Pool::Io, "stuck", async move { rows(&session, sql).await });
        super::super::limits::wait_until(&lab.house, 1);
        canceller.cancel();
        let outcome = lab.house.run(running).unwrap();
        assert_eq!(outcome.unwrap_err().code(), Code::Cancelled, "{sql}");
        super::super::limits::nothing_runs(&lab.house);
        let session = lab.house.session();
        lab.house.run(async move {
            rows(&session, "SET statement_timeout = '200ms'").await.unwrap();
            assert_eq!(rows(&session, sql).await.unwrap_err().code(), Code::Deadline, "{sql}");
        });
        super::super::limits::nothing_runs(&lab.house);
    }
    let error = lab.house.fails("SELECT * FROM preview.broken(1)");
    assert_eq!(error.code(), Code::PluginFailed, "{error:?}");
    assert_eq!(lab.one("SELECT count(*) FROM preview.numbers(5)"), "5");
    assert_eq!(lab.host().engine().instances(), 0);
}
