//! Deleting rows: exactly those that the same condition selects, all of them at one moment.

use std::sync::atomic::{AtomicBool, Ordering};

use datafusion::arrow::array::{Int64Array, StringArray};

use super::*;

const MERGED: &str =
    "CREATE TABLE t (host TEXT TAG, dc TEXT TAG, a BIGINT, b BIGINT, time TIMESTAMPTZ)";
const ALL: &str = "SELECT host, dc, a, b, time FROM t ORDER BY 1, 2, 5, 3, 4";

struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Rows that often repeat tags and time, over three days, in memory and in segments.
fn fill(house: &House, dice: &mut Dice) {
    for _ in 0..6 {
        let rows: Vec<String> = (0..=dice.roll(25))
            .map(|_| {
                let mut value = |most| match dice.roll(4) {
                    0 => "NULL".to_owned(),
                    _ => dice.roll(most).to_string(),
                };
                let (a, b) = (value(50), value(50));
                let tag = |at: u64| ["'x'", "'y'", "'z'", "NULL"][at as usize % 4];
                let (host, dc) = (tag(dice.roll(4)), tag(dice.roll(3)));
                format!("({host}, {dc}, {a}, {b}, {})", dice.roll(72) * 3_600_000_000_000)
            })
            .collect();
        house.rows(&format!("INSERT INTO t VALUES {}", rows.join(", ")));
        if dice.roll(2) == 0 {
            house.flush();
        }
    }
}

/// Conditions of every kind that the deleter treats differently, and some that are never true.
const CONDITIONS: [&str; 22] = [
    "time < '1970-01-02'",
    "time >= '1970-01-01T05:00:00Z' AND time <= '1970-01-02T07:00:00Z'",
    "time < '1970-01-02' AND time > '1970-01-02'",
    "time = '1970-01-01T07:00:00Z'",
    "host = 'x'",
    "host = 'x' AND time < '1970-01-02T12:00:00Z'",
    "host IS NULL OR dc = 'y'",
    "a > 20",
    "NOT (a > 20)",
    "a IS NULL",
    "a + b > 60 AND host <> 'y'",
    "a / (b + 1) = 1",
    "NULL",
    "false",
    "extract(hour FROM time) = 3",
    "coalesce(a, b, 0) % 2 = 1",
    "a > (SELECT avg(a) FROM t)",
    "a IN (SELECT b FROM t WHERE b IS NOT NULL)",
    "a NOT IN (SELECT b FROM t WHERE b < 10)",
    "EXISTS (SELECT 1 FROM t AS u WHERE u.host = t.host AND u.a = t.b)",
    "time < (SELECT max(time) FROM t) AND dc = 'x'",
    "true",
];

#[test]
fn what_goes_is_what_the_same_condition_selects() {
    for (seed, options) in [(1, "false"), (2, "true")] {
        let house = House::new();
        house.rows(&format!("{MERGED} WITH (append_only = {options})"));
        let mut dice = Dice(seed);
        for condition in CONDITIONS {
            fill(&house, &mut dice);
            let select = ALL.replace("FROM t", &format!("FROM t WHERE {condition}"));
            let (mut before, meant) = (house.rows(ALL), house.rows(&select));
            let deleted = house.rows(&format!("DELETE FROM t WHERE {condition}"));
            assert_eq!(deleted, [format!("DELETE {}", meant.len())], "{condition}, seed {seed}");
            for row in &meant {
                let at = before.iter().position(|each| each == row).unwrap();
                before.remove(at);
            }
            assert_eq!(house.rows(ALL), before, "{condition}, seed {seed}");
        }
        assert!(house.rows(ALL).is_empty());
    }
}

#[test]
fn no_older_state_of_a_row_comes_back() {
    let house = House::new();
    house.rows(MERGED);
    let at = "'2024-01-01T00:00:00Z'";
    for values in ["1, 10", "2, NULL", "NULL, 30"] {
        house.rows(&format!("INSERT INTO t VALUES ('x', 'd', {values}, {at})"));
        house.flush();
    }
    assert_eq!(house.rows(ALL), ["x|d|2|30|2024-01-01T00:00:00Z"]);
    // What only an older state says is not what a reader sees.
    assert_eq!(house.rows("DELETE FROM t WHERE a = 1 OR b = 10"), ["DELETE 0"]);
    assert_eq!(house.rows("DELETE FROM t WHERE a = 2 AND b = 30"), ["DELETE 1"]);
    assert!(house.rows(ALL).is_empty());
    // The same row can be written again, and is a new one.
    house.rows(&format!("INSERT INTO t VALUES ('x', 'd', 5, NULL, {at})"));
    assert_eq!(house.rows(ALL), ["x|d|5|NULL|2024-01-01T00:00:00Z"]);
}

