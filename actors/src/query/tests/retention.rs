//! How long rows are kept, as a query sees it and as it ends on the disk.

use kymo_kernel::schema::{TableBatch, TableName};

use super::*;
use crate::engine::kit;

const HOUR: i64 = 3_600_000_000_000;

fn now(house: &House) -> i64 {
    house.engine.store().env().clock.now_ns()
}

/// Rows of `host`, `n` and `time`.
fn put(house: &House, table: &str, rows: &[(i64, i64)]) {
    let rows: Vec<String> = rows.iter().map(|(n, at)| format!("('a', {n}, {at})")).collect();
    house.rows(&format!("INSERT INTO {table} VALUES {}", rows.join(", ")));
}

fn create(house: &House, table: &str) {
    house.rows(&format!("CREATE TABLE {table} (host TEXT TAG, n BIGINT, time TIMESTAMPTZ)"));
}

#[test]
fn a_query_cuts_exactly_at_its_own_edge() {
    let house = House::new();
    create(&house, "t");
    create(&house, "u");
    // Around the edge, where the clock passes some of them while the test runs.
    let start = now(&house);
    let around: Vec<(i64, i64)> = (-40..400).map(|n| (n, start - HOUR + n * 50_000_000)).collect();
    for part in around.chunks(97) {
        put(&house, "t", part);
        put(&house, "u", part);
        if part[0].0 < 200 {
            house.flush();
        }
    }
    put(&house, "t", &[(-1, start - HOUR - 50_000_000)]);
    put(&house, "u", &[(-1, start - HOUR - 50_000_000)]);
    house.rows("ALTER TABLE t SET (retention = '1h')");
    let both = "SELECT (SELECT count(*) FROM t) - (SELECT count(*) FROM u WHERE time > now() - INTERVAL '1 hour'), \
                (SELECT sum(n) FROM t) - (SELECT sum(n) FROM u WHERE time > now() - INTERVAL '1 hour'), \
                (SELECT count(*) FROM t WHERE time <= now() - INTERVAL '1 hour')";
    for _ in 0..20 {
        assert_eq!(house.rows(both), ["0|0|0"]);
    }
    let first: i64 = house.rows("SELECT n FROM t ORDER BY time LIMIT 1")[0].parse().unwrap();
    assert!(first > 0);
    assert_eq!(house.rows("SELECT 'x' FROM t WHERE n < 0 LIMIT 5"), Vec::<String>::new());
    assert_eq!(house.rows("SELECT n FROM t WHERE host = 'a' AND n = 399 LIMIT 1"), ["399"]);
    // What is expired is not deleted, and not there to be deleted.
    assert_eq!(house.rows("DELETE FROM t WHERE n < 0"), ["DELETE 0"]);
    assert_eq!(house.rows("DELETE FROM t WHERE n = 399"), ["DELETE 1"]);
    house.rows("ALTER TABLE t RESET (retention)");
    assert_eq!(house.rows("SELECT count(*) FROM t"), ["439"]);
}

#[test]
fn a_table_goes_before_its_database() {
    let house = House::new();
    for table in ["t", "own", "always"] {
        create(&house, table);
        put(&house, table, &[(1, now(&house) - 10 * HOUR), (2, now(&house))]);
    }
    house.rows(
        "ALTER TABLE own SET (retention = '20h'); ALTER TABLE always SET (retention = 'forever')",
    );
    house.rows("ALTER DATABASE kymo SET (retention = '5h')");
    let counts = "SELECT (SELECT count(*) FROM t) AS a, (SELECT count(*) FROM own) AS b, (SELECT count(*) FROM always)";
    assert_eq!(house.rows(counts), ["1|2|2"]);
    let shown = "SELECT \"table\", retention FROM system.tables ORDER BY 1";
    assert_eq!(house.rows(shown), ["always|NULL", "own|20h", "t|5h"]);
    let create = |table: &str| house.rows(&format!("SHOW CREATE TABLE {table}")).remove(0);
    assert!(create("own").ends_with("retention = '20h')"), "{}", create("own"));
    assert!(create("always").ends_with("retention = 'forever')"), "{}", create("always"));
    assert!(!create("t").contains("retention"), "{}", create("t"));
    house.rows("ALTER DATABASE kymo RESET (retention)");
    assert_eq!(house.rows(counts), ["2|2|2"]);
}

