//! What drivers and tools send: parameters, cursors, transactions, catalog queries.

use datafusion::arrow::array::{
    Int32Array, Int64Array, ListArray, StringArray, TimestampMicrosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Int64Type, IntervalUnit};

use super::*;
use crate::session::Status;

const T: &str = "CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ);
    INSERT INTO t SELECT 'h' || value % 3, value, to_timestamp(value) FROM generate_series(1, 10)";

fn one(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

fn text(value: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

#[test]
fn parameters_have_types_and_take_values() {
    let house = House::new();
    house.rows(T);
    let session = house.session();
    house.run(async move {
        let types = |sql: &str| {
            let (session, sql) = (&session, sql.to_owned());
            async move {
                let statement = session.parse(sql).await.unwrap().remove(0);
                session.prepare(statement, Vec::new()).await.unwrap().parameters.clone()
            }
        };
        let interval = DataType::Interval(IntervalUnit::MonthDayNano);
        let list = DataType::new_list(DataType::Int64, true);
        assert_eq!(
            types("SELECT v FROM t WHERE host = $1 AND v > $2").await,
            [DataType::Utf8, DataType::Int64]
        );
        assert_eq!(
            types("SELECT v FROM t LIMIT $1 OFFSET $2").await,
            [DataType::Int64, DataType::Int64]
        );
        assert_eq!(types("SELECT v FROM t WHERE v = ANY($1)").await, [list]);
        assert_eq!(types("SELECT count(*) FROM t WHERE time > now() - $1").await, [interval]);
        assert_eq!(
            types("SELECT * FROM generate_series($1, $2)").await,
            [DataType::Int64, DataType::Int64]
        );
        assert_eq!(types("SELECT $1").await, [DataType::Utf8]);
        assert_eq!(types("INSERT INTO t (host, v, time) VALUES ($1, $2, $3)").await.len(), 3);

        let run = |sql: &'static str, values: Vec<ArrayRef>| prepared(&session, sql, values);
        assert_eq!(
            run("SELECT v FROM t WHERE host = $1 AND v > $2 ORDER BY v", vec![text("h1"), one(4)])
                .await
                .unwrap(),
            ["7", "10"]
        );
        assert_eq!(
            run("SELECT v FROM t ORDER BY v LIMIT $1 OFFSET $2", vec![one(2), one(3)])
                .await
                .unwrap(),
            ["4", "5"]
        );
        let array =
            ListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(2), Some(9), Some(99)])]);
        assert_eq!(
            run("SELECT v FROM t WHERE v = ANY($1) ORDER BY v", vec![Arc::new(array)])
                .await
                .unwrap(),
            ["2", "9"]
        );
        assert_eq!(
            run("SELECT * FROM generate_series($1, $2)", vec![one(1), one(3)]).await.unwrap(),
            ["1", "2", "3"]
        );
        let narrow: ArrayRef = Arc::new(Int32Array::from(vec![3]));
        assert_eq!(run("SELECT v FROM t WHERE v = $1", vec![narrow]).await.unwrap(), ["3"]);
        let time: ArrayRef =
            Arc::new(TimestampMicrosecondArray::from(vec![99_000_000]).with_timezone("+00:00"));
        assert_eq!(
            run(
                "INSERT INTO t (host, v, time) VALUES ($1, $2, $3)",
                vec![text("x"), one(99), time]
            )
            .await
            .unwrap(),
            ["INSERT 1"]
        );
        assert_eq!(run("SELECT v FROM t WHERE host = $1", vec![text("x")]).await.unwrap(), ["99"]);
        assert_eq!(
            run("SELECT v FROM t WHERE v = $1", vec![]).await.unwrap_err().code(),
            Code::InvalidParameter
        );
        assert_eq!(
            run("SELECT v FROM t WHERE v = $1", vec![text("x")]).await.unwrap_err().code(),
            Code::InvalidCast
        );
    });
}

#[test]
fn a_prepared_statement_sees_new_rows_and_survives_new_definitions() {
    let house = House::new();
    house.rows(T);
    let session = house.session();
    house.run(async move {
        let statement =
            session.parse("SELECT count(*) FROM t WHERE v >= $1").await.unwrap().remove(0);
        let prepared = session.prepare(statement, vec![Some(DataType::Int64)]).await.unwrap();
        let run = || async {
            let run = Runnable::Prepared(prepared.clone());
            collect(session.execute(run, vec![one(10)], None).await?).await
        };
        assert_eq!(run().await.unwrap(), ["1"]);
        rows(&session, "INSERT INTO t VALUES ('n', 50, now())").await.unwrap();
        assert_eq!(run().await.unwrap(), ["2"]);
        rows(&session, "DROP TABLE t").await.unwrap();
        assert_eq!(run().await.unwrap_err().code(), Code::TableNotFound);
        rows(
            &session,
            "CREATE TABLE t (v BIGINT, time TIMESTAMPTZ); INSERT INTO t VALUES (10, now())",
        )
        .await
        .unwrap();
        assert_eq!(run().await.unwrap(), ["1"]);
    });
}