#[test]
fn segments_without_such_rows_are_left_and_those_with_nothing_else_go_unread() {
    let house = House::new();
    house.rows(MERGED);
    for day in ["01", "02", "03"] {
        house
            .rows(&format!("INSERT INTO t VALUES ('x', 'd', {day}, 1, '2024-01-{day}T05:00:00Z')"));
    }
    house.flush();
    let segments = "SELECT id FROM system.segments ORDER BY first_time";
    let before = house.rows(segments);
    assert_eq!(before.len(), 3);
    assert_eq!(house.rows("DELETE FROM t WHERE a = 2"), ["DELETE 1"]);
    assert_eq!(house.rows(segments), [before[0].clone(), before[2].clone()]);
    // A file that nobody can read any more can be deleted by its times.
    let path = house.rows("SELECT path FROM system.segments ORDER BY first_time").remove(0);
    let store = house.engine.store();
    store.segments().store.delete(&path).unwrap();
    assert_eq!(house.rows("DELETE FROM t WHERE time < '2024-01-02'"), ["DELETE 1"]);
    assert_eq!(house.rows(segments), [before[2].clone()]);
    assert_eq!(house.rows("DELETE FROM t WHERE b = 7"), ["DELETE 0"]);
    assert_eq!(house.rows(segments), [before[2].clone()]);
}

#[test]
fn parameters_aliases_and_names() {
    let house = House::new();
    house.rows(MERGED);
    house.rows("CREATE TABLE u (host TEXT TAG, time TIMESTAMPTZ)");
    for number in 0..6 {
        let row = format!("('h{number}', 'd', {number}, 1, '2024-01-01T00:00:0{number}Z')");
        house.rows(&format!("INSERT INTO t VALUES {row}"));
    }
    house.rows("INSERT INTO u VALUES ('h4', now())");
    let session = house.session();
    let gone = house.run(async move {
        let one: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let host: ArrayRef = Arc::new(StringArray::from(vec!["h5"]));
        let sql = "DELETE FROM t WHERE a < $1 OR host = $2";
        let statement = session.parse(sql).await.unwrap().remove(0);
        let ready = session.prepare(statement, Vec::new()).await.unwrap();
        assert!(ready.columns.is_none());
        assert_eq!(ready.parameters.len(), 2);
        prepared(&session, sql, vec![one, host]).await.unwrap()
    });
    assert_eq!(gone, ["DELETE 2"]);
    assert_eq!(house.rows("DELETE FROM public.t AS x WHERE x.a = 1"), ["DELETE 1"]);
    assert_eq!(house.rows("DELETE FROM kymo.public.t WHERE t.a = 2"), ["DELETE 1"]);
    let other = "DELETE FROM t WHERE host IN (SELECT host FROM u WHERE u.host = t.host)";
    assert_eq!(house.rows(other), ["DELETE 1"]);
    assert_eq!(house.rows("SELECT host FROM t"), ["h3"]);
}

#[test]
fn what_cannot_be_deleted_says_why() {
    let house = House::new();
    house.rows(MERGED);
    for (sql, code, says) in [
        ("DELETE FROM nothing", Code::TableNotFound, "nothing"),
        ("DELETE FROM t WHERE c = 1", Code::ColumnNotFound, "c"),
        ("DELETE FROM t WHERE sum(a) > 1", Code::InvalidInput, ""),
        ("DELETE FROM system.queries", Code::Unsupported, "system.queries"),
        ("DELETE FROM system.rejected_writes", Code::Unsupported, "system.rejected_writes"),
        ("DELETE FROM information_schema.tables", Code::Unsupported, "information_schema.tables"),
        ("TRUNCATE nothing", Code::TableNotFound, "nothing"),
        ("TRUNCATE t, nothing", Code::TableNotFound, "nothing"),
        ("DELETE FROM t RETURNING a", Code::Unsupported, "RETURNING"),
    ] {
        let error = house.fails(sql);
        assert_eq!(error.code(), code, "{sql}: {error:?}");
        assert!(error.message().contains(says), "{sql}: {error:?}");
    }
    // An error of the condition while it runs leaves everything.
    house.rows("INSERT INTO t VALUES ('x', 'd', 0, 1, '2024-01-01')");
    house.fails("DELETE FROM t WHERE b / a = 1");
    assert_eq!(house.rows("SELECT count(*) FROM t"), ["1"]);
    let mut context = house.session().context().as_ref().clone();
    context.read_only = true;
    let session = Session::start(&house.supervisor, house.ports.clone(), None, context);
    house.run(async move {
        for sql in ["DELETE FROM t", "TRUNCATE t"] {
            let error = rows(&session, sql).await.unwrap_err();
            assert_eq!(error.code(), Code::NotAuthorized, "{sql}: {error:?}");
        }
    });
    assert_eq!(house.rows("SELECT count(*) FROM t"), ["1"]);
}

