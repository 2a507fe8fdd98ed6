//! Alert rules against the real binary: they fire within moments of the write, and what became
//! of alerts is there after `SIGKILL`.

use std::time::Duration;

use kymo_tests::{Options, Server, until_async};
use serde_json::Value;

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
        server.wait_for_log("\"firing\"", PATIENCE);
    }
    put(&server, "h0", 1.0).await;
    let ended = "SELECT \"from\", \"to\", value FROM system.alert_history WHERE rule = 'hot' \
                 ORDER BY sequence DESC LIMIT 1";
    let expected = serde_json::json!({ "from": "firing", "to": "resolved", "value": 1.0 });
    until(&server, "its end", ended, expected).await;
    assert!(server.terminate().success());
}
