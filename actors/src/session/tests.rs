//! Subscriptions as statements of a session: as cursors, prepared, and as rows that never end.

use std::sync::Arc;

use arrow::array::{AsArray, Float64Array, RecordBatch};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::StreamExt;
use kymo_config::Settings;
use kymo_kernel::env::{Env, real, sim};
use kymo_kernel::pools::{PoolSizes, Pools};

use super::*;
use crate::System;
use crate::engine::kit::{cpu, rows, write};
use crate::kit::context;

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A system on a disk in memory, on threads of its own, with a table of one number a row.
struct House {
    system: System,
    pools: Pools,
}

impl House {
    fn new(change: impl FnOnce(&mut Settings)) -> House {
        let mut settings = Settings::default();
        settings.server.data_dir = "/data".into();
        // Whoever has to wait for this has waited in vain.
        settings.live.cursor_wait_ms = u64::try_from(PATIENCE.as_millis()).unwrap();
        change(&mut settings);
        let env = Env { clock: real::env().clock, ..sim::Sim::new(1).env() };
        let pools = Pools::start(PoolSizes::of(&settings, 2)).unwrap();
        let system = System::boot(Arc::new(settings), env, pools.clone()).unwrap();
        House { system, pools }
    }

    fn run<T>(&self, body: impl AsyncFnOnce(System, Session) -> T) -> T {
        let body = async {
            let session = self.system.open_session(context()).unwrap();
            let table = "CREATE TABLE cpu (host TEXT TAG, value DOUBLE, time TIMESTAMP TIME INDEX) \
                 WITH (append_only = true)";
            run(&session, table).await.unwrap();
            body(self.system.clone(), session).await
        };
        self.pools.block_on(body).unwrap()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.system.engine().stop();
        self.pools.stop();
    }
}

/// The rows of the last statement, a text a row.
async fn run(session: &Session, sql: &str) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for statement in session.parse(sql).await? {
        let statement = Runnable::Statement(statement);
        lines = texts(session.execute(statement, Vec::new(), None).await?).await?;
    }
    Ok(lines)
}

async fn texts(outcome: Outcome) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let Outcome::Rows { mut stream, .. } = outcome else { return Ok(lines) };
    while let Some(batch) = within(stream.next()).await {
        lines.extend(lines_of(&batch?));
    }
    Ok(lines)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("an answer in time")
}

/// Each row without its token, which is marked by a star.
fn lines_of(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("-");
    let schema = batch.schema();
    let columns = schema.fields().iter().zip(batch.columns());
    let columns = columns.filter(|(field, _)| field.name() != "kymo_seq");
    let columns: Vec<_> = columns
        .map(|(field, column)| {
            (field.name() == "kymo_token", ArrayFormatter::try_new(column, &options).unwrap())
        })
        .collect();
    let value = |row: usize, (token, column): &(bool, ArrayFormatter<'_>)| {
        let text = column.value(row).to_string();
        if *token && text != "-" { "*".to_owned() } else { text }
    };
    let line = |row| columns.iter().map(|each| value(row, each)).collect::<Vec<_>>().join(" ");
    (0..batch.num_rows()).map(line).collect()
}

async fn put(system: &System, numbers: std::ops::Range<i64>) {
    let points: Vec<_> = numbers.map(|number| ("a", number, number as f64)).collect();
    let acked = system.write().call(write(vec![rows(&cpu(), &points)])).await.unwrap();
    assert_eq!(acked.rows, points.len() as u64);
}

const SUBSCRIBE: &str = "SUBSCRIBE TO SELECT value FROM cpu";

