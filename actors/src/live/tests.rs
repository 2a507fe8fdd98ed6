//! Subscriptions over a whole system: which queries, no row missing and none twice, lagging,
//! going on, and ending.

mod equal;
mod kept;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use kymo_config::Settings;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::env::{Env, real, sim};
use kymo_kernel::message::{Parse, Query, Runnable};
use kymo_kernel::pools::{PoolSizes, Pools};
use kymo_kernel::{Code, Result};
use tempfile::TempDir;

use super::*;
use crate::System;
use crate::engine::kit::{cpu, rows, write};
use crate::kit::{context, sql, texts};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A system, mostly on a disk in memory, on threads of its own.
struct House {
    system: System,
    pools: Pools,
    _folder: Option<TempDir>,
}

impl House {
    fn new(change: impl FnOnce(&mut Settings)) -> House {
        let env = Env { clock: real::env().clock, ..sim::Sim::new(1).env() };
        House::over(env, "/data".into(), None, change)
    }

    /// On a real disk, as plugins need it.
    fn on_disk(change: impl FnOnce(&mut Settings)) -> House {
        let folder = tempfile::tempdir().unwrap();
        House::over(real::env(), folder.path().to_owned(), Some(folder), change)
    }

    fn over(
        env: Env,
        data_dir: PathBuf,
        folder: Option<TempDir>,
        change: impl FnOnce(&mut Settings),
    ) -> House {
        let mut settings = Settings::default();
        settings.server.data_dir = data_dir;
        settings.live.heartbeat_ms = 20;
        change(&mut settings);
        let pools = Pools::start(PoolSizes::of(&settings, 2)).unwrap();
        let system = System::boot(Arc::new(settings), env, pools.clone()).unwrap();
        House { system, pools, _folder: folder }
    }

    fn run<T>(&self, body: impl AsyncFnOnce(System) -> T) -> T {
        self.pools.block_on(body(self.system.clone())).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.system.engine().stop();
        self.pools.stop();
    }
}

/// A table that keeps every row, with one number in each.
async fn numbers(system: &System) {
    let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)";
    sql(system, &format!("{table} WITH (append_only = true)")).await.unwrap();
}

async fn put(system: &System, numbers: std::ops::Range<i64>) {
    let points: Vec<_> = numbers.map(|number| ("a", number, number as f64)).collect();
    let acked = system.write().call(write(vec![rows(&cpu(), &points)])).await.unwrap();
    assert_eq!(acked.rows, points.len() as u64);
}

async fn follow(system: &System, text: &str, resume: Option<Token>) -> Result<Subscription> {
    let statement = system.parse().call(Parse { sql: text.to_owned() }).await?.remove(0);
    let session = Arc::new(context());
    let ask = Ask { statement, parameters: Vec::new(), session, snapshot: None, resume };
    system.live().subscribe(ask).await
}

const ALL: &str = "SELECT value FROM cpu";
const CHANGES: &str = "SUBSCRIBE TO SELECT value FROM cpu WITH (snapshot = false)";

/// What a client has after some events.
#[derive(Debug, Default)]
struct Client {
    rows: Vec<String>,
    notices: Vec<String>,
    token: Option<Token>,
}

impl Client {
    async fn take(&mut self, subscription: &mut Subscription) {
        let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
        let event = next.unwrap_or_else(|_| panic!("nothing more after {self:?}"));
        match event.expect("an event before the end") {
            Event::Started { resumed, .. } => {
                self.notices.push(if resumed { "resumed" } else { "started" }.to_owned());
            }
            Event::Rows { op, batch, token, .. } => {
                if self.notices.last().is_none_or(|last| last != op.as_str()) {
                    self.notices.push(op.as_str().to_owned());
                }
                self.rows.extend(texts(&batch));
                self.token = token.or(self.token);
            }
            Event::SnapshotEnd { token } => {
                self.notices.push("end".to_owned());
                self.token = Some(token);
            }
            Event::Lagged { commits } => {
                assert!(commits > 0);
                self.notices.push("lagged".to_owned());
            }
            Event::Resync { .. } => {
                self.notices.push("resync".to_owned());
                self.rows.clear();
            }
            Event::Ended(error) => self.notices.push(error.code().as_str().to_owned()),
        }
    }

