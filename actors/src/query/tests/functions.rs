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
fn time_hops_lists_the_windows_that_an_instant_falls_into() {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, v DOUBLE, time TIMESTAMPTZ)");
    house.rows(
        "INSERT INTO t VALUES ('a', 1, '2024-01-01 00:01:30'), ('a', 2, '2024-01-01 00:02:00'), \
         ('b', 4, '2024-01-01 00:02:59')",
    );
    let hops = "SELECT unnest(time_hops('1m', '2m', time)) AS w, count(*), sum(v) FROM t GROUP BY 1 \
                ORDER BY 1";
    assert_eq!(
        house.rows(hops),
        ["2024-01-01T00:00:00Z|1|1.0", "2024-01-01T00:01:00Z|3|7.0", "2024-01-01T00:02:00Z|2|6.0"]
    );
    // A width that is no multiple of the hop, an origin, and instants before both.
    let of = |sql: &str| house.rows(&format!("SELECT unnest(time_hops({sql})) AS w ORDER BY 1"));
    assert_eq!(
        of("'4m', interval '10 minutes', '2024-01-01T00:13:00Z'::timestamptz, \
            '2024-06-01T00:01:00Z'::timestamptz"),
        ["2024-01-01T00:05:00Z", "2024-01-01T00:09:00Z", "2024-01-01T00:13:00Z"]
    );
    // As wide as its hop, it is a bucket; a column gives what a constant gives.
    for sql in [
        "time_hops('5m', '5m', time)[1] IS DISTINCT FROM time_bucket('5m', time)",
        "time_hops('1m', '5m', time)[5] IS DISTINCT FROM time_bucket('1m', time)",
        "array_length(time_hops('1m', '5m', time)) <> 5",
    ] {
        assert_eq!(house.rows(&format!("SELECT count(*) FROM t WHERE {sql}")), ["0"], "{sql}");
    }
    assert_eq!(house.rows("SELECT time_hops('1m', '5m', NULL) IS NULL"), ["true"]);
    assert_eq!(house.rows("SELECT count(time_hops(NULL, '5m', time)) FROM t"), ["0"]);
    for sql in [
        "time_hops('0s', '5m', now())",
        "time_hops('6m', '5m', now())",
        "time_hops('1ns', '5m', now())",
        "time_hops('1 month', '1 year', now())",
        "time_hops('1m', '5m')",
        "time_hops('1m', '5m', 7)",
        "time_hops('1 day', '2 days', '1677-09-21T12:00:00Z'::timestamptz)",
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