#[test]
fn transactions_have_a_status_and_cursors_live_in_them() {
    let house = House::new();
    house.rows(T);
    let session = house.session();
    house.run(async move {
        assert_eq!(
            rows(&session, "DECLARE c CURSOR FOR SELECT 1").await.unwrap_err().code(),
            Code::NoTransaction
        );
        rows(&session, "BEGIN").await.unwrap();
        assert_eq!(session.transaction(), Status::InBlock);
        rows(&session, "DECLARE c NO SCROLL CURSOR FOR SELECT v FROM t ORDER BY v").await.unwrap();
        assert_eq!(rows(&session, "FETCH 3 FROM c").await.unwrap(), ["1", "2", "3"]);
        assert_eq!(rows(&session, "MOVE FORWARD 5 IN c").await.unwrap(), ["MOVE 5"]);
        let fetch = session.parse("FETCH FORWARD ALL FROM c").await.unwrap().remove(0);
        let described = session.prepare(fetch, Vec::new()).await.unwrap();
        assert_eq!(described.columns.as_ref().unwrap().field(0).name(), "v");
        assert_eq!(rows(&session, "FETCH ALL c").await.unwrap(), ["9", "10"]);
        assert_eq!(rows(&session, "FETCH c").await.unwrap(), [""; 0]);
        assert_eq!(
            rows(&session, "SELECT nope FROM t").await.unwrap_err().code(),
            Code::ColumnNotFound
        );
        assert_eq!(session.transaction(), Status::Failed);
        assert_eq!(rows(&session, "SELECT 1").await.unwrap_err().code(), Code::TransactionFailed);
        assert_eq!(rows(&session, "COMMIT").await.unwrap(), ["ROLLBACK"]);
        assert_eq!(session.transaction(), Status::Idle);
        assert_eq!(rows(&session, "FETCH c").await.unwrap_err().code(), Code::CursorNotFound);
        rows(&session, "BEGIN; SELECT 1; SAVEPOINT a").await.unwrap();
        assert_eq!(
            rows(&session, "SELECT v / 0 FROM t").await.unwrap_err().code(),
            Code::DivisionByZero
        );
        assert_eq!(session.transaction(), Status::Failed);
        rows(&session, "ROLLBACK TO a; RELEASE a; COMMIT").await.unwrap();
        assert_eq!(session.transaction(), Status::Idle);
        rows(
            &session,
            "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET ALL; DISCARD ALL",
        )
        .await
        .unwrap();
    });
}