    async fn until(&mut self, subscription: &mut Subscription, notice: &str) {
        while self.notices.last().is_none_or(|last| last != notice) {
            self.take(subscription).await;
        }
    }

    async fn until_rows(&mut self, subscription: &mut Subscription, count: usize) {
        while self.rows.len() < count {
            self.take(subscription).await;
        }
    }

    /// Fails unless each number of a range has come exactly once.
    fn has_each_once(&self, numbers: std::ops::Range<i64>) {
        let distinct: BTreeSet<&String> = self.rows.iter().collect();
        assert_eq!(distinct.len(), self.rows.len(), "a row came twice");
        let wanted: Vec<String> = numbers.map(|number| format!("{number}.0")).collect();
        assert_eq!(distinct, wanted.iter().collect::<BTreeSet<_>>());
    }

    fn has(&self, notice: &str) -> bool {
        self.notices.iter().any(|each| each == notice)
    }
}

#[test]
fn queries_are_classified_by_what_keeps_them_from_being_followed() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        for (query, class, why) in [
            ("SELECT * FROM cpu", "rows", "kymo.public.cpu"),
            (
                "SELECT host, value * 2 AS twice FROM cpu WHERE value > 1 AND host = 'a'",
                "rows",
                "cpu",
            ),
            ("SELECT v FROM (SELECT value + 1 AS v FROM cpu) AS x WHERE v > 3", "rows", "cpu"),
            ("WITH x AS (SELECT * FROM cpu) SELECT upper(host) FROM x", "rows", "cpu"),
            ("TABLE cpu", "rows", "cpu"),
            ("SELECT value FROM cpu WHERE false", "rows", "cpu"),
            (
                "SELECT time_bucket('1m', time) AS w, host, avg(value) FROM cpu GROUP BY 1, 2",
                "windows",
                "each commit is added",
            ),
            (
                "SELECT date_trunc('hour', time) AS w, max(v) + 1 FROM (SELECT time, value * 2 AS v \
                 FROM cpu WHERE host <> 'b') AS x GROUP BY 1 HAVING count(*) > 2 ORDER BY 1",
                "windows",
                "kymo.public.cpu",
            ),
            (
                "SELECT date_bin('7 minutes', time) AS w, count(DISTINCT value), sum(value) FROM cpu \
                 GROUP BY 1",
                "windows",
                "each commit is added",
            ),
            (
                "SELECT time_bucket('1m', time) AS w, host, count(DISTINCT value) FROM cpu \
                 GROUP BY 1, 2",
                "windows",
                "each commit is added",
            ),
            (
                "SELECT time_bucket('1m', time) AS w, avg(DISTINCT value) FROM cpu GROUP BY 1",
                "rerun",
                "avg(DISTINCT …)",
            ),
            (
                "SELECT unnest(time_hops('1m', '5m', time)) AS w, host, avg(value) FROM cpu \
                 GROUP BY 1, 2",
                "windows",
                "each commit is added",
            ),
            (
                "SELECT time_bucket('10m', w) AS v, max(n) FROM (SELECT unnest(time_hops('1m', '5m', \
                 time)) AS w, count(*) AS n FROM cpu GROUP BY 1) AS x GROUP BY 1",
                "rerun",
                "not bound to windows",
            ),
            ("SELECT unnest(time_hops('1m', '5m', time)), value FROM cpu", "rerun", "touch"),
            (
                "SELECT time_bucket('1m', time) AS w, count(*) FROM cpu \
                 WHERE value > (SELECT avg(value) FROM cpu) GROUP BY 1",
                "rerun",
                "commits to kymo.public.cpu touch all",
            ),
            (
                "SELECT time_bucket('1m', a.time) AS w, count(*) FROM cpu a \
                 JOIN cpu b ON a.time = b.time GROUP BY 1",
                "rerun",
                "a join needs",
            ),
            (
                "SELECT time_bucket('1 month', time) AS w, count(*) FROM cpu GROUP BY 1",
                "rerun",
                "not bound to windows",
            ),
            ("SELECT count(*) FROM cpu", "rerun", "not bound to windows"),
            ("SELECT host, max(value) FROM cpu GROUP BY host", "rerun", "after commits to"),
            ("SELECT DISTINCT host FROM cpu", "rerun", "kymo.public.cpu"),
            ("SELECT * FROM cpu ORDER BY time", "rerun", "cpu"),
            ("SELECT * FROM cpu LIMIT 3", "rerun", "cpu"),
            ("SELECT a.value FROM cpu a JOIN cpu b ON a.time = b.time", "rerun", "cpu"),
            ("SELECT value FROM cpu UNION ALL SELECT value FROM cpu", "rerun", "cpu"),
            ("SELECT sum(value) OVER () FROM cpu", "rerun", "cpu"),
            ("SELECT * FROM cpu WHERE value > (SELECT 1.0)", "rerun", "cpu"),
            (
                "SELECT time_bucket('1m', time) AS w, row_number() OVER \
                 (PARTITION BY time_bucket('1m', time) ORDER BY value) FROM cpu",
                "rerun",
                "windows of time that commits touch",
            ),
            (
                "SELECT time_bucket('1m', time) AS w, count(*) FROM cpu WHERE time > now() GROUP BY 1",
                "rerun",
                "now() has another value",
            ),
            ("SELECT * FROM system.queries", "unsupported", "system.queries"),
            ("SELECT 1", "unsupported", "no table"),
            ("SELECT set_config('a.b', host, false) FROM cpu", "unsupported", "set_config"),
        ] {
            let explained = sql(&system, &format!("EXPLAIN SUBSCRIBE TO {query}")).await.unwrap();
            let (found, reason) = explained[0].split_once('|').unwrap();
            assert_eq!(found, class, "{query}: {reason}");
            assert!(reason.contains(why) && !reason.contains("plugin"), "{query}: {reason}");
            let followed = follow(&system, query, None).await;
            match class {
                "rows" | "windows" | "rerun" => {
                    drop(followed.unwrap_or_else(|error| panic!("{query}: {error:?}")));
                }
                _ => {
                    let error = followed.err().unwrap();
                    assert_eq!(error.code(), Code::Unsupported, "{query}");
                    assert!(error.message().contains(why), "{query}: {error}");
                }
            }
        }
        let missing = follow(&system, "SELECT * FROM nowhere", None).await.err().unwrap();
        assert_eq!(missing.code(), Code::TableNotFound);
        // Who reads whole answers is told where rows can be pushed.
        let query = Query {
            run: Runnable::Statement(
                system.parse().call(Parse { sql: CHANGES.to_owned() }).await.unwrap().remove(0),
            ),
            parameters: Vec::new(),
            session: Arc::new(context()),
            timeout: None,
            cancel: CancelToken::new(),
        };
        let elsewhere = system.query().call(query).await.err().unwrap();
        assert!(elsewhere.hint().unwrap().contains("/ws"), "{elsewhere:?}");
    });
}

