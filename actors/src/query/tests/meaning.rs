//! What expressions mean: overflow, rounding, instants far away, sizes of results.

use super::*;

const T: &str =
    "CREATE TABLE t (host TEXT TAG, v BIGINT, u BIGINT UNSIGNED, f DOUBLE, time TIMESTAMPTZ);
    INSERT INTO t VALUES
        ('a', 9223372036854775807, 1, 1.5, '2024-01-01'),
        ('a', 1, 2, 2.5, '2024-01-02'),
        ('b', 1, 3, -2.5, '2024-01-03')";

#[test]
fn whole_numbers_that_overflow_are_errors() {
    let house = House::new();
    house.rows(T);
    for (sql, message) in [
        ("SELECT 9223372036854775807 + 1", "bigint out of range"),
        ("SELECT -9223372036854775807 - 2", "bigint out of range"),
        ("SELECT 9223372036854775807 * 2", "bigint out of range"),
        ("SELECT 32767::smallint + 1::smallint", "smallint out of range"),
        ("SELECT 2147483647::int + 1::int", "integer out of range"),
        ("SELECT v + 1 FROM t", "bigint out of range"),
        ("SELECT v * 2 FROM t WHERE host = 'a'", "bigint out of range"),
        ("SELECT u - 2::bigint unsigned FROM t", "bigint unsigned out of range"),
        ("SELECT - (-9223372036854775807 - v) FROM t WHERE v = 1", "bigint out of range"),
        ("SELECT host FROM t WHERE v + 1 < 0", "bigint out of range"),
        ("SELECT count(*) FROM t GROUP BY v + 1", "bigint out of range"),
        ("SELECT sum(v) FROM t", "bigint out of range"),
        ("SELECT host, sum(v) FROM t GROUP BY host", "bigint out of range"),
        ("SELECT sum(DISTINCT v) FROM t", "bigint out of range"),
        ("SELECT sum(v) OVER (ORDER BY time) FROM t", "bigint out of range"),
    ] {
        let error = house.fails(sql);
        assert_eq!((error.code(), error.message()), (Code::OutOfRange, message), "{sql}");
    }
}

#[test]
fn what_fits_is_computed_as_before() {
    let house = House::new();
    house.rows(T);
    for (sql, expected) in [
        (
            "SELECT v - 1, v + -1, -v FROM t WHERE f = 1.5",
            &["9223372036854775806|9223372036854775806|-9223372036854775807"][..],
        ),
        ("SELECT v + NULL FROM t WHERE f = 1.5", &["NULL"]),
        ("SELECT sum(v), sum(u), sum(f) FROM t WHERE v = 1", &["2|5|0.0"]),
        ("SELECT sum(v) FROM t WHERE v > 5 AND v < 7", &["NULL"]),
        ("SELECT sum(v - 9223372036854775806) FROM t WHERE f = 1.5", &["1"]),
        // The sum on the way is larger than a bigint, its end is not.
        (
            "SELECT sum(x) FROM (VALUES (9223372036854775807), (5), (-5)) AS y(x)",
            &["9223372036854775807"],
        ),
        ("SELECT host, sum(DISTINCT u) FROM t GROUP BY host ORDER BY host", &["a|3", "b|3"]),
        ("SELECT sum(u) OVER (ORDER BY time ROWS 1 PRECEDING) FROM t", &["1", "3", "5"]),
        ("SELECT sum(v) FILTER (WHERE v = 1), sum(2) FROM t", &["2|6"]),
        ("SELECT v + 1 AS v FROM t WHERE v = 1 GROUP BY v + 1 ORDER BY v + 1", &["2"]),
        ("SELECT time + INTERVAL '1 day' FROM t WHERE host = 'b'", &["2024-01-04T00:00:00Z"]),
        ("SELECT 'a' || 1 || host || NULL FROM t WHERE host = 'b'", &["NULL"]),
        ("SELECT host || '-' || host FROM t WHERE host = 'b'", &["b-b"]),
        ("SELECT 'x' || 1", &["x1"]),
        ("SELECT ARRAY[1] || ARRAY[2]", &["[1, 2]"]),
    ] {
        assert_eq!(house.rows(sql), expected, "{sql}");
    }
    let sum = vec!["1"; 100].join(" + ");
    assert_eq!(house.rows(&format!("SELECT {sum}")), ["100"]);
    let text = vec!["'x'"; 100].join(" || ");
    assert_eq!(house.rows(&format!("SELECT length({text})")), ["100"]);
}

