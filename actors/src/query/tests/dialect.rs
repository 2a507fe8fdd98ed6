//! Statements of our dialect, from text to rows.

use super::*;

const CPU: &str = "CREATE TABLE cpu (host TEXT TAG, usage DOUBLE PRECISION, n BIGINT, time TIMESTAMPTZ);
    INSERT INTO cpu VALUES ('a', 1.5, 1, '2024-01-01T00:00:00Z'), ('b', 2.5, NULL, '2024-01-01T00:00:10Z');
    INSERT INTO cpu (time, host, usage) VALUES ('2024-01-01 00:01:00', 'a', 3.5);
    INSERT INTO cpu (host, time, n) SELECT 'c', '2024-01-02'::timestamptz, 7;";

#[test]
fn tables_are_made_filled_and_read() {
    let house = House::new();
    assert_eq!(house.rows(CPU), ["INSERT 1"]);
    assert_eq!(
        house.rows("SELECT host, usage, n, time FROM cpu ORDER BY time"),
        [
            "a|1.5|1|2024-01-01T00:00:00Z",
            "b|2.5|NULL|2024-01-01T00:00:10Z",
            "a|3.5|NULL|2024-01-01T00:01:00Z",
            "c|NULL|7|2024-01-02T00:00:00Z"
        ]
    );
    house.flush();
    assert_eq!(house.rows("SELECT count(*), max(time) FROM cpu"), ["4|2024-01-02T00:00:00Z"]);
    assert_eq!(
        house.rows("SELECT usage FROM cpu WHERE host = 'a' AND time < '2024-01-01T00:00:30Z'"),
        ["1.5"]
    );
}

#[test]
fn writing_the_same_tags_and_time_again_replaces_column_by_column() {
    let house = House::new();
    house.rows(CPU);
    house.flush();
    house.rows("INSERT INTO cpu (host, time, n) VALUES ('a', '2024-01-01T00:00:00Z', 42)");
    assert_eq!(
        house.rows("SELECT usage, n FROM cpu WHERE host = 'a' ORDER BY time LIMIT 1"),
        ["1.5|42"]
    );
    assert_eq!(house.rows("SELECT count(*) FROM cpu"), ["4"]);
    house.flush();
    assert_eq!(
        house.rows("SELECT usage, n FROM cpu WHERE host = 'a' ORDER BY time LIMIT 1"),
        ["1.5|42"]
    );
}

#[test]
fn time_comes_as_text_integer_or_not_at_all() {
    let house = House::new();
    house.rows("CREATE TABLE t (v BIGINT, time TIMESTAMPTZ) WITH (append_only = true)");
    house.rows("INSERT INTO t (v, time) VALUES (1, 1000000000), (2, '1970-01-01T00:00:02Z')");
    house.rows("INSERT INTO t (v) VALUES (3)");
    house.rows("INSERT INTO t (v, time) VALUES (4, now() - '1h')");
    assert_eq!(house.rows("SELECT v FROM t WHERE time < '1980-01-01' ORDER BY time"), ["1", "2"]);
    assert_eq!(house.rows("SELECT count(*) FROM t WHERE time > now() - '5m'"), ["1"]);
    assert_eq!(house.rows("SELECT count(*) FROM t WHERE time > now() - interval '2h'"), ["2"]);
}

#[test]
fn show_and_describe_tell_what_there_is() {
    let house = House::new();
    house.rows(CPU);
    house.rows("CREATE DATABASE metrics");
    assert_eq!(house.rows("SHOW TABLES"), ["public|cpu"]);
    assert_eq!(house.rows("SHOW TABLES LIKE 'x%'"), [""; 0]);
    assert_eq!(house.rows("SHOW DATABASES"), ["kymo", "metrics"]);
    assert_eq!(
        house.rows("DESCRIBE cpu"),
        [
            "host|text|YES|tag",
            "usage|double precision|YES|field",
            "n|bigint|YES|field",
            "time|timestamp with time zone|NO|time"
        ]
    );
    assert_eq!(house.rows("SHOW COLUMNS FROM cpu").len(), 4);
    assert!(house.rows("SHOW CREATE TABLE cpu")[0].contains("host TEXT TAG"));
    assert_eq!(house.rows("SHOW transaction isolation level"), ["read committed"]);
    assert_eq!(house.rows("SHOW standard_conforming_strings"), ["on"]);
    assert!(house.rows("SHOW ALL").len() > 40);
    assert_eq!(house.rows("USE metrics; SHOW TABLES"), [""; 0]);
    assert_eq!(house.code("USE nowhere"), Code::DatabaseNotFound);
    assert_eq!(house.code("SHOW nonsense"), Code::SettingNotFound);
    let missing = house.fails("DESCRIBE cpus");
    assert_eq!(missing.code(), Code::TableNotFound);
    assert_eq!(missing.hint(), Some("did you mean \"cpu\"?"));
}

