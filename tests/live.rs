//! Live data against the real binary, with a real WebSocket client: statements, log-in, many
//! subscribers, one that stops reading, connections that are cut and go on, event streams and
//! the command line.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::future::join_all;
use futures::{SinkExt, StreamExt};
use kymo_tests::{ADMIN, Options, PASSWORD, Server, server, until_async};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A WebSocket client.
struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

/// What came, or how the server ended the conversation.
#[derive(Debug)]
enum Heard {
    Json(Value),
    Close(Option<CloseFrame>),
    Gone,
}

impl Socket {
    async fn open(server: &Server, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
        let mut request = format!("ws://{}/ws", server.http).into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        connect_async(request).await.map(|(socket, _)| Socket(socket))
    }

    /// A connection, as soon as the server noticed that an earlier one is gone.
    async fn place(server: &Server, headers: &[(&'static str, &str)]) -> Socket {
        until_async("a place", PATIENCE, async || Self::open(server, headers).await.ok()).await
    }

    /// A connection that has said who it is.
    async fn connect(server: &Server) -> Socket {
        let mut socket = Socket::open(server, &[]).await.unwrap();
        socket.say(json!({"type": "auth", "user": ADMIN, "password": PASSWORD})).await;
        let ready = socket.json().await;
        assert_eq!(ready, json!({"type": "ready", "user": ADMIN, "database": "kymo"}));
        socket
    }

    async fn say(&mut self, message: Value) {
        self.text(&message.to_string()).await;
    }

    async fn text(&mut self, text: &str) {
        self.0.send(Message::text(text)).await.unwrap();
    }

    async fn hear(&mut self) -> Heard {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.expect("a message");
            match next {
                Some(Ok(Message::Text(text))) => {
                    return Heard::Json(serde_json::from_str(&text).unwrap());
                }
                Some(Ok(Message::Close(frame))) => return Heard::Close(frame),
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return Heard::Gone,
            }
        }
    }

    async fn json(&mut self) -> Value {
        match self.hear().await {
            Heard::Json(value) => value,
            other => panic!("no message but {other:?}"),
        }
    }

    /// The code and the reason that the server ends the conversation with.
    async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.hear().await {
                Heard::Json(_) => {}
                Heard::Close(Some(frame)) => return (frame.code.into(), frame.reason.to_string()),
                other => panic!("no close frame but {other:?}"),
            }
        }
    }

    async fn subscribe(&mut self, sql: &str, snapshot: bool, resume: Option<&str>) -> Value {
        let wish = json!({
            "type": "subscribe", "id": 1, "sql": sql, "snapshot": snapshot, "resume": resume,
        });
        self.say(wish).await;
        self.json().await
    }
}

/// What a subscriber has after some messages.
#[derive(Debug, Default)]
struct Seen {
    rows: Vec<i64>,
    token: Option<String>,
    lagged: usize,
    resynced: usize,
}

impl Seen {
    fn take(&mut self, message: &Value) {
        match message["type"].as_str().unwrap() {
            "change" => {
                let rows = message["rows"].as_array().unwrap();
                self.rows.extend(rows.iter().map(|row| row["i"].as_i64().unwrap()));
            }
            "lagged" => self.lagged += 1,
            "resync" => {
                self.resynced += 1;
                self.rows.clear();
                self.token = None;
            }
            "subscribed" | "snapshot_end" => {}
            other => panic!("{other}: {message}"),
        }
        if let Some(token) = message["token"].as_str() {
            self.token = Some(token.to_owned());
        }
    }

    /// Fails unless exactly these rows have come, each once.
    fn has_each_once(&self, wanted: impl Iterator<Item = i64>) {
        let distinct: BTreeSet<i64> = self.rows.iter().copied().collect();
        assert_eq!(distinct.len(), self.rows.len(), "a row came twice");
        assert!(distinct.into_iter().eq(wanted), "rows are missing or wrong");
    }
}