#[test]
fn truncating_takes_everything_at_once() {
    let house = House::new();
    for table in ["t", "u"] {
        house.rows(&MERGED.replace("TABLE t", &format!("TABLE {table}")));
        for flush in [true, false] {
            house.rows(&format!("INSERT INTO {table} VALUES ('x', 'd', 1, 1, '2024-01-01'), ('x', 'd', 1, 1, '2024-02-01')"));
            if flush {
                house.flush();
            }
        }
    }
    assert_eq!(house.rows("TRUNCATE t, public.u"), ["TRUNCATE TABLE"]);
    assert_eq!(house.rows("SELECT count(*) FROM t UNION ALL SELECT count(*) FROM u"), ["0", "0"]);
    assert!(house.rows("SELECT id FROM system.segments").is_empty());
    assert_eq!(house.rows("TRUNCATE TABLE t"), ["TRUNCATE TABLE"]);
    house.rows("INSERT INTO t VALUES ('x', 'd', 1, 1, '2024-01-01')");
    assert_eq!(house.rows("SELECT count(*) FROM t"), ["1"]);
}

/// Each writer writes rounds of ten rows, over several windows; each deletion takes rounds whole.
/// A reader meets every round whole or not at all, and never one that was deleted before it began.
#[test]
fn readers_and_writers_beside_deletions() {
    const ROUNDS: i64 = 40;
    let house = House::with(|settings| {
        settings.compaction.interval_ms = 5;
        settings.compaction.min_segments = 2;
        settings.compaction.quiet_ms = 1;
    });
    house.rows("CREATE TABLE t (host TEXT TAG, round BIGINT, time TIMESTAMPTZ)");
    let done = Arc::new(AtomicBool::new(false));
    let writes = house.session();
    let writing = house.pools.spawn(kymo_kernel::pools::Pool::Io, "write", async move {
        for round in 0..ROUNDS {
            let row = |at: i64| format!("('h{at}', {round}, {})", at * 86_400_000_000_000 + round);
            let values: Vec<String> = (0..10).map(row).collect();
            let insert = format!("INSERT INTO t VALUES {}", values.join(", "));
            rows(&writes, &insert).await.unwrap();
        }
    });
    let (reads, ended) = (house.session(), done.clone());
    let reading = house.pools.spawn(kymo_kernel::pools::Pool::Io, "read", async move {
        let mut looks = 0;
        while !ended.load(Ordering::Relaxed) {
            let look = "SELECT round, count(*) FROM t GROUP BY round HAVING count(*) <> 10";
            assert_eq!(rows(&reads, look).await.unwrap(), Vec::<String>::new());
            looks += 1;
        }
        looks
    });
    let mut gone = 0;
    let mut deleted = vec![false; ROUNDS as usize];
    while gone < ROUNDS {
        let seen = house.rows("SELECT DISTINCT round FROM t ORDER BY 1");
        for round in &seen {
            assert!(!deleted[round.parse::<usize>().unwrap()], "round {round} came back");
        }
        let Some(round) = seen.get(seen.len() / 2) else { continue };
        let condition = match gone % 3 {
            0 => format!("round = {round}"),
            1 => format!("round <= {round} AND round >= {round}"),
            _ => format!("round IN (SELECT round FROM t WHERE round = {round})"),
        };
        assert_eq!(house.rows(&format!("DELETE FROM t WHERE {condition}")), ["DELETE 10"]);
        deleted[round.parse::<usize>().unwrap()] = true;
        gone += 1;
    }
    house.run(writing).unwrap();
    done.store(true, Ordering::Relaxed);
    assert!(house.run(reading).unwrap() > 0);
    assert_eq!(house.rows("SELECT count(*) FROM t"), ["0"]);
}

#[test]
fn a_deletion_that_is_cancelled_leaves_everything_and_its_turn() {
    let house = House::new();
    house.rows(MERGED);
    house.rows("INSERT INTO t VALUES ('x', 'd', 1, 1, '2024-01-01')");
    let session = house.session();
    let canceller = session.canceller();
    let endless = "DELETE FROM t WHERE a < (SELECT count(*) FROM generate_series(1, 1000000000000) \
                   WHERE sqrt(value) < 0)";
    let running = house.pools.spawn(kymo_kernel::pools::Pool::Io, "endless", async move {
        rows(&session, endless).await
    });
    let look = "SELECT count(*) FROM system.queries WHERE sql LIKE 'DELETE%' AND state = 'running'";
    while house.rows(look) != ["1"] {}
    canceller.cancel();
    assert_eq!(house.run(running).unwrap().unwrap_err().code(), Code::Cancelled);
    assert_eq!(house.rows("DELETE FROM t WHERE b = 1"), ["DELETE 1"]);
}
