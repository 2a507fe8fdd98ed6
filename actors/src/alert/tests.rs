//! Alert rules over a whole system under a simulated clock: the life of an alert, restarts,
//! silences, missing data, rules that cannot be, and backtests that find what happened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kymo_config::Settings;
use kymo_kernel::env::Clock;
use kymo_kernel::env::sim::Sim;
use kymo_kernel::message::{Inbox, Notification, Outcome, Runnable};
use kymo_kernel::pools::Pools;
use kymo_kernel::{Code, Result, simulate};

use crate::System;
use crate::engine::kit::{cpu, rows, write};
use crate::kit::{context, texts};

mod files;

/// A world in which a system can be started, killed and started again.
struct House {
    sim: Sim,
    settings: Settings,
}

/// A system in it, with the notifications that the channel `ops` got.
struct Home {
    system: System,
    clock: Arc<dyn Clock>,
    inbox: Inbox,
}

impl House {
    fn new(seed: u64) -> House {
        let mut settings = Settings::default();
        settings.server.data_dir = PathBuf::from("/data");
        House { sim: Sim::new(seed), settings }
    }

    fn run<T>(&self, body: impl AsyncFnOnce(&mut Home) -> T) -> T {
        simulate::run(&self.sim.clock, async {
            let settings = Arc::new(self.settings.clone());
            let system = System::boot(settings, self.sim.env(), Pools::here()).unwrap();
            let inbox = system.alerts().open("ops");
            let mut home = Home { system, clock: self.sim.env().clock, inbox };
            body(&mut home).await
        })
        .unwrap()
    }

    /// The power fails: what was not synced is gone.
    fn crash(&self) {
        self.sim.disk.crash(7);
    }
}

impl Home {
    async fn sql(&self, sql: &str) -> Result<Vec<String>> {
        let session = self.system.open_session(context())?;
        let mut lines = Vec::new();
        for statement in session.parse(sql).await? {
            let outcome = session.execute(Runnable::Statement(statement), Vec::new(), None).await?;
            match outcome {
                Outcome::Rows { mut stream, .. } => {
                    while let Some(batch) = stream.next().await {
                        lines.extend(texts(&batch?));
                    }
                }
                Outcome::Done { verb, rows, .. } => {
                    lines.extend(rows.map(|rows| format!("{verb} {rows}")));
                }
            }
        }
        Ok(lines)
    }

