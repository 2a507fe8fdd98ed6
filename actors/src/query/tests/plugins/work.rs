//! What calls of plugins cost a statement: batches are full, groups spill, names are found.

use super::*;

/// How many batches a statement answers, and their rows.
fn batches(lab: &Lab, sql: &'static str) -> (usize, usize) {
    let session = lab.house.session();
    lab.house.run(async move {
        let statement = session.parse(sql).await.unwrap().remove(0);
        let outcome = session.execute(Runnable::Statement(statement), Vec::new(), None).await;
        let Outcome::Rows { mut stream, .. } = outcome.unwrap() else { panic!("no rows") };
        let (mut batches, mut rows) = (0, 0);
        while let Some(batch) = stream.next().await {
            (batches, rows) = (batches + 1, rows + batch.unwrap().num_rows());
        }
        (batches, rows)
    })
}

#[test]
fn short_batches_are_joined_before_they_reach_a_plugin() {
    let lab = Lab::golden();
    let temperature = lab.install("temperature", TEMPERATURE);
    let map = lab.host().registry().snapshot();
    let golden = map.get("golden").unwrap().active.clone().unwrap();
    lab.one("CREATE TABLE t (host TEXT TAG, v DOUBLE PRECISION, time TIMESTAMPTZ)");
    for row in 0..20 {
        lab.one(&format!("INSERT INTO t VALUES ('a', {row}, to_timestamp({row}))"));
        lab.house.flush();
    }
    let (short, rows) = batches(&lab, "SELECT v FROM t");
    assert_eq!(rows, 20);
    assert!(short >= 10, "{short} batches of a table that was written in 20");
    for (sql, version, expected) in [
        ("SELECT sum(temperature.c2f(v)) FROM t", &temperature, "982.0"),
        ("SELECT count(*) FROM t WHERE temperature.c2f(v) > 32", &temperature, "19"),
        (
            "SELECT count(*) FROM (SELECT temperature.c2f(v) AS f FROM t) AS g WHERE f > 32",
            &temperature,
            "19",
        ),
        ("SELECT golden.golden_mean(v) FROM t", &golden, "9.5"),
    ] {
        let before = version.stats().counts();
        assert_eq!(lab.one(sql), expected, "{sql}");
        let after = version.stats().counts();
        let made = after.calls - before.calls;
        // Start and one batch, or what an aggregate is asked until it has its result.
        assert!(made <= 6, "{sql}: {made} calls for {short} batches");
    }
}

/// Waits until the workers of statements that have ended hold no instance.
fn no_instances(lab: &Lab) {
    let clock = real::env().clock;
    let deadline = clock.monotonic() + Duration::from_secs(10);
    while lab.host().engine().instances() > 0 {
        assert!(clock.monotonic() < deadline, "instances are left");
        std::thread::yield_now();
    }
}

#[test]
fn more_groups_than_the_memory_of_queries_holds_spill_with_their_states() {
    let folder = tempfile::tempdir().unwrap();
    let spill = folder.path().join("tmp");
    std::fs::create_dir(&spill).unwrap();
    let lab = Lab::new(|settings| {
        settings.server.data_dir = folder.path().into();
        settings.query.memory_bytes = 24 << 20;
    });
    lab.install("golden", GOLDEN);
    let groups = "SELECT value % 300000 AS k, avg(CAST(value AS DOUBLE)) AS a, \
                  golden.golden_mean(CAST(value AS DOUBLE)) AS b \
                  FROM generate_series(1, 600000) GROUP BY k";
    let check = format!(
        "SELECT count(*), count(*) FILTER (WHERE a <> b OR b IS NULL) FROM ({groups}) AS g"
    );
    assert_eq!(lab.one(&check), "300000|0");
    let plan = lab.one(&format!("EXPLAIN ANALYZE {groups}"));
    let spilled = plan
        .match_indices("spill_count=")
        .any(|(at, name)| !plan[at + name.len()..].starts_with('0'));
    assert!(spilled, "{plan}");
    no_instances(&lab);
    super::super::limits::nothing_runs(&lab.house);
    // Where there is no room at all the query ends, and what it held is there again.
    let lab = Lab::new(|settings| settings.query.memory_bytes = 4 << 20);
    lab.install("golden", GOLDEN);
    assert_eq!(lab.house.code(&check), Code::OutOfMemory);
    no_instances(&lab);
    assert_eq!(lab.one("SELECT golden.twice(2)"), "4");
}

#[test]
fn an_unknown_function_is_told_from_what_plugins_have() {
    let lab = Lab::golden();
    lab.install("temperature", TEMPERATURE);
    for (call, meant) in [
        ("c2f(1)", "temperature.c2f()"),
        ("temprature.c2f(1)", "temperature.c2f()"),
        ("temperature.c2ff(1)", "temperature.c2f()"),
        ("golden.twise(1)", "golden.twice()"),
        ("golden_mean(1) OVER ()", "golden.golden_mean()"),
    ] {
        let error = lab.house.fails(&format!("SELECT {call}"));
        assert_eq!(error.code(), Code::FunctionNotFound, "{call}: {error:?}");
        let hint = error.hint().unwrap_or_default();
        assert!(hint.contains(meant), "{call}: {error:?}");
    }
    let error = lab.house.fails("SELECT flor(1.5)");
    assert!(error.hint().unwrap_or_default().contains("floor"), "{error:?}");
}
