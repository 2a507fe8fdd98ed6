//! The PostgreSQL wire protocol of the real binary: one test for each defect A–M that stock
//! serving code had, sending the bytes that show it, and the behaviour that drivers rely on.

#[path = "pg/raw.rs"]
mod raw;

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kymo_tests::{ADMIN, Certificate, Options, PASSWORD, Server, until};
use raw::{Raw, SSL_REQUEST, code, field, kinds, startup};
use tokio_postgres::{NoTls, SimpleQueryMessage};

const SOON: Duration = Duration::from_secs(20);
/// Runs for hours where nothing stops it.
const FOREVER: &str = "SELECT count(*) FROM generate_series(1, 10000000) AS a(x), \
     generate_series(1, 10000000) AS b(y) WHERE x + y = 0";

fn open() -> Server {
    Server::start(Options::new().no_auth())
}

/// A: after a failed log-in the next message ran.
#[test]
fn defect_a_nothing_runs_after_a_failed_log_in() {
    let server = Server::start(Options::new());
    let mut raw = Raw::connect(server.pg);
    raw.startup(ADMIN, "kymo");
    assert_eq!(raw.message().unwrap().0, b'R');
    raw.send(b'p', b"BOGUS\0\0\0\0\x05n,,n=");
    raw.query("CREATE DATABASE intruder");
    assert_eq!(raw.fatal(), "08P01");
    assert!(!databases(&server).contains("intruder"));
}

/// B: an error other than FATAL during start-up let everybody in.
#[test]
fn defect_b_every_error_of_the_start_up_is_fatal() {
    let server = Server::start(Options::new());
    let mut raw = Raw::connect(server.pg);
    raw.startup(ADMIN, "kymo");
    raw.message().unwrap();
    raw.query("CREATE DATABASE intruder");
    assert_eq!(raw.fatal(), "08P01");
    let mut raw = Raw::connect(server.pg);
    raw.bytes(&[0, 0, 0, 9, 0, 3, 0, 0, 0]);
    assert_eq!(raw.fatal(), "28P01");
    let mut raw = Raw::connect(server.pg);
    raw.bytes(&[0, 0, 0, 9, 0, 2, 0, 0, 0]);
    assert_eq!(raw.fatal(), "08P01");
    assert!(!databases(&server).contains("intruder"));
    let open = open();
    let mut raw = Raw::connect(open.pg);
    raw.startup(ADMIN, "nowhere");
    assert_eq!(raw.fatal(), "3D000");
}

fn databases(server: &Server) -> String {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rows = runtime.block_on(server.sql("SHOW DATABASES"));
    serde_json::to_string(&rows).unwrap()
}

/// C: `Execute` with the largest row limit reserved 80 GiB and killed the process.
#[test]
fn defect_c_a_huge_row_limit_reserves_nothing() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.extended("SELECT 1", &[], i32::MAX);
    assert_eq!(kinds(&raw.until_ready()), "12DCZ");
}

/// D: a negative row limit, and format codes for another number of columns, were panics.
#[test]
fn defect_d_limits_and_formats_are_checked() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.extended("SELECT 1", &[], -1);
    assert_eq!(code(&raw.until_ready()), "08P01");
    raw.extended("SELECT 1, 2, 3", &[0, 0], 0);
    assert_eq!(code(&raw.until_ready()), "08P01");
    raw.extended("SELECT 1", &[9], 0);
    assert_eq!(code(&raw.until_ready()), "08P01");
    raw.query("SELECT 1");
    assert_eq!(kinds(&raw.until_ready()), "TDCZ");
}

/// E: the extended protocol collected all rows before it sent the first.
#[test]
fn defect_e_the_extended_protocol_streams_within_little_memory() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.extended("SELECT 1", &[], 0);
    raw.until_ready();
    let before = resident(&server);
    let rows = "SELECT repeat('x', 1000) AS pad, value FROM generate_series(1, 2000000)";
    let started = Instant::now();
    raw.extended(rows, &[], 0);
    for expected in *b"12DDD" {
        assert_eq!(raw.message().unwrap().0, expected);
    }
    assert!(started.elapsed() < SOON, "the first rows took {:?}", started.elapsed());
    let mut count = 3_u64;
    while count < 500_000 {
        assert_eq!(raw.message().unwrap().0, b'D');
        count += 1;
    }
    let grown = resident(&server).saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes more after {count} rows of 1 kB");
}

