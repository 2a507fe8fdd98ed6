//! Every function of our own: values, NULLs, empty input, groups.

use super::*;

#[test]
fn time_bucket_floors_to_buckets() {
    let house = House::new();
    for (sql, expected) in [
        ("time_bucket('10s', '2024-01-01T00:00:17Z'::timestamptz)", "2024-01-01T00:00:10Z"),
        (
            "time_bucket(interval '1 hour', '2024-01-01T05:59:59.999Z'::timestamptz)",
            "2024-01-01T05:00:00Z",
        ),
        ("time_bucket('1 week', '2024-01-03T12:00:00Z'::timestamptz)", "2024-01-01T00:00:00Z"),
        ("time_bucket('1 month', '2024-02-29T12:00:00Z'::timestamptz)", "2024-02-01T00:00:00Z"),
        ("time_bucket('3 months', '2024-06-15T00:00:00Z'::timestamptz)", "2024-04-01T00:00:00Z"),
        ("time_bucket('1 day', '1969-12-31T23:00:00Z'::timestamptz)", "1969-12-31T00:00:00Z"),
        (
            "time_bucket('1 hour', '2024-01-01T05:59:00Z'::timestamptz, '2024-01-01T00:30:00Z'::timestamptz)",
            "2024-01-01T05:30:00Z",
        ),
        ("time_bucket('10s', NULL)", "NULL"),
        ("time_bucket(NULL, '2024-01-01T00:00:17Z'::timestamptz)", "NULL"),
        ("time_bucket('1 day', '2024-01-01T05:00:00')", "2024-01-01T00:00:00Z"),
    ] {
        assert_eq!(house.rows(&format!("SELECT {sql}")), [expected], "{sql}");
    }
    for sql in [
        "time_bucket('0s', now())",
        "time_bucket('-5m', now())",
        "time_bucket('5m')",
        "time_bucket(5, now())",
    ] {
        house.fails(&format!("SELECT {sql}"));
    }
}

#[test]
fn first_and_last_follow_time_not_arrival() {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, f DOUBLE, i BIGINT, s TEXT, b BOOLEAN, u BIGINT UNSIGNED, time TIMESTAMPTZ)");
    assert_eq!(house.rows("SELECT first(f, time), last(s, time) FROM t"), ["NULL|NULL"]);
    assert_eq!(house.rows("SELECT host, first(f, time) FROM t GROUP BY host"), [""; 0]);
    house.rows(
        "INSERT INTO t VALUES
            ('a', 3, 30, 'three', true, 3, '2024-01-03'),
            ('a', 1, 10, 'one', false, 1, '2024-01-01'),
            ('a', NULL, NULL, NULL, NULL, NULL, '2024-01-04'),
            ('a', 2, 20, 'two', true, 2, '2024-01-02'),
            ('b', NULL, NULL, NULL, NULL, NULL, '2024-01-01')",
    );
    for flushed in [false, true] {
        if flushed {
            house.flush();
        }
        assert_eq!(
            house.rows("SELECT host, first(f, time), last(f, time), first(i, time), last(i, time), first(s, time), last(s, time), first(b, time), last(u, time), last(host, time) FROM t GROUP BY host ORDER BY host"),
            ["a|1.0|3.0|10|30|one|three|false|3|a", "b|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|b"]
        );
        assert_eq!(house.rows("SELECT first(f, time), last(s, time) FROM t"), ["1.0|three"]);
        assert_eq!(house.rows("SELECT last(f, time) FILTER (WHERE f < 3) FROM t"), ["2.0"]);
        assert_eq!(house.rows("SELECT time_bucket('2 days', time), last(time, time) FROM t WHERE host = 'a' GROUP BY 1 ORDER BY 1").len(), 2);
    }
}

#[test]
fn first_and_last_agree_with_sorting_over_many_groups() {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ)");
    house.rows(
        "INSERT INTO t SELECT 'h' || (value * 7919 % 301), value, to_timestamp(value * 104729 % 100003)
         FROM generate_series(1, 20000)",
    );
    let expected = house.rows(
        "SELECT host, v FROM (SELECT host, v, row_number() OVER (PARTITION BY host ORDER BY time DESC) AS r FROM t) AS x
         WHERE r = 1 ORDER BY host",
    );
    assert_eq!(expected.len(), 301);
    assert_eq!(
        house.rows("SELECT host, last(v, time) FROM t GROUP BY host ORDER BY host"),
        expected
    );
}

#[test]
fn session_functions_answer_as_drivers_expect() {
    let house = House::new();
    for (sql, expected) in [
        ("current_user", "ada"),
        ("session_user", "ada"),
        ("current_database()", "kymo"),
        ("current_catalog", "kymo"),
        ("current_schema()", "public"),
        ("current_schema", "public"),
        ("current_setting('server_version_num')::int / 10000", "16"),
        ("current_setting('nonsense', true)", "NULL"),
        ("set_config('jit', 'off', false)", "off"),
        ("pg_advisory_unlock_all()", "NULL"),
        ("pg_is_in_recovery()", "false"),
        ("pg_typeof(1::bigint)", "bigint"),
        ("pg_typeof(now())", "timestamp with time zone"),
        ("pg_catalog.pg_backend_pid() > 0", "true"),
        ("obj_description(1, 'pg_class')", "NULL"),
        ("array_upper(ARRAY[1, 2], 1)", "2"),
        ("date_bin('15 minutes', '2024-01-01T00:44:00Z'::timestamptz)", "2024-01-01T00:30:00Z"),
    ] {
        assert_eq!(house.rows(&format!("SELECT {sql}")), [expected], "{sql}");
    }
    assert!(house.rows("SELECT version()")[0].starts_with("PostgreSQL 16.6 (Kymo "));
    assert!(house.rows("select pg_catalog.version()")[0].starts_with("PostgreSQL 16.6"));
    assert_eq!(house.code("SELECT current_setting('nonsense')"), Code::SettingNotFound);
}