#[test]
fn catalog_queries_of_tools_run() {
    let house = House::new();
    house.rows(T);
    let queries = include_str!("catalog_queries.sql");
    let mut failed = Vec::new();
    for sql in queries.split("-- ;;\n").map(str::trim).filter(|sql| !sql.is_empty()) {
        if let Err(error) = house.try_rows(sql) {
            failed.push(format!(
                "{error:?}\n    {}",
                sql.lines().take(3).collect::<Vec<_>>().join(" ")
            ));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(
        house.rows("SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'public'"),
        ["t"]
    );
}

#[test]
fn a_parameter_beside_an_instant_is_a_length_of_time() {
    let house = House::new();
    house.rows(T);
    let session = house.session();
    house.run(async move {
        let interval = [DataType::Interval(IntervalUnit::MonthDayNano)];
        for sql in [
            "SELECT time + $1 FROM t WHERE v = 1",
            "SELECT $1 + time FROM t WHERE v = 1",
            "SELECT time - $1 FROM t WHERE v = 1",
            "SELECT now() - $1",
            "SELECT v FROM t WHERE time > now() - $1",
            "SELECT max(time) + $1 FROM t",
            "SELECT time_bucket('1 day', time + $1) FROM t WHERE v = 1",
            "SELECT '2024-01-01'::date + $1",
        ] {
            let statement = session.parse(sql).await.unwrap().remove(0);
            let prepared = session.prepare(statement, Vec::new()).await.unwrap();
            assert_eq!(prepared.parameters, interval, "{sql}");
            let run = Runnable::Prepared(prepared);
            let minute = datafusion::arrow::array::IntervalMonthDayNanoArray::from(vec![
                datafusion::arrow::datatypes::IntervalMonthDayNano::new(0, 0, 60_000_000_000),
            ]);
            collect(session.execute(run, vec![Arc::new(minute)], None).await.unwrap())
                .await
                .unwrap_or_else(|error| panic!("{sql}: {error:?}"));
        }
        let minute = || text("1 minute");
        assert_eq!(
            prepared(&session, "SELECT time + $1 FROM t WHERE v = 1", vec![minute()])
                .await
                .unwrap(),
            ["1970-01-01T00:01:01Z"]
        );
        // What the client fixes, holds.
        let instant = Some(kymo_kernel::schema::time_type());
        let statement = session.parse("SELECT time - $1 FROM t").await.unwrap().remove(0);
        let prepared = session.prepare(statement, vec![instant.clone()]).await.unwrap();
        assert_eq!(prepared.parameters.first(), instant.as_ref());
    });
}

#[test]
fn table_is_a_query_of_all_columns() {
    let house = House::new();
    house.rows(T);
    assert_eq!(house.rows("TABLE t LIMIT 1"), house.rows("SELECT * FROM t LIMIT 1"));
    assert_eq!(house.rows("TABLE public.t").len(), 10);
    assert_eq!(house.rows("TABLE t UNION ALL TABLE t").len(), 20);
    assert_eq!(house.code("TABLE nothing"), Code::TableNotFound);
}

#[test]
fn owners_and_databases_are_those_that_exist() {
    let house = House::new();
    house.rows(T);
    assert_eq!(house.rows("SELECT datname FROM pg_catalog.pg_database"), ["kymo"]);
    assert_eq!(
        house.rows("SELECT pg_catalog.pg_get_userbyid(d.datdba) FROM pg_catalog.pg_database d"),
        ["admin"]
    );
    assert_eq!(
        house.rows("SELECT pg_catalog.pg_get_userbyid(c.relowner) FROM pg_catalog.pg_class c WHERE c.relname = 't'"),
        ["admin"]
    );
    assert_eq!(
        house.rows("SELECT tableowner FROM pg_catalog.pg_tables WHERE tablename = 't'"),
        ["admin"]
    );
    house.rows("CREATE DATABASE postgres");
    assert_eq!(
        house.rows("SELECT datname FROM pg_catalog.pg_database ORDER BY 1"),
        ["kymo", "postgres"]
    );
}

#[test]
fn set_config_takes_effect_like_set() {
    let house = House::new();
    let session = house.session();
    house.run(async move {
        let show = || rows(&session, "SHOW application_name");
        let set = "SELECT set_config('application_name', 'one', false)";
        assert_eq!(rows(&session, set).await.unwrap(), ["one"]);
        assert_eq!(show().await.unwrap(), ["one"]);
        // Outside of a block there is nothing that a local change could last for.
        let local = "SELECT pg_catalog.set_config('application_name', 'two', true)";
        rows(&session, local).await.unwrap();
        assert_eq!(show().await.unwrap(), ["one"]);
        rows(&session, "BEGIN").await.unwrap();
        rows(&session, local).await.unwrap();
        assert_eq!(show().await.unwrap(), ["two"]);
        rows(&session, "COMMIT").await.unwrap();
        assert_eq!(show().await.unwrap(), ["one"]);
        rows(&session, "BEGIN; SELECT set_config('application_name', 'x', false); ROLLBACK")
            .await
            .unwrap();
        assert_eq!(show().await.unwrap(), ["one"]);
        let both = "SELECT set_config($1, $2, false), set_config('statement_timeout', '5s', false)";
        let values = vec![text("search_path"), text("other")];
        let statement = session.parse(both).await.unwrap().remove(0);
        session.prepare(statement, Vec::new()).await.unwrap();
        assert_eq!(rows(&session, "SHOW search_path").await.unwrap(), ["public"], "only planned");
        assert_eq!(prepared(&session, both, values).await.unwrap(), ["other|5000"]);
        assert_eq!(rows(&session, "SHOW search_path").await.unwrap(), ["other"]);
        assert_eq!(rows(&session, "SHOW statement_timeout").await.unwrap(), ["5000"]);
        for (sql, code) in [
            ("SELECT set_config('nonsense', 'x', false)", Code::SettingNotFound),
            ("SELECT set_config('jit', 'perhaps', false)", Code::InvalidParameter),
            ("SELECT set_config('database', 'nowhere', false)", Code::DatabaseNotFound),
        ] {
            assert_eq!(rows(&session, sql).await.unwrap_err().code(), code, "{sql}");
        }
    });
}