#[test]
fn definitions_are_dropped() {
    let house = House::new();
    house.rows(CPU);
    assert_eq!(house.code("CREATE TABLE cpu (time TIMESTAMP)"), Code::AlreadyExists);
    house.rows("CREATE TABLE IF NOT EXISTS cpu (time TIMESTAMP)");
    house.rows("DROP TABLE cpu");
    assert_eq!(house.code("SELECT * FROM cpu"), Code::TableNotFound);
    assert_eq!(house.code("DROP TABLE cpu"), Code::TableNotFound);
    house.rows("DROP TABLE IF EXISTS cpu");
    house.rows("CREATE DATABASE d; DROP DATABASE d");
    assert_eq!(house.code("DROP DATABASE kymo"), Code::InvalidInput);
}

#[test]
fn results_are_named_as_in_postgresql() {
    let house = House::new();
    house.rows(CPU);
    let names = |sql: &str| {
        let session = house.session();
        let sql = sql.to_owned();
        house.run(async move {
            let statement = session.parse(sql).await.unwrap().remove(0);
            match session.execute(Runnable::Statement(statement), Vec::new(), None).await.unwrap() {
                Outcome::Rows { schema, .. } => {
                    schema.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>()
                }
                other => panic!("{other:?}"),
            }
        })
    };
    assert_eq!(
        names("SELECT count(*), min(time), 1, 'x', 1, 1 FROM cpu"),
        ["count", "min", "?column?", "?column?", "?column?", "?column?"]
    );
    assert_eq!(names("SELECT host, host, cpu.host, usage AS host FROM cpu"), ["host"; 4]);
    assert_eq!(names("SELECT *, host FROM cpu"), ["host", "usage", "n", "time", "host"]);
    assert_eq!(
        names("SELECT time_bucket('1m', time), avg(usage) FROM cpu GROUP BY 1"),
        ["time_bucket", "avg"]
    );
    assert_eq!(house.rows("SELECT max FROM (SELECT max(n) FROM cpu) AS x"), ["7"]);
    assert_eq!(
        house
            .rows("SELECT host, count(*) FROM cpu GROUP BY host ORDER BY count DESC, host LIMIT 1"),
        ["a|2"]
    );
}

#[test]
fn errors_have_codes_places_and_hints() {
    let house = House::new();
    house.rows(CPU);
    for (sql, code) in [
        ("SELECT nope FROM cpu", Code::ColumnNotFound),
        ("SELECT * FROM nope", Code::TableNotFound),
        ("SELECT * FROM other.public.nope", Code::TableNotFound),
        ("SELECT nope(1)", Code::FunctionNotFound),
        ("SELECT sqrt('a', 2)", Code::FunctionNotFound),
        ("SELECT 1/0", Code::DivisionByZero),
        ("SELECT n / 0 FROM cpu", Code::DivisionByZero),
        ("SELECT CAST('abc' AS BIGINT)", Code::InvalidCast),
        ("SELECT host::bigint FROM cpu", Code::InvalidCast),
        ("SELECT '2024-13-45'::timestamp", Code::InvalidCast),
        ("SELECT * FROM cpu WHERE", Code::Syntax),
        ("SELECT $1", Code::InvalidParameter),
        ("SELECT host, count(*) FROM cpu", Code::Grouping),
        ("SELECT time FROM cpu a JOIN cpu b ON a.host = b.host", Code::AmbiguousColumn),
        ("INSERT INTO cpu (nope) VALUES (1)", Code::ColumnNotFound),
        ("INSERT INTO nope VALUES (1)", Code::TableNotFound),
        ("INSERT INTO cpu (host, time, n) VALUES ('a', '2024-01-01', 'x')", Code::InvalidCast),
        ("INSERT INTO cpu (host, time) VALUES ('a', NULL)", Code::InvalidInput),
        ("SELECT time_bucket('soon', time) FROM cpu", Code::InvalidCast),
        ("COPY cpu TO '/tmp/x'", Code::Unsupported),
        ("SELECT * FROM '/etc/passwd'", Code::TableNotFound),
    ] {
        let error = house.fails(sql);
        assert_eq!(error.code(), code, "{sql}: {error:?}");
        assert!(!error.message().contains("DataFusion"), "{error:?}");
    }
    let error = house.fails("SELECT 1; SELECT host, usge FROM cpu");
    assert_eq!(error.hint(), Some("did you mean \"usage\"?"), "{error:?}");
    assert_eq!(error.position(), Some(24), "{error:?}");
}

