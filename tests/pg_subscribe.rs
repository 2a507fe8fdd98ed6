//! Subscriptions over the PostgreSQL wire protocol of the real binary: rows as they are
//! committed, every way to end them, a client that does not read, going on after a restart.

#[allow(dead_code, reason = "other tests of the protocol use the rest")]
#[path = "pg/raw.rs"]
mod raw;

use std::pin::Pin;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use kymo_tests::{Options, Server, until, until_async};
use raw::{Raw, code, field};
use tokio_postgres::{Client, NoTls, Row, RowStream};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const SUBSCRIBE: &str = "SUBSCRIBE TO SELECT host, i FROM cpu";

fn start(options: Options) -> Server {
    Server::start(options.no_auth())
}

/// Writes numbers, each with a time of its own.
async fn put(server: &Server, numbers: std::ops::Range<i64>) {
    let lines: String = numbers.map(|i| format!("cpu,host=a i={i}i {}\n", 1_000 + i)).collect();
    server.write(&lines).await;
}

/// A client whose connection runs beside the test.
async fn connect(server: &Server) -> Client {
    let (host, port) = (server.pg.ip(), server.pg.port());
    let config = format!("host={host} port={port} user=admin dbname=kymo");
    let (client, connection) = tokio_postgres::connect(&config, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

async fn follow(client: &Client, sql: &str) -> Pin<Box<RowStream>> {
    let none: [i64; 0] = [];
    Box::pin(client.query_raw(sql, none).await.unwrap())
}

async fn next(rows: &mut Pin<Box<RowStream>>) -> Row {
    let row = tokio::time::timeout(PATIENCE, rows.try_next()).await.expect("a row in time");
    row.unwrap().expect("a row before the end")
}

/// The word, the number of the commit, whether there is a token, and the number of a row.
fn told(row: &Row) -> (String, Option<i64>, bool, Option<i64>) {
    let token: Option<String> = row.get("kymo_token");
    (row.get("kymo_op"), row.get("kymo_seq"), token.is_some(), row.get("i"))
}

async fn subscriptions(server: &Server) -> i64 {
    let rows = server.sql("SELECT count(*) AS n FROM system.subscriptions").await;
    rows[0]["n"].as_i64().unwrap()
}

/// Waits until none is left.
async fn gone(server: &Server) {
    until_async("the end of the subscription", PATIENCE, async || {
        (subscriptions(server).await == 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_come_as_they_are_committed_until_a_cancel_request() {
    let server = start(Options::new());
    put(&server, 0..2).await;
    let client = connect(&server).await;
    client.batch_execute("SET statement_timeout = '1s'").await.unwrap();
    let began = Instant::now();
    let mut rows = follow(&client, SUBSCRIBE).await;
    for number in 0..2 {
        let row = next(&mut rows).await;
        assert_eq!(told(&row), ("snapshot".to_owned(), None, false, Some(number)));
        assert_eq!(row.get::<_, &str>("host"), "a");
    }
    let mut number = 2;
    let mut last = 0;
    while began.elapsed() < Duration::from_millis(1200) || number < 4 {
        put(&server, number..number + 1).await;
        let (word, seq, token, i) = told(&next(&mut rows).await);
        assert_eq!((word.as_str(), token, i), ("insert", true, Some(number)));
        assert!(seq.unwrap() > last);
        last = seq.unwrap();
        number += 1;
    }
    client.cancel_token().cancel_query(NoTls).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, rows.next()).await.unwrap().unwrap().unwrap_err();
    assert_eq!(ended.code().unwrap().code(), "57014");
    gone(&server).await;
    let one = client.query_one("SELECT 1::bigint", &[]).await.unwrap();
    assert_eq!(one.get::<_, i64>(0), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_ends_with_its_client() {
    let server = start(Options::new());
    put(&server, 0..1).await;
    let address = server.pg;
    for goodbye in [true, false] {
        let mut raw = tokio::task::spawn_blocking(move || {
            let mut raw = Raw::trusted(address);
            raw.query(SUBSCRIBE);
            assert_eq!(raw.message().unwrap().0, b'T');
            assert_eq!(raw.message().unwrap().0, b'D');
            raw
        })
        .await
        .unwrap();
        assert_eq!(subscriptions(&server).await, 1);
        if goodbye {
            raw.send(b'X', b"");
            gone(&server).await;
        }
        drop(raw);
        gone(&server).await;
    }
}

#[test]
fn a_server_that_stops_says_so_and_waits_for_no_subscriber() {
    let mut server = start(Options::new().setting("shutdown.statements_ms", 60_000));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(put(&server, 0..1));
    let mut reading = Raw::trusted(server.pg);
    reading.query(SUBSCRIBE);
    assert_eq!(reading.message().unwrap().0, b'T');
    assert_eq!(reading.message().unwrap().0, b'D');
    let mut waiting = Raw::trusted(server.pg);
    waiting.query("DECLARE c CURSOR WITH HOLD FOR SUBSCRIBE TO SELECT i FROM cpu WHERE i < 0");
    waiting.until_ready();
    waiting.query("FETCH 1 c WITH (timeout = '1h')");
    assert_eq!(waiting.message().unwrap().0, b'T');
    // One that has stopped reading in the middle of what it was sent.
    let mut stuck = Raw::trusted(server.pg);
    stuck.query("SUBSCRIBE TO SELECT repeat('x', 1000) AS x, a.i FROM cpu AS a");
    assert_eq!(stuck.message().unwrap().0, b'T');
    for portion in 0..10 {
        runtime.block_on(put(&server, portion * 5000..(portion + 1) * 5000));
    }
    server.signal_terminate();
    let mut told = reading.message().unwrap();
    while told.0 == b'D' {
        told = reading.message().unwrap();
    }
    assert_eq!((told.0, field(&told.1, b'C').as_str()), (b'E', "57P01"));
    assert!(reading.message().is_none());
    assert_eq!(waiting.fatal(), "57P01");
    let began = Instant::now();
    assert!(server.wait(PATIENCE).success(), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    drop(stuck);
}

#[test]
fn who_does_not_read_lags_and_no_writer_waits() {
    let server = start(Options::new().setting("live.buffer_bytes", 65_536));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(put(&server, 0..1));
    let mut raw = Raw::trusted(server.pg);
    raw.query("SUBSCRIBE TO SELECT i, repeat('x', 1000) AS x FROM cpu WITH (snapshot = false)");
    assert_eq!(raw.message().unwrap().0, b'T');
    // Far more than sockets hold: 40 MB.
    let portions = 20;
    for portion in 0..portions {
        runtime.block_on(put(&server, 1 + portion * 2000..1 + (portion + 1) * 2000));
    }
    let mut lagged = 0;
    let mut seen = Vec::new();
    while seen.len() < 2000 * 20 {
        let (kind, body) = raw.message().unwrap();
        assert_eq!(kind, b'D');
        let values = values(&body);
        match values[0].as_deref().unwrap() {
            "lagged" => {
                lagged += 1;
                assert!(values[1..].iter().all(Option::is_none));
            }
            "resync" => panic!("the log has all of it"),
            _ => seen.push(values[3].as_ref().unwrap().parse::<i64>().unwrap()),
        }
    }
    assert!(lagged > 0);
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(1..=2000 * portions));
}

/// The values of a DataRow.
fn values(mut body: &[u8]) -> Vec<Option<String>> {
    let mut take = |count: usize| {
        let (head, rest) = body.split_at(count);
        body = rest;
        head
    };
    let columns = u16::from_be_bytes(take(2).try_into().unwrap());
    let value = |_| {
        let length = i32::from_be_bytes(take(4).try_into().unwrap());
        let length = usize::try_from(length).ok()?;
        Some(String::from_utf8(take(length).to_vec()).unwrap())
    };
    (0..columns).map(value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_goes_on_after_a_restart_without_a_gap() {
    let mut server = start(Options::new());
    put(&server, 0..3).await;
    let changes = "SUBSCRIBE TO SELECT i FROM cpu WITH (progress = true";
    let client = connect(&server).await;
    let mut rows = follow(&client, &format!("{changes}, snapshot = false)")).await;
    let progress = next(&mut rows).await;
    assert_eq!(told(&progress).0, "progress");
    let mut token: String = progress.get("kymo_token");
    // A stream goes on as long as its client.
    let mut clients = vec![client];
    let mut seen = Vec::new();
    for life in 0..3 {
        let first = 3 + life * 10;
        put(&server, first..first + 5).await;
        numbers(&mut rows, &mut seen, &mut token, 5).await;
        server.kill();
        server = server.restart();
        put(&server, first + 5..first + 10).await;
        let client = connect(&server).await;
        rows = follow(&client, &format!("{changes}, resume = '{token}')")).await;
        clients.push(client);
        numbers(&mut rows, &mut seen, &mut token, 5).await;
    }
    assert!(seen.iter().copied().eq(3..33), "{seen:?}");
}

/// Takes so many rows of the query, whose tokens replace the last one.
async fn numbers(
    rows: &mut Pin<Box<RowStream>>,
    seen: &mut Vec<i64>,
    token: &mut String,
    count: usize,
) {
    let enough = seen.len() + count;
    while seen.len() < enough {
        let row = next(rows).await;
        assert_ne!(told(&row).0, "resync");
        seen.extend(told(&row).3);
        if let Some(next) = row.get("kymo_token") {
            *token = next;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn portals_and_cursors_take_some_rows_at_a_time() {
    let server = start(Options::new());
    put(&server, 0..5).await;
    let mut client = connect(&server).await;
    let transaction = client.transaction().await.unwrap();
    let statement = transaction.prepare(&format!("{SUBSCRIBE} WHERE i >= $1")).await.unwrap();
    let portal = transaction.bind(&statement, &[&2_i64]).await.unwrap();
    let two = transaction.query_portal(&portal, 2).await.unwrap();
    assert_eq!(two.iter().map(|row| told(row).3.unwrap()).collect::<Vec<_>>(), [2, 3]);
    // Three are asked for, one is there.
    let rest = transaction.query_portal(&portal, 3).await.unwrap();
    assert_eq!(rest.iter().map(|row| told(row).3.unwrap()).collect::<Vec<_>>(), [4]);
    put(&server, 5..7).await;
    let new = transaction.query_portal(&portal, 10).await.unwrap();
    assert_eq!(new.iter().map(|row| told(row).3.unwrap()).collect::<Vec<_>>(), [5, 6]);
    transaction
        .execute(&format!("DECLARE c CURSOR FOR {SUBSCRIBE} WHERE i > 100"), &[])
        .await
        .unwrap();
    assert!(transaction.query("FETCH ALL FROM c", &[]).await.unwrap().is_empty());
    put(&server, 101..104).await;
    let fetched = transaction.query("FETCH 2 FROM c", &[]).await.unwrap();
    assert_eq!(fetched.iter().map(|row| told(row).3.unwrap()).collect::<Vec<_>>(), [101, 102]);
    let fetched = transaction.query("FETCH ALL FROM c WITH (timeout = '10ms')", &[]).await.unwrap();
    assert_eq!(told(&fetched[0]).3, Some(103));
    transaction.commit().await.unwrap();
    gone(&server).await;
}

#[test]
fn a_subscription_can_be_copied_out() {
    let server = start(Options::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(put(&server, 0..2));
    let mut raw = Raw::trusted(server.pg);
    raw.query("COPY (SUBSCRIBE TO SELECT i FROM cpu) TO STDOUT (FORMAT csv)");
    assert_eq!(raw.message().unwrap().0, b'H');
    let mut copied = String::new();
    let mut read = |raw: &mut Raw, count: usize| {
        while copied.lines().count() < count {
            let (kind, body) = raw.message().unwrap();
            assert_eq!(kind, b'd');
            copied.push_str(std::str::from_utf8(&body).unwrap());
        }
        copied.lines().last().unwrap().to_owned()
    };
    assert_eq!(read(&mut raw, 2), "snapshot,,,1");
    runtime.block_on(put(&server, 2..3));
    let line = read(&mut raw, 3);
    assert!(line.starts_with("insert,") && line.ends_with(",2"), "{line}");
    raw.send(b'X', b"");
    runtime.block_on(gone(&server));
}

#[test]
fn refusals_say_what_to_do() {
    let server = start(Options::new());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(put(&server, 0..2));
    let mut raw = Raw::trusted(server.pg);
    for (sql, state, hint) in [
        ("SUBSCRIBE TO SELECT i AS kymo_op FROM cpu", "42702", "AS"),
        ("SUBSCRIBE TO SELECT i FROM cpu WITH (resume = 'no')", "22023", "token"),
        ("SUBSCRIBE TO SELECT i FROM cpu WITH (speed = 3)", "42601", "progress"),
        ("DECLARE c CURSOR FOR SUBSCRIBE TO SELECT i FROM cpu", "25P01", ""),
        ("FETCH 1 FROM c WITH (patience = '1s')", "42601", "timeout"),
        ("SUBSCRIBE TO SELECT * FROM nowhere", "42P01", ""),
    ] {
        raw.query(sql);
        let messages = raw.until_ready();
        assert_eq!(code(&messages), state, "{sql}");
        let (_, body) = messages.iter().find(|(kind, _)| *kind == b'E').unwrap();
        assert!(hint.is_empty() || field(body, b'H').contains(hint), "{sql}");
    }
    until("no subscription", PATIENCE, || {
        (runtime.block_on(subscriptions(&server)) == 0).then_some(())
    });
}
