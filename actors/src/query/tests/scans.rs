//! Scans compared with a plain map, over random histories of writes and flushes.

use std::collections::BTreeMap;

use super::*;

/// A small generator, so that a failure names its seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

type Oracle = BTreeMap<(String, i64), (Option<i64>, Option<i64>)>;

fn history(house: &House, seed: u64) -> Oracle {
    let mut dice = Dice(seed);
    let mut oracle = Oracle::new();
    for _ in 0..12 {
        let mut values = Vec::new();
        for _ in 0..=dice.roll(20) {
            let (host, at) = (format!("h{}", dice.roll(4)), i64::try_from(dice.roll(40)).unwrap());
            let mut value = || (dice.roll(3) > 0).then(|| i64::try_from(dice.roll(1000)).unwrap());
            let (a, b) = (value(), value());
            let show =
                |value: Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
            // An hour apart, so that several days and thus several segments come about.
            values.push(format!(
                "('{host}', {}, {}, {})",
                show(a),
                show(b),
                at * 3_600_000_000_000
            ));
            let entry = oracle.entry((host, at)).or_default();
            *entry = (a.or(entry.0), b.or(entry.1));
        }
        house.rows(&format!("INSERT INTO t (host, a, b, time) VALUES {}", values.join(", ")));
        if dice.roll(3) == 0 {
            house.flush();
        }
    }
    oracle
}

#[test]
fn scans_agree_with_a_map() {
    for seed in 0..12 {
        let house = House::new();
        house.rows("CREATE TABLE t (host TEXT TAG, a BIGINT, b BIGINT, time TIMESTAMPTZ)");
        let oracle = history(&house, seed);
        let shown =
            |value: &Option<i64>| value.map_or("NULL".to_owned(), |value| value.to_string());
        let expect = |keep: &dyn Fn(&str, i64) -> bool| -> Vec<String> {
            oracle
                .iter()
                .filter(|((host, at), _)| keep(host, *at))
                .map(|((host, at), (a, b))| format!("{host}|{at}|{}|{}", shown(a), shown(b)))
                .collect()
        };
        let select = |filter: &str| {
            house.rows(&format!(
                "SELECT host, time::bigint / 3600000000000, a, b FROM t {filter} ORDER BY host, time"
            ))
        };
        assert_eq!(select(""), expect(&|_, _| true), "seed {seed}");
        assert_eq!(select("WHERE host = 'h1'"), expect(&|host, _| host == "h1"), "seed {seed}");
        assert_eq!(
            select(
                "WHERE host IN ('h0', 'h3') AND time >= '1970-01-01T10:00:00Z' AND time < '1970-01-02T06:00:00Z'"
            ),
            expect(&|host, at| (host == "h0" || host == "h3") && (10..30).contains(&at)),
            "seed {seed}"
        );
        assert_eq!(select("WHERE host = 'none'"), [""; 0], "seed {seed}");
        assert_eq!(house.rows("SELECT count(*) FROM t"), [oracle.len().to_string()], "seed {seed}");
        for (order, newest) in [("DESC", true), ("ASC", false)] {
            let mut expected: Vec<(i64, &str)> =
                oracle.keys().map(|(host, at)| (*at, host.as_str())).collect();
            let by = |row: &(i64, &str)| if newest { -row.0 } else { row.0 };
            expected.sort_by_key(|row| (by(row), row.1.to_owned()));
            for limit in [1, 3, 17] {
                let sql = format!(
                    "SELECT host, time::bigint / 3600000000000 FROM t ORDER BY time {order}, host \
                     LIMIT {limit}"
                );
                let shown = expected.iter().take(limit).map(|(at, host)| format!("{host}|{at}"));
                assert_eq!(house.rows(&sql), shown.collect::<Vec<_>>(), "seed {seed}: {sql}");
            }
        }
        let sum: i64 = oracle.values().filter_map(|(a, _)| *a).sum();
        assert_eq!(
            house.rows("SELECT coalesce(sum(a), 0) FROM t"),
            [sum.to_string()],
            "seed {seed}"
        );
    }
}

#[test]
fn an_append_only_table_keeps_every_row() {
    let house = House::new();
    house.rows(
        "CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ) WITH (append_only = true)",
    );
    for round in 0..3 {
        house.rows(&format!("INSERT INTO t VALUES ('a', {round}, 5), ('a', {round}, 5)"));
        if round == 1 {
            house.flush();
        }
    }
    assert_eq!(house.rows("SELECT count(*), sum(v) FROM t"), ["6|6"]);
    assert_eq!(
        house.rows("SELECT v FROM t WHERE host = 'a' ORDER BY v"),
        ["0", "0", "1", "1", "2", "2"]
    );
    // Nothing is compared, though every source repeats the others.
    let plan = house.rows("EXPLAIN SELECT * FROM t").join("\n");
    assert!(plan.contains("merged=0, append_only"), "{plan}");
    house.flush();
    house.rows("ALTER TABLE t RENAME COLUMN v TO w");
    assert_eq!(house.rows("SELECT count(*), sum(w) FROM t"), ["6|6"]);
}

#[test]
fn plans_show_what_is_read() {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ)");
    house.rows("INSERT INTO t VALUES ('a', 1, '2024-01-01'), ('b', 2, '2024-01-02'), ('c', 3, '2024-01-03')");
    house.flush();
    let plan = |sql: &str| house.rows(&format!("EXPLAIN {sql}")).join("\n");
    assert!(plan("SELECT * FROM t").contains("segments=3"));
    assert!(plan("SELECT * FROM t WHERE time < '2024-01-02'").contains("segments=1"));
    assert!(
        plan("SELECT * FROM t WHERE host = 'b'")
            .contains("segments=1, memory=0, merged=0, host in [b]")
    );
    assert!(!plan("SELECT count(*) FROM t").contains("TsScanExec"), "counted from metadata");
    assert!(house.rows("EXPLAIN ANALYZE SELECT * FROM t").join("\n").contains("output_rows=3"));
    assert_eq!(house.rows("SELECT host FROM t ORDER BY host LIMIT 2"), ["a", "b"]);
}

#[test]
fn what_is_not_among_the_first_rows_is_never_opened() {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, v BIGINT, time TIMESTAMPTZ)");
    for day in 1..=5 {
        house.rows(&format!("INSERT INTO t VALUES ('a', {day}, '2024-01-0{day}')"));
        house.flush();
    }
    house.rows("INSERT INTO t VALUES ('b', 6, '2024-01-03T12:00:00Z')");
    let run = |sql: &str| house.rows(&format!("EXPLAIN ANALYZE {sql}")).join("\n");
    for (sql, order, skipped) in [
        ("SELECT v FROM t ORDER BY time DESC LIMIT 1", ", newest first,", 5),
        ("SELECT v FROM t ORDER BY time LIMIT 1", ", oldest first,", 5),
        ("SELECT v FROM t ORDER BY time DESC, host LIMIT 2", ", newest first,", 4),
        ("SELECT v FROM t ORDER BY time DESC", ", newest first,", 0),
        ("SELECT time FROM t ORDER BY v DESC LIMIT 1", ", metrics=", 0),
    ] {
        let plan = run(sql);
        let shown = plan.contains(order) && plan.contains(&format!(" skipped={skipped}]"));
        assert!(shown, "{sql}: {plan}");
    }
    assert_eq!(house.rows("SELECT v FROM t ORDER BY time DESC LIMIT 2"), ["5", "4"]);
    assert_eq!(house.rows("SELECT v FROM t WHERE v <> 5 ORDER BY time DESC LIMIT 2"), ["4", "6"]);
}
