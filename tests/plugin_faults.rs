//! What the server does by itself about a plugin that fails again and again: it puts the
//! version aside, withdraws one that was only tried, or goes back to the version before it;
//! and that a restart remembers.

use std::time::Duration;

use kymo_tests::{Options, Server, until_async};
use reqwest::Method;
use serde_json::Value;
use tokio_postgres::Client;

const LAB: &[u8] = include_bytes!("../plugins/tests/fixtures/lab.wasm");

const TRAP: &str = "SELECT lab.evil(m) FROM (VALUES (CAST(1 AS BIGINT))) AS t(m)";

fn options() -> Options {
    Options::new().setting("plugins.max_faults", 3)
}

/// The laboratory as another version, whose `c2f` has another factor.
fn second() -> Vec<u8> {
    let mut component = LAB.to_vec();
    let mut change = |from: &[u8], to: &[u8]| {
        let places: Vec<usize> = (0..component.len() - from.len())
            .filter(|at| component[*at..].starts_with(from))
            .collect();
        assert_eq!(places.len(), 1, "one place to change");
        component[places[0]..places[0] + to.len()].copy_from_slice(to);
    };
    change(&1.8_f64.to_le_bytes(), &2.0_f64.to_le_bytes());
    change(b"1.2.3", b"2.0.0");
    component
}

async fn install(server: &Server, path: &str, component: Vec<u8>) {
    let request = server.request(Method::PUT, &format!("/api/v1/plugins/{path}"));
    let answer = kymo_tests::clients::send(request.body(component)).await.expect("an answer");
    assert!(answer.status.is_success(), "{}", answer.text());
}

async fn shown(server: &Server) -> Value {
    server.get("/api/v1/plugins/lab").await.json()
}

/// `c2f(1)`, which tells the versions apart: 33.8 and 34.
async fn c2f(client: &Client) -> f64 {
    client.query_one("SELECT lab.c2f(1.0)", &[]).await.expect("an answer").get(0)
}

async fn trap(client: &Client) -> String {
    let error = client.query(TRAP, &[]).await.expect_err("a trap");
    error.as_db_error().expect("an error of the server").code().code().to_owned()
}

/// Restarts and waits until the plugin is there again.
async fn restarted(server: Server) -> (Server, Client) {
    let server = server.restart();
    let client = server.pg().await;
    until_async("the plugin is loaded", Duration::from_secs(60), || async {
        let rows = server.sql("SELECT reason FROM system.plugins WHERE role = 'active'").await;
        let loading = rows[0]["reason"].as_str().is_some_and(|reason| reason.contains("loaded"));
        (!loading).then_some(())
    })
    .await;
    (server, client)
}

#[tokio::test]
async fn a_version_that_fails_too_often_is_put_aside_until_somebody_resumes_it() {
    let server = Server::start(options());
    install(&server, "lab", LAB.to_vec()).await;
    let client = server.pg().await;
    for _ in 0..3 {
        assert_eq!(trap(&client).await, "38000");
    }
    let error = client.query("SELECT lab.c2f(1.0)", &[]).await.expect_err("put aside");
    let error = error.as_db_error().expect("an error of the server");
    assert_eq!(error.code().code(), "55000", "{error}");
    assert!(error.message().contains("3 faults within 60 s"), "{error}");
    until_async("it is kept", Duration::from_secs(10), || async {
        (shown(&server).await["state"] == "suspended").then_some(())
    })
    .await;
    let (server, client) = restarted(server).await;
    let error = client.query("SELECT lab.c2f(1.0)", &[]).await.expect_err("still put aside");
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("3 faults")));
    client.batch_execute("ALTER PLUGIN lab RESUME").await.expect("resumed");
    assert_eq!(c2f(&client).await, 33.8);
    drop(server);
}

#[tokio::test]
async fn a_version_on_trial_that_fails_is_withdrawn_and_the_other_goes_on() {
    let server = Server::start(options());
    install(&server, "lab", LAB.to_vec()).await;
    install(&server, "lab?activate=false", second()).await;
    let client = server.pg().await;
    client.batch_execute("ALTER PLUGIN lab SET CANARY '2.0.0' PERCENT 50").await.expect("a trial");
    let mut seen = [0; 2];
    while seen.contains(&0) {
        seen[usize::from(c2f(&client).await == 34.0)] += 1;
    }
    // Faults count for the version they happen in: the one in use is allowed two.
    until_async("the trial is over", Duration::from_secs(60), || async {
        trap(&client).await;
        if shown(&server).await["state"] == "suspended" {
            client.batch_execute("ALTER PLUGIN lab RESUME").await.expect("resumed");
        }
        shown(&server).await["canary"].is_null().then_some(())
    })
    .await;
    let (server, client) = restarted(server).await;
    assert!(shown(&server).await["canary"].is_null());
    client.batch_execute("ALTER PLUGIN lab RESUME").await.expect("resumed");
    for _ in 0..20 {
        assert_eq!(c2f(&client).await, 33.8);
    }
}

#[tokio::test]
async fn where_it_is_wanted_a_failing_version_gives_way_to_the_one_before_for_good() {
    let server = Server::start(options().setting("plugins.on_fault", "rollback"));
    install(&server, "lab", LAB.to_vec()).await;
    install(&server, "lab", second()).await;
    let client = server.pg().await;
    assert_eq!(c2f(&client).await, 34.0);
    for _ in 0..3 {
        assert_eq!(trap(&client).await, "38000");
    }
    assert_eq!(c2f(&client).await, 33.8);
    until_async("it is kept", Duration::from_secs(10), || async {
        (shown(&server).await["active"]["version"] == "1.2.3").then_some(())
    })
    .await;
    let (server, client) = restarted(server).await;
    assert_eq!(c2f(&client).await, 33.8);
    let error = client.batch_execute("ALTER PLUGIN lab ROLLBACK").await.expect_err("no way back");
    assert!(error.as_db_error().is_some_and(|error| error.message().contains("no version before")));
    client.batch_execute("ALTER PLUGIN lab ACTIVATE '2.0.0'").await.expect("named, it is used");
    assert_eq!(c2f(&client).await, 34.0);
    drop(server);
}
