//! `CALL compact`, and what `system.compactions` tells of it and of others.

use std::future::Future;

use kymo_kernel::message::SessionContext;
use kymo_kernel::schema::TableName;

use super::*;

const SEGMENTS: &str = "SELECT count(*), max(level) FROM system.segments WHERE \"table\" = 't'";

/// A table `t` over two days, in three segments each, with one row written twice.
fn written() -> House {
    let house = House::new();
    house.rows("CREATE TABLE t (host TEXT TAG, v DOUBLE PRECISION, time TIMESTAMPTZ)");
    for round in 0..3 {
        house.rows(&format!(
            "INSERT INTO t VALUES ('a', {round}, '2024-01-01'), ('h{round}', 1, '2024-01-01'), \
             ('b', {round}, '2024-01-02T00:00:0{round}Z')"
        ));
        house.flush();
    }
    house
}

fn as_user(house: &House, change: impl FnOnce(&mut SessionContext), sql: &str) -> Error {
    let mut context = context();
    change(&mut context);
    let session = Session::start(&house.supervisor, house.ports.clone(), None, context);
    let sql = sql.to_owned();
    house.run(async move { rows(&session, &sql).await }).unwrap_err()
}

#[test]
fn a_table_is_merged_at_once_and_readers_see_the_same_rows() {
    let house = written();
    // What is in memory is flushed first.
    house.rows("INSERT INTO t VALUES ('c', 9, '2024-01-02')");
    let all = "SELECT host, v, time FROM t ORDER BY 1, 3";
    let before = house.rows(all);
    assert_eq!(house.rows(SEGMENTS), ["6|0"]);
    let merged = house.rows("CALL compact('t')");
    assert_eq!(merged.len(), 2);
    assert!(merged[0].starts_with("2024-01-01T00:00:00Z|3|1|6|4|"), "{}", merged[0]);
    assert!(merged[1].starts_with("2024-01-02T00:00:00Z|4|1|4|4|"), "{}", merged[1]);
    assert_eq!(house.rows(SEGMENTS), ["2|1"]);
    assert_eq!(house.rows(all), before);
    assert_eq!(house.rows("CALL compact('kymo.public.t')"), Vec::<String>::new());
}

#[test]
fn windows_are_chosen_by_their_times() {
    let house = written();
    let merged = house.rows("CALL compact('public.t', '2024-01-02T12:00:00Z', now())");
    assert_eq!(merged, Vec::<String>::new(), "no row is that late");
    assert_eq!(house.rows("CALL compact('t', '2024-01-02', now())").len(), 1);
    assert_eq!(house.rows(SEGMENTS), ["4|1"]);
    assert_eq!(house.rows("CALL compact('t', '2024-01-01', '2024-01-02')").len(), 1);
    assert_eq!(house.rows(SEGMENTS), ["2|1"]);
}

#[test]
fn what_may_not_or_cannot_be_merged_is_refused() {
    let house = written();
    assert_eq!(house.code("CALL compact('nothing')"), Code::TableNotFound);
    assert_eq!(house.code("CALL compact('t', now(), now())"), Code::InvalidInput);
    assert_eq!(house.code("CALL compact('system.queries')"), Code::TableNotFound);
    let reader = as_user(&house, |context| context.read_only = true, "CALL compact('t')");
    assert_eq!(reader.code(), Code::NotAuthorized);
    let user = as_user(&house, |context| context.admin = false, "CALL compact('t')");
    assert_eq!(user.code(), Code::NotAuthorized);
    assert_eq!(house.rows(SEGMENTS), ["6|0"]);
}

#[test]
fn a_cancelled_call_ends_and_leaves_the_table_to_others() {
    let house = written();
    let table = TableName::new("kymo", "t");
    let id = house.engine.store().catalog().table(&table).unwrap().def.id;
    let turn = house.engine.writers().turns().try_take(id).unwrap();
    let session = house.session();
    let canceller = session.canceller();
    // With the turn in other hands the call ends by being cancelled or not at all.
    let ended = house.run(async move {
        let cancelling = async {
            for _ in 0..u64::MAX {
                canceller.cancel();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = rows(&session, "CALL compact('t')") => ended,
            () = cancelling => unreachable!("it never ends"),
        }
    });
    assert_eq!(ended.unwrap_err().code(), Code::Cancelled);
    drop(turn);
    assert_eq!(house.rows("CALL compact('t')").len(), 2);
}

#[test]
fn every_exchange_of_segments_is_remembered_with_its_reason() {
    let house = written();
    house.rows("CALL compact('t')");
    house.rows("DELETE FROM t WHERE host = 'b' AND v < 2");
    let shown = "SELECT state, reason, \"table\", \"window\", level, inputs, outputs, rows_in, \
                 rows_out, rows_overwritten, rows_removed, error FROM system.compactions ORDER BY id";
    assert_eq!(
        house.rows(shown),
        [
            "done|requested|t|2024-01-01T00:00:00Z|1|3|1|6|4|2|0|NULL",
            "done|requested|t|2024-01-02T00:00:00Z|1|3|1|3|3|0|0|NULL",
            "done|deleted|t|2024-01-02T00:00:00Z|2|1|1|3|1|0|2|NULL",
        ]
    );
    let sizes = "SELECT count(*) FROM system.compactions WHERE bytes_in > 0 AND bytes_out > 0 \
                 AND ms >= 0 AND started > '2020-01-01'";
    assert_eq!(house.rows(sizes), ["3"]);
}

#[test]
fn the_memory_of_what_ended_is_bounded() {
    let house = House::with(|settings| settings.compaction.history = 2);
    house.rows("CREATE TABLE t (host TEXT TAG, v DOUBLE PRECISION, time TIMESTAMPTZ)");
    for round in 0..4 {
        house.rows(&format!("INSERT INTO t VALUES ('a', {round}, '2024-01-0{}')", round + 1));
    }
    assert_eq!(house.rows("CALL compact('t')").len(), 4);
    assert_eq!(house.rows("SELECT id FROM system.compactions ORDER BY 1"), ["3", "4"]);
}

/// Parameters and preparation work as for any statement with rows.
#[test]
fn a_call_can_be_prepared() {
    let house = written();
    let session = house.session();
    let work = async move {
        let statement = session.parse("CALL compact('t')").await?.remove(0);
        let plan = session.prepare(statement, Vec::new()).await?;
        let columns = plan.columns.clone().unwrap();
        let names: Vec<_> = columns.fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names[..3], ["window", "inputs", "outputs"]);
        prepared(&session, "CALL compact('t')", Vec::new()).await
    };
    assert_eq!(house.run(Box::pin(work) as BoxedWork).unwrap().len(), 2);
}

type BoxedWork = std::pin::Pin<Box<dyn Future<Output = Result<Vec<String>>> + Send>>;
