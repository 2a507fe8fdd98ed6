//! HTTP against the real binary: statuses and bodies of every endpoint, bad input of every
//! kind, and the formats of an answer against each other.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use arrow::record_batch::RecordBatch;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use kymo_tests::clients::send;
use kymo_tests::{ADMIN, Answer, Certificate, Options, PASSWORD, Server, until_async};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn post(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    send(server.request(Method::POST, path).body(body)).await.expect("an answer")
}

async fn count(server: &Server, table: &str) -> u64 {
    let rows = server.sql(&format!("SELECT count(*) AS n FROM {table}")).await;
    rows[0]["n"].as_u64().expect("a count")
}

#[tokio::test]
async fn what_is_written_in_any_dialect_is_read_back_at_once() {
    let server = Server::start(Options::new());
    for (path, body) in [
        ("/write?db=kymo&precision=s", "cpu,host=a usage=1 1700000000"),
        ("/api/v2/write?bucket=kymo&precision=ms", "cpu,host=b usage=2 1700000000000"),
        ("/api/v3/write_lp?db=kymo", "cpu,host=c usage=3 1700000000000000"),
        ("/write/kymo?table=cpu&tags=host", ""),
    ] {
        let body = if body.is_empty() {
            r#"{"records":[{"_time":1700000000000,"host":"d","usage":4.5}]}"#
        } else {
            body
        };
        let answer = post(&server, path, body).await;
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
        assert!(answer.headers.contains_key("x-consistency-token"), "{path}");
    }
    let rows = server.sql("SELECT host, usage, time FROM cpu ORDER BY host").await;
    let usage: Vec<_> = rows.iter().map(|row| row["usage"].as_f64().unwrap()).collect();
    assert_eq!(usage, [1.0, 2.0, 3.0, 4.5]);
    assert!(rows.iter().all(|row| row["time"] == rows[0]["time"]), "{rows:?}");
}

