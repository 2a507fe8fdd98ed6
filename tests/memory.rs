//! The memory of the real binary: parts sized to it, settings that cannot fit, and what happens
//! when what nobody counts fills it.

use std::pin::pin;
use std::time::Duration;

use kymo_tests::{Answer, Options, Server, until_async};
use reqwest::StatusCode;

const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

async fn setting(server: &Server, name: &str) -> u64 {
    let sql = format!("SELECT value FROM system.settings WHERE name = '{name}'");
    let rows = server.sql(&sql).await;
    rows[0]["value"].as_str().unwrap().parse().unwrap()
}

async fn metrics(server: &Server) -> String {
    server.get("/metrics").await.text()
}

#[tokio::test]
async fn parts_are_sized_to_the_memory_that_there_is() {
    let options = Options::new()
        .setting("memory.limit_bytes", 512 * MIB)
        .setting("ingest.queue_bytes", 50 * MIB);
    let server = Server::start(options);
    assert_eq!(setting(&server, "memory.limit_bytes").await, 512 * MIB);
    let queries = setting(&server, "query.memory_bytes").await;
    assert!((120 * MIB..130 * MIB).contains(&queries), "{queries}");
    assert_eq!(setting(&server, "ingest.queue_bytes").await, 50 * MIB);
    let metrics = metrics(&server).await;
    assert!(metrics.contains(&format!("kymo_memory_limit_bytes {}", 512 * MIB)), "{metrics}");
    // Nobody says a limit: the container's or the machine's.
    let server = Server::start(Options::new());
    assert!(setting(&server, "memory.limit_bytes").await > 512 * MIB);
    assert!(server.log().contains("memory is shared out"), "{}", server.log());
}

#[test]
fn settings_that_cannot_fit_are_refused_with_what_takes_how_much() {
    let options = Options::new()
        .setting("memory.limit_bytes", 384 * MIB)
        .setting("query.memory_bytes", 300 * MIB);
    let failed = Server::try_start(options).err().expect("a refusal");
    for word in ["memory.limit_bytes allows 384 MiB", "query.memory_bytes 300 MiB", "hint: "] {
        assert!(failed.log.contains(word), "{}", failed.log);
    }
}

/// Asks until the answer is that there is no memory for it.
async fn refusal(server: &Server) -> Answer {
    until_async("a refusal", PATIENCE, || async {
        let answer = server.try_sql("SELECT count(*) FROM m").await.unwrap();
        (answer.status == StatusCode::SERVICE_UNAVAILABLE).then_some(answer)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_short_lets_queries_wait_and_recovers() {
    let options = Options::new()
        .setting("memory.limit_bytes", 224 * MIB)
        .setting("memory.check_ms", 20)
        .setting("memory.wait_ms", 300);
    let server = Server::start(options);
    server.write("m,t=a v=1i 1").await;
    // Prepared statements count for nobody.
    let text = "x".repeat(12 << 20);
    let hold = async || {
        let client = server.pg().await;
        let statement = client.prepare(&format!("SELECT '{text}'")).await.unwrap();
        (client, statement)
    };
    let mut holders = Vec::new();
    let refused = loop {
        assert!(holders.len() < 40, "memory is never short: {}", metrics(&server).await);
        holders.push(hold().await);
        if !metrics(&server).await.contains("kymo_memory_pressure 1") {
            continue;
        }
        // One runs, the next one waits, but not for ever. What preparing took for a moment may be
        // given back meanwhile: then more has to be held.
        let mut slow = pin!(server.try_sql("SELECT pg_sleep(3)"));
        tokio::select! {
            biased;
            slow = &mut slow => assert!(slow.unwrap().status.is_success()),
            refused = refusal(&server) => {
                assert!(slow.await.unwrap().status.is_success());
                break refused;
            }
        }
    };
    assert!(refused.text().contains("for memory: the server has"), "{}", refused.text());
    // Rows in memory were flushed, so that writes go on.
    until_async("a write", PATIENCE, || async {
        let answer = server.try_write("m,t=b v=2i 2").await.unwrap();
        (answer.status == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
    drop(holders);
    until_async("the end of the shortage", PATIENCE, || async {
        metrics(&server).await.contains("kymo_memory_pressure 0").then_some(())
    })
    .await;
    assert_eq!(server.sql("SELECT count(*) AS n FROM m").await[0]["n"], 2);
    assert!(server.log().contains("memory is enough again"), "{}", server.log());
}