    async fn ok(&self, sql: &str) -> Vec<String> {
        self.sql(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"))
    }

    /// Writes a value of a host now.
    async fn put(&self, host: &'static str, value: f64) {
        let points = [(host, self.clock.now_ns(), value)];
        self.system.write().call(write(vec![rows(&cpu(), &points)])).await.unwrap();
    }

    async fn pass(&self, seconds: f64) {
        self.clock.sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Waits until a query answers with these rows.
    async fn until(&self, sql: &str, expected: &[&str]) {
        let mut found = Vec::new();
        for _ in 0..5000 {
            found = self.ok(sql).await;
            if found == expected {
                return;
            }
            self.pass(0.001).await;
        }
        panic!("{sql}\n   found: {found:?}\nexpected: {expected:?}");
    }

    async fn states(&self, expected: &[&str]) {
        let sql = "SELECT state, labels FROM system.alerts ORDER BY labels";
        self.until(sql, expected).await;
    }

    async fn history(&self) -> Vec<String> {
        self.ok("SELECT \"from\", \"to\", value FROM system.alert_history ORDER BY sequence").await
    }

    async fn told(&mut self) -> Arc<Notification> {
        let next = self.inbox.next();
        tokio::select! {
            told = next => told,
            () = self.clock.sleep(Duration::from_secs(3600)) => panic!("nobody was told anything"),
        }
    }

    /// Whether nothing more is told within some seconds.
    async fn silent(&mut self, seconds: u64) -> bool {
        tokio::select! {
            told = self.inbox.next() => panic!("told: {told:?}"),
            () = self.clock.sleep(Duration::from_secs(seconds)) => true,
        }
    }
}

const HOT: &str = "CREATE ALERT hot ON (SELECT host, value FROM cpu) WHEN value > 90 FOR '30s' \
                   LABELS (severity = 'page') \
                   ANNOTATIONS (summary = '{{ $labels.host }} is at {{ $value }}') NOTIFY ops";
const A: &str = r#"{"alertname":"hot","host":"a","severity":"page"}"#;

#[test]
fn an_alert_is_pending_fires_and_is_resolved() {
    House::new(1).run(async |home| {
        home.put("a", 10.0).await;
        home.ok(HOT).await;
        home.states(&["inactive|NULL"]).await;
        home.put("a", 95.0).await;
        home.states(&[&format!("pending|{A}")]).await;
        home.pass(41.0).await;
        home.states(&[&format!("firing|{A}")]).await;
        let told = home.told().await;
        assert_eq!((told.status.as_str(), told.value), ("firing", Some(95.0)));
        assert_eq!(told.annotations["summary"], "a is at 95");
        assert_eq!(told.labels["host"], "a");
        assert_eq!((told.sequence, told.repeated, told.silenced), (2, false, false));
        home.put("b", 99.0).await;
        home.put("a", 50.0).await;
        let resolved = home.told().await;
        assert_eq!(resolved.status.as_str(), "resolved");
        assert_eq!(resolved.fingerprint, told.fingerprint);
        assert_eq!(resolved.starts_at_ns, told.starts_at_ns);
        assert!(resolved.ends_at_ns.unwrap() > resolved.starts_at_ns);
        let history = home.history().await;
        let expected = ["inactive|pending|95.0", "pending|firing|95.0", "inactive|pending|99.0"];
        assert_eq!(history[..3], expected);
        assert_eq!(history[3], "firing|resolved|50.0");
        let shown = "SELECT rule, status, class, state, value, acked, silenced, error \
                     FROM system.alerts WHERE state = 'pending'";
        assert_eq!(home.ok(shown).await, ["hot|active|rows|pending|99.0|NULL|false|NULL"]);
    });
}

#[test]
fn what_is_pending_and_what_fires_survives_a_crash() {
    let house = House::new(2);
    house.run(async |home| {
        home.ok("CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)").await;
        home.ok(HOT).await;
        home.put("a", 95.0).await;
        home.pass(41.0).await;
        assert_eq!(home.told().await.sequence, 2);
        home.put("b", 96.0).await;
        home.until("SELECT count(*) FROM system.alert_history", &["3"]).await;
        home.pass(10.0).await;
    });
    house.crash();
    let (first, again) = house.run(async |home| {
        let first = home.told().await;
        assert!(first.repeated && first.labels["host"] == "a", "{first:?}");
        // It was pending for ten seconds before.
        home.pass(31.0).await;
        let again = home.told().await;
        assert!(!again.repeated && again.labels["host"] == "b", "{again:?}");
        assert!(home.silent(20).await);
        let expected = ["inactive|pending|95.0", "pending|firing|95.0"];
        assert_eq!(home.history().await[..2], expected);
        (first, again)
    });
    house.crash();
    house.run(async |home| {
        let mut both = [home.told().await, home.told().await];
        both.sort_by_key(|each| each.sequence);
        for (before, now) in [first, again].iter().zip(&both) {
            assert!(now.repeated);
            assert_eq!(now.fingerprint, before.fingerprint);
            assert_eq!(now.starts_at_ns, before.starts_at_ns);
            assert_eq!(now.sequence, before.sequence);
        }
        home.put("a", 1.0).await;
        assert_eq!(home.told().await.status.as_str(), "resolved");
    });
}

#[test]
fn rows_that_were_committed_while_nobody_evaluated_count() {
    let house = House::new(3);
    house.run(async |home| {
        home.put("a", 99.0).await;
        // The rule is new, its rows are not.
        home.ok(&HOT.replace("FOR '30s'", "")).await;
        assert_eq!(home.told().await.labels["host"], "a");
        home.ok("ALTER ALERT hot PAUSE").await;
        home.put("b", 99.0).await;
        home.until("SELECT DISTINCT status FROM system.alerts", &["paused"]).await;
        assert!(home.silent(60).await);
        home.ok("ALTER ALERT hot RESUME").await;
        assert_eq!(home.told().await.labels["host"], "b");
    });
}

#[test]
fn a_silence_holds_notifications_back_and_an_acknowledgement_is_kept() {
    let house = House::new(4);
    house.run(async |home| {
        home.put("a", 1.0).await;
        home.ok(&HOT.replace("FOR '30s'", "")).await;
        home.ok("SILENCE hot WHERE host = 'a' FOR '2m' COMMENT 'work'").await;
        let shown = home.ok("SHOW SILENCES").await;
        assert!(shown[0].starts_with("1|hot WHERE host = 'a'|"), "{shown:?}");
        home.put("a", 99.0).await;
        home.put("b", 99.0).await;
        assert_eq!(home.told().await.labels["host"], "b");
        let silenced = "SELECT silenced FROM system.alerts WHERE labels LIKE '%\"a\"%'";
        home.until(silenced, &["true"]).await;
        let history = "SELECT silenced FROM system.alert_history WHERE labels LIKE '%\"a\"%'";
        home.until(history, &["true"]).await;
        assert!(home.silent(60).await);
        // The silence ends, and the alert still fires.
        assert_eq!(home.told().await.labels["host"], "a");
        home.ok("SILENCE hot FOR '1h'").await;
        // Whoever was told of its beginning is told of its end.
        home.put("a", 1.0).await;
        assert_eq!(home.told().await.status.as_str(), "resolved");
        home.put("a", 99.0).await;
        home.ok("DROP SILENCE 2").await;
        assert_eq!(home.told().await.status.as_str(), "firing");
        assert_eq!(home.ok("ACK hot WHERE host = 'b' COMMENT 'mine'").await, ["ACK 1"]);
        assert_eq!(home.ok("ACK hot WHERE host = 'c'").await, ["ACK 0"]);
    });
    house.crash();
    house.run(async |home| {
        let acked = "SELECT labels LIKE '%\"b\"%', acked FROM system.alerts ORDER BY labels";
        home.until(acked, &["false|NULL", "true|ada: mine"]).await;
        home.put("b", 1.0).await;
        home.put("b", 99.0).await;
        home.until(acked, &["false|NULL", "true|NULL"]).await;
    });
}

#[test]
fn missing_rows_fire_or_resolve_and_alerts_are_kept_firing() {
    House::new(5).run(async |home| {
        home.put("a", 99.0).await;
        let rule = |name: &str, clause: &str| {
            format!("CREATE ALERT {name} ON (SELECT host, value FROM cpu) WHEN value > 90 {clause}")
        };
        home.ok(&rule("gone", "NO DATA AFTER '1m' AS resolved")).await;
        home.ok(&rule("dead", "NO DATA AFTER '2m' AS firing")).await;
        home.ok(&rule("kept", "KEEP FIRING FOR '1m'")).await;
        home.ok(&rule("plain", "")).await;
        let states = "SELECT rule, state, value FROM system.alerts ORDER BY rule";
        let all = ["dead|firing|99.0", "gone|firing|99.0", "kept|firing|99.0", "plain|firing|99.0"];
        home.until(states, &all).await;
        home.put("a", 1.0).await;
        let after =
            ["dead|resolved|1.0", "gone|resolved|1.0", "kept|firing|1.0", "plain|resolved|1.0"];
        home.until(states, &after).await;
        home.put("a", 99.0).await;
        home.until(states, &all).await;
        home.pass(75.0).await;
        let after =
            ["dead|firing|99.0", "gone|resolved|99.0", "kept|firing|99.0", "plain|firing|99.0"];
        home.until(states, &after).await;
        // Without data for two minutes the one fires on, for another reason; after five the last
        // row no longer counts for the others.
        home.pass(240.0).await;
        let after =
            ["dead|firing|NULL", "gone|resolved|99.0", "kept|firing|99.0", "plain|resolved|99.0"];
        home.until(states, &after).await;
        home.pass(70.0).await;
        let after =
            ["dead|firing|NULL", "gone|resolved|99.0", "kept|resolved|99.0", "plain|resolved|99.0"];
        home.until(states, &after).await;
    });
}

#[test]
fn a_query_is_evaluated_on_the_grid() {
    House::new(6).run(async |home| {
        home.put("a", 10.0).await;
        home.ok("CREATE ALERT busy EVERY '5s' ON (SELECT host, avg(value) AS mean FROM cpu \
             WHERE time > now() - '1m' GROUP BY host) WHEN mean > 50 FOR '10s' NOTIFY ops")
            .await;
        home.put("a", 99.0).await;
        home.put("b", 20.0).await;
        let told = home.told().await;
        assert_eq!((told.labels["host"].as_str(), told.value), ("a", Some(54.5)));
        assert_eq!(told.starts_at_ns % 5_000_000_000, 0, "not on the grid");
        let class = "SELECT class, status, error FROM system.alerts WHERE state = 'firing'";
        assert_eq!(home.ok(class).await, ["query|active|NULL"]);
        // The rows leave the query's minute.
        assert_eq!(home.told().await.status.as_str(), "resolved");
    });
}

#[test]
fn a_rule_that_cannot_be_is_refused_and_says_why() {
    House::new(7).run(async |home| {
        home.put("a", 1.0).await;
        for (sql, code, part) in [
            ("ON (SELECT host, valu FROM cpu) WHEN valu > 1", Code::ColumnNotFound, "valu"),
            ("ON (SELECT host FROM cpu) WHEN heat > 1", Code::ColumnNotFound, "heat"),
            ("ON (SELECT value FROM gpu) WHEN value > 1", Code::TableNotFound, "gpu"),
            ("ON (SELECT value FROM cpu) WHEN value", Code::InvalidInput, "Float64"),
            ("ON (SELECT value FROM cpu) NOTIFY nobody", Code::InvalidInput, "nobody"),
            (
                "ON (SELECT host, value FROM cpu) ANNOTATIONS (a = '{{ $labels.rack }}')",
                Code::InvalidInput,
                "rack",
            ),
            ("EVERY '1ms' ON (SELECT value FROM cpu)", Code::InvalidInput, "short"),
        ] {
            let error = home.sql(&format!("CREATE ALERT a {sql}")).await.unwrap_err();
            assert_eq!(error.code(), code, "{sql}: {error:?}");
            assert!(error.message().contains(part), "{sql}: {error:?}");
        }
        assert_eq!(home.sql("DROP ALERT a").await.unwrap_err().code(), Code::AlertNotFound);
        home.ok("DROP ALERT IF EXISTS a").await;
        home.ok("CREATE ALERT a ON (SELECT value FROM cpu)").await;
        let again = home.sql("CREATE ALERT a ON (SELECT value FROM cpu)").await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists);
        home.ok("CREATE ALERT IF NOT EXISTS a ON (SELECT value FROM cpu)").await;
        let shown = home.ok("SHOW ALERTS").await;
        assert_eq!(shown, ["a|active|NULL|SELECT value FROM cpu|NULL|0s||NULL"]);
    });
}

#[test]
fn a_table_that_disappears_pauses_its_rules_alone() {
    House::new(8).run(async |home| {
        home.put("a", 1.0).await;
        home.ok("CREATE TABLE other (host TEXT TAG, v DOUBLE, time TIMESTAMP TIME INDEX)").await;
        home.ok(HOT).await;
        home.ok("CREATE ALERT fine ON (SELECT host, v FROM other) WHEN v > 1 NOTIFY ops").await;
        home.ok("DROP TABLE cpu").await;
        let shown = "SELECT rule, status, error LIKE '%\"cpu\" does not exist%' \
                     FROM system.alerts ORDER BY rule";
        home.until(shown, &["fine|active|NULL", "hot|paused|true"]).await;
        home.ok("INSERT INTO other (host, v) VALUES ('x', 5)").await;
        assert_eq!(home.told().await.rule, "fine");
        // It goes on by itself once it can.
        home.put("a", 99.0).await;
        home.until(shown, &["fine|active|NULL", "hot|active|NULL"]).await;
        home.until("SELECT state FROM system.alerts WHERE rule = 'hot'", &["pending"]).await;
    });
}

#[test]
fn a_dropped_rule_ends_its_alerts() {
    let house = House::new(9);
    house.run(async |home| {
        home.put("a", 99.0).await;
        home.ok(&HOT.replace("FOR '30s'", "")).await;
        assert_eq!(home.told().await.status.as_str(), "firing");
        home.ok("DROP ALERT hot").await;
        assert_eq!(home.told().await.status.as_str(), "resolved");
        assert!(home.ok("SELECT * FROM system.alerts").await.is_empty());
    });
    house.crash();
    house.run(async |home| {
        assert!(home.silent(60).await);
        home.ok(&HOT.replace("FOR '30s'", "")).await;
        assert!(!home.told().await.repeated);
    });
}

#[test]
fn commits_that_the_feed_lost_are_read_again() {
    let mut house = House::new(10);
    house.settings.alerts.buffer_bytes = 1;
    house.settings.live.feed_bytes = 1;
    house.run(async |home| {
        home.put("a", 1.0).await;
        home.ok(&HOT.replace("FOR '30s'", "")).await;
        home.pass(1.0).await;
        let writes = ["b", "c", "d"].map(|host| home.put(host, 99.0));
        futures::future::join_all(writes).await;
        let mut hosts = Vec::new();
        for _ in 0..3 {
            hosts.push(home.told().await.labels["host"].clone());
        }
        hosts.sort();
        assert_eq!(hosts, ["b", "c", "d"]);
    });
}

#[test]
fn rules_alike_share_a_shape_and_each_gets_its_own_rows() {
    House::new(11).run(async |home| {
        home.put("h0", 1.0).await;
        for rule in 0..60 {
            // Three rules a host, with limits of their own.
            let (host, limit) = (rule / 3, rule * 10);
            home.ok(&format!(
                "CREATE ALERT r{rule} ON (SELECT host, value FROM cpu WHERE host = 'h{host}') \
                 WHEN value > {limit}"
            ))
            .await;
        }
        home.until("SELECT count(*) FROM system.alerts WHERE status = 'active'", &["60"]).await;
        let actors = home.system.supervisor().actors().await;
        let alerts = actors.iter().find(|actor| actor.name == "alerts").unwrap();
        assert_eq!(alerts.observed["shapes"], 1, "{:?}", alerts.observed);
        let hosts = ["h0", "h1", "h2", "h3", "h19", "other"];
        let now = home.clock.now_ns();
        let points: Vec<_> = hosts.iter().map(|host| (*host, now, 75.0)).collect();
        home.system.write().call(write(vec![rows(&cpu(), &points)])).await.unwrap();
        let firing = "SELECT rule FROM system.alerts WHERE state = 'firing' ORDER BY rule";
        home.until(firing, &["r0", "r1", "r2", "r3", "r4", "r5", "r6", "r7"]).await;
    });
}

#[test]
fn a_rule_that_fails_on_a_row_does_not_disturb_the_others() {
    House::new(12).run(async |home| {
        home.put("a", 5.0).await;
        for host in ["a", "b"] {
            home.ok(&format!(
                "CREATE ALERT {host} ON (SELECT host, value FROM cpu WHERE host = '{host}') \
                 WHEN 100 / CAST(value AS BIGINT) > 50 NOTIFY ops"
            ))
            .await;
        }
        home.until("SELECT count(*) FROM system.alerts WHERE status = 'active'", &["2"]).await;
        let now = home.clock.now_ns();
        let points = [("a", now, 0.0), ("b", now, 1.0)];
        home.system.write().call(write(vec![rows(&cpu(), &points)])).await.unwrap();
        assert_eq!(home.told().await.rule, "b");
        let shown = "SELECT rule, error FROM system.alerts ORDER BY rule";
        home.until(shown, &["a|division by zero", "b|NULL"]).await;
        home.put("a", 1.0).await;
        assert_eq!(home.told().await.rule, "a");
        home.until(shown, &["a|NULL", "b|NULL"]).await;
    });
}

/// Rules of both classes, with every clause that has a say about time.
const TIMED: [(&str, &str); 4] = [
    ("plain", "ON (SELECT host, value FROM cpu) WHEN value > 50"),
    (
        "held",
        "ON (SELECT host, value FROM cpu WHERE host = 'a') WHEN value > 30 FOR '7s' \
         KEEP FIRING FOR '9s'",
    ),
    ("dead", "ON (SELECT host, value FROM cpu) WHEN value > 80 NO DATA AFTER '14s' AS firing"),
    (
        "mean",
        "EVERY '2s' ON (SELECT host, avg(value) AS mean FROM cpu WHERE time > now() - '6s' \
         GROUP BY host) WHEN mean > 50 FOR '3s' NO DATA AFTER '5s' AS ignore",
    ),
];

/// Something random that follows from a seed alone.
fn dice(seed: &mut u64, sides: u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) % sides
}

