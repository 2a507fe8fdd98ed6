//! Alerts on their way to people, with the real binary and receivers in the test: the demo's own
//! rule through a webhook, receivers that hang or fail, a server that is killed before it could
//! deliver, and those who watch over a WebSocket, an event stream and HTTP.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::{SinkExt, StreamExt};
use kymo::notify::{SIGNATURE, signature};
use kymo_tests::receiver::Got;
use kymo_tests::{ADMIN, Behaviour, Options, PASSWORD, Receiver, Server, until_async};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

/// Longer than anything here takes; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the webhook `ops` is signed with.
const SECRET: &str = "what nobody else knows";

/// A settings file with channels, which lives as long as this does.
struct Channels(TempDir);

impl Channels {
    fn new(channels: &[(&str, &str, String)]) -> Channels {
        let folder = tempfile::tempdir().unwrap();
        let mut text = String::from(
            "[alerts]\nretry_first_ms = 100\nretry_longest_ms = 500\nsend_timeout_ms = 1000\n\
             resend_ms = 500\nexternal_url = \"https://kymo.example.org\"\n",
        );
        for (name, kind, url) in channels {
            text.push_str(&format!(
                "[alerts.channels.{name}]\ntype = \"{kind}\"\nurl = \"{url}\"\n"
            ));
            if *name == "ops" {
                text.push_str(&format!("secret = \"{SECRET}\"\n"));
            }
        }
        std::fs::write(folder.path().join("kymo.toml"), text).unwrap();
        Channels(folder)
    }

    fn options(&self) -> Options {
        let file: PathBuf = self.0.path().join("kymo.toml");
        Options::new().argument("--config").argument(file.to_str().unwrap())
    }
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos()
}

/// Writes a value of a host.
async fn put(server: &Server, host: &str, usage: f64) {
    server.write(&format!("hosts,host={host} usage={usage} {}", now_ns())).await;
}

/// A rule over the newest value of each host.
async fn rule(server: &Server, name: &str, channels: &str) {
    let sql = format!(
        "CREATE ALERT {name} EVERY '100ms' ON (SELECT host, usage FROM hosts) WHEN usage > 90 \
         LABELS (severity = 'page') ANNOTATIONS (summary = '{{{{ $labels.host }}}} is at \
         {{{{ $value }}}}') NOTIFY {channels}"
    );
    server.sql(&sql).await;
}

/// The row of a channel once it is as wanted.
async fn channel(server: &Server, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let sql = format!("SELECT * FROM system.alert_channels WHERE channel = '{name}'");
    until_async(&format!("channel {name}"), PATIENCE, async || {
        server.sql(&sql).await.into_iter().next().filter(|row| wanted(row))
    })
    .await
}

fn is(got: &Got, host: &str, status: &str) -> bool {
    let alert = &got.json()["alerts"][0];
    alert["labels"]["host"] == host && alert["status"] == status
}

/// Threads that keep every processor of this machine busy until this is dropped.
struct Load(Arc<AtomicBool>);

