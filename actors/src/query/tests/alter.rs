//! Tables whose columns change while they are written and read.

use super::*;

const T: &str = "CREATE TABLE t (host TEXT TAG, v DOUBLE PRECISION, n BIGINT, time TIMESTAMPTZ)";

#[test]
fn rows_in_memory_and_in_segments_go_by_the_ids_of_columns() {
    let house = House::new();
    house.rows(T);
    house.rows("INSERT INTO t VALUES ('a', 1, 10, '2024-01-01'), ('b', 2, 20, '2024-01-01')");
    house.flush();
    house.rows("INSERT INTO t VALUES ('a', 3, 30, '2024-01-01T01:00:00Z')");
    house.rows("ALTER TABLE t RENAME COLUMN v TO w, RENAME COLUMN host TO node");
    house.rows("INSERT INTO t (node, w, n, time) VALUES ('b', 4, 40, '2024-01-01T01:00:00Z')");
    let all = "SELECT node, w, n FROM t ORDER BY time, node";
    let wanted = ["a|1.0|10", "b|2.0|20", "a|3.0|30", "b|4.0|40"];
    assert_eq!(house.rows(all), wanted);
    house.flush();
    assert_eq!(house.rows(all), wanted);
    house.rows("INSERT INTO t (node, w, time) VALUES ('a', 5, '2024-01-01')");
    assert_eq!(house.rows(all)[0], "a|5.0|10", "a series is known by its values");
    house.rows("ALTER TABLE t DROP COLUMN w");
    house.rows("ALTER TABLE t ADD COLUMN w DOUBLE PRECISION");
    assert_eq!(house.rows("SELECT count(w), sum(n) FROM t"), ["0|100"]);
    house.flush();
    assert_eq!(house.rows("SELECT count(w), sum(n) FROM t"), ["0|100"]);
    house.rows("INSERT INTO t (node, w, time) VALUES ('a', 6, '2024-01-01')");
    assert_eq!(house.rows(all), ["a|6.0|10", "b|NULL|20", "a|NULL|30", "b|NULL|40"]);
    house.rows("DELETE FROM t WHERE w = 6");
    assert_eq!(house.rows(all), ["b|NULL|20", "a|NULL|30", "b|NULL|40"]);
    let shown = house.rows("SHOW CREATE TABLE t").join("");
    assert!(shown.contains("node TEXT TAG") && shown.contains("w DOUBLE PRECISION"), "{shown}");
}

#[test]
fn a_prepared_statement_over_a_table_that_changed_is_planned_anew() {
    let house = House::new();
    house.rows(T);
    house.rows("INSERT INTO t VALUES ('a', 1, 10, '2024-01-01')");
    let session = house.session();
    house.run(async move {
        let prepare = async |sql: &str| {
            let statement = session.parse(sql).await.unwrap().remove(0);
            session.prepare(statement, Vec::new()).await.unwrap()
        };
        let all = prepare("SELECT * FROM t").await;
        let host = prepare("SELECT host FROM t WHERE n > 1").await;
        let v = prepare("SELECT v FROM t").await;
        let insert = prepare("INSERT INTO t (host, n, time) VALUES ('b', 2, '2024-01-02')").await;
        let run = async |prepared: &Arc<kymo_kernel::message::Prepared>| {
            let run = Runnable::Prepared(prepared.clone());
            collect(session.execute(run, Vec::new(), None).await?).await
        };
        rows(&session, "ALTER TABLE t ADD COLUMN w BIGINT").await.unwrap();
        assert_eq!(run(&host).await.unwrap(), ["a"]);
        let changed = run(&all).await.unwrap_err();
        assert_eq!(changed.message(), "cached plan must not change result type");
        assert_eq!(changed.code(), Code::Unsupported, "0A000 in PostgreSQL's words");
        rows(&session, "ALTER TABLE t RENAME COLUMN v TO x, RENAME COLUMN w TO v").await.unwrap();
        assert_eq!(run(&v).await.unwrap_err().code(), Code::Unsupported, "of another type");
        rows(&session, "ALTER TABLE t DROP COLUMN v").await.unwrap();
        assert_eq!(run(&v).await.unwrap_err().code(), Code::ColumnNotFound);
        assert_eq!(run(&insert).await.unwrap(), ["INSERT 1"]);
        assert_eq!(run(&host).await.unwrap(), ["a", "b"]);
    });
}
