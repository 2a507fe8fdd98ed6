//! Alert rules against the real binary: they fire within moments of the write, and what became
//! of alerts is there after `SIGKILL`; rules of files follow `SIGHUP`; rules call functions of
//! plugins, and wait for them.

use std::time::Duration;

use kymo_tests::clients::send;
use kymo_tests::component::plugin;
use kymo_tests::{Options, Server, until_async};
use reqwest::Method;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
const KILLS: usize = 5;

async fn one(server: &Server, sql: &str) -> Value {
    server.sql(sql).await.into_iter().next().unwrap_or(Value::Null)
}

async fn until(server: &Server, what: &str, sql: &str, expected: Value) {
    until_async(what, PATIENCE, || async { (one(server, sql).await == expected).then_some(()) })
        .await;
}

fn now_ns() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos()
}

async fn put(server: &Server, host: &str, usage: f64) {
    server.write(&format!("cpu,host={host} usage={usage} {}", now_ns())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_alerts_did_is_there_after_a_kill() {
    let mut server = Server::start(Options::new());
    put(&server, "a", 1.0).await;
    server
        .sql(
            "CREATE ALERT hot ON (SELECT host, usage FROM cpu) WHEN usage > 90 \
             ANNOTATIONS (summary = '{{ $labels.host }} is at {{ $value }}') NOTIFY log",
        )
        .await;
    server
        .sql("CREATE ALERT slow ON (SELECT host, usage FROM cpu) WHEN usage > 90 FOR '10m'")
        .await;
    for kill in 0..KILLS {
        let host = format!("h{kill}");
        put(&server, &host, 95.0).await;
        // The second rule's transition is recorded with or after the first one's.
        let both = format!(
            "SELECT count(*) AS n FROM system.alert_history WHERE labels LIKE '%\"{host}\"%'"
        );
        until(&server, "both transitions", &both, serde_json::json!({ "n": 2 })).await;
        server.kill();
        let told = |log: String| {
            log.lines().any(|line| line.contains(&host) && line.contains("firing")).then_some(())
        };
        let before = told(server.log());
        server = server.restart();
        // Each alert goes on as it was, with the same beginning, and nothing happened twice.
        let states = "SELECT count(*) AS n FROM system.alerts WHERE state = 'firing'";
        until(&server, "alerts that fire", states, serde_json::json!({ "n": kill + 1 })).await;
        let pending = "SELECT count(*) AS n FROM system.alerts WHERE state = 'pending'";
        until(&server, "alerts that are pending", pending, serde_json::json!({ "n": kill + 1 }))
            .await;
        let history = "SELECT count(*) AS n, count(DISTINCT fingerprint) AS alerts FROM \
                       system.alert_history";
        let expected = serde_json::json!({ "n": 2 * (kill + 1), "alerts": 2 * (kill + 1) });
        assert_eq!(one(&server, history).await, expected);
        // The log has it from before the kill, or gets it now.
        if before.is_none() {
            until_async("the alert in the log", PATIENCE, || async { told(server.log()) }).await;
        }
    }
    put(&server, "h0", 1.0).await;
    let ended = "SELECT \"from\", \"to\", value FROM system.alert_history WHERE rule = 'hot' \
                 ORDER BY sequence DESC LIMIT 1";
    let expected = serde_json::json!({ "from": "firing", "to": "resolved", "value": 1.0 });
    until(&server, "its end", ended, expected).await;
    assert!(server.terminate().success());
}

/// A file with one rule, `hot`.
fn rules(expr: &str, when: &str) -> String {
    format!(
        "groups:\n- name: web\n  interval: 1s\n  rules:\n  - alert: hot\n    expr: {expr}\n    \
         when: {when}\n    notify: [log]\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_of_files_follow_a_signal_and_survive_a_broken_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.yml");
    let plain = "SELECT host, usage FROM cpu";
    std::fs::write(&file, rules(plain, "usage > 90")).unwrap();
    let options = Options::new().setting("alerts.rules_dir", folder.path().display());
    let mut server = Server::start(options);
    // The table comes with the first write, and the rule with the table.
    put(&server, "a", 95.0).await;
    let state = "SELECT state, origin FROM system.alerts";
    let firing = json!({ "state": "firing", "origin": "web.yml: web" });
    until(&server, "a rule of a file", state, firing.clone()).await;
    let refused = server.try_sql("DROP ALERT hot").await.unwrap();
    assert!(refused.text().contains("web.yml"), "{}", refused.text());

    std::fs::write(&file, rules(plain, "usage > 99")).unwrap();
    server.signal_hangup();
    until(
        &server,
        "another limit",
        state,
        json!({ "state": "resolved", "origin": "web.yml: web" }),
    )
    .await;
    std::fs::write(&file, rules(plain, "usage > 80")).unwrap();
    server.signal_hangup();
    until(&server, "a third limit", state, firing.clone()).await;

    std::fs::write(&file, "groups: 7\n").unwrap();
    server.signal_hangup();
    let status = "SELECT file, line, status FROM system.alert_files";
    let broken = json!({ "file": "web.yml", "line": 1, "status": "previous" });
    until(&server, "the broken file", status, broken.clone()).await;
    server.wait_for_log("alert rule of a file is refused", PATIENCE);
    server.kill();
    server = server.restart();
    until(&server, "the broken file after a kill", status, broken).await;
    until(&server, "its alert", state, firing).await;

    // A statement answers what became of each rule.
    std::fs::write(&file, rules("SELECT nothing FROM cpu", "true")).unwrap();
    let answer = one(&server, "RELOAD ALERT RULES").await;
    assert_eq!((&answer["rule"], &answer["line"]), (&json!("hot"), &json!(5)), "{answer}");
    assert_eq!(answer["status"], "previous", "{answer}");
    std::fs::remove_file(&file).unwrap();
    assert_eq!(server.sql("RELOAD ALERT RULES").await, [] as [Value; 0]);
    until(&server, "no rule", "SELECT count(*) AS n FROM system.alerts", json!({ "n": 0 })).await;
    let ended = "SELECT \"to\" FROM system.alert_history ORDER BY sequence DESC LIMIT 1";
    until(&server, "its end", ended, json!({ "to": "resolved" })).await;
    assert!(server.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_files_a_hangup_ends_the_server_in_order() {
    let mut server = Server::start(Options::new());
    server.signal_hangup();
    assert!(server.wait(PATIENCE).success());
}

/// `c2f` and `f2c`.
const C2F: &[u8] = include_bytes!("../plugins/guests/c2f/c2f.wasm");
/// `tdigest_quantile`, an aggregate.
const TDIGEST: &[u8] = include_bytes!("../plugins/guests/tdigest/tdigest.wasm");

async fn install(server: &Server, name: &str, component: Vec<u8>) {
    let request = server.request(Method::PUT, &format!("/api/v1/plugins/{name}"));
    let answer = send(request.body(component)).await.expect("an answer");
    assert!(answer.status.is_success(), "{name}: {}", answer.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_call_functions_of_plugins_and_wait_for_them() {
    let mut server = Server::start(Options::new());
    install(&server, "weather", C2F.to_vec()).await;
    install(&server, "digest", TDIGEST.to_vec()).await;
    install(&server, "bad", plugin("1.0.0", &["f"])).await;
    put(&server, "a", 40.0).await;
    for (name, query, when) in [
        ("scalar", "host, usage FROM cpu", "weather.c2f(usage) > 100"),
        ("whole", "digest.tdigest_quantile(usage, 0.5) AS q FROM cpu", "q > 30"),
        ("fails", "host, bad.f(usage) AS f FROM cpu", "f > 1"),
        ("other", "host, usage FROM cpu", "usage > 30"),
    ] {
        let sql = format!("CREATE ALERT {name} EVERY '1s' ON (SELECT {query}) WHEN {when}");
        server.sql(&sql).await;
    }
    let of = |rule: &str| {
        format!("SELECT class, state, status FROM system.alerts WHERE rule = '{rule}'")
    };
    let fires = |class: &str| json!({ "class": class, "state": "firing", "status": "active" });
    until(&server, "a scalar function", &of("scalar"), fires("query")).await;
    until(&server, "an aggregate", &of("whole"), fires("query")).await;
    until(&server, "another rule", &of("other"), fires("rows")).await;
    // A call that fails shows in its rule alone.
    let failure = "SELECT error LIKE '%bad%' AS named FROM system.alerts WHERE rule = 'fails'";
    until(&server, "the failure", failure, json!({ "named": true })).await;

    // Without the plugin its rules are paused, say why, and leave their alerts as they are.
    let answer = send(server.request(Method::DELETE, "/api/v1/plugins/weather")).await.unwrap();
    assert!(answer.status.is_success(), "{}", answer.text());
    let paused = "SELECT state, status, error LIKE '%weather.c2f%' AS named FROM system.alerts \
                  WHERE rule = 'scalar'";
    let waits = json!({ "state": "firing", "status": "paused", "named": true });
    until(&server, "a rule without its plugin", paused, waits.clone()).await;
    until(&server, "another rule", &of("other"), fires("rows")).await;
    server.kill();
    server = server.restart();
    until(&server, "the same after a kill", paused, waits).await;
    install(&server, "weather", C2F.to_vec()).await;
    until(&server, "the plugin again", &of("scalar"), fires("query")).await;
    // The function of another version is called as soon as it is in use.
    put(&server, "a", 10.0).await;
    let backtest = server.sql("EXPLAIN ALERT scalar OVER '1 minute'").await;
    assert!(!backtest.is_empty());
    install(&server, "weather", plugin("9.0.0", &["c2f"])).await;
    let failure = "SELECT error LIKE '%weather%' AS named FROM system.alerts WHERE rule = 'scalar'";
    until(&server, "the new version", failure, json!({ "named": true })).await;
    assert!(server.terminate().success());
}
