//! Continuous queries over a whole system, in one thread and under a clock that jumps: what is
//! refused, late and overwritten rows, deletions, chains, pauses, and crashes at any moment.

use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::pools::Pools;
use kymo_kernel::{Code, Error, simulate};

use crate::System;
use crate::kit::sql as try_sql;

const TABLE: &str = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)";
const BY_MINUTE: &str = "SELECT time_bucket('1m', time) AS time, host, count(*) AS n, \
     sum(value) AS total, max(value) AS top FROM cpu GROUP BY 1, 2";

struct World {
    sim: Sim,
    settings: Settings,
}

impl World {
    fn new(seed: u64) -> World {
        let mut settings = Settings::default();
        settings.server.data_dir = "/data".into();
        settings.continuous.delay_ms = 100;
        settings.continuous.cursor_ms = 300;
        settings.continuous.check_ms = 200;
        World { sim: Sim::new(seed), settings }
    }

    /// One life of the system: it ends where the body does, as a killed process would.
    fn life<T>(&self, body: impl AsyncFnOnce(System) -> T) -> T {
        let life = async {
            let settings = Arc::new(self.settings.clone());
            let system = System::boot(settings, self.sim.env(), Pools::here()).unwrap();
            body(system).await
        };
        simulate::run(&self.sim.clock, life).unwrap()
    }
}

