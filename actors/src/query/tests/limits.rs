//! Cancelling, time limits, admission, memory, read-only sessions.

use std::time::Duration;

use super::*;

/// Counts more rows than any test waits for.
const ENDLESS: &str =
    "SELECT count(*) FROM generate_series(1, 1000000000000) AS a WHERE sqrt(value) < 0";

#[test]
fn a_statement_timeout_stops_a_running_query() {
    let house = House::new();
    let session = house.session();
    let took = house.run(async move {
        let clock = real::env().clock;
        rows(&session, "SET statement_timeout = '200ms'").await.unwrap();
        let start = clock.monotonic();
        let error = rows(&session, ENDLESS).await.unwrap_err();
        assert_eq!(error.code(), Code::Deadline);
        clock.monotonic() - start
    });
    assert!(took < Duration::from_secs(3), "{took:?}");
    nothing_runs(&house);
}

#[test]
fn a_canceller_stops_a_running_query_and_its_session_lives_on() {
    let house = House::new();
    let session = Arc::new(house.session());
    let canceller = session.canceller();
    let other = session.clone();
    let running = house
        .pools
        .spawn(kymo_kernel::pools::Pool::Io, "endless", async move { rows(&other, ENDLESS).await });
    wait_until(&house, 1);
    canceller.cancel();
    let outcome = house.run(running).unwrap();
    assert_eq!(outcome.unwrap_err().code(), Code::Cancelled);
    nothing_runs(&house);
    assert_eq!(house.run(async move { rows(&session, "SELECT 1").await }).unwrap(), ["1"]);
}

#[test]
fn dropping_the_rows_stops_the_query() {
    let house = House::new();
    let session = house.session();
    house.run(async move {
        let statement = session
            .parse("SELECT * FROM generate_series(1, 1000000000000)")
            .await
            .unwrap()
            .remove(0);
        let outcome =
            session.execute(Runnable::Statement(statement), Vec::new(), None).await.unwrap();
        let Outcome::Rows { mut stream, .. } = outcome else { panic!("no rows") };
        assert!(stream.next().await.unwrap().unwrap().num_rows() > 0);
    });
    nothing_runs(&house);
}

/// Each operator is a level of the tree; 1,900 of them once overflowed the stack of the thread
/// that parsed or dropped it, which ended the process.
#[test]
fn long_chains_of_operators_run_or_are_refused() {
    let house = House::new();
    for operator in ["+", "*", "AND", "||"] {
        let operand = if operator == "AND" { "true" } else { "1" };
        let operand = if operator == "||" { "'x'" } else { operand };
        let chain = |length| vec![operand; length].join(&format!(" {operator} "));
        assert_eq!(house.rows(&format!("SELECT {}", chain(500))).len(), 1, "{operator}");
        let error = house.fails(&format!("SELECT {}", chain(1_900)));
        assert_eq!(error.code(), Code::TooLarge, "{operator}");
    }
}

/// Each set operation is a level of planning; a long chain once overflowed a thread's stack,
/// which ends the process.
#[test]
fn long_chains_of_set_operations_run_or_are_refused() {
    let house = House::new();
    let chain = |length| vec!["SELECT 1"; length].join(" UNION ALL ");
    assert_eq!(house.rows(&chain(100)).len(), 100);
    assert_eq!(house.fails(&chain(600)).code(), Code::TooLarge);
}

/// A nested-loop join whose predicate nothing fulfils gives no batch and so no chance to stop
/// it from outside: it has to notice by itself, or its threads are lost to everybody.
#[test]
fn a_join_without_results_gives_its_threads_back() {
    let house = House::new();
    let session = house.session();
    house.run(async move {
        rows(&session, "SET statement_timeout = '2s'").await.unwrap();
        let join = "SELECT count(*) FROM generate_series(1, 200000) AS a(x), \
                    generate_series(1, 1000000) AS b(y) WHERE x + y = 0";
        for _ in 0..2 {
            assert_eq!(rows(&session, join).await.unwrap_err().code(), Code::Deadline);
        }
        assert_eq!(rows(&session, "SELECT count(*) FROM (VALUES (1)) v").await.unwrap(), ["1"]);
    });
    nothing_runs(&house);
}