/// Lines of the table `m`, each with its number, which is also its time.
fn lines(numbers: std::ops::Range<i64>, padding: usize) -> String {
    let text = "x".repeat(padding);
    numbers.map(|i| format!("m,t=a i={i}i,s=\"{text}\" {}\n", i + 1)).collect()
}

#[tokio::test]
async fn statements_go_over_the_socket_and_errors_leave_it_open() {
    let server = Server::start(Options::new());
    let mut socket = Socket::connect(&server).await;
    socket.say(json!({"type": "sql", "id": "a", "sql": "CREATE TABLE n (v BIGINT, time TIMESTAMP TIME INDEX)"})).await;
    assert_eq!(socket.json().await["command"], "CREATE TABLE");
    let insert = "INSERT INTO n (v, time) VALUES ($v, 1), (2, 2)";
    socket.say(json!({"type": "sql", "id": 2, "sql": insert, "params": {"v": 1}})).await;
    assert_eq!(
        socket.json().await,
        json!({"type": "done", "id": "2", "command": "INSERT", "count": 2})
    );
    socket.say(json!({"type": "sql", "id": 3, "sql": "SELECT v FROM n ORDER BY v"})).await;
    let rows = socket.json().await;
    assert_eq!(rows, json!({"type": "rows", "id": "3", "rows": [{"v": 1}, {"v": 2}]}));
    let done = socket.json().await;
    assert_eq!((&done["type"], &done["count"]), (&json!("done"), &json!(2)));
    assert_eq!(done["columns"], json!([{"name": "v", "type": "Int64"}]));

    for (text, code) in [
        (r#"{"type":"sql","id":4,"sql":"SELEC 1"}"#, "syntax_error"),
        (r#"{"type":"sql","id":4,"sql":"SELECT * FROM nowhere"}"#, "table_not_found"),
        (r#"{"type":"sql","id":4,"sql":"SELECT $1"}"#, "invalid_parameter"),
        (
            r#"{"type":"subscribe","id":4,"sql":"SELECT count(*) FROM system.tables"}"#,
            "unsupported",
        ),
        (r#"{"type":"subscribe","id":4,"sql":"SELECT v FROM n; SELECT 1"}"#, "invalid_input"),
        (r#"{"type":"subscribe","id":4,"sql":"SELECT v FROM n","resume":"x"}"#, "invalid_input"),
        (r#"{"type":"unsubscribe","id":4}"#, "invalid_input"),
        (r#"{"type":"dance","id":4}"#, "invalid_input"),
        (r#"{"type":"auth","id":4,"token":"x"}"#, "protocol_violation"),
    ] {
        socket.text(text).await;
        let error = socket.json().await;
        assert_eq!(
            (&error["type"], &error["id"]),
            (&json!("error"), &json!("4")),
            "{text}: {error}"
        );
        assert_eq!(error["code"], code, "{text}: {error}");
    }
    for text in ["SUBSCRIBE TO SELECT v FROM n", "SELECT 1; SUBSCRIBE TO SELECT v FROM n"] {
        socket.text(text).await;
        let refused = socket.json().await;
        assert_eq!(refused["code"], "unsupported", "{refused}");
        assert!(refused["hint"].as_str().unwrap().contains("subscribe"), "{refused}");
    }
    // A session: what is set holds for the statements that follow.
    socket.text("CREATE DATABASE other; USE other").await;
    assert_eq!(socket.json().await["status"], "ok");
    socket.text("SELECT current_database() AS d, 1 + 1 AS n").await;
    assert_eq!(socket.json().await, json!({"status": "ok", "results": [{"d": "other", "n": 2}]}));
    socket.text("SELECT v FROM kymo.public.n WHERE v > 5").await;
    assert_eq!(socket.json().await, json!({"status": "ok", "results": []}));
    socket.say(json!({"type": "ping", "id": "p"})).await;
    assert_eq!(socket.json().await, json!({"type": "pong", "id": "p"}));
    socket.0.send(Message::binary(vec![1, 2])).await.unwrap();
    assert_eq!(socket.json().await["code"], "protocol_violation");
}

#[tokio::test]
async fn only_who_is_known_comes_in_and_only_from_where_it_may() {
    let options = Options::new()
        .setting("live.allowed_origins", "https://dash.example")
        .setting("server.startup_timeout_ms", 1000)
        .setting("live.max_connections", 2);
    let server = Server::start(options);
    for first in [
        r#"{"type":"auth","user":"admin","password":"wrong"}"#,
        r#"{"type":"auth","token":"wrong"}"#,
        r#"{"type":"sql","id":1,"sql":"SELECT 1"}"#,
        "SELECT 1",
    ] {
        let mut socket = Socket::place(&server, &[]).await;
        socket.text(first).await;
        let error = socket.json().await;
        assert_eq!(error["code"], "not_authenticated", "{first}");
        assert_eq!(socket.closed().await, (3000, "not_authenticated".to_owned()), "{first}");
    }
    let mut silent = Socket::place(&server, &[]).await;
    assert_eq!(silent.closed().await.0, 3000);
    drop(silent);

    let basic = {
        use base64::Engine;
        let pair = format!("{ADMIN}:{PASSWORD}");
        format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
    };
    let status = |outcome: Result<Socket, Error>| match outcome {
        Ok(_) => StatusCode::SWITCHING_PROTOCOLS.as_u16(),
        Err(Error::Http(answer)) => answer.status().as_u16(),
        Err(other) => panic!("{other}"),
    };
    assert_eq!(status(Socket::open(&server, &[("authorization", "Basic eDp5")]).await), 401);
    for (origin, expected) in [
        ("https://evil.example", 403),
        ("null", 403),
        ("https://dash.example", 101),
        (&*format!("http://{}", server.http), 101),
    ] {
        // The places of the connections before are free again once the server noticed.
        let found = until_async("a place", PATIENCE, async || {
            let headers = [("authorization", &*basic), ("origin", origin)];
            let found = status(Socket::open(&server, &headers).await);
            (found != 503).then_some(found)
        });
        assert_eq!(found.await, expected, "{origin}");
    }
    let mut by_header = Socket::place(&server, &[("authorization", &basic)]).await;
    assert_eq!(by_header.json().await["type"], "ready");
    let plain = server.get("/ws").await;
    assert_eq!(plain.status, StatusCode::BAD_REQUEST, "{}", plain.text());
    let _second = Socket::place(&server, &[("authorization", &basic)]).await;
    assert_eq!(status(Socket::open(&server, &[("authorization", &basic)]).await), 503);
}

#[tokio::test]
async fn limits_of_a_connection_are_told_with_their_setting() {
    let options = Options::new()
        .setting("live.max_message_bytes", 1000)
        .setting("live.max_connection_subscriptions", 1)
        .setting("live.max_reply_bytes", 1000)
        .setting("live.heartbeat_ms", 50)
        .setting("live.idle_timeout_ms", 1500);
    let mut server = Server::start(options);
    server.write(&lines(0..3, 1)).await;
    let mut socket = Socket::connect(&server).await;
    assert_eq!(socket.subscribe("SELECT i FROM m", false, None).await["type"], "subscribed");
    assert_eq!(socket.json().await["type"], "snapshot_end");
    let again = socket.subscribe("SELECT i FROM m", false, None).await;
    assert!(
        again["hint"].as_str().unwrap().contains("live.max_connection_subscriptions"),
        "{again}"
    );
    socket.say(json!({"type": "unsubscribe", "id": 1})).await;
    assert_eq!(socket.json().await, json!({"type": "unsubscribed", "id": "1"}));
    let sql = "SUBSCRIBE TO SELECT i FROM m WHERE i > $1";
    socket.say(json!({"type": "sql", "id": 1, "sql": sql, "params": [1]})).await;
    assert_eq!(socket.json().await["type"], "subscribed");
    assert_eq!(socket.json().await["rows"], json!([{"i": 2}]));
    assert_eq!(socket.json().await["type"], "snapshot_end");
    socket.text("SELECT repeat('x', 2000) AS x").await;
    assert_eq!(socket.json().await["code"], "too_large");
    // A client that answers pings is heard, however little it says.
    let mut beats = 0;
    while beats < 10 {
        if let Some(Ok(Message::Ping(_))) = socket.0.next().await {
            beats += 1;
        }
    }
    socket.text(&"x".repeat(2000)).await;
    assert_eq!(socket.closed().await, (1009, "too_large".to_owned()));
    // One that does not is taken for gone: it is asked for nothing, so it answers nothing.
    let _mute = Socket::connect(&server).await;
    let shown = "SELECT count(*) AS n FROM system.actors WHERE kind = 'session'";
    until_async("the end of the mute one", PATIENCE, async || {
        (server.sql(shown).await[0]["n"] == 0).then_some(())
    })
    .await;
    // Whoever is there when the server stops is told to come back.
    let mut last = Socket::connect(&server).await;
    server.signal_terminate();
    assert_eq!(last.closed().await, (1001, "shutting_down".to_owned()));
    assert!(server.wait(PATIENCE).success());
}

#[tokio::test]
async fn many_follow_and_one_that_stops_reading_costs_nobody() {
    const SUBSCRIBERS: usize = 1000;
    const WRITES: i64 = 60;
    const ROWS: i64 = 200;
    kymo::process::allow_many_files();
    let options = Options::new().setting("live.buffer_bytes", 2_000_000);
    // The one that does not read says nothing for as long as all others take.
    let server = Server::start(options.setting("live.idle_timeout_ms", 600_000));
    server.write(&lines(0..1, 1)).await;
    let mut stuck = Socket::connect(&server).await;
    assert_eq!(stuck.subscribe("SELECT i, s FROM m", true, None).await["type"], "subscribed");
    // Some at a time, so that none waits for the log-in of all others.
    let readers = futures::stream::iter((0..SUBSCRIBERS).map(|_| async {
        let mut socket = Socket::connect(&server).await;
        let started = socket.subscribe("SELECT i FROM m WHERE i % 500 = 0", false, None).await;
        assert_eq!(started["class"], "rows");
        let mut seen = Seen::default();
        while seen.token.is_none() {
            seen.take(&socket.json().await);
        }
        (socket, seen)
    }))
    .buffer_unordered(16)
    .collect::<Vec<_>>()
    .await;
    let shown = server.sql("SELECT count(*) AS n FROM system.subscriptions").await;
    assert_eq!(shown[0]["n"], SUBSCRIBERS + 1);
    let writing = async {
        for write in 0..WRITES {
            let from = write * ROWS + 1;
            server.write(&lines(from..from + ROWS, 1500)).await;
        }
    };
    let wanted = || (1..=WRITES * ROWS).filter(|i| i % 500 == 0);
    let reading = join_all(readers.into_iter().map(|(mut socket, mut seen)| async move {
        while seen.rows.len() < wanted().count() {
            seen.take(&socket.json().await);
        }
        seen.has_each_once(wanted());
        assert_eq!(seen.resynced, 0);
    }));
    futures::future::join(writing, reading).await;
    // The one that did not read for all that time still gets everything.
    let shown = "SELECT delivered_rows AS rows FROM system.subscriptions ORDER BY id LIMIT 1";
    let shown = server.sql(shown).await;
    assert!(shown[0]["rows"].as_i64().unwrap() < WRITES * ROWS, "{shown:?}");
    let mut seen = Seen::default();
    while seen.rows.len() <= usize::try_from(WRITES * ROWS).unwrap() {
        seen.take(&stuck.json().await);
    }
    seen.has_each_once(0..=WRITES * ROWS);
    assert!(seen.lagged > 0, "it was never behind");
    let metrics = server.get("/metrics").await.text();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!(value("kymo_live_rows_total ") >= (SUBSCRIBERS * wanted().count()) as f64);
    assert!(value("kymo_live_lagged_total ") >= 1.0);
    assert!(value("kymo_live_push_seconds_count ") >= SUBSCRIBERS as f64);
}

#[tokio::test]
async fn an_aggregate_follows_each_commit_from_its_states() {
    const COMMITS: i64 = 50;
    let server = Server::start(Options::new());
    server.write(&lines(0..1, 1)).await;
    let mut socket = Socket::connect(&server).await;
    let query = "SELECT time_bucket('1s', time) AS w, t, count(*) AS n, max(i) AS i FROM m \
                 GROUP BY 1, 2";
    let started = socket.subscribe(query, true, None).await;
    assert_eq!((&started["type"], &started["class"]), (&json!("subscribed"), &json!("windows")));
    let first = socket.json().await;
    assert_eq!((&first["op"], &first["rows"][0]["n"]), (&json!("snapshot"), &json!(1)));
    assert_eq!(socket.json().await["type"], "snapshot_end");
    let metric = async |name: &str| -> f64 {
        let metrics = server.get("/metrics").await.text();
        let line = metrics.lines().find(|line| line.starts_with(name)).expect(name);
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let reruns = metric("kymo_live_reruns_total ").await;
    for number in 1..=COMMITS {
        server.write(&lines(number..number + 1, 1)).await;
        let change = socket.json().await;
        assert_eq!((&change["type"], &change["op"]), (&json!("change"), &json!("update")));
        let row = &change["rows"][0];
        assert_eq!((&row["n"], &row["i"]), (&json!(number + 1), &json!(number)), "{change}");
        assert!(change["token"].is_string(), "{change}");
    }
    // The window was read once, when it changed first.
    assert_eq!(metric("kymo_live_reruns_total ").await, reruns);
    assert_eq!(metric("kymo_live_rebuilt_windows_total ").await, 1.0);
    assert!(metric("kymo_live_state_bytes ").await > 0.0);
    // A row in the place of another, and one that is deleted.
    server.write("m,t=a i=99i 1\n").await;
    assert_eq!(socket.json().await["rows"][0]["i"], 99);
    server.sql("DELETE FROM m WHERE i = 99").await;
    let change = socket.json().await;
    assert_eq!(
        (&change["rows"][0]["n"], &change["rows"][0]["i"]),
        (&json!(COMMITS), &json!(COMMITS))
    );
    drop(socket);
    until_async("the end of its states", PATIENCE, async || {
        (metric("kymo_live_state_bytes ").await == 0.0).then_some(())
    })
    .await;
}

/// Reads a random number of messages of a subscription that goes on at the last token.
async fn sip(server: &Server, seen: &mut Seen, dice: &mut StdRng, all: usize) {
    let mut socket = Socket::connect(server).await;
    let resume = seen.token.clone();
    let started = socket.subscribe("SELECT i FROM m", resume.is_none(), resume.as_deref()).await;
    assert_eq!(started["type"], "subscribed", "{started}");
    if resume.is_none() {
        // A snapshot that broke off is void.
        seen.rows.clear();
    }
    // A snapshot that is cut is begun again, so most of them are let through.
    let patient = dice.random_range(0..3) > 0;
    let mut left: usize = dice.random_range(0..8);
    while (left > 0 && seen.rows.len() < all) || (patient && seen.token.is_none()) {
        seen.take(&socket.json().await);
        left = left.saturating_sub(1);
    }
    // Dropped without a word, as when a cable is pulled.
}

#[tokio::test]
async fn connections_that_are_cut_and_go_on_see_exactly_what_was_committed() {
    const WRITES: i64 = 100;
    const ROWS: i64 = 7;
    let options = Options::new()
        .setting("live.buffer_bytes", 2000)
        .setting("memtable.table_bytes", 200_000)
        .setting("journal.file_bytes", 100_000);
    let mut server = Server::start(options);
    let table = "CREATE TABLE m (t TEXT TAG, i BIGINT, s TEXT, time TIMESTAMP TIME INDEX) \
                 WITH (append_only = true)";
    server.sql(table).await;
    let mut everybody: Vec<(Seen, StdRng)> =
        (0..8).map(|seed| (Seen::default(), StdRng::seed_from_u64(seed))).collect();
    for half in [0..WRITES / 2, WRITES / 2..WRITES] {
        let all = usize::try_from(half.end * ROWS).unwrap();
        let place = &server;
        let writing = async {
            for write in half {
                place.write(&lines(write * ROWS..(write + 1) * ROWS, 300)).await;
            }
        };
        let reading = join_all(everybody.iter_mut().map(|(seen, dice)| async move {
            while seen.rows.len() < all {
                sip(place, seen, dice, all).await;
            }
        }));
        futures::future::join(writing, reading).await;
        // Tokens outlive the server.
        server = server.restart();
    }
    for (seen, _) in &everybody {
        seen.has_each_once(0..WRITES * ROWS);
    }
}

#[tokio::test]
async fn event_streams_and_the_command_line_follow_too() {
    let server = Server::start(Options::new().setting("live.heartbeat_ms", 50));
    server.write(&lines(0..3, 1)).await;
    let path = "/api/v1/subscribe?db=kymo&q=SELECT%20i%20FROM%20m%20WHERE%20i%20%3E%200";
    assert_eq!(
        server.anonymous(Method::GET, path).send().await.unwrap().status(),
        StatusCode::UNAUTHORIZED
    );
    let refused = server.get("/api/v1/subscribe?q=SELECT%201").await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.json()["message"].as_str().unwrap().contains("no table"));

    let first = server.request(Method::GET, path).send().await.unwrap();
    assert_eq!(first.headers()["content-type"], "text/event-stream");
    let text = stream_until(first, "snapshot_end").await;
    let token = text.lines().rev().find_map(|line| line.strip_prefix("id: ")).unwrap().to_owned();
    assert!(text.contains(r#""rows":[{"i":1},{"i":2}]"#), "{text}");
    server.write(&lines(3..5, 1)).await;
    let again = server.request(Method::GET, path).header("last-event-id", token);
    let text = stream_until(again.send().await.unwrap(), "event: change").await;
    assert!(text.contains(r#""resumed":true"#) && text.contains(r#"[{"i":3},{"i":4}]"#), "{text}");
    let beating = server.request(Method::GET, path).send().await.unwrap();
    stream_until(beating, ": still here").await;

    let mut command = Command::new(server::binary());
    command
        .args(["subscribe", "SELECT i, t FROM m", "--format", "jsonl", "--rows", "6"])
        .env("KYMO_URL", server.url(""))
        .env("KYMO_USER", ADMIN)
        .env("KYMO_PASSWORD", PASSWORD)
        .env("XDG_CONFIG_HOME", "/nonexistent")
        .stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let shown = "SELECT delivered_rows AS n FROM system.subscriptions ORDER BY id DESC LIMIT 1";
    until_async("the snapshot", PATIENCE, async || {
        server.sql(shown).await.first().filter(|row| row["n"] == 5).map(|_| ())
    })
    .await;
    server.write(&lines(5..6, 1)).await;
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    let numbers = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let numbers: Vec<i64> = numbers.map(|row| row["i"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
}

/// Reads an event stream until it holds a text, and all of that event.
async fn stream_until(mut answer: reqwest::Response, wanted: &str) -> String {
    let mut text = String::new();
    let reading = async {
        while !text.find(wanted).is_some_and(|at| text[at..].contains("\n\n")) {
            let piece = answer.chunk().await.unwrap().expect("more of the stream");
            text.push_str(std::str::from_utf8(&piece).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("the event");
    text
}