#[test]
fn rows_that_are_too_old_are_refused_and_cost_only_themselves() {
    let house = House::new();
    house.rows(
        "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMPTZ) WITH (retention = '1h')",
    );
    let now = now(&house);
    let error = house
        .fails(&format!("INSERT INTO cpu VALUES ('a', 1, {}), ('a', 1, {now})", now - 2 * HOUR));
    assert_eq!(error.code(), Code::OutOfRange);
    assert!(error.message().contains("kymo.public.cpu"), "{error:?}");
    let write = |table: &TableName| -> TableBatch {
        kit::rows(table, &[("a", now, 1.0), ("a", now - 2 * HOUR, 2.0), ("b", now - HOUR / 2, 3.0)])
    };
    let engine = house.engine.clone();
    let batch = write(&kit::cpu());
    let acked =
        house.run(async move { engine.write().call(kit::write(vec![batch])).await }).unwrap();
    assert_eq!(acked.rows, 2);
    let rejected: Vec<_> = acked.rejected.iter().map(|row| (row.line, row.error.code())).collect();
    assert_eq!(rejected, [(2, Code::OutOfRange)]);
    // Also where the table does not exist yet and its database says so.
    house.rows("ALTER DATABASE kymo SET (retention = '1h')");
    let engine = house.engine.clone();
    let batch = write(&TableName::new("kymo", "new"));
    let acked =
        house.run(async move { engine.write().call(kit::write(vec![batch])).await }).unwrap();
    assert_eq!((acked.rows, acked.rejected.len()), (2, 1));
}

#[test]
fn expired_segments_go_whole_and_merges_leave_expired_rows() {
    let house = House::with(|settings| {
        settings.retention.interval_ms = 5;
        settings.compaction.interval_ms = 5;
        settings.compaction.quiet_ms = 1;
        settings.compaction.grace_ms = 1;
    });
    house.rows("CREATE TABLE t (host TEXT TAG, n BIGINT, time TIMESTAMPTZ) WITH (window = '8h')");
    // The window of now and the ones before; one of them holds rows on both sides of the edge.
    let now = now(&house);
    let window = now - now.rem_euclid(8 * HOUR);
    let rows: Vec<(i64, i64)> = (0..20).map(|n| (n, window - n * 2 * HOUR)).collect();
    put(&house, "t", &rows);
    house.flush();
    let before = house.rows("SELECT n FROM t WHERE time > now() - INTERVAL '21 hours' ORDER BY n");
    let stored = "SELECT sum(rows) FROM system.segments";
    assert_eq!(house.rows(stored), ["20"]);
    house.rows("ALTER TABLE t SET (retention = '21h')");
    // What the segments hold in the end: the rows that are kept, and no segment without one.
    let last =
        "SELECT count(*) FROM system.segments WHERE last_time <= now() - INTERVAL '21 hours'";
    while house.rows(last) != ["0"]
        || house.rows(stored)[0].parse::<i64>().unwrap() > before.len() as i64 + 3
    {}
    assert_eq!(house.rows("SELECT n FROM t ORDER BY n"), before);
    // A merge of the segment at the edge cuts it there.
    let edge = rows.iter().rev().find(|(_, at)| *at > now - 21 * HOUR).unwrap();
    put(&house, "t", &[(100, edge.1 + 1)]);
    house.flush();
    let exact = format!("SELECT sum(rows) - {} FROM system.segments", before.len() + 1);
    while house.rows(&exact) != ["0"] {}
    assert_eq!(house.rows("SELECT count(*) FROM t"), [(before.len() + 1).to_string()]);
}