#[test]
fn errors_call_tables_as_the_statement_does() {
    let house = House::new();
    house.rows(CPU);
    house.rows("CREATE DATABASE metrics");
    for (sql, name) in [
        ("SELECT * FROM nope", "nope"),
        ("SELECT * FROM Nope", "nope"),
        ("SELECT * FROM \"My Nope\"", "My Nope"),
        ("SELECT * FROM public.nope", "public.nope"),
        ("SELECT * FROM kymo.public.nope", "kymo.public.nope"),
        ("USE metrics; SELECT * FROM nope", "nope"),
        ("USE metrics; SELECT * FROM kymo.public.nope", "kymo.public.nope"),
        ("SET search_path = other; SELECT * FROM public.nope", "public.nope"),
        ("SELECT 1 WHERE EXISTS (SELECT * FROM nope)", "nope"),
        ("INSERT INTO Nope VALUES (1)", "nope"),
        ("DROP TABLE Nope", "nope"),
        ("DROP TABLE public.\"Nope\"", "public.Nope"),
        ("CREATE TABLE public.cpu (time TIMESTAMP)", "public.cpu"),
        ("DESCRIBE public.nope", "public.nope"),
    ] {
        let error = house.fails(sql);
        assert!(error.message().contains(&format!("table \"{name}\"")), "{sql}: {error:?}");
    }
    let hinted = house.fails("USE metrics; SELECT * FROM kymo.public.cpus");
    assert_eq!(hinted.hint(), Some("did you mean \"cpu\"?"), "{hinted:?}");
}

#[test]
fn creating_what_exists_looks_at_the_name_only() {
    let house = House::new();
    house.rows(CPU);
    for columns in ["(other BIGINT, time TIMESTAMP)", "(usage TEXT, time TIMESTAMP)", "(v INT)"] {
        house.rows(&format!("CREATE TABLE IF NOT EXISTS cpu {columns}"));
    }
    assert_eq!(house.rows("DESCRIBE cpu").len(), 4);
    assert_eq!(house.code("CREATE TABLE IF NOT EXISTS new (v INT)"), Code::InvalidInput);
}

#[test]
fn system_tables_and_information_schema_answer() {
    let house = House::new();
    house.rows(CPU);
    house.flush();
    assert_eq!(
        house.rows("SELECT \"table\", stored_rows, segments > 0 FROM system.tables"),
        ["cpu|4|true"]
    );
    assert_eq!(house.rows("SELECT sum(rows) FROM system.segments"), ["4"]);
    assert_eq!(
        house.rows("SELECT value FROM system.settings WHERE name = 'server.http_port'"),
        ["7878"]
    );
    assert_eq!(house.rows("SELECT sql FROM system.queries"), ["SELECT sql FROM system.queries"]);
    for table in ["actors", "ports", "subscriptions", "supervision_events"] {
        house.rows(&format!("SELECT * FROM system.{table}"));
    }
    assert_eq!(
        house.rows("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'cpu' ORDER BY ordinal_position"),
        ["host|text", "usage|double precision", "n|bigint", "time|timestamp with time zone"]
    );
    assert_eq!(
        house
            .rows("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'"),
        ["cpu"]
    );
}