#[test]
fn a_cursor_gives_what_is_committed_and_waits_for_nothing_else() {
    let house = House::new(|_| {});
    house.run(async |system, session| {
        put(&system, 0..5).await;
        let declare = format!("DECLARE c CURSOR FOR {SUBSCRIBE}");
        let refused = run(&session, &declare).await.unwrap_err();
        assert_eq!(refused.code(), Code::NoTransaction);
        run(&session, &format!("BEGIN; {declare}")).await.unwrap();
        assert_eq!(run(&session, "FETCH 2 c").await.unwrap(), ["snapshot - 0.0", "snapshot - 1.0"]);
        assert_eq!(run(&session, "FETCH ALL c").await.unwrap().len(), 3);
        assert_eq!(run(&session, "FETCH ALL c").await.unwrap(), [""; 0]);
        put(&system, 5..8).await;
        put(&system, 8..9).await;
        assert_eq!(
            run(&session, "FETCH 2 FROM c").await.unwrap(),
            ["insert - 5.0", "insert - 6.0"]
        );
        assert_eq!(
            run(&session, "FETCH ALL FROM c").await.unwrap(),
            ["insert * 7.0", "insert * 8.0"]
        );
        // What the query leaves out is not waited for either.
        let some = "DECLARE d CURSOR FOR SUBSCRIBE TO SELECT value FROM cpu WHERE value > 100 \
             WITH (snapshot = false)";
        run(&session, some).await.unwrap();
        put(&system, 9..20).await;
        assert_eq!(run(&session, "FETCH ALL d").await.unwrap(), [""; 0]);
        put(&system, 101..103).await;
        put(&system, 20..21).await;
        assert_eq!(
            run(&session, "FETCH ALL d").await.unwrap(),
            ["insert - 101.0", "insert * 102.0"]
        );
        assert_eq!(run(&session, "MOVE 11 c; FETCH 1 c").await.unwrap(), ["insert - 101.0"]);
        run(&session, "CLOSE c").await.unwrap();
        let shown = "SELECT count(*) FROM system.subscriptions";
        assert_eq!(run(&session, shown).await.unwrap(), ["1"]);
        let error = run(&session, "FETCH c").await.unwrap_err();
        assert_eq!(error.code(), Code::CursorNotFound);
        run(&session, "ROLLBACK").await.unwrap();
        assert_eq!(run(&session, shown).await.unwrap(), ["0"]);
    });
}

#[test]
fn a_fetch_waits_as_long_as_it_is_told_to() {
    let house = House::new(|_| {});
    house.run(async |system, session| {
        let held = format!("DECLARE c CURSOR WITH HOLD FOR {SUBSCRIBE}");
        run(&session, &held).await.unwrap();
        let wait = "FETCH 3 FROM c WITH (timeout = '1h')";
        let (fetched, ()) = futures::join!(run(&session, wait), async {
            for number in 0..4 {
                put(&system, number..number + 1).await;
            }
        });
        assert_eq!(fetched.unwrap(), ["insert * 0.0", "insert * 1.0", "insert * 2.0"]);
        assert_eq!(run(&session, "FETCH 9 c").await.unwrap(), ["insert * 3.0"]);
        let little = "FETCH 9 FROM c WITH (timeout = '20ms')";
        assert_eq!(run(&session, little).await.unwrap(), [""; 0]);
        // What is committed comes also without any patience.
        put(&system, 4..5).await;
        let none = "FETCH ALL FROM c WITH (timeout = '0s')";
        let mut seen = run(&session, none).await.unwrap();
        seen.extend(run(&session, "FETCH ALL FROM c").await.unwrap());
        assert_eq!(seen, ["insert * 4.0"]);
        let query = "DECLARE q CURSOR WITH HOLD FOR SELECT value FROM cpu";
        run(&session, query).await.unwrap();
        let refused = run(&session, "FETCH 1 q WITH (timeout = '1s')").await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidInput);
        assert_eq!(run(&session, "FETCH 1 q").await.unwrap(), ["0.0"]);
    });
}

#[test]
fn a_fetch_that_is_cancelled_costs_its_cursor_nothing() {
    let house = House::new(|_| {});
    house.run(async |system, session| {
        run(&session, &format!("DECLARE c CURSOR WITH HOLD FOR {SUBSCRIBE}")).await.unwrap();
        let canceller = session.canceller();
        let wait = session.parse("FETCH 3 FROM c WITH (timeout = '1h')").await.unwrap().remove(0);
        let outcome = session.execute(Runnable::Statement(wait), Vec::new(), None).await.unwrap();
        let Outcome::Rows { mut stream, .. } = outcome else { panic!("no rows") };
        put(&system, 0..1).await;
        let first = within(stream.next()).await.unwrap().unwrap();
        assert_eq!(lines_of(&first), ["insert * 0.0"]);
        let (next, ()) = futures::join!(within(stream.next()), async { canceller.cancel() });
        assert_eq!(next.unwrap().unwrap_err().code(), Code::Cancelled);
        drop(stream);
        put(&system, 1..2).await;
        assert_eq!(run(&session, "FETCH ALL c").await.unwrap(), ["insert * 1.0"]);
    });
}