/// Bytes of memory that the server's process uses.
fn resident(server: &Server) -> u64 {
    let path = format!("/proc/{}/statm", server.pid());
    let text = std::fs::read_to_string(path).unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// F: neither a cancel request nor `statement_timeout` stopped a statement.
#[tokio::test(flavor = "multi_thread")]
async fn defect_f_cancel_and_timeout_stop_the_statement() {
    let server = open();
    let client = server.pg().await;
    let token = client.cancel_token();
    for extended in [false, true] {
        let started = Instant::now();
        let run = async {
            if extended {
                client.query(FOREVER, &[]).await.map(drop)
            } else {
                client.simple_query(FOREVER).await.map(drop)
            }
        };
        let cancel = async {
            tokio::task::yield_now().await;
            let begun = async || (cpu_ticks(&server) > 0).then_some(());
            kymo_tests::until_async("work", SOON, begun).await;
            token.cancel_query(NoTls).await.unwrap();
        };
        // A request that overtakes its statement finds nothing to cancel.
        let again = async {
            loop {
                cancel_later(&token).await;
            }
        };
        let ended = tokio::select! {
            (ended, ()) = async { tokio::join!(run, cancel) } => ended,
            () = again => unreachable!("it cancels for ever"),
        };
        let error = ended.expect_err("the statement was cancelled");
        assert_eq!(error.code().unwrap().code(), "57014", "{error}");
        assert!(started.elapsed() < SOON);
    }
    client.batch_execute("SET statement_timeout = '300ms'").await.unwrap();
    for extended in [false, true] {
        let started = Instant::now();
        let error = if extended {
            client.query(FOREVER, &[]).await.map(drop).unwrap_err()
        } else {
            client.simple_query(FOREVER).await.map(drop).unwrap_err()
        };
        assert_eq!(error.code().unwrap().code(), "57014", "{error}");
        assert!(started.elapsed() < SOON);
    }
    client.batch_execute("RESET statement_timeout").await.unwrap();
    assert_eq!(client.query_one("SELECT 1::bigint", &[]).await.unwrap().get::<_, i64>(0), 1);
    idle(&server);
}

async fn cancel_later(token: &tokio_postgres::CancelToken) {
    tokio::time::sleep(Duration::from_millis(200)).await;
    let _ = token.cancel_query(NoTls).await;
}

/// A client that goes away stops its statement too.
#[test]
fn a_client_that_hangs_up_stops_its_statement() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.query(FOREVER);
    let before = cpu_ticks(&server);
    until("the statement runs", SOON, || (cpu_ticks(&server) > before + 20).then_some(()));
    drop(raw);
    idle(&server);
}

/// Waits until the server computes no more.
fn idle(server: &Server) {
    let mut last = (Instant::now(), cpu_ticks(server));
    until("an idle server", SOON, || {
        let (at, ticks) = last;
        if at.elapsed() < Duration::from_millis(300) {
            return None;
        }
        let now = cpu_ticks(server);
        last = (Instant::now(), now);
        (now - ticks < 10).then_some(())
    });
}

/// Processor time of the server's process so far, in hundredths of a second.
fn cpu_ticks(server: &Server) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/stat", server.pid())).unwrap();
    let after = text.rsplit_once(')').unwrap().1;
    let fields: Vec<u64> =
        after.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    fields[11] + fields[12]
}

/// G: bytes sent together with the request for TLS ran inside the encrypted session.
#[test]
fn defect_g_bytes_before_the_handshake_never_run() {
    let (server, roots) = with_tls();
    let mut injected = SSL_REQUEST.to_vec();
    injected.extend_from_slice(&startup(ADMIN, "kymo"));
    injected.extend_from_slice(b"Q\0\0\0\x1dCREATE DATABASE intruder\0");
    let mut raw = Raw::connect(server.pg);
    raw.bytes(&injected);
    let mut rest = Vec::new();
    let _ = raw.0.read_to_end(&mut rest);
    assert!(!rest.contains(&b'R'), "the start-up packet was read: {rest:?}");
    assert!(!rest.contains(&b'S'), "the handshake was begun: {rest:?}");

    // The same client without the injection is served over TLS.
    let mut raw = Raw::connect(server.pg);
    raw.bytes(&SSL_REQUEST);
    assert_eq!(raw.byte(), Some(b'S'));
    let name = "localhost".try_into().unwrap();
    let session = rustls::ClientConnection::new(Arc::new(roots), name).unwrap();
    let mut tls = Raw(rustls::StreamOwned::new(session, raw.0));
    tls.startup(ADMIN, "kymo");
    tls.until_ready();
    tls.query("SELECT 1");
    assert_eq!(kinds(&tls.until_ready()), "TDCZ");
    tls.query("SHOW DATABASES");
    let names = tls.until_ready();
    assert!(!names.iter().any(|(_, body)| body.windows(8).any(|part| part == b"intruder")));
}