#[test]
fn commits_run_through_conditions_and_columns() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        put(&system, 0..3).await;
        let query = "SELECT upper(host) AS h, v FROM (SELECT host, value * 10 AS v FROM cpu) AS x \
                     WHERE v >= 10";
        let mut subscription = follow(&system, query, None).await.unwrap();
        let mut client = Client::default();
        client.until(&mut subscription, "end").await;
        client.rows.sort();
        assert_eq!(client.rows, ["A|10.0", "A|20.0"]);
        // A column that the table gets later, and a commit that lacks one of the query's.
        let other = crate::engine::kit::rows_of(&cpu(), &[("b", 3, 7.0)], "other");
        system.write().call(write(vec![other])).await.unwrap();
        put(&system, 0..1).await;
        put(&system, 5..7).await;
        client.rows.clear();
        client.until_rows(&mut subscription, 2).await;
        assert_eq!(client.rows, ["A|50.0", "A|60.0"]);
        assert_eq!(client.notices, ["started", "snapshot", "end", "insert"]);
    });
}

#[test]
fn no_row_is_missing_and_none_comes_twice_while_others_write() {
    const WRITERS: i64 = 4;
    const COMMITS: i64 = 60;
    let house = House::new(|settings| settings.live.buffer_bytes = 64 << 20);
    house.run(async |system| {
        numbers(&system).await;
        let writers = join_all((0..WRITERS).map(|writer| {
            let system = system.clone();
            async move {
                for commit in 0..COMMITS {
                    let number = (writer * COMMITS + commit) * 3;
                    put(&system, number..number + 3).await;
                    if commit % 20 == 10 {
                        system.flush().await.unwrap();
                    }
                }
            }
        }));
        let all = WRITERS * COMMITS * 3;
        // Subscriptions begin at any moment of it.
        let readers = join_all((0..8).map(|reader| {
            let system = system.clone();
            async move {
                let wait = usize::try_from(reader * all / 10).unwrap();
                let mut first = follow(&system, ALL, None).await.unwrap();
                Client::default().until_rows(&mut first, wait).await;
                let mut subscription = follow(&system, ALL, None).await.unwrap();
                let mut client = Client::default();
                client.until_rows(&mut subscription, usize::try_from(all).unwrap()).await;
                client.has_each_once(0..all);
                assert!(!client.has("resync") && !client.has("lagged"), "{:?}", client.notices);
            }
        }));
        futures::future::join(writers, readers).await;
    });
}