#[test]
fn rows_go_on_until_they_are_cancelled_and_no_timeout_ends_them() {
    let house = House::new(|_| {});
    house.run(async |system, session| {
        run(&session, "SET statement_timeout = 1").await.unwrap();
        // A timeout is one for reading a snapshot.
        let text = format!("{SUBSCRIBE} WITH (snapshot = false)");
        let statement = session.parse(text).await.unwrap().remove(0);
        let soon = Some(Duration::from_millis(1));
        let begun = session.execute(Runnable::Statement(statement), Vec::new(), soon).await;
        let Outcome::Rows { schema, mut stream, .. } = begun.unwrap() else { panic!("no rows") };
        let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        assert_eq!(names, ["kymo_op", "kymo_seq", "kymo_token", "value"]);
        let clock = system.env().clock.clone();
        let began = clock.monotonic();
        let mut number = 0;
        while clock.monotonic() < began + Duration::from_millis(50) || number < 3 {
            put(&system, number..number + 1).await;
            let batch = within(stream.next()).await.unwrap().unwrap();
            assert_eq!(lines_of(&batch), [format!("insert * {number}.0")]);
            number += 1;
        }
        session.canceller().cancel();
        let ended = within(stream.next()).await.unwrap().unwrap_err();
        assert_eq!(ended.code(), Code::Cancelled);
        assert!(within(stream.next()).await.is_none());
    });
}

#[test]
fn a_prepared_subscription_takes_parameters() {
    let house = House::new(|_| {});
    house.run(async |system, session| {
        put(&system, 0..3).await;
        let text = "SUBSCRIBE TO SELECT value FROM cpu WHERE value >= $1";
        let statement = session.parse(text).await.unwrap().remove(0);
        let prepared = session.prepare(statement, Vec::new()).await.unwrap();
        assert_eq!(prepared.parameters, [DataType::Float64]);
        assert_eq!(prepared.columns.as_ref().unwrap().fields().len(), 4);
        let values: Vec<ArrayRef> = vec![Arc::new(Float64Array::from(vec![2.0]))];
        let run_prepared = Runnable::Prepared(prepared);
        let begun = session.execute(run_prepared, values.clone(), None).await.unwrap();
        let Outcome::Rows { mut stream, .. } = begun else { panic!("no rows") };
        let batch = within(stream.next()).await.unwrap().unwrap();
        assert_eq!(lines_of(&batch), ["snapshot - 2.0"]);
        drop(stream);
        // And so does a cursor for one.
        let text = format!("DECLARE c CURSOR WITH HOLD FOR {text}");
        let statement = session.parse(text).await.unwrap().remove(0);
        let prepared = session.prepare(statement, Vec::new()).await.unwrap();
        assert_eq!((prepared.parameters.len(), prepared.columns.is_none()), (1, true));
        session.execute(Runnable::Prepared(prepared), values, None).await.unwrap();
        assert_eq!(run(&session, "FETCH ALL c").await.unwrap(), ["snapshot - 2.0"]);
        let fetch = session.parse("FETCH 1 c").await.unwrap().remove(0);
        let described = session.prepare(fetch, Vec::new()).await.unwrap();
        assert_eq!(described.columns.as_ref().unwrap().field(0).name(), "kymo_op");
    });
}

#[test]
fn what_cannot_be_followed_is_refused_with_what_to_do() {
    let house = House::new(|_| {});
    house.run(async |_, session| {
        for (sql, code, hint) in [
            ("SUBSCRIBE TO SELECT value AS kymo_seq FROM cpu", Code::AmbiguousColumn, "AS"),
            ("SUBSCRIBE TO SELECT value FROM cpu WITH (resume = 'x')", Code::InvalidInput, "token"),
            ("SUBSCRIBE TO SELECT value FROM cpu WITH (timeout = 1)", Code::Syntax, "resume"),
            ("SUBSCRIBE TO SELECT value FROM nowhere", Code::TableNotFound, ""),
            (
                "BEGIN; DECLARE c CURSOR FOR SUBSCRIBE TO SELECT value AS kymo_op FROM cpu",
                Code::AmbiguousColumn,
                "AS",
            ),
        ] {
            let error = run(&session, sql).await.unwrap_err();
            assert_eq!(error.code(), code, "{sql}: {error}");
            assert!(error.hint().unwrap_or_default().contains(hint), "{sql}: {:?}", error.hint());
        }
        assert_eq!(session.transaction(), Status::Failed);
        run(&session, "ROLLBACK").await.unwrap();
        let statement =
            session.parse("SUBSCRIBE TO SELECT value AS kymo_op FROM cpu").await.unwrap().remove(0);
        let error = session.prepare(statement, Vec::new()).await.err().unwrap();
        assert_eq!(error.code(), Code::AmbiguousColumn);
    });
}