#[test]
fn casts_to_whole_numbers_round() {
    let house = House::new();
    house.rows(T);
    for (sql, expected) in [
        ("CAST(1.7 AS BIGINT)", "2"),
        ("CAST(-1.7 AS BIGINT)", "-2"),
        ("2.5::int", "3"),
        ("2.5::double precision::int", "2"),
        ("CAST(3.5 AS NUMERIC(5, 1))::bigint", "4"),
        ("TRY_CAST(1.7 AS BIGINT)", "2"),
        ("7::bigint", "7"),
        ("'7'::bigint", "7"),
    ] {
        assert_eq!(house.rows(&format!("SELECT {sql}")), [expected], "{sql}");
    }
    assert_eq!(house.rows("SELECT f::bigint FROM t ORDER BY time"), ["2", "2", "-2"]);
    house.rows("INSERT INTO t (host, v, time) VALUES ('r', 1.7, '2024-02-01')");
    assert_eq!(house.rows("SELECT v FROM t WHERE host = 'r'"), ["2"]);
    assert_eq!(house.code("SELECT 1e30::bigint"), Code::OutOfRange);
}

#[test]
fn comparisons_with_instants_beyond_all_times_are_true_or_false() {
    let house = House::new();
    house.rows(T);
    for (condition, count) in [
        ("time > '0001-01-01'", "3"),
        ("time < '0001-01-01'", "0"),
        ("time <= '9999-12-31 23:59:59'", "3"),
        ("time >= '9999-12-31'", "0"),
        ("time = '9999-12-31'", "0"),
        ("time <> '0001-01-01'", "3"),
        ("'0001-01-01' < time", "3"),
        ("time > TIMESTAMP '0001-01-01 00:00:00'", "3"),
        ("time < '9999-12-31'::timestamptz", "3"),
        ("time < DATE '9999-12-31'", "3"),
        ("time BETWEEN '0001-01-01' AND '9999-12-31'", "3"),
        ("time BETWEEN '2024-01-02' AND '9999-12-31'", "2"),
        ("time NOT BETWEEN '0001-01-01' AND '9999-12-31'", "0"),
        ("time IN ('0001-01-01', '2024-01-02')", "1"),
    ] {
        let sql = format!("SELECT count(*) FROM t WHERE {condition}");
        assert_eq!(house.rows(&sql), [count], "{condition}");
    }
    assert_eq!(house.code("SELECT '9999-12-31'::timestamptz"), Code::OutOfRange);
}

#[test]
fn a_time_of_day_may_lack_seconds() {
    let house = House::new();
    house.rows(T);
    for sql in [
        "SELECT TIMESTAMP '2024-01-03 12:00'",
        "SELECT '2024-01-03T12:00'::timestamp",
        "SELECT CAST('2024-01-03 12:00' AS TIMESTAMP)",
    ] {
        assert_eq!(house.rows(sql), ["2024-01-03T12:00:00"], "{sql}");
    }
    assert_eq!(house.rows("SELECT TIMESTAMPTZ '2024-01-03 12:00+02:00'"), ["2024-01-03T10:00:00Z"]);
    assert_eq!(house.rows("SELECT count(*) FROM t WHERE time > '2024-01-01 12:00'"), ["2"]);
    house.rows("INSERT INTO t (host, time) VALUES ('m', '2024-01-05 12:34')");
    assert_eq!(house.rows("SELECT time FROM t WHERE host = 'm'"), ["2024-01-05T12:34:00Z"]);
}

#[test]
fn buckets_that_would_begin_before_all_times_are_errors() {
    let house = House::new();
    let first = "'1677-09-21T00:12:44Z'::timestamptz";
    house.rows("CREATE TABLE t (v BIGINT, time TIMESTAMPTZ)");
    house.rows(&format!("INSERT INTO t VALUES (1, {first}), (2, '2024-01-01')"));
    for sql in [
        format!("SELECT time_bucket('1 day', {first})"),
        format!("SELECT time_bucket('1 month', {first})"),
        "SELECT time_bucket('1 day', time) FROM t".to_owned(),
        "SELECT time_bucket('1 month', time) FROM t".to_owned(),
        "SELECT time_bucket('1 day', time, '2000-01-01'::timestamptz) FROM t".to_owned(),
    ] {
        let error = house.fails(&sql);
        assert_eq!(error.code(), Code::OutOfRange, "{sql}: {error:?}");
        assert!(error.message().contains("time_bucket"), "{sql}: {error:?}");
    }
    assert_eq!(
        house.rows("SELECT time_bucket('1 day', time) FROM t WHERE v = 2"),
        ["2024-01-01T00:00:00Z"]
    );
}