/// Bytes of rows that the task of each subscription has not taken yet.
async fn waiting(system: &System) -> Vec<String> {
    sql(system, "SELECT buffered_bytes FROM system.subscriptions ORDER BY id").await.unwrap()
}

#[test]
fn a_slow_subscriber_is_told_and_reads_the_rest_from_the_log() {
    let house = House::new(|settings| settings.live.buffer_bytes = 1);
    house.run(async |system| {
        numbers(&system).await;
        let mut slow = follow(&system, CHANGES, None).await.unwrap();
        let mut fast = follow(&system, CHANGES, None).await.unwrap();
        let (mut behind, mut ahead) = (Client::default(), Client::default());
        behind.until(&mut slow, "end").await;
        ahead.until(&mut fast, "end").await;
        for number in 0..50 {
            put(&system, number..number + 1).await;
            ahead.until_rows(&mut fast, usize::try_from(number).unwrap() + 1).await;
            // Nobody waits for the slow one, once its task has what fits between it and its client.
            while number <= EVENTS as i64 && waiting(&system).await != ["0", "0"] {}
        }
        let shown = "SELECT lagged, buffered_bytes > 0 FROM system.subscriptions ORDER BY id";
        assert_eq!(sql(&system, shown).await.unwrap(), ["0|true", "0|false"]);
        behind.until_rows(&mut slow, 50).await;
        behind.has_each_once(0..50);
        assert_eq!(behind.notices, ["started", "end", "insert", "lagged", "insert"]);
        ahead.has_each_once(0..50);
        // And from then on it is one like the others.
        put(&system, 50..51).await;
        behind.until_rows(&mut slow, 51).await;
        behind.has_each_once(0..51);
        let shown = "SELECT class, delivered_rows, lagged > 0 FROM system.subscriptions";
        assert_eq!(
            sql(&system, &format!("{shown} ORDER BY id LIMIT 1")).await.unwrap(),
            ["rows|51|true"]
        );
    });
}