async fn sql(system: &System, text: &str) -> Vec<String> {
    try_sql(system, text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"))
}

async fn fails(system: &System, text: &str) -> Error {
    match try_sql(system, text).await {
        Err(error) => error,
        Ok(rows) => panic!("{text}: {rows:?}"),
    }
}

async fn sorted(system: &System, text: &str) -> Vec<String> {
    let mut rows = sql(system, text).await;
    rows.sort();
    rows
}

async fn pass(system: &System, millis: u64) {
    system.env().clock.sleep(Duration::from_millis(millis)).await;
}

/// Waits, by the clock that jumps, until a query answers what is wanted.
async fn until(system: &System, text: &str, wanted: &[String]) {
    for _ in 0..200 {
        if sorted(system, text).await == wanted {
            return;
        }
        pass(system, 100).await;
    }
    let shown = sql(
        system,
        "SELECT name, state, reason, last_error, lag_ms FROM system.continuous_queries",
    )
    .await;
    assert_eq!(sorted(system, text).await, wanted, "{text}; {shown:?}");
}

/// Waits until a target equals its query, as a batch.
async fn until_equal(system: &System, target: &str, query: &str) {
    let wanted = sorted(system, query).await;
    until(system, target, &wanted).await;
}

fn own(rows: &[&str]) -> Vec<String> {
    rows.iter().map(|&row| row.to_owned()).collect()
}

const OUT: &str = "SELECT time, host, n, total, top FROM out";
/// Windows of three minutes, one each minute.
const HOPS: &str = "SELECT unnest(time_hops('1m', '3m', time)) AS time, host, count(*) AS n, \
     count(DISTINCT value) AS total, max(value) AS top FROM cpu GROUP BY 1, 2";

async fn begin(system: &System, terms: &str) {
    sql(system, TABLE).await;
    sql(system, &format!("CREATE CONTINUOUS QUERY q {terms} INTO out AS {BY_MINUTE}")).await;
}

async fn put(system: &System, rows: &str) {
    sql(system, &format!("INSERT INTO cpu (host, value, time) VALUES {rows}")).await;
}

#[test]
fn results_follow_new_late_overwritten_and_deleted_rows() {
    World::new(1).life(async |system| {
        begin(&system, "").await;
        put(&system, "('a', 1, '2024-01-01 00:00:10'), ('b', 2, '2024-01-01 00:00:20')").await;
        put(&system, "('a', 3, '2024-01-01 00:01:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["3"]);
        // Late, and in place of an earlier row.
        put(&system, "('c', 9, '2024-01-01 00:00:30'), ('a', 7, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        let shown = sql(&system, "SHOW COLUMNS FROM out").await;
        assert!(shown.iter().any(|row| row.starts_with("host|") && row.ends_with("tag")));
        // A group that is empty afterwards is gone from the target, too.
        sql(&system, "DELETE FROM cpu WHERE host = 'b'").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out WHERE host = 'b'").await, ["0"]);
        sql(&system, "TRUNCATE cpu").await;
        until(&system, OUT, &[]).await;
        put(&system, "('a', 1, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        let figures = "SELECT state, windows_written > 3, rows_removed >= 4, lag_ms, last_error \
                       FROM system.continuous_queries";
        assert_eq!(sql(&system, figures).await, ["running|true|true|0|NULL"]);
    });
}

#[test]
fn rows_that_an_overwrite_takes_out_of_a_result_leave_the_target() {
    World::new(2).life(async |system| {
        sql(&system, TABLE).await;
        let query = "SELECT time_bucket('1m', time) AS time, host, max(value) AS top FROM cpu \
                     WHERE value > 5 GROUP BY 1, 2 HAVING max(value) < 100";
        sql(&system, &format!("CREATE CONTINUOUS QUERY q INTO out AS {query}")).await;
        let out = "SELECT time, host, top FROM out";
        put(&system, "('a', 6, '2024-01-01 00:00:10'), ('b', 7, '2024-01-01 00:00:20')").await;
        until_equal(&system, out, query).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["2"]);
        put(&system, "('a', 1, '2024-01-01 00:00:10')").await;
        until_equal(&system, out, query).await;
        // HAVING takes a row away without any row being late.
        put(&system, "('b', 200, '2024-01-01 00:00:40')").await;
        until(&system, out, &[]).await;
    });
}

#[test]
fn what_cannot_run_is_refused_with_a_reason() {
    World::new(3).life(async |system| {
        sql(&system, TABLE).await;
        sql(&system, "CREATE TABLE taken (host TEXT TAG, n TEXT, time TIMESTAMP TIME INDEX)").await;
        let create = |query: &str| format!("CREATE CONTINUOUS QUERY x INTO out AS {query}");
        for (query, says) in [
            ("SELECT host, count(*) FROM cpu GROUP BY 1", "windows of time"),
            ("SELECT count(*) AS n FROM cpu", "windows of time"),
            (
                "SELECT time_bucket('1m', time) AS w, value, count(*) AS n FROM cpu GROUP BY 1, 2",
                "CAST",
            ),
            ("SELECT time_bucket('1m', time) AS w, host FROM cpu GROUP BY 1, 2", "nothing but"),
            ("SELECT time_bucket('1m', time) AS w, count(*) AS time FROM cpu GROUP BY 1", "twice"),
            (
                "SELECT time_bucket('1m', time) AS w, array_agg(value) AS l FROM cpu GROUP BY 1",
                "cast",
            ),
        ] {
            let error = fails(&system, &create(query)).await;
            let text = format!("{error} {}", error.hint().unwrap_or_default());
            assert!(
                error.code() == Code::InvalidInput && text.contains(says),
                "{query}: {error:?}"
            );
            let explained = sql(&system, &format!("EXPLAIN {}", create(query))).await;
            assert!(explained[0].starts_with("refused|"), "{explained:?}");
        }
        let missing = fails(
            &system,
            &create("SELECT time_bucket('1m', time) AS w, count(*) AS n FROM nowhere GROUP BY 1"),
        )
        .await;
        assert_eq!(missing.code(), Code::TableNotFound);
        let taken = format!("CREATE CONTINUOUS QUERY x INTO taken AS {BY_MINUTE}");
        let error = fails(&system, &taken).await;
        assert!(
            error.code() == Code::TypeConflict && error.message().contains("\"n\""),
            "{error:?}"
        );
        let own = format!("CREATE CONTINUOUS QUERY x INTO cpu AS {BY_MINUTE}");
        assert!(fails(&system, &own).await.message().contains("feed itself"));
        let fine = sql(&system, &format!("EXPLAIN {}", create(BY_MINUTE))).await;
        assert!(!fine[0].starts_with("refused") && fine[0].len() > 10, "{fine:?}");
        assert_eq!(sql(&system, "SHOW CONTINUOUS QUERIES").await, own_none());
        for text in [
            "DROP CONTINUOUS QUERY x",
            "ALTER CONTINUOUS QUERY x PAUSE",
            "BACKFILL x FROM '2024-01-01' TO now()",
        ] {
            assert_eq!(fails(&system, text).await.code(), Code::QueryNotFound, "{text}");
        }
        sql(&system, "DROP CONTINUOUS QUERY IF EXISTS x").await;
    });
}

fn own_none() -> Vec<String> {
    Vec::new()
}

#[test]
fn queries_without_groups_and_with_a_time_of_another_name_work() {
    World::new(4).life(async |system| {
        sql(&system, "CREATE TABLE ev (ts TIMESTAMP TIME INDEX, v BIGINT)").await;
        sql(&system, "CREATE TABLE ev_h (at TIMESTAMP TIME INDEX, total BIGINT)").await;
        let query = "SELECT date_bin('1 hour', ts) AS hour, sum(v) AS total, last(v, ts) AS latest \
                     FROM ev GROUP BY 1";
        sql(&system, &format!("CREATE CONTINUOUS QUERY q INTO ev_h AS {query}")).await;
        sql(
            &system,
            "INSERT INTO ev VALUES ('2024-01-01 00:10:00', 1), ('2024-01-01 01:10:00', 5)",
        )
        .await;
        until_equal(&system, "SELECT at, total, latest FROM ev_h", query).await;
        sql(&system, "INSERT INTO ev VALUES ('2024-01-01 00:20:00', 7)").await;
        until_equal(&system, "SELECT at, total, latest FROM ev_h", query).await;
        assert_eq!(sql(&system, "SELECT total FROM ev_h ORDER BY at").await, ["8", "5"]);
    });
}

#[test]
fn a_query_follows_the_target_of_another_and_cycles_are_refused() {
    World::new(5).life(async |system| {
        begin(&system, "").await;
        let hourly = "SELECT time_bucket('1h', time) AS time, sum(n) AS n FROM out GROUP BY 1";
        sql(&system, &format!("CREATE CONTINUOUS QUERY hourly INTO out_h AS {hourly}")).await;
        let back = "SELECT time_bucket('1d', time) AS time, sum(n) AS value FROM out_h GROUP BY 1";
        let error =
            fails(&system, &format!("CREATE CONTINUOUS QUERY back INTO cpu AS {back}")).await;
        assert!(
            error.message().contains("q → hourly") || error.message().contains("feed itself"),
            "{error:?}"
        );
        for minute in 0..70 {
            let (hour, minute) = (minute / 60, minute % 60);
            put(&system, &format!("('a', {minute}, '2024-01-01 {hour:02}:{minute:02}:01')")).await;
        }
        until(&system, "SELECT n FROM out_h", &own(&["10", "60"])).await;
        sql(&system, "DELETE FROM cpu WHERE time < '2024-01-01 00:30:00'").await;
        until(&system, "SELECT n FROM out_h", &own(&["10", "30"])).await;
    });
}

#[test]
fn every_and_the_delay_decide_when_windows_are_evaluated() {
    World::new(6).life(async |system| {
        begin(&system, "EVERY '10s'").await;
        put(&system, "('a', 1, '2024-01-01 00:00:10')").await;
        let began = system.env().clock.now_ns();
        until_equal(&system, OUT, BY_MINUTE).await;
        let ended = system.env().clock.now_ns();
        let ticks = ended.div_euclid(10_000_000_000) - began.div_euclid(10_000_000_000);
        assert_eq!(ticks, 1, "{began} {ended}");
        assert!(ended.rem_euclid(10_000_000_000) < 1_000_000_000, "{ended}");
    });
}

#[test]
fn rows_beyond_the_allowed_lateness_do_not_reopen_their_window() {
    let world = World::new(7);
    let late = "SELECT late_rows_dropped FROM system.continuous_queries";
    world.life(async |system| {
        begin(&system, "ALLOWED LATENESS '5m'").await;
        put(&system, "('a', 1, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        put(&system, "('a', 1, '2024-01-01 00:10:00')").await;
        // One of them is within the lateness.
        put(&system, "('a', 5, '2024-01-01 00:00:20'), ('a', 5, '2024-01-01 00:05:20')").await;
        until(
            &system,
            "SELECT time, n FROM out",
            &own(&["2024-01-01T00:00:00Z|1", "2024-01-01T00:05:00Z|1", "2024-01-01T00:10:00Z|1"]),
        )
        .await;
        assert_eq!(sql(&system, late).await, ["1"]);
        pass(&system, 2000).await;
    });
    // A restart judges as before, also rows that came while nobody looked.
    world.sim.disk.crash(1);
    world.life(async |system| {
        put(&system, "('a', 5, '2024-01-01 00:00:30'), ('a', 5, '2024-01-01 00:11:00')").await;
        until(
            &system,
            "SELECT time, n FROM out WHERE n > 0 AND time > '2024-01-01 00:09:00'",
            &own(&["2024-01-01T00:10:00Z|1", "2024-01-01T00:11:00Z|1"]),
        )
        .await;
        assert_eq!(sql(&system, "SELECT n FROM out WHERE time = '2024-01-01'").await, ["1"]);
        assert_eq!(sql(&system, late).await, ["1"]);
        // A backfill is asked for, so it counts everything.
        sql(&system, "BACKFILL q FROM '2024-01-01' TO '2024-01-02'").await;
        assert_eq!(sql(&system, "SELECT n FROM out WHERE time = '2024-01-01'").await, ["3"]);
    });
}

#[test]
fn history_comes_by_backfill_and_is_told_as_it_goes() {
    World::new(8).life(async |system| {
        sql(&system, TABLE).await;
        let rows: Vec<String> = (0..300)
            .map(|minute| {
                format!("('a', {minute}, '2024-01-01 {:02}:{:02}:00')", minute / 60, minute % 60)
            })
            .collect();
        put(&system, &rows.join(", ")).await;
        sql(&system, &format!("CREATE CONTINUOUS QUERY q INTO out AS {BY_MINUTE}")).await;
        pass(&system, 1000).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["0"]);
        let told = sql(&system, "BACKFILL q FROM '2024-01-01 01:00' TO '2024-01-01 03:00'").await;
        assert_eq!(told.last().unwrap(), "120|120|120|2024-01-01T03:00:00Z");
        assert!(told.len() > 1 && told[0].starts_with("16|120|16|"), "{told:?}");
        assert_eq!(sql(&system, "SELECT count(*), min(n) FROM out").await, ["120|1"]);
        let shown = "SELECT backfill_done, backfill_total FROM system.continuous_queries";
        assert_eq!(sql(&system, shown).await, ["120|120"]);
        // Again, nothing differs; then all of it.
        let told = sql(&system, "BACKFILL q FROM '2024-01-01 01:00' TO '2024-01-01 03:00'").await;
        assert_eq!(told.last().unwrap(), "120|120|0|2024-01-01T03:00:00Z");
        sql(&system, "BACKFILL q FROM '2000-01-01' TO now()").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        assert!(
            sql(&system, "BACKFILL q FROM '2010-01-01' TO '2011-01-01'").await[0]
                .starts_with("0|0|0|")
        );
        let empty = fails(&system, "BACKFILL q FROM '2024-01-02' TO '2024-01-01'").await;
        assert_eq!(empty.code(), Code::InvalidInput);
    });
}

#[test]
fn windows_that_overlap_are_corrected_and_backfilled_one_by_one() {
    World::new(13).life(async |system| {
        sql(&system, TABLE).await;
        put(&system, "('a', 1, '2024-01-01 00:00:30'), ('b', 1, '2024-01-01 00:10:30')").await;
        sql(&system, &format!("CREATE CONTINUOUS QUERY q INTO out AS {HOPS}")).await;
        let class = "SELECT class FROM system.continuous_queries";
        until(&system, class, &own(&["windows"])).await;
        // Three windows have an instant of this second, and only these are computed.
        let told =
            sql(&system, "BACKFILL q FROM '2024-01-01 00:10' TO '2024-01-01 00:10:01'").await;
        assert_eq!(told.last().unwrap(), "3|3|3|2024-01-01T00:11:00Z");
        pass(&system, 3000).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["3"]);
        put(&system, "('b', 2, '2024-01-01 00:11:10')").await;
        let late = "SELECT time, host, n, total, top FROM out WHERE time > '2024-01-01 00:05'";
        let wanted = format!("SELECT * FROM ({HOPS}) AS x WHERE time > '2024-01-01 00:05'");
        until_equal(&system, late, &wanted).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["4"]);
        sql(&system, "BACKFILL q FROM '2000-01-01' TO now()").await;
        until_equal(&system, OUT, HOPS).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["7"]);
        put(&system, "('b', 9, '2024-01-01 00:10:30'), ('c', 5, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, HOPS).await;
        sql(&system, "DELETE FROM cpu WHERE host = 'b' AND time > '2024-01-01 00:11'").await;
        until_equal(&system, OUT, HOPS).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out WHERE host = 'b'").await, ["3"]);
    });
}

#[test]
fn a_query_that_cannot_go_on_pauses_with_the_reason_and_resumes_without_loss() {
    let world = World::new(9);
    let state = "SELECT state, reason FROM system.continuous_queries WHERE name = 'q'";
    world.life(async |system| {
        begin(&system, "").await;
        put(&system, "('a', 1, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        sql(&system, "ALTER CONTINUOUS QUERY q PAUSE").await;
        assert_eq!(sql(&system, state).await, ["paused|ada paused it"]);
        put(&system, "('a', 2, '2024-01-01 00:01:10')").await;
        pass(&system, 3000).await;
        assert_eq!(sql(&system, "SELECT count(*) FROM out").await, ["1"]);
        let error = fails(&system, "BACKFILL q FROM '2024-01-01' TO now()").await;
        assert!(error.hint().unwrap().contains("RESUME"), "{error:?}");
    });
    // A pause outlives the process.
    world.sim.disk.crash(1);
    world.life(async |system| {
        pass(&system, 3000).await;
        assert_eq!(sql(&system, state).await, ["paused|ada paused it"]);
        sql(&system, "ALTER CONTINUOUS QUERY q RESUME").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        sql(&system, "DROP TABLE out").await;
        let failed = own(&["failed"]);
        until(&system, "SELECT state FROM system.continuous_queries WHERE name = 'q'", &failed)
            .await;
        assert!(sql(&system, state).await[0].contains("kymo.public.out"));
        put(&system, "('a', 3, '2024-01-01 00:02:10')").await;
        sql(&system, "ALTER CONTINUOUS QUERY q RESUME").await;
        until(&system, "SELECT total FROM out", &own(&["3.0"])).await;
        sql(&system, "DROP TABLE cpu").await;
        until(&system, "SELECT state FROM system.continuous_queries WHERE name = 'q'", &failed)
            .await;
        assert!(sql(&system, state).await[0].contains("kymo.public.cpu"));
        let error = fails(&system, "ALTER CONTINUOUS QUERY q RESUME").await;
        assert_eq!(error.code(), Code::TableNotFound);
        // The same name, but without one of the columns.
        sql(&system, "CREATE TABLE cpu (host TEXT TAG, other DOUBLE, time TIMESTAMP TIME INDEX)")
            .await;
        let error = fails(&system, "ALTER CONTINUOUS QUERY q RESUME").await;
        assert!(
            error.code() == Code::ColumnNotFound && error.message().contains("value"),
            "{error:?}"
        );
        sql(&system, "DROP TABLE cpu").await;
        sql(&system, TABLE).await;
        put(&system, "('z', 8, '2024-01-01 00:05:10')").await;
        sql(&system, "ALTER CONTINUOUS QUERY q RESUME").await;
        until(&system, "SELECT host FROM out WHERE host = 'z'", &own(&["z"])).await;
        sql(&system, "DROP CONTINUOUS QUERY q").await;
        assert_eq!(sql(&system, "SELECT count(*) FROM system.continuous_queries").await, ["0"]);
    });
}

#[test]
fn a_value_that_cannot_be_computed_pauses_the_query_and_nothing_else() {
    World::new(10).life(async |system| {
        sql(&system, TABLE).await;
        let bad = "SELECT time_bucket('1m', time) AS time, sum(CAST(host AS BIGINT)) AS n FROM cpu GROUP BY 1";
        sql(&system, &format!("CREATE CONTINUOUS QUERY bad INTO bad_out AS {bad}")).await;
        sql(&system, &format!("CREATE CONTINUOUS QUERY q INTO out AS {BY_MINUTE}")).await;
        put(&system, "('7', 1, '2024-01-01 00:00:10')").await;
        until(&system, "SELECT n FROM bad_out", &own(&["7"])).await;
        put(&system, "('seven', 1, '2024-01-01 00:00:20')").await;
        until(&system, "SELECT state FROM system.continuous_queries WHERE name = 'bad'", &own(&["failed"])).await;
        let shown = sql(&system, "SELECT reason, failures > 0 FROM system.continuous_queries WHERE name = 'bad'").await;
        assert!(shown[0].contains("seven") && shown[0].ends_with("true"), "{shown:?}");
        until_equal(&system, OUT, BY_MINUTE).await;
        // Without the row it can go on.
        sql(&system, "DELETE FROM cpu WHERE host = 'seven'").await;
        sql(&system, "ALTER CONTINUOUS QUERY bad RESUME").await;
        put(&system, "('8', 1, '2024-01-01 00:00:30')").await;
        until(&system, "SELECT n FROM bad_out", &own(&["15"])).await;
    });
}

#[test]
fn somebody_elses_changes_of_a_target_are_set_right() {
    World::new(11).life(async |system| {
        begin(&system, "").await;
        put(&system, "('a', 1, '2024-01-01 00:00:10'), ('b', 1, '2024-01-01 00:00:10')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
        sql(&system, "DELETE FROM out WHERE host = 'b'").await;
        sql(&system, "INSERT INTO out (time, host, n) VALUES ('2024-01-01', 'x', 5)").await;
        put(&system, "('a', 2, '2024-01-01 00:00:20')").await;
        until_equal(&system, OUT, BY_MINUTE).await;
    });
}

#[test]
fn a_policy_keeps_history_and_only_then_lets_raw_rows_go() {
    World::new(12).life(async |system| {
        sql(&system, TABLE).await;
        let day = |days: i64| format!("now() - '{days}d'");
        for days in [20, 10, 1] {
            put(&system, &format!("('a', {days}, {}), ('b', 1, {})", day(days), day(days))).await;
        }
        sql(&system, "CREATE DOWNSAMPLING POLICY ON cpu AFTER '7d' TO '1h' WITH (max, count)")
            .await;
        until(
            &system,
            "SELECT value_max, value_count FROM cpu_1h WHERE host = 'a'",
            &own(&["1.0|1", "10.0|1", "20.0|1"]),
        )
        .await;
        until(&system, "SELECT value FROM cpu WHERE host = 'a'", &own(&["1.0"])).await;
        pass(&system, 5000).await;
        // What is gone from the raw table stays in the target.
        assert_eq!(sql(&system, "SELECT count(*) FROM cpu_1h").await, ["6"]);
        let shown = sql(&system, "SHOW DOWNSAMPLING POLICIES").await;
        assert!(
            shown[0].starts_with("cpu_1h|kymo.public.cpu|7d|1h|kymo.public.cpu_1h|running|"),
            "{shown:?}"
        );
        sql(&system, "DROP DOWNSAMPLING POLICY cpu_1h").await;
        assert_eq!(sql(&system, "SHOW DOWNSAMPLING POLICIES").await, own_none());
    });
}

/// A small generator, so that a failing seed can be run again.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}

/// Random rows, late and overwriting ones among them, flushes, deletions, and the process
/// killed at any moment: afterwards each window is there once, and equal to a batch query.
#[test]
fn after_any_crash_every_window_is_there_once_and_equals_a_batch_query() {
    let seeds = std::env::var("KYMO_CONTINUOUS_SEEDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(12);
    for seed in 0..seeds {
        crashes(seed);
    }
}

fn crashes(seed: u64) {
    let mut world = World::new(seed);
    // Some worlds read back from the log, others have to look at their segments.
    if seed.is_multiple_of(3) {
        world.settings.live.catch_up_bytes = 1;
    }
    if seed.is_multiple_of(4) {
        world.settings.live.buffer_bytes = 1;
    }
    let mut dice = Dice(seed.wrapping_mul(77) + 5);
    let chained = "SELECT time_bucket('10m', time) AS time, sum(n) AS n FROM out GROUP BY 1";
    world.life(async |system| {
        begin(&system, if seed.is_multiple_of(5) { "EVERY '1s'" } else { "" }).await;
        sql(&system, &format!("CREATE CONTINUOUS QUERY chained INTO out_10 AS {chained}")).await;
        sql(&system, &format!("CREATE CONTINUOUS QUERY hops INTO out_3 AS {HOPS}")).await;
    });
    for life in 0..4 {
        world.sim.disk.crash(seed * 10 + life);
        let until_killed = Duration::from_millis(dice.next(2500));
        world.life(async |system| {
            let killed = system.env().clock.sleep(until_killed);
            tokio::select! {
                () = killed => {}
                () = random_work(&system, &mut dice) => {}
            }
        });
    }
    world.sim.disk.crash(seed);
    world.life(async |system| {
        until_equal(&system, OUT, BY_MINUTE).await;
        until_equal(&system, "SELECT time, n FROM out_10", chained).await;
        until_equal(&system, &OUT.replace("FROM out", "FROM out_3"), HOPS).await;
        let twice = "SELECT time, host FROM out GROUP BY 1, 2 HAVING count(*) > 1";
        assert_eq!(sql(&system, twice).await, own_none(), "seed {seed}");
    });
}

async fn random_work(system: &System, dice: &mut Dice) {
    for _ in 0..30 {
        match dice.next(12) {
            0 => drop(system.flush().await),
            1 => {
                let host = dice.next(3);
                let minute = dice.next(20);
                let delete = format!(
                    "DELETE FROM cpu WHERE host = 'h{host}' AND time < '2024-01-01 00:{minute:02}:00'"
                );
                drop(try_sql(system, &delete).await);
            }
            _ => {
                let count = 1 + dice.next(5);
                let rows: Vec<String> = (0..count)
                    .map(|_| {
                        let (host, value) = (dice.next(3), dice.next(100));
                        let (minute, second) = (dice.next(30), dice.next(4) * 15);
                        format!("('h{host}', {value}, '2024-01-01 00:{minute:02}:{second:02}')")
                    })
                    .collect();
                put(system, &rows.join(", ")).await;
            }
        }
        pass(system, dice.next(150)).await;
    }
}