fn with_tls() -> (Server, rustls::ClientConfig) {
    let certificate = Certificate::new();
    let server = Server::start(certificate.on(Options::new().no_auth()));
    (server, certificate.client())
}

/// H: anybody could make the server buffer a gigabyte before log-in.
#[test]
fn defect_h_nobody_unknown_fills_the_memory() {
    let server = Server::start(Options::new().setting("server.startup_timeout_ms", 1000));
    let mut raw = Raw::connect(server.pg);
    raw.bytes(&[0x10, 0, 0, 0, 0, 3, 0, 0]);
    assert_eq!(raw.fatal(), "54000");
    let mut raw = Raw::connect(server.pg);
    raw.startup(ADMIN, "kymo");
    raw.message().unwrap();
    raw.bytes(b"p\x10\0\0\0");
    raw.bytes(&vec![b'x'; 1 << 20]);
    let (kind, body) = raw.message().expect("an error");
    assert_eq!((kind, field(&body, b'C').as_str()), (b'E', "54000"));
    // Silence is not patience either.
    let mut silent = Raw::connect(server.pg);
    let started = Instant::now();
    assert_eq!(silent.byte(), None);
    assert!(started.elapsed() < SOON);
}

/// I: SCRAM could be downgraded, and took proofs of any length.
#[test]
fn defect_i_scram_is_strict() {
    let server = Server::start(Options::new());
    let begin = |first: &str, mechanism: &str| {
        let mut raw = Raw::connect(server.pg);
        raw.startup(ADMIN, "kymo");
        let (_, offer) = raw.message().unwrap();
        assert_eq!(&offer[4..], b"SCRAM-SHA-256\0\0", "nothing else is offered");
        let mut body = format!("{mechanism}\0").into_bytes();
        body.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend_from_slice(first.as_bytes());
        raw.send(b'p', &body);
        raw
    };
    assert_eq!(begin("n,,n=,r=abc", "SCRAM-SHA-256-PLUS").fatal(), "08P01");
    assert_eq!(begin("p=tls-server-end-point,,n=,r=abc", "SCRAM-SHA-256").fatal(), "0A000");
    for (binding, proof) in [("biws", "A".repeat(64)), ("eSws", format!("{}=", "A".repeat(43)))] {
        let mut raw = begin("n,,n=,r=abc", "SCRAM-SHA-256");
        let (_, challenge) = raw.message().unwrap();
        let challenge = String::from_utf8(challenge[4..].to_vec()).unwrap();
        let nonce = challenge.split(',').next().unwrap();
        raw.send(b'p', format!("c={binding},{nonce},p={proof}").as_bytes());
        assert_eq!(raw.fatal(), "08P01");
    }
}