/// The last token among the rows of a statement.
async fn token(session: &Session, sql: &str) -> (Vec<String>, Option<String>) {
    let statement = session.parse(sql).await.unwrap().remove(0);
    let outcome = session.execute(Runnable::Statement(statement), Vec::new(), None).await.unwrap();
    let Outcome::Rows { mut stream, .. } = outcome else { panic!("no rows") };
    let (mut lines, mut token) = (Vec::new(), None);
    while let Some(batch) = within(stream.next()).await {
        let batch = batch.unwrap();
        lines.extend(lines_of(&batch));
        let tokens = batch.column(2).as_string::<i32>();
        token = tokens.iter().flatten().last().map(str::to_owned).or(token);
    }
    (lines, token)
}

#[test]
fn progress_has_a_token_to_go_on_from() {
    let house = House::new(|settings| settings.live.heartbeat_ms = 1);
    house.run(async |system, session| {
        put(&system, 0..2).await;
        let few = "SUBSCRIBE TO SELECT value FROM cpu WHERE value < 2 OR value > 9";
        let declare = format!("DECLARE c CURSOR WITH HOLD FOR {few} WITH (progress = true)");
        run(&session, &declare).await.unwrap();
        let (lines, first) = token(&session, "FETCH ALL c").await;
        assert_eq!(lines[..3], ["snapshot - 0.0", "snapshot - 1.0", "progress * -"]);
        // Commits that the query leaves out are progress, too.
        put(&system, 2..5).await;
        let second = within(async {
            loop {
                let (lines, second) = token(&session, "FETCH ALL c WITH (timeout = '5ms')").await;
                assert!(lines.iter().all(|line| line == "progress * -"), "{lines:?}");
                if second.is_some() && second != first {
                    return second;
                }
            }
        })
        .await;
        run(&session, "CLOSE c").await.unwrap();
        put(&system, 10..12).await;
        let resume = format!("WITH (resume = '{}')", second.unwrap());
        let declare = format!("DECLARE c CURSOR WITH HOLD FOR {few} {resume}");
        run(&session, &declare).await.unwrap();
        let (lines, third) = token(&session, "FETCH ALL c").await;
        assert_eq!(lines, ["insert - 10.0", "insert * 11.0"]);
        // Within a commit of several parts, and between two of its rows.
        put(&system, 100..20_100).await;
        let (lines, part) = token(&session, "FETCH 10000 c").await;
        assert_eq!(lines.iter().filter(|line| line.contains('*')).count(), 1);
        run(&session, "CLOSE c").await.unwrap();
        for (from, count) in [(third, 20_000), (part, 20_000 - 8192)] {
            let resume = format!("WITH (resume = '{}')", from.unwrap());
            let declare = format!("DECLARE c CURSOR WITH HOLD FOR {few} {resume}");
            run(&session, &declare).await.unwrap();
            assert_eq!(run(&session, "FETCH ALL c").await.unwrap().len(), count);
            run(&session, "CLOSE c").await.unwrap();
        }
    });
}

#[test]
fn a_cursor_that_is_left_alone_lags_and_catches_up() {
    let house = House::new(|settings| settings.live.buffer_bytes = 1);
    house.run(async |system, session| {
        let declare = format!("DECLARE c CURSOR WITH HOLD FOR {SUBSCRIBE}");
        run(&session, &declare).await.unwrap();
        assert_eq!(run(&session, "FETCH ALL c").await.unwrap(), [""; 0]);
        for number in 0..50 {
            put(&system, number..number + 1).await;
        }
        let lines = run(&session, "FETCH ALL c").await.unwrap();
        assert!(lines.contains(&"lagged - -".to_owned()), "{lines:?}");
        let rows: Vec<_> = lines.into_iter().filter(|line| line != "lagged - -").collect();
        let wanted: Vec<_> = (0..50).map(|number| format!("insert * {number}.0")).collect();
        assert_eq!(rows, wanted);
    });
    let house = House::new(|settings| {
        settings.live.buffer_bytes = 1;
        settings.live.catch_up_bytes = 1;
        settings.live.heartbeat_ms = 20;
    });
    house.run(async |system, session| {
        let declare = format!("DECLARE c CURSOR WITH HOLD FOR {SUBSCRIBE}");
        run(&session, &declare).await.unwrap();
        for number in 0..20 {
            put(&system, number..number + 1).await;
        }
        let lines = run(&session, "FETCH ALL c").await.unwrap();
        let void = lines.iter().rposition(|line| line == "resync - -").expect("a new beginning");
        assert_eq!(lines[void + 1..].len(), 20, "{lines:?}");
        run(&session, "DROP TABLE cpu").await.unwrap();
        for wait in ["FETCH 1 c", "FETCH 1 c WITH (timeout = '1h')", "FETCH 1 c"] {
            let error = run(&session, wait).await.unwrap_err();
            assert_eq!(error.code(), Code::TableNotFound);
        }
    });
}