#[test]
fn functions_refuse_to_make_huge_values() {
    let house = House::with(|settings| {
        settings.query.max_value_bytes = 1 << 20;
        settings.query.max_batch_bytes = 16 << 20;
    });
    house.rows("CREATE TABLE t (n BIGINT, s TEXT, time TIMESTAMPTZ)");
    house.rows("INSERT INTO t VALUES (2000000, 'x', now())");
    for sql in [
        "SELECT length(repeat('x', 1900000000))",
        "SELECT length(repeat(s, n)) FROM t",
        "SELECT length(lpad('x', 2000000))",
        "SELECT length(rpad('x', 300000, 'ä'))",
        "SELECT length(concat(repeat('x', 600000), repeat('y', 600000)))",
        "SELECT length(repeat('x', 600000) || repeat('y', 600000))",
        "SELECT length(concat_ws(repeat('x', 600000), 'a', 'b', 'c'))",
        "SELECT length(replace(repeat('x', 600000), 'x', 'yy'))",
        "SELECT length(regexp_replace(repeat('x', 1000), 'x', repeat('y', 2000), 'g'))",
        "SELECT length(translate(repeat('x', 600000), 'x', 'ä'))",
        "SELECT length(encode(repeat('x', 600000)::bytea, 'hex'))",
        "SELECT array_length(range(0, 1000000))",
        "SELECT array_length(generate_series(0, 1000000, 2))",
        "SELECT array_length(generate_series(TIMESTAMP '2000-01-01', TIMESTAMP '2020-01-01', INTERVAL '1 minute'))",
        "SELECT array_length(array_repeat(1, 1000000))",
        "SELECT array_length(array_resize([1], 1000000, 0))",
        "SELECT length(array_to_string(array_repeat(1, 100), repeat('x', 60000)))",
        "SELECT array_length([repeat('x', 600000), repeat('y', 600000)])",
        // One batch of many values.
        "SELECT sum(length(repeat('x', 10000 + value % 2))) FROM generate_series(1, 100000)",
        "SELECT sum(length(lpad('x', 100000 + value % 2))) FROM generate_series(1, 1000)",
    ] {
        let error = house.fails(sql);
        assert_eq!(error.code(), Code::TooLarge, "{sql}: {error:?}");
        let named = ["query.max_value_bytes", "query.max_batch_bytes"];
        assert!(named.iter().any(|name| error.message().contains(name)), "{sql}: {error:?}");
        assert!(error.hint().is_some());
    }
    for (sql, expected) in [
        ("SELECT length(repeat('x', 1000000))", "1000000"),
        ("SELECT length(lpad('x', 1000000, 'ab'))", "1000000"),
        ("SELECT repeat('x', -1)", ""),
        ("SELECT repeat(NULL, 3)", "NULL"),
        ("SELECT concat('a', NULL, 1)", "a1"),
        ("SELECT replace('abcabc', 'b', 'xx')", "axxcaxxc"),
        ("SELECT regexp_replace('abcabc', '(b)(c)', '\\2\\1', 'g')", "acbacb"),
        ("SELECT array_length(range(0, 100000))", "100000"),
        ("SELECT length(replace(repeat('x', 900000), 'y', 'zzzz'))", "900000"),
    ] {
        assert_eq!(house.rows(sql), [expected], "{sql}");
    }
}

/// A constant is written into each row of a batch: large ones make batches short.
#[test]
fn large_constants_fit_into_memory() {
    let house = House::with(|settings| settings.query.max_batch_bytes = 64 << 20);
    let sql = "SELECT sum(length(x)), max(length(x)) FROM \
               (SELECT repeat('x', 1000000) || value AS x FROM generate_series(1, 1000))";
    assert_eq!(house.rows(sql), ["1000002893|1000004"]);
}