#[test]
fn too_many_queries_wait_and_too_many_waiting_are_turned_away() {
    let house = House::with(|settings| {
        settings.query.max_running = 1;
        settings.query.max_waiting = 0;
    });
    let session = Arc::new(house.session());
    let canceller = session.canceller();
    let other = session.clone();
    // The one place may be taken by the question below when this query comes.
    let running = house.pools.spawn(kymo_kernel::pools::Pool::Io, "endless", async move {
        loop {
            match rows(&other, ENDLESS).await {
                Err(error) if error.code() == Code::Busy => tokio::task::yield_now().await,
                outcome => break outcome,
            }
        }
    });
    // system.queries itself would have to wait; SHOW does not run on the engine.
    let busy = loop {
        match house.try_rows("SELECT 1") {
            Err(error) => break error,
            Ok(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(busy.code(), Code::Busy);
    canceller.cancel();
    assert!(house.run(running).unwrap().is_err());
}

#[test]
fn memory_is_bounded() {
    let house = House::with(|settings| settings.query.memory_bytes = 4 << 20);
    let error = house.fails("SELECT value % 3000017, array_agg(value) FROM generate_series(1, 3000000) GROUP BY 1 ORDER BY 2 DESC LIMIT 1");
    assert_eq!(error.code(), Code::OutOfMemory, "{error:?}");
    assert_eq!(house.rows("SELECT 1"), ["1"]);
}

#[test]
fn a_read_only_session_changes_nothing() {
    let house = House::new();
    let mut context = house.session().context().as_ref().clone();
    context.read_only = true;
    let session = Session::start(&house.supervisor, house.ports.clone(), None, context);
    house.rows("CREATE TABLE t (v BIGINT, time TIMESTAMPTZ)");
    house.run(async move {
        for sql in [
            "INSERT INTO t VALUES (1, now())",
            "DROP TABLE t",
            "EXPLAIN ANALYZE INSERT INTO t VALUES (1, now())",
        ] {
            assert_eq!(rows(&session, sql).await.unwrap_err().code(), Code::NotAuthorized, "{sql}");
        }
        assert_eq!(rows(&session, "SELECT count(*) FROM t").await.unwrap(), ["0"]);
    });
}

#[test]
fn settings_of_one_session_do_not_reach_another() {
    let house = House::new();
    let (one, two) = (house.session(), house.session());
    house.run(async move {
        rows(&one, "SET application_name = 'one'; SET search_path = other").await.unwrap();
        assert_eq!(rows(&one, "SHOW application_name").await.unwrap(), ["one"]);
        assert_eq!(rows(&one, "SELECT current_schema()").await.unwrap(), ["other"]);
        assert_eq!(rows(&two, "SHOW application_name").await.unwrap(), [""]);
        assert_eq!(rows(&two, "SELECT current_schema()").await.unwrap(), ["public"]);
        assert!(rows(&two, "SET datafusion.execution.batch_size = 1").await.is_err());
    });
}

fn running(house: &House) -> usize {
    // The statement that looks is one of them.
    house.rows("SELECT id FROM system.queries WHERE state = 'running'").len() - 1
}

pub(super) fn wait_until(house: &House, count: usize) {
    let clock = real::env().clock;
    let deadline = clock.monotonic() + Duration::from_secs(10);
    while running(house) != count {
        assert!(clock.monotonic() < deadline, "{count} queries did not come to run");
        std::thread::yield_now();
    }
}

/// Waits until the query runtime has nothing left of what was stopped.
pub(super) fn nothing_runs(house: &House) {
    wait_until(house, 0);
}

#[test]
fn a_sleeping_statement_wakes_up_when_it_must_stop() {
    let house = House::new();
    let session = Arc::new(house.session());
    let canceller = session.canceller();
    let other = session.clone();
    let running = house.pools.spawn(kymo_kernel::pools::Pool::Io, "asleep", async move {
        rows(&other, "SELECT pg_sleep(3600)").await
    });
    wait_until(&house, 1);
    canceller.cancel();
    assert_eq!(house.run(running).unwrap().unwrap_err().code(), Code::Cancelled);
    nothing_runs(&house);
    house.run(async move {
        rows(&session, "SET statement_timeout = '50ms'").await.unwrap();
        let error = rows(&session, "SELECT pg_sleep(3600)").await.unwrap_err();
        assert_eq!(error.code(), Code::Deadline);
        rows(&session, "RESET statement_timeout").await.unwrap();
        let clock = real::env().clock;
        let start = clock.monotonic();
        let slept = rows(&session, "SELECT 1, pg_catalog.pg_sleep(0.05)").await.unwrap();
        assert_eq!(slept, ["1|"]);
        assert!(clock.monotonic() - start >= Duration::from_millis(50));
        assert_eq!(rows(&session, "SELECT pg_sleep(NULL)").await.unwrap(), ["NULL"]);
    });
}