impl Load {
    fn new() -> Load {
        let ended = Arc::new(AtomicBool::new(false));
        for _ in 0..std::thread::available_parallelism().unwrap().get() {
            let ended = ended.clone();
            std::thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Load(ended)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The demo's rule looks at the table that the demo fills with this machine's processors, which
/// the test puts under load. Other tests may do so, too: only what must come is looked at.
#[tokio::test]
async fn this_machines_processors_fire_under_load_and_resolve_after() {
    let receiver = Receiver::start(Behaviour::Answers(200)).await;
    let channels = Channels::new(&[("ops", "webhook", receiver.url())]);
    let server = Server::start(channels.options().demo());
    let host = until_async("a reading", PATIENCE, async || {
        let rows = server.try_sql("SELECT host FROM cpu LIMIT 1").await.ok()?;
        if !rows.status.is_success() {
            return None;
        }
        Some(rows.json()[0]["host"].as_str()?.to_owned())
    })
    .await;
    let load = Load::new();
    let fires = receiver.wait("fires", 1, PATIENCE, |got| is(got, &host, "firing")).await.remove(0);
    drop(load);
    let after = |got: &Got| is(got, &host, "resolved");
    let resolved = receiver.wait("resolves", 1, 2 * PATIENCE, after).await.remove(0);
    let [fired, ended] = [&fires, &resolved].map(|got| got.json()["alerts"][0].clone());
    for key in ["labels", "fingerprint", "startsAt"] {
        assert_eq!(fired[key], ended[key], "{key}");
    }
    let summary = fired["annotations"]["summary"].as_str().unwrap();
    assert!(summary.starts_with(&format!("The processors of {host} are used to ")), "{summary}");
    let usage = "SELECT max(usage) AS most, min(usage) AS least FROM cpu";
    let rows = server.sql(usage).await;
    assert!(rows[0]["most"].as_f64() > Some(80.0) && rows[0]["least"].as_f64() < Some(80.0));
}

/// The payload, field by field. Beside this machine another one reports to the demo's table,
/// which is under load when the test says so.
#[tokio::test]
async fn the_rule_of_the_demo_is_told_as_alertmanager_would() {
    let receiver = Receiver::start(Behaviour::Answers(200)).await;
    let channels = Channels::new(&[("ops", "webhook", receiver.url())]);
    let server = Server::start(channels.options().demo());
    until_async("the rule", PATIENCE, async || {
        let rules = server.sql("SHOW ALERTS").await;
        rules.iter().any(|rule| rule["alert"] == "busy_cpu").then_some(())
    })
    .await;
    server.wait_for_log("busy_cpu", PATIENCE);

    let load = async |usage: f64, status: &str| {
        until_async(status, PATIENCE, async || {
            let lines: String = ["cpu0", "cpu1"]
                .map(|cpu| format!("cpu,host=other,cpu={cpu} usage={usage} {}\n", now_ns()))
                .concat();
            server.write(&lines).await;
            receiver.got().into_iter().find(|got| is(got, "other", status))
        })
        .await
    };
    let fires = load(99.0, "firing").await;
    let resolved = load(2.0, "resolved").await;

    let payload = fires.json();
    let alert = &payload["alerts"][0];
    let labels = json!({"alertname": "busy_cpu", "host": "other", "severity": "warning"});
    let text = "The processors of other are used to 99 %";
    assert_eq!(alert["annotations"], json!({ "summary": text }));
    assert_eq!(
        payload,
        json!({
            "version": "4",
            "receiver": "ops",
            "status": "firing",
            "groupKey": "{}:{alertname=\"busy_cpu\"}",
            "truncatedAlerts": 0,
            "groupLabels": {"alertname": "busy_cpu"},
            "commonLabels": labels,
            "commonAnnotations": {"summary": text},
            "externalURL": "https://kymo.example.org",
            "alerts": [{
                "status": "firing",
                "labels": labels,
                "annotations": {"summary": text},
                "startsAt": alert["startsAt"],
                "endsAt": "0001-01-01T00:00:00Z",
                "generatorURL": "https://kymo.example.org/api/v1/alerts?rule=busy_cpu",
                "fingerprint": alert["fingerprint"],
            }],
        })
    );
    let end = &resolved.json()["alerts"][0];
    assert_eq!(resolved.json()["status"], "resolved");
    assert_eq!(
        (&end["startsAt"], &end["fingerprint"], &end["labels"]),
        (&alert["startsAt"], &alert["fingerprint"], &labels)
    );
    let times = [&alert["startsAt"], &end["endsAt"]].map(|time| time.as_str().unwrap().to_owned());
    assert!(times[0] < times[1], "{times:?}");

    for got in [&fires, &resolved] {
        assert_eq!((got.path.as_str(), got.header("content-type")), ("/hook", "application/json"));
        let sent = got.header(SIGNATURE);
        let at = sent.strip_prefix("t=").and_then(|rest| rest.split(',').next()).unwrap();
        assert_eq!(sent, signature(SECRET, at.parse().unwrap(), &got.body));
        let seconds = now_ns() / 1_000_000_000;
        assert!(seconds.abs_diff(at.parse().unwrap()) < 300, "{at} is not now");
    }
    let fingerprint = alert["fingerprint"].as_str().unwrap();
    assert!(fires.header("idempotency-key").starts_with(&format!("{fingerprint}-firing-")));

    // Another one goes the same way after them: each was sent once.
    channel(&server, "ops", |row| row["state"] == "idle" && row["queued"] == 0).await;
    for status in ["firing", "resolved"] {
        let count = receiver.got().iter().filter(|got| is(got, "other", status)).count();
        assert_eq!(count, 1, "{status}");
    }
}

#[tokio::test]
async fn a_receiver_that_hangs_or_fails_disturbs_no_other() {
    let ops = Receiver::start(Behaviour::Answers(204)).await;
    let slow = Receiver::start(Behaviour::Hangs).await;
    let broken = Receiver::start(Behaviour::Answers(500)).await;
    let strict = Receiver::start(Behaviour::Answers(422)).await;
    let manager = Receiver::start(Behaviour::Answers(200)).await;
    let channels = Channels::new(&[
        ("ops", "webhook", ops.url()),
        ("slow", "webhook", slow.url()),
        ("broken", "webhook", broken.url()),
        ("strict", "webhook", strict.url()),
        ("manager", "alertmanager", format!("http://{}", manager.address)),
    ]);
    let server = Server::start(channels.options());
    put(&server, "a", 1.0).await;

    let unknown = server.try_sql(
        "CREATE ALERT x ON (SELECT host, usage FROM hosts) WHEN usage > 9 NOTIFY ops, nowhere",
    );
    let refused = unknown.await.unwrap();
    assert!(refused.status.is_client_error());
    assert!(refused.text().contains("nowhere"), "{}", refused.text());

    rule(&server, "hot", "ops, slow, broken, strict, manager, log").await;
    put(&server, "a", 95.0).await;
    ops.wait("firing", 1, PATIENCE, |got| is(got, "a", "firing")).await;
    put(&server, "a", 5.0).await;
    let both = ops.wait("resolved", 2, PATIENCE, |_| true).await;
    assert!(is(&both[0], "a", "firing") && is(&both[1], "a", "resolved"));
    assert_eq!(ops.got().len(), 2);
    server.wait_for_log("hot", PATIENCE);

    // Who hangs is tried again with the same, and so is who fails.
    for (receiver, name, why) in
        [(&slow, "slow", "no answer"), (&broken, "broken", "the answer is 500")]
    {
        let tries = receiver.wait(name, 2, PATIENCE, |_| true).await;
        let keys: Vec<&str> = tries.iter().map(|got| got.header("idempotency-key")).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{keys:?}");
        let row = channel(&server, name, |row| row["retried"].as_i64() >= Some(2)).await;
        assert!(row["last_error"].as_str().unwrap().contains(why), "{row}");
        assert_eq!((&row["sent"], &row["queued"]), (&json!(0), &json!(2)), "{row}");
    }
    let row = channel(&server, "strict", |row| row["failed"] == 2).await;
    assert_eq!((strict.got().len(), &row["retried"]), (2, &json!(0)), "not tried again: {row}");

    let row = channel(&server, "ops", |row| row["sent"] == 2).await;
    assert_eq!(
        (&row["signed"], &row["url"]),
        (&json!(true), &json!(format!("http://{}/…", ops.address)))
    );
    let all = server.sql("SELECT * FROM system.alert_channels").await;
    assert_eq!(all.len(), 6);
    let settings = server.sql("SELECT * FROM system.settings").await;
    let shown = json!([all, settings]).to_string();
    assert!(!shown.contains(SECRET), "a secret is shown");

    // Those that recover get everything, in order.
    for receiver in [&slow, &broken] {
        let before = receiver.got().len();
        receiver.behave(Behaviour::Answers(200));
        let all = receiver.wait("the rest", 1, PATIENCE, |got| is(got, "a", "resolved")).await;
        assert_eq!(all.len(), 1);
        let late = receiver.got();
        assert!(is(&late[late.len() - 2], "a", "firing"), "{before} before");
    }

    // Alertmanager is told again and again what fires, and once that it ended.
    put(&server, "b", 99.0).await;
    let of = |got: &Got, host: &str| {
        let alerts = got.json();
        alerts.as_array().unwrap().iter().any(|alert| alert["labels"]["host"] == host)
    };
    let told = manager.wait("b again and again", 4, PATIENCE, |got| of(got, "b")).await;
    assert!(told.iter().all(|got| got.path == "/api/v2/alerts"));
    let ends = |got: &Got| got.json()[0]["endsAt"].as_str().unwrap().to_owned();
    assert!(ends(&told[1]) < ends(&told[3]));
    put(&server, "b", 1.0).await;
    ops.wait("b resolved", 1, PATIENCE, |got| is(got, "b", "resolved")).await;
    channel(&server, "ops", |row| row["sent"] == 4).await;
    let metrics = server.get("/metrics").await.text();
    for line in [
        "kymo_channel_notifications_sent_total{channel=\"ops\"} 4",
        "kymo_channel_notifications_failed_total{channel=\"strict\",why=\"refused\"}",
        "kymo_channel_retries_total{channel=\"broken\"}",
        "kymo_channel_queued_notifications{channel=\"slow\"}",
        "kymo_channel_request_seconds_bucket{channel=\"ops\"",
    ] {
        assert!(metrics.contains(line), "{line}");
    }
}

#[tokio::test]
async fn what_was_durable_when_the_server_was_killed_is_delivered_by_the_next() {
    let receiver = Receiver::start(Behaviour::Answers(200)).await;
    let channels = Channels::new(&[("ops", "webhook", receiver.url())]);
    let mut server = Server::start(channels.options());
    put(&server, "a", 1.0).await;
    rule(&server, "hot", "ops").await;
    put(&server, "a", 95.0).await;
    receiver.wait("a fires", 1, PATIENCE, |got| is(got, "a", "firing")).await;
    channel(&server, "ops", |row| row["state"] == "idle" && row["sent"] == 1).await;

    // Its end reaches the receiver, which does not answer; the beginning of another one waits.
    receiver.behave(Behaviour::Hangs);
    put(&server, "a", 5.0).await;
    let first = receiver.wait("a resolves", 1, PATIENCE, |got| is(got, "a", "resolved")).await;
    put(&server, "b", 96.0).await;
    put(&server, "b", 6.0).await;
    let kept =
        "SELECT count(*) AS n FROM system.alert_history WHERE \"to\" IN ('firing', 'resolved')";
    until_async("history", PATIENCE, async || (server.sql(kept).await[0]["n"] == 4).then_some(()))
        .await;
    server.kill();
    let before = receiver.got().len();
    receiver.behave(Behaviour::Answers(200));
    let server = server.restart();
    channel(&server, "ops", |row| row["state"] == "idle" && row["sent"] == 3).await;
    let after: Vec<Got> = receiver.got().split_off(before);
    let key = "idempotency-key";
    let told: Vec<(Value, Value)> = after
        .iter()
        .map(|got| got.json()["alerts"][0].clone())
        .map(|alert| (alert["labels"]["host"].clone(), alert["status"].clone()))
        .collect();
    let wanted =
        [("a", "resolved"), ("b", "firing"), ("b", "resolved")].map(|(h, s)| (json!(h), json!(s)));
    assert_eq!(told, wanted, "each once, in order; a fired before and is not sent again");
    assert_eq!(after[0].header(key), first[0].header(key));
    assert_eq!(after[0].body, first[0].body);
}

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn socket(server: &Server) -> Socket {
    let (mut socket, _) = connect_async(format!("ws://{}/ws", server.http)).await.unwrap();
    say(&mut socket, json!({"type": "auth", "user": ADMIN, "password": PASSWORD})).await;
    assert_eq!(hear(&mut socket).await["type"], "ready");
    socket
}

async fn say(socket: &mut Socket, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

async fn hear(socket: &mut Socket) -> Value {
    loop {
        let next = tokio::time::timeout(PATIENCE, socket.next()).await.expect("a message");
        if let Message::Text(text) = next.expect("no end").unwrap() {
            return serde_json::from_str(&text).unwrap();
        }
    }
}

#[tokio::test]
async fn alerts_are_watched_over_the_socket_by_rule_and_label_and_from_where_it_broke_off() {
    let server = Server::start(Options::new());
    put(&server, "a", 1.0).await;
    rule(&server, "hot", "log").await;
    rule(&server, "other", "log").await;

    let mut all = socket(&server).await;
    say(&mut all, json!({"type": "alerts", "id": "all"})).await;
    let begun = json!({"type": "subscribed", "id": "all", "class": "alerts", "resumed": false});
    assert_eq!(hear(&mut all).await, begun);
    let mut some = socket(&server).await;
    say(&mut some, json!({"type": "alerts", "id": 7, "rule": "hot", "labels": {"host": "b"}}))
        .await;
    assert_eq!(hear(&mut some).await["id"], "7");

    put(&server, "a", 95.5).await;
    let mut told = [hear(&mut all).await, hear(&mut all).await];
    told.sort_by_key(|alert| alert["rule"].as_str().unwrap().to_owned());
    let [alert, other] = &told;
    assert_eq!(other["rule"], "other");
    let labels = json!({"alertname": "hot", "host": "a", "severity": "page"});
    let expected = json!({
        "type": "alert", "id": "all", "seq": alert["seq"], "rule": "hot", "status": "firing",
        "fingerprint": alert["fingerprint"], "labels": labels,
        "annotations": {"summary": "a is at 95.5"}, "value": 95.5,
        "startsAt": alert["startsAt"], "endsAt": null, "silenced": false, "acked": false,
    });
    assert_eq!(*alert, expected);
    put(&server, "b", 99.0).await;
    let b = hear(&mut some).await;
    assert_eq!((&b["rule"], &b["labels"]["host"]), (&json!("hot"), &json!("b")));

    // As Prometheus answers it.
    let answer: Value = server.get("/api/v1/alerts?rule=hot").await.json();
    assert_eq!(answer["status"], "success");
    let active = answer["data"]["alerts"].as_array().unwrap();
    let hosts: Vec<&Value> = active.iter().map(|alert| &alert["labels"]["host"]).collect();
    assert!(hosts.len() == 2 && hosts.contains(&&json!("a")) && hosts.contains(&&json!("b")));
    assert!(active.iter().all(|alert| alert["state"] == "firing"));
    let answer: Value = server.get("/api/v1/rules").await.json();
    let rules = answer["data"]["groups"][0]["rules"].as_array().unwrap();
    assert_eq!((&rules[0]["name"], &rules[0]["state"]), (&json!("hot"), &json!("firing")));

    // What happens while nobody listens, and through a crash, is told to who goes on.
    let last = b["seq"].as_u64().unwrap();
    drop(some);
    put(&server, "b", 1.0).await;
    put(&server, "b", 98.0).await;
    until_async("b fires anew", PATIENCE, async || {
        let history = server.sql("SELECT count(*) AS n FROM system.alert_history").await;
        (history[0]["n"].as_i64() >= Some(8)).then_some(())
    })
    .await;
    let server = server.restart();
    let mut some = socket(&server).await;
    let wish =
        json!({"type": "alerts", "id": 1, "rule": "hot", "labels": {"host": "b"}, "resume": last});
    say(&mut some, wish).await;
    assert_eq!(hear(&mut some).await["resumed"], true);
    let (ended, again) = (hear(&mut some).await, hear(&mut some).await);
    assert_eq!((&ended["status"], &again["status"]), (&json!("resolved"), &json!("firing")));
    assert_eq!(again["annotations"]["summary"], "b is at 98");
    assert!(last < ended["seq"].as_u64().unwrap() && ended["seq"].as_u64() < again["seq"].as_u64());
    put(&server, "b", 2.0).await;
    let end = hear(&mut some).await;
    assert_eq!(end["status"], "resolved");
    assert!(end["seq"].as_u64() > again["seq"].as_u64());

    // The same as an event stream.
    let path = format!("/api/v1/alerts/stream?rule=hot&labels={{\"host\":\"b\"}}&resume={last}");
    let stream = server.request(reqwest::Method::GET, &path).send().await.unwrap();
    let mut stream = Box::pin(stream.bytes_stream());
    let mut text = String::new();
    while text.matches("event: alert\n").count() < 3 {
        let piece = tokio::time::timeout(PATIENCE, stream.next()).await.expect("a piece");
        text.push_str(std::str::from_utf8(&piece.expect("no end").unwrap()).unwrap());
    }
    assert!(text.starts_with("event: subscribed\n"), "{text}");
    assert!(text.contains(&format!("id: {}\n", end["seq"])), "{text}");
}