/// J: `COPY … TO 'file'` let any client write files of the server.
#[tokio::test]
async fn defect_j_sql_touches_no_files() {
    let server = open();
    let client = server.pg().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("stolen.parquet");
    let path = path.display();
    for sql in [
        format!("COPY (SELECT 1) TO '{path}'"),
        format!("COPY (SELECT 1 AS a) TO '{path}' STORED AS PARQUET"),
        format!("CREATE EXTERNAL TABLE t (a INT) STORED AS CSV LOCATION '{path}'"),
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'".to_owned(),
        "SELECT * FROM '/etc/passwd'".to_owned(),
        "COPY cpu FROM '/etc/passwd'".to_owned(),
    ] {
        assert!(client.simple_query(&sql).await.is_err(), "{sql}");
        assert!(client.query(&sql, &[]).await.is_err(), "{sql}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// K: settings and prepared statements of one client were everybody's.
#[tokio::test]
async fn defect_k_each_connection_has_a_session_of_its_own() {
    let server = open();
    let (first, second) = (server.pg().await, server.pg().await);
    first.batch_execute("SET TIME ZONE '+05:30'; SET application_name = 'first'").await.unwrap();
    let _kept = first.prepare("SELECT 1").await.unwrap();
    assert_eq!(one(&first, "SHOW application_name").await, "first");
    assert_ne!(one(&second, "SHOW application_name").await, "first");
    assert_eq!(one(&second, "SHOW TIME ZONE").await, "UTC");
    let at = "SELECT TIMESTAMPTZ '2024-01-01T00:00:00Z'";
    assert_eq!(one(&first, at).await, "2024-01-01 05:30:00+05:30");
    assert_eq!(one(&second, at).await, "2024-01-01 00:00:00+00");
    let engine = "SET datafusion.execution.batch_size = 1";
    let _may_fail = first.simple_query(engine).await;
    let shown = second.simple_query("SHOW datafusion.execution.batch_size").await;
    assert!(shown.is_err() || !format!("{shown:?}").contains("\"1\""));
}

async fn one(client: &tokio_postgres::Client, sql: &str) -> String {
    for message in client.simple_query(sql).await.unwrap() {
        if let SimpleQueryMessage::Row(row) = message {
            return row.get(0).unwrap_or("NULL").to_owned();
        }
    }
    panic!("{sql}: no row")
}

/// L: a user without a password hash was let in with any password.
#[tokio::test]
async fn defect_l_only_the_right_password_opens() {
    let server = Server::start(Options::new());
    assert!(server.pg_config().connect(NoTls).await.is_ok());
    let mut said = Vec::new();
    for (user, password) in
        [(ADMIN, "wrong"), (ADMIN, ""), ("postgres", ""), ("postgres", PASSWORD), ("nobody", "x")]
    {
        let mut config = server.pg_config();
        config.user(user).password(password);
        let error = config.connect(NoTls).await.err().expect("no entry");
        if let Some(error) = error.as_db_error() {
            assert_eq!((error.severity(), error.code().code()), ("FATAL", "28P01"));
            said.push(error.message().replace(user, "?"));
        }
    }
    said.dedup();
    assert_eq!(said.len(), 1, "known and unknown names must look the same: {said:?}");
}

/// M: bytes that are not UTF-8 were silently replaced.
#[test]
fn defect_m_sql_that_is_not_utf8_is_refused() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.send(b'Q', b"SELECT '\xff\xfe'\0");
    assert_eq!(code(&raw.until_ready()), "22021");
    raw.send(b'P', b"\0SELECT '\xc3('\0\0\0");
    raw.send(b'S', b"");
    assert_eq!(code(&raw.until_ready()), "22021");
    raw.query("SELECT 'grün'");
    assert_eq!(kinds(&raw.until_ready()), "TDCZ");
}

/// Broken messages of every kind cost their sender something, nobody else.
#[test]
fn broken_messages_leave_the_server_alive() {
    let server = open();
    for (kind, body) in [
        (b'P', &b"x"[..]),
        (b'P', b"\0SELECT 1\0\xff\xff"),
        (b'B', b""),
        (b'B', b"\0\0\0\x01\0\x09\xff\xff"),
        (b'B', b"\0\0\0\0\0\x01\x7f\xff\xff\xff"),
        (b'E', b"p"),
        (b'D', b""),
        (b'D', b"Xp\0"),
        (b'C', b"S"),
        (b'Q', b"SELECT 1"),
    ] {
        let mut raw = Raw::trusted(server.pg);
        raw.send(kind, body);
        if kind != b'Q' {
            raw.send(b'S', b"");
        }
        assert_eq!(code(&raw.until_ready()), "08P01", "{} {body:?}", char::from(kind));
        raw.query("SELECT 1");
        assert_eq!(kinds(&raw.until_ready()), "TDCZ");
    }
    for bytes in [&b"!\0\0\0\x04"[..], b"Q\0\0\0\x03", b"Q\xff\xff\xff\xff", b"d\x7f\xff\xff\xff"] {
        let mut raw = Raw::trusted(server.pg);
        raw.bytes(bytes);
        assert_eq!(raw.message().unwrap().0, b'E');
        assert!(raw.message().is_none());
    }
    let mut raw = Raw::connect(server.pg);
    raw.bytes(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut rest = Vec::new();
    let _ = raw.0.read_to_end(&mut rest);
    Raw::trusted(server.pg);
}

#[test]
fn the_first_statement_keeps_its_rows_when_the_second_fails() {
    let server = open();
    let mut raw = Raw::trusted(server.pg);
    raw.query("SELECT 1; SELECT * FROM missing; SELECT 2");
    let messages = raw.until_ready();
    assert_eq!(kinds(&messages), "TDCEZ");
    assert_eq!(code(&messages), "42P01");
}

#[tokio::test]
async fn errors_carry_what_drivers_read() {
    let server = open();
    let client = server.pg().await;
    client
        .batch_execute("CREATE TABLE t (time TIMESTAMP TIME INDEX, a BIGINT, host TEXT TAG)")
        .await
        .unwrap();
    for (sql, code) in [
        ("SELEC 1", "42601"),
        ("SELECT * FROM missing", "42P01"),
        ("SELECT missing FROM t", "42703"),
        ("SELECT missing(1)", "42883"),
        ("SELECT 1 / 0", "22012"),
        ("SELECT CAST('x' AS BIGINT)", "22P02"),
        ("UPDATE t SET a = 1", "0A000"),
        ("SHOW missing.setting", "42704"),
        ("CREATE TABLE t (time TIMESTAMP TIME INDEX)", "42P07"),
        ("FETCH 1 FROM missing", "34000"),
    ] {
        let error = client.simple_query(sql).await.expect_err(sql);
        assert_eq!(error.code().unwrap().code(), code, "{sql}: {error:?}");
    }
    let error = client.simple_query("SELECT 1;\nSELEC 2").await.unwrap_err();
    let error = error.as_db_error().unwrap().clone();
    let place = tokio_postgres::error::ErrorPosition::Original(11);
    assert_eq!(error.position(), Some(&place));
}

#[tokio::test]
async fn copy_moves_rows_both_ways() {
    use futures::{SinkExt, TryStreamExt};
    let server = open();
    let client = server.pg().await;
    client
        .batch_execute(
            "CREATE TABLE t (time TIMESTAMP TIME INDEX, host TEXT TAG, v DOUBLE, note TEXT)",
        )
        .await
        .unwrap();
    let sink = client.copy_in("COPY t (time, host, v, note) FROM STDIN CSV HEADER").await.unwrap();
    futures::pin_mut!(sink);
    let mut text = "time,host,v,note\n".to_owned();
    for second in 0..2000 {
        text.push_str(&format!(
            "2024-01-01 00:{:02}:{:02},h{},{}.5,\"a, \"\"b\"\"\"\n",
            second / 60 % 60,
            second % 60,
            second % 3,
            second
        ));
    }
    for chunk in text.as_bytes().chunks(777) {
        sink.send(bytes::Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(sink.finish().await.unwrap(), 2000);
    let sql = "COPY (SELECT host, v, note FROM t ORDER BY v LIMIT 2) TO STDOUT";
    let out = client.copy_out(sql).await.unwrap();
    let out: Vec<bytes::Bytes> = out.try_collect().await.unwrap();
    assert_eq!(out.concat(), b"h0\t0.5\ta, \"b\"\nh1\t1.5\ta, \"b\"\n");
    let row = client.query_one("SELECT count(*), sum(v) FROM t", &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, f64>(1)), (2000, 2_000_000.0));
    let bad = client.copy_in::<_, bytes::Bytes>("COPY t (host) FROM STDIN").await;
    assert!(bad.is_err(), "a row needs its time");
}

#[test]
fn a_stopping_server_tells_its_clients() {
    let mut server = open();
    let mut raw = Raw::trusted(server.pg);
    server.signal_terminate();
    assert_eq!(raw.fatal(), "57P01");
    assert!(server.wait(Duration::from_secs(30)).success());
    assert!(raw.0.write_all(b"x").is_ok() || raw.byte().is_none());
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let server = Server::start(Options::new().no_auth().setting("server.max_connections", 2));
    let _held = (server.pg().await, server.pg().await);
    let error = server.pg_config().connect(NoTls).await.err().expect("no place");
    assert_eq!(error.code().unwrap().code(), "53300");
}