#[test]
fn what_the_log_has_no_more_comes_as_a_snapshot() {
    let house = House::new(|settings| {
        settings.live.buffer_bytes = 1;
        settings.live.catch_up_bytes = 1;
    });
    house.run(async |system| {
        numbers(&system).await;
        let mut slow = follow(&system, CHANGES, None).await.unwrap();
        let mut client = Client::default();
        client.until(&mut slow, "end").await;
        for number in 0..20 {
            put(&system, number..number + 1).await;
        }
        client.until(&mut slow, "resync").await;
        client.until_rows(&mut slow, 20).await;
        client.has_each_once(0..20);
        client.until(&mut slow, "end").await;
        put(&system, 20..21).await;
        client.until_rows(&mut slow, 21).await;
        client.has_each_once(0..21);
    });
}

#[test]
fn a_token_goes_on_exactly_where_it_was() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        let (mut client, mut written) = (Client::default(), 0);
        // Broken off before the first row, between commits, and within one.
        for (count, enough) in [(0, 0), (10, 10), (1, 0), (20_000, 1), (3, 9000), (10, 10), (0, 0)]
        {
            let mut subscription = follow(&system, CHANGES, client.token).await.unwrap();
            client.take(&mut subscription).await;
            if client.token.is_none() {
                client.until(&mut subscription, "end").await;
            }
            if count > 0 {
                put(&system, written..written + count).await;
            }
            written += count;
            let enough = client.rows.len() + enough;
            client
                .until_rows(&mut subscription, enough.min(usize::try_from(written).unwrap()))
                .await;
        }
        let mut subscription = follow(&system, CHANGES, client.token).await.unwrap();
        client.until_rows(&mut subscription, usize::try_from(written).unwrap()).await;
        client.has_each_once(0..written);
        assert_eq!(client.notices.iter().filter(|notice| *notice == "resumed").count(), 7);
        assert!(!client.has("resync"));
    });
}

#[test]
fn a_token_of_other_data_begins_anew_and_says_so() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        put(&system, 0..5).await;
        for token in ["99.0.1.1.0", "1.0.99.1.0", "1.0.0.1.0", "1.0.1.0.0.5"] {
            let token = token.parse().unwrap();
            let mut subscription = follow(&system, CHANGES, Some(token)).await.unwrap();
            let mut client = Client::default();
            client.until(&mut subscription, "end").await;
            client.has_each_once(0..5);
            assert_eq!(client.notices, ["started", "resync", "snapshot", "end"], "{token}");
        }
    });
}

#[test]
fn a_deletion_voids_what_clients_have() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        put(&system, 0..5).await;
        let mut subscription = follow(&system, ALL, None).await.unwrap();
        let mut client = Client::default();
        client.until(&mut subscription, "end").await;
        let before = client.token;
        sql(&system, "DELETE FROM cpu WHERE value = 3").await.unwrap();
        client.until(&mut subscription, "resync").await;
        client.until(&mut subscription, "end").await;
        assert_eq!(client.rows, ["0.0", "1.0", "2.0", "4.0"]);
        put(&system, 5..7).await;
        client.until_rows(&mut subscription, 6).await;
        drop(subscription);
        // Who was away meanwhile learns of it, and who was away later goes on.
        for (token, notices) in [
            (before, &["started", "resync", "snapshot", "end"][..]),
            (client.token, &["resumed", "insert"][..]),
        ] {
            let mut subscription = follow(&system, ALL, token).await.unwrap();
            let mut back = Client::default();
            if token == client.token {
                put(&system, 7..8).await;
            }
            back.until(&mut subscription, notices[notices.len() - 1]).await;
            assert_eq!(back.notices, notices);
        }
    });
}