/// A stretch of life: rows at random, a little after full seconds, so that no instant of a grid
/// falls together with a row.
async fn live(home: &Home, seed: &mut u64, steps: usize) {
    for _ in 0..steps {
        let into = home.clock.now_ns().rem_euclid(1_000_000_000) as f64 / 1e9;
        let seconds = (1 + dice(seed, 4)) as f64;
        home.pass(seconds + 0.4 - into).await;
        for host in ["a", "b"] {
            if dice(seed, 3) > 0 {
                home.put(host, dice(seed, 100) as f64).await;
            }
        }
    }
    home.pass(0.2).await;
}

#[test]
fn a_backtest_finds_what_the_rule_did() {
    for seed in 0..8_u64 {
        let mut house = House::new(100 + seed);
        house.settings.alerts.evaluation_ms = 1000;
        house.settings.alerts.staleness_ms = 12_000;
        let mut random = seed;
        house.run(async |home| {
            let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)";
            home.ok(table).await;
            for (name, rule) in TIMED {
                home.ok(&format!("CREATE ALERT {name} {rule}")).await;
            }
            home.until("SELECT count(*) FROM system.alerts WHERE status = 'active'", &["4"]).await;
            live(home, &mut random, 20).await;
        });
        house.crash();
        house.run(async |home| {
            live(home, &mut random, 15).await;
            let mut transitions = 0;
            for (name, _) in TIMED {
                let columns = "labels, \"from\", \"to\", value";
                let lived = home
                    .ok(&format!(
                        "SELECT at, {columns} FROM system.alert_history WHERE rule = '{name}' \
                         ORDER BY at, labels"
                    ))
                    .await;
                let found = home.ok(&format!("EXPLAIN ALERT {name} OVER '1 hour'")).await;
                transitions += found.len();
                same(&format!("{name}, seed {seed}"), &lived, found);
            }
            assert!(transitions > 20, "a dull life: {transitions}");
        });
    }
}