#[tokio::test]
async fn a_type_conflict_with_what_is_stored_costs_its_line() {
    let server = Server::start(Options::new());
    server.write("m,t=a v=1 1").await;
    let body = "m,t=a v=2 2\nm,t=a v=\"text\" 3\nm,t=a v=4 4";
    let conflict = "input field \"v\" on measurement \"m\" is type string, already exists as type \
                    float";

    let answer = post(&server, "/write?db=kymo", body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let text = answer.json()["error"].as_str().unwrap().to_owned();
    assert!(text.starts_with("partial write: ") && text.contains(conflict), "{text}");
    assert_eq!(answer.headers["x-influxdb-error"], text.as_str());
    assert_eq!(count(&server, "m").await, 3);

    let answer = post(&server, "/api/v2/write?bucket=kymo", body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(answer.json()["message"].as_str().unwrap().contains(conflict), "{}", answer.text());

    let answer = post(&server, "/api/v3/write_lp?db=kymo", body).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let data = &answer.json()["data"];
    assert_eq!(data[0]["line_number"], 2);
    assert_eq!(data[0]["original_line"], "m,t=a v=\"text\" 3");

    let whole = "m,t=b v=1 1\nm,t=b v=\"text\" 2";
    let path = "/api/v3/write_lp?db=kymo&accept_partial=false";
    assert_eq!(post(&server, path, whole).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(count(&server, "m WHERE t = 'b'").await, 0, "nothing of a refused request");
}

#[tokio::test]
async fn bad_bodies_are_refused_with_their_place_and_the_server_lives() {
    let options = Options::new()
        .setting("ingest.max_body_bytes", 100_000)
        .setting("ingest.body_timeout_ms", 300)
        .setting("ingest.max_line_bytes", 1000);
    let server = Server::start(options);
    let path = "/api/v3/write_lp?db=kymo";
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let gzipped = |body: Vec<u8>| {
        let request = server.request(Method::POST, path).header("content-encoding", "gzip");
        send(request.body(body))
    };
    assert_eq!(gzipped(gzip(b"m v=1 1")).await.unwrap().status, StatusCode::NO_CONTENT);
    assert_eq!(gzipped(b"nonsense".to_vec()).await.unwrap().status, StatusCode::BAD_REQUEST);
    let bomb = gzip(&vec![b'#'; 50 << 20]);
    assert!(bomb.len() < 100_000);
    assert_eq!(gzipped(bomb).await.unwrap().status, StatusCode::PAYLOAD_TOO_LARGE);
    let large = "m v=1 1\n".repeat(500_000);
    assert_eq!(post(&server, path, large.clone()).await.status, StatusCode::PAYLOAD_TOO_LARGE);
    let elsewhere = post(&server, "/write?db=nowhere", large).await;
    assert_eq!(elsewhere.status, StatusCode::NOT_FOUND, "also where the body is not read");

    for (body, line, reason) in [
        (&b"m v=1 1\nm\xff v=1 1"[..], 2, "invalid UTF-8"),
        (b"m v=1 99999999999999999999", 1, "timestamp out of range"),
        (b"\n\nm v=9223372036854775808i", 3, "integer out of range"),
        (b"m v=1 1\n\xf0\x28\x8c\x28", 2, "missing fields"),
        (b"m,a=1,a=2 v=1", 1, "duplicate tag"),
        (&[b"m v=\"", "x".repeat(2000).as_bytes(), b"\""].concat(), 1, "longer than 1000 bytes"),
    ] {
        let answer = post(&server, path, body.to_vec()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{reason}");
        let error = answer.json()["data"][0].clone();
        assert_eq!(error["line_number"], line, "{reason}");
        let message = error["error_message"].as_str().unwrap();
        assert!(message.contains(reason), "{message}");
    }

    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {}\r\nContent-Length: 100\r\n\r\nm v=1",
        basic()
    );
    let answer = raw(&server, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("did not arrive"), "{answer}");
    let answer = raw(&server, b"BREW /coffee\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{answer}");
    assert_eq!(server.get("/health").await.status, StatusCode::OK);
    assert_eq!(count(&server, "m").await, 1);
}

/// `user:password` of the administrator in base64.
fn basic() -> String {
    STANDARD.encode(format!("{ADMIN}:{PASSWORD}"))
}

/// Sends bytes and reads until the server closes.
async fn raw(server: &Server, bytes: &[u8]) -> String {
    let mut socket = TcpStream::connect(server.http).await.unwrap();
    socket.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    let reading = async {
        while let Ok(count @ 1..) = socket.read(&mut buffer).await {
            answer.extend_from_slice(&buffer[..count]);
            // A whole small answer; the connection may stay open for the next request.
            if answer.ends_with(b"}") {
                break;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reading).await.expect("an end");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_closed() {
    let server = Server::start(Options::new().setting("server.startup_timeout_ms", 300));
    assert_eq!(raw(&server, b"").await, "");
    assert_eq!(raw(&server, b"GET /health HTTP/1.1\r\nHost:").await, "");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so() {
    let server = Server::start(Options::new().setting("server.max_connections", 2));
    let first = TcpStream::connect(server.http).await.unwrap();
    let second = TcpStream::connect(server.http).await.unwrap();
    let request = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    until_async("a refusal", Duration::from_secs(10), async || {
        let answer = raw(&server, request).await;
        (answer.contains("503") && answer.contains("limit_reached")).then_some(())
    })
    .await;
    drop((first, second));
    until_async("a place", Duration::from_secs(10), async || {
        raw(&server, request).await.starts_with("HTTP/1.1 204").then_some(())
    })
    .await;
}

#[tokio::test]
async fn credentials_of_every_form_get_in() {
    let server = Server::start(Options::new());
    let with = |header: String| {
        let request = server.anonymous(Method::GET, "/stats").header("authorization", header);
        async move { send(request).await.unwrap().status }
    };
    assert_eq!(with(format!("Basic {}", basic())).await, StatusCode::OK);
    assert_eq!(with(format!("Token {ADMIN}:{PASSWORD}")).await, StatusCode::OK);
    assert_eq!(with("Bearer wrong".into()).await, StatusCode::UNAUTHORIZED);
    assert_eq!(with(format!("Token {ADMIN}:wrong")).await, StatusCode::UNAUTHORIZED);
    assert_eq!(with("nonsense".into()).await, StatusCode::BAD_REQUEST);
    let encoded = PASSWORD.replace(' ', "+");
    let request = server.anonymous(Method::POST, &format!("/write?db=kymo&u={ADMIN}&p={encoded}"));
    assert_eq!(send(request.body("m v=1")).await.unwrap().status, StatusCode::NO_CONTENT);
    let answer =
        send(server.anonymous(Method::POST, "/write?db=kymo").body("m v=1")).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.json(), json!({"error": "authorization failed"}));
    assert!(answer.headers.contains_key("www-authenticate"));
    for path in ["/", "/health", "/ping", "/ready"] {
        let answer = send(server.anonymous(Method::GET, path)).await.unwrap();
        assert!(answer.status.is_success(), "{path}: {}", answer.text());
    }
    let log = server.log();
    assert!(!log.contains(PASSWORD) && !log.contains(&encoded), "a password in the log");
}

#[tokio::test]
async fn telegraf_finds_what_it_asks_for() {
    let server = Server::start(Options::new());
    let missing = post(&server, "/write?db=telegraf", "cpu v=1").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    assert_eq!(missing.json()["error"], "database not found: \"telegraf\"");
    let form = |text: &str| {
        server
            .request(Method::POST, "/query")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(text.to_owned())
    };
    let created = send(form("q=CREATE+DATABASE+%22telegraf%22")).await.unwrap();
    assert_eq!(created.status, StatusCode::OK);
    assert_eq!(created.json(), json!({"results": [{"statement_id": 0}]}));
    assert_eq!(post(&server, "/write?db=telegraf", "cpu v=1").await.status, StatusCode::NO_CONTENT);
    let shown = server.get("/query?q=SHOW+DATABASES").await.json();
    assert_eq!(shown["results"][0]["series"][0]["values"], json!([["kymo"], ["telegraf"]]));
    let shown = server.get("/query?db=telegraf&q=SHOW+MEASUREMENTS").await.json();
    assert_eq!(shown["results"][0]["series"][0]["values"], json!([["cpu"]]));
}

#[tokio::test]
async fn names_that_cannot_be_are_refused_at_every_door() {
    let server = Server::start(Options::new());
    for name in ["../evil", "..", ".", "", "a/b", "a\nb", &"x".repeat(256)] {
        let answer = server.try_sql(&format!("CREATE DATABASE \"{name}\"")).await.unwrap();
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{name:?}: {}", answer.text());
        let encoded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        for path in ["/api/v3/write_lp?db=", "/write/"].map(|path| format!("{path}{encoded}")) {
            let answer = post(&server, &path, "m v=1").await;
            assert!(answer.status.is_client_error(), "{path}: {}", answer.text());
        }
        let path = format!("/query?q=CREATE+DATABASE+%22{encoded}%22");
        let answer = post(&server, &path, "").await;
        assert!(answer.json()["results"][0]["error"].is_string(), "{path}: {}", answer.text());
    }
    let table = r#"CREATE TABLE ".." (time TIMESTAMP, v DOUBLE)"#;
    assert_eq!(server.try_sql(table).await.unwrap().status, StatusCode::BAD_REQUEST);
    assert_eq!(server.sql("SHOW DATABASES").await.len(), 1);
    server.write("../up/ü\\ and\\ so v=1 1").await;
    assert_eq!(count(&server, "\"../up/ü and so\"").await, 1, "a measurement may be called so");
}

#[tokio::test]
async fn sql_over_http_reads_with_get_and_changes_with_post() {
    let server = Server::start(Options::new());
    server.write("cpu,host=a usage=1 1000000000\ncpu,host=b usage=2 2000000000").await;
    let get = |q: &str| format!("/api/v3/query_sql?db=kymo&q={}", q.replace(' ', "+"));
    let answer = server.get(&get("SELECT count(*) AS n FROM cpu")).await;
    assert_eq!(answer.json(), json!([{"n": 2}]));
    let refused = server.get(&get("DROP TABLE cpu")).await;
    assert!(refused.status.is_client_error(), "{}: {}", refused.status, refused.text());
    for key in ["error", "code", "message"] {
        assert!(refused.json()[key].is_string(), "{}", refused.text());
    }
    let ask = |body: Value| server.request(Method::POST, "/api/v3/query_sql").json(&body);
    let named = json!({"db": "kymo", "q": "SELECT usage FROM cpu WHERE host = $host",
                       "params": {"host": "b"}});
    assert_eq!(send(ask(named)).await.unwrap().json(), json!([{"usage": 2.0}]));
    let numbered = json!({"db": "kymo", "q": "SELECT usage FROM cpu WHERE usage < $1",
                          "params": [1.5]});
    assert_eq!(send(ask(numbered)).await.unwrap().json(), json!([{"usage": 1.0}]));
    let created =
        post(&server, "/sql", "CREATE TABLE notes (t TIMESTAMP TIME INDEX, s TEXT)").await;
    assert_eq!(created.status, StatusCode::OK, "{}", created.text());
    for (sql, status, code) in [
        ("SELEC 1", 400, "syntax_error"),
        ("SELECT * FROM nowhere", 404, "table_not_found"),
        ("SELECT nothing FROM cpu", 400, "column_not_found"),
        ("SELECT no_such_function(1)", 400, "function_not_found"),
        ("SELECT 1/0", 400, "division_by_zero"),
    ] {
        let answer = server.try_sql(sql).await.unwrap();
        assert_eq!(answer.status.as_u16(), status, "{sql}: {}", answer.text());
        assert_eq!(answer.json()["code"], code, "{sql}: {}", answer.text());
    }
    let seed = server.request(Method::POST, "/query").json(&json!({"query": "SELECT 1 AS one"}));
    assert_eq!(send(seed).await.unwrap().json(), json!({"status": "ok", "results": [{"one": 1}]}));
}

/// Rows as maps from column to text, the common ground of all formats.
type Rows = Vec<BTreeMap<String, String>>;

fn from_json(value: &Value) -> Rows {
    let text = |value: &Value| match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let rows = value.as_array().expect("an array").iter();
    rows.map(|row| {
        row.as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))).collect()
    })
    .collect()
}

fn from_batches(batches: &[RecordBatch]) -> Rows {
    let mut out = Vec::new();
    let mut writer = arrow::json::writer::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow::json::writer::JsonArray>(&mut out);
    for batch in batches {
        writer.write(batch).unwrap();
    }
    writer.finish().unwrap();
    drop(writer);
    from_json(&serde_json::from_slice(&out).unwrap())
}

fn from_csv(text: &str) -> Rows {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let row = |line: &str| {
        let cells = line.split(',').map(str::to_owned);
        names.iter().map(|name| (*name).to_owned()).zip(cells).collect()
    };
    lines.map(row).collect()
}

#[tokio::test]
async fn all_formats_hold_the_same_rows() {
    let server = Server::start(Options::new());
    let mut lines = String::new();
    for n in 0..500_i64 {
        lines.push_str(&format!("f,host=h{} x={}.5,i={n}i,b={} {n}\n", n % 7, n, n % 2 == 0));
    }
    lines.push_str("f s=\"only text\" 1000\n");
    server.write(&lines).await;
    let ask = async |format: &str| {
        let q = "SELECT+time,host,x,i,b,s+FROM+f+ORDER+BY+time";
        let answer = server.get(&format!("/api/v3/query_sql?db=kymo&format={format}&q={q}")).await;
        assert_eq!(answer.status, StatusCode::OK, "{format}: {}", answer.text());
        answer
    };
    let expected = from_json(&ask("json").await.json());
    assert_eq!(expected.len(), 501);
    assert_eq!(expected[500]["s"], "only text");

    let text = ask("jsonl").await.text();
    let values = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(from_json(&Value::Array(values)), expected);
    assert_eq!(from_csv(&ask("csv").await.text()), expected);
    let bytes = ask("arrow").await.body;
    let reader = arrow::ipc::reader::StreamReader::try_new(&bytes[..], None).unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    assert_eq!(from_batches(&batches), expected);
    let bytes: Bytes = ask("parquet").await.body;
    let reader =
        parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap();
    let batches: Vec<RecordBatch> = reader.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(from_batches(&batches), expected);
    let pretty = ask("pretty").await.text();
    assert_eq!(pretty.lines().count(), 501 + 4, "a frame around the rows");
}

#[tokio::test]
async fn pressure_is_answered_with_503_and_keeps_what_was_accepted() {
    let options =
        Options::new().setting("ingest.queue_bytes", 40_000).setting("ingest.queue_timeout_ms", 1);
    let server = Arc::new(Server::start(options));
    server.write("p,w=x v=1 1").await;
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..16 {
        let server = Arc::clone(&server);
        tasks.spawn(async move {
            let (mut accepted, mut refused) = (0_u64, 0_u64);
            for round in 0..10 {
                let mut body = String::new();
                for n in 0..500 {
                    body.push_str(&format!("p,w=w{worker} v={n} {}\n", round * 1000 + n));
                }
                let answer = post(&server, "/write?db=kymo", body).await;
                match answer.status {
                    StatusCode::NO_CONTENT => accepted += 500,
                    StatusCode::SERVICE_UNAVAILABLE => {
                        assert!(answer.headers.contains_key("retry-after"));
                        refused += 1;
                    }
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            (accepted, refused)
        });
    }
    let (mut accepted, mut refused) = (0, 0);
    while let Some(ended) = tasks.join_next().await {
        let (more_accepted, more_refused) = ended.unwrap();
        accepted += more_accepted;
        refused += more_refused;
    }
    assert!(refused > 0, "no pressure was felt");
    assert_eq!(count(&server, "p").await, accepted + 1);
}

#[tokio::test]
async fn a_client_that_goes_away_stops_its_query() {
    let server = Server::start(Options::new());
    let q = "SELECT+count(*)+FROM+generate_series(1,100000000000)+a";
    let request =
        format!("GET /sql?q={q} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {}\r\n\r\n", basic());
    let running = async || {
        let rows = server.sql("SELECT count(*) AS n FROM system.queries").await;
        // The question itself is one of them.
        rows[0]["n"].as_u64().unwrap() - 1
    };
    let mut socket = TcpStream::connect(server.http).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let wait = Duration::from_secs(20);
    until_async("the query", wait, async || (running().await == 1).then_some(())).await;
    drop(socket);
    until_async("its end", wait, async || (running().await == 0).then_some(())).await;
}

#[tokio::test]
async fn operations_tell_what_goes_on() {
    let server = Server::start(Options::new());
    server.write("m v=1 1").await;
    let health = server.get("/health").await.json();
    assert_eq!(health["status"], "pass");
    assert_eq!(server.get("/ready").await.status, StatusCode::OK);
    let ping = server.get("/ping").await;
    assert_eq!(ping.status, StatusCode::NO_CONTENT);
    assert!(ping.headers.contains_key("x-influxdb-version"));
    assert!(server.get("/stats").await.json().is_object());
    let metrics = server.get("/metrics").await.text();
    for family in ["kymo_http_requests_total", "kymo_journal_groups_total", "kymo_port_"] {
        assert!(metrics.contains(family), "{family}");
    }
    assert_eq!(server.get("/nowhere").await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get("/write").await.status, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn tls_serves_http() {
    let certificate = Certificate::new();
    let server = Server::start(certificate.on(Options::new()));
    let socket = TcpStream::connect(server.http).await.unwrap();
    let mut stream = tokio_rustls::TlsConnector::from(Arc::new(certificate.client()))
        .connect("localhost".try_into().unwrap(), socket)
        .await
        .unwrap();
    let request = b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
}

#[test]
fn an_open_door_to_the_network_is_refused() {
    let options = Options::new().no_auth().argument("--http-host").argument("0.0.0.0");
    let failed = Server::try_start(options).err().expect("no start");
    assert!(!failed.status.success());
    assert!(failed.log.contains("0.0.0.0"), "{}", failed.log);
}