#[test]
fn a_snapshot_that_nobody_reads_makes_room_for_the_next() {
    let house = House::new(|settings| {
        settings.live.max_snapshots = 1;
        settings.live.idle_timeout_ms = 100;
    });
    house.run(async |system| {
        numbers(&system).await;
        // More batches than a channel holds.
        put(&system, 0..80_000).await;
        let mut stuck = follow(&system, ALL, None).await.unwrap();
        let mut client = Client::default();
        client.take(&mut stuck).await;
        let mut next =
            follow(&system, "SELECT value FROM cpu WHERE value < 5", None).await.unwrap();
        let mut other = Client::default();
        other.until(&mut next, "end").await;
        other.has_each_once(0..5);
        client.until(&mut stuck, "deadline_exceeded").await;
    });
}

#[test]
fn rows_that_may_replace_others_are_marked() {
    let house = House::new(|_| {});
    house.run(async |system| {
        let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX)";
        sql(&system, table).await.unwrap();
        let mut subscription = follow(&system, ALL, None).await.unwrap();
        let mut client = Client::default();
        client.until(&mut subscription, "end").await;
        put(&system, 0..2).await;
        put(&system, 2..3).await;
        client.until_rows(&mut subscription, 3).await;
        put(&system, 1..2).await;
        client.until_rows(&mut subscription, 4).await;
        assert_eq!(client.notices, ["started", "end", "insert", "upsert"]);
    });
}

#[test]
fn a_subscription_ends_with_its_reason() {
    let house = House::new(|settings| settings.live.max_subscriptions = 2);
    house.run(async |system| {
        numbers(&system).await;
        put(&system, 1..2).await;
        let mut all = follow(&system, ALL, None).await.unwrap();
        let cast = "SELECT CAST(host AS BIGINT) AS n FROM cpu WHERE value > 1";
        let mut failing = follow(&system, cast, None).await.unwrap();
        let error = follow(&system, ALL, None).await.err().unwrap();
        assert_eq!(error.code(), Code::LimitReached);
        put(&system, 2..3).await;
        let mut client = Client::default();
        client.until(&mut failing, "invalid_cast").await;
        assert!(failing.next().await.is_none());
        drop(failing);
        let again = follow(&system, ALL, None).await.unwrap();
        drop(again);
        assert_eq!(sql(&system, "SELECT count(*) FROM system.subscriptions").await.unwrap(), ["1"]);
        let mut client = Client::default();
        client.until_rows(&mut all, 2).await;
        sql(&system, "DROP TABLE cpu").await.unwrap();
        client.until(&mut all, "table_not_found").await;
        let mut other = follow(&system, "SELECT 1 FROM cpu", None).await;
        assert_eq!(other.as_mut().err().unwrap().code(), Code::TableNotFound);
    });
}

#[test]
fn a_subscription_ends_when_a_column_is_taken_from_it() {
    let house = House::new(|_| {});
    house.run(async |system| {
        numbers(&system).await;
        let begin = async |text: &str| {
            let mut subscription = follow(&system, text, None).await.unwrap();
            let mut client = Client::default();
            client.until(&mut subscription, "end").await;
            (client, subscription)
        };
        let mean = "SELECT time_bucket('1m', time) AS minute, avg(value) FROM cpu GROUP BY 1";
        let (mut rows, mut row) = begin(ALL).await;
        let (mut kept, mut window) = begin(mean).await;
        sql(&system, "ALTER TABLE cpu ADD COLUMN other BIGINT").await.unwrap();
        put(&system, 0..1).await;
        rows.until_rows(&mut row, 1).await;
        kept.until_rows(&mut window, 1).await;
        sql(&system, "ALTER TABLE cpu RENAME COLUMN value TO v").await.unwrap();
        rows.until(&mut row, "column_not_found").await;
        kept.until(&mut window, "column_not_found").await;
        let (mut again, mut row) = begin("SELECT v FROM cpu").await;
        assert_eq!(again.rows, ["0.0"]);
        sql(&system, "ALTER TABLE cpu DROP COLUMN v").await.unwrap();
        again.until(&mut row, "column_not_found").await;
    });
}