/// Whether two lists of transitions are the same. A commit is evaluated a moment after the time
/// of its rows.
fn same(what: &str, lived: &[String], mut found: Vec<String>) {
    let moment = |line: &str| -> (i64, String) {
        let (at, rest) = line.split_once('|').unwrap();
        let at = chrono::DateTime::parse_from_rfc3339(at).unwrap();
        (at.timestamp_nanos_opt().unwrap(), rest.to_owned())
    };
    found.sort();
    let (lived, found): (Vec<_>, Vec<_>) = (
        lived.iter().map(|line| moment(line)).collect(),
        found.iter().map(|line| moment(line)).collect(),
    );
    let texts =
        |all: &[(i64, String)]| all.iter().map(|(_, text)| text.clone()).collect::<Vec<_>>();
    let mut sorted = (texts(&lived), texts(&found));
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1, "{what}:\n{lived:#?}\n{found:#?}");
    for (at, text) in &lived {
        let near =
            found.iter().any(|(other, same)| same == text && (at - other).abs() < 50_000_000);
        assert!(near, "{what}: {text} at {at}\n{lived:#?}\n{found:#?}");
    }
}

#[test]
fn a_rule_that_does_not_exist_yet_can_be_tried() {
    House::new(13).run(async |home| {
        for value in [10.0, 95.0, 20.0] {
            home.put("a", value).await;
            home.pass(60.0).await;
        }
        let tried = home
            .ok("EXPLAIN ALERT ON (SELECT host, value FROM cpu) WHEN value > 90 FOR '30s' OVER '1h'")
            .await;
        let states: Vec<_> = tried.iter().map(|line| line.split_once('|').unwrap().1).collect();
        let labels = r#"{"alertname":"backtest","host":"a"}"#;
        let expected = [
            format!("{labels}|inactive|pending|95.0"),
            format!("{labels}|pending|firing|95.0"),
            format!("{labels}|firing|resolved|20.0"),
        ];
        assert_eq!(states, expected);
        let far = "EXPLAIN ALERT EVERY '100ms' ON (SELECT value FROM cpu) OVER '30 days'";
        assert_eq!(home.sql(far).await.unwrap_err().code(), Code::LimitReached);
        let none = home.sql("EXPLAIN ALERT nothing OVER '1h'").await.unwrap_err();
        assert_eq!(none.code(), Code::AlertNotFound);
    });
}
