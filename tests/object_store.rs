//! The real binary on a bucket of a real S3 server: restarts, kills, two servers, outages, lost
//! answers, and backups.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kymo_kernel::env::failpoint;
use kymo_tests::command::{fails, kymo, offline, succeeds};
use kymo_tests::load::{Load, busy};
use kymo_tests::s3::{Bucket, Fault};
use kymo_tests::{Options, Server, seed, until, until_async};

const LONG: Duration = Duration::from_secs(60);

/// Waits on a thread of its own, so that writers go on.
async fn acknowledged(load: &Load, count: u64) {
    let ledger = Arc::clone(&load.ledger);
    tokio::task::spawn_blocking(move || ledger.wait_for(count, LONG)).await.unwrap();
}

async fn metric(server: &Server, name: &str) -> f64 {
    let text = server.get("/metrics").await.text();
    let line = text.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0)
}

async fn until_metric(server: &Server, name: &str, least: f64) {
    until_async(name, LONG, || async { (metric(server, name).await >= least).then_some(()) }).await;
}

fn owned(server: Arc<Server>) -> Server {
    Arc::into_inner(server).expect("writers have ended")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_flushes_merges_is_killed_and_moves_with_all_of_its_rows() {
    let bucket = Bucket::start();
    let load = Load::new(seed(), 2, 2);
    let options = bucket.store(busy(), "whole").setting("shutdown.flush", true);
    let server = Arc::new(Server::start(options));
    let working = load.write_and_define(&server);
    acknowledged(&load, 300).await;
    until_metric(&server, "kymo_store_compactions_total", 1.0).await;
    for part in ["/meta/log/", "/data/kymo/public/", "/plugins/sha256-"] {
        let is_there = || bucket.keys("whole").iter().any(|key| key.contains(part));
        until(part, LONG, || is_there().then_some(()));
    }
    working.stop().await;
    load.check(&server).await.unwrap();
    assert!(!server.data_dir().join("data").exists() && !server.data_dir().join("meta").exists());

    // Killed while it writes, and again.
    let mut server = server;
    for round in 1..=2 {
        let working = load.write(&server);
        acknowledged(&load, load.ledger.count() + 60 * round).await;
        let mut stopped = server;
        // SIGKILL while the writers hold the server.
        kill(&mut stopped, working).await;
        server = Arc::new(owned(stopped).restart());
        load.check(&server).await.unwrap();
    }
    let mut server = owned(server);
    // A name of which little may stand in a key as it is.
    server.write("gr\u{f6}\u{df}e\\ x%y+z,host=a v=7i 1").await;
    assert!(server.terminate().success(), "{}", server.log());
    let mut command = offline(&["check", server.data_dir().to_str().unwrap()]);
    bucket.store_of(&mut command, Some("whole"));
    assert!(succeeds(&mut command, "").contains("is whole"));
    let complaint = fails(&mut offline(&["check", server.data_dir().to_str().unwrap()]), "");
    assert!(complaint.contains(&bucket.url("whole")), "{complaint}");

    // A clean stop leaves everything in the bucket: another machine goes on from there.
    let elsewhere = Server::start(bucket.store(busy(), "whole"));
    load.check(&elsewhere).await.unwrap();
    let rows = elsewhere.sql("SELECT v FROM \"gr\u{f6}\u{df}e x%y+z\"").await;
    assert_eq!(rows[0]["v"], 7);
    load.write_one(&elsewhere).await;
}

/// Kills a server under its writers, and waits for those.
async fn kill(server: &mut Arc<Server>, working: kymo_tests::load::Working) {
    let pid = libc::pid_t::try_from(server.pid()).unwrap();
    // SAFETY: plain system call on a child that is not reaped while the server lives.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
    working.ended().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_servers_the_second_takes_over_when_told_and_the_first_stops() {
    let bucket = Bucket::start();
    let load = Load::new(seed(), 2, 1);
    let first = Arc::new(Server::start(bucket.store(busy(), "two")));
    let working = load.write(&first);
    acknowledged(&load, 60).await;

    let failed = Server::try_start(bucket.store(busy(), "two"));
    let log = failed.err().expect("the bucket belongs to the first").log;
    assert!(log.contains("error: ") && log.contains("storage.take_over"), "{log}");
    acknowledged(&load, load.ledger.count() + 20).await;

    let bold = bucket.store(busy(), "two").setting("storage.take_over", true);
    // Commits of the first may come between two steps of the take-over.
    let second = until("the take-over", LONG, || Server::try_start(bold.clone()).ok());
    working.ended().await;
    let mut first = owned(first);
    assert_eq!(first.wait(LONG).code(), Some(1), "{}", first.log());
    let log = first.log();
    assert!(log.contains("has taken over the store"), "{log}");

    let folder = first.data_dir().to_string_lossy().into_owned();
    let log = first.try_restart().err().expect("its journal has rows of its own").log;
    assert!(log.contains(&folder) && log.contains("acknowledged"), "{log}");
    second.write("afterwards,host=a v=1i 1").await;
    assert_eq!(second.sql("SELECT v FROM afterwards").await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_costs_neither_rows_nor_the_server() {
    let bucket = Bucket::start();
    let load = Load::new(seed(), 2, 1);
    let server = Arc::new(Server::start(bucket.store(busy(), "outage")));
    let working = load.write(&server);
    acknowledged(&load, 60).await;
    until_metric(&server, "kymo_store_flushes_total", 1.0).await;
    bucket.set_down(true);
    until_async("the outage to be noticed", LONG, || async {
        (metric(&server, "kymo_objects_reachable").await == 0.0).then_some(())
    })
    .await;
    // Rows that fit into memory are taken meanwhile.
    acknowledged(&load, load.ledger.count() + 20).await;
    assert!(server.log().contains("the bucket does not answer"), "{}", server.log());
    bucket.set_down(false);
    until_async("the bucket to be back", LONG, || async {
        (metric(&server, "kymo_objects_reachable").await == 1.0).then_some(())
    })
    .await;
    let flushes = metric(&server, "kymo_store_flushes_total").await;
    until_metric(&server, "kymo_store_flushes_total", flushes + 2.0).await;
    working.stop().await;
    load.check(&server).await.unwrap();
    let mut server = owned(server);
    assert!(server.terminate().success(), "{}", server.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_of_what_is_out_of_reach_says_when_to_come_back() {
    let bucket = Bucket::start();
    let options = bucket.store(Options::new(), "reach").setting("shutdown.flush", true);
    let mut server = Server::start(options);
    server.write("m,host=a v=1i 1").await;
    assert!(server.terminate().success(), "{}", server.log());
    let server = server.restart();
    bucket.set_down(true);
    let answer = server.try_sql("SELECT v FROM m").await.unwrap();
    assert_eq!(answer.status.as_u16(), 503, "{}", answer.text());
    assert!(answer.headers.contains_key("retry-after"), "{:?}", answer.headers);
    assert!(answer.text().contains("storage_unreachable"), "{}", answer.text());
    bucket.set_down(false);
    assert_eq!(server.sql("SELECT v FROM m").await[0]["v"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_answers_refusals_and_delays_change_nothing() {
    let bucket = Bucket::start();
    let load = Load::new(seed(), 2, 2);
    let mut server = Arc::new(Server::start(bucket.store(busy(), "faults")));
    for round in 1..=2 {
        let late = Fault::Late(Duration::from_millis(300));
        for part in ["/meta/log/", "/meta/snap/", "/data/", "/plugins/"] {
            bucket.order("PUT", part, Fault::Lost, 4);
            bucket.order("PUT", part, Fault::Refused, 4);
            bucket.order("PUT", part, late, 2);
        }
        bucket.order("GET", "/data/", Fault::Lost, 2);
        bucket.order("GET", "/data/", Fault::Refused, 2);
        let working = load.write_and_define(&server);
        acknowledged(&load, load.ledger.count() + 200 * round).await;
        let mut stopped = server;
        kill(&mut stopped, working).await;
        // Starting and asking may fail in such weather, and say so; what is there is the question.
        bucket.calm();
        server = Arc::new(owned(stopped).restart());
        load.check(&server).await.unwrap();
    }
    bucket.order("PUT", "/meta/log/", Fault::Lost, 3);
    let working = load.write_and_define(&server);
    until_metric(&server, "kymo_objects_settled_puts_total", 1.0).await;
    working.stop().await;
    load.check(&server).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_before_or_after_a_put_loses_nothing() {
    let bucket = Bucket::start();
    for order in [
        "manifest.link=kill_before@6",
        "manifest.link=kill_after@6",
        "segment.link=kill_before@2",
        "segment.link=kill_after@2",
    ] {
        let load = Load::new(seed(), 2, 1);
        let prefix = order.replace(['=', '@'], "-");
        let options = bucket.store(busy(), &prefix);
        let armed = options.clone().environment(failpoint::VARIABLE, order);
        let server = Arc::new(Server::start(armed));
        let working = load.write_and_define(&server);
        working.ended().await;
        let server = owned(server).try_restart_with(options);
        let server = server.unwrap_or_else(|failed| panic!("{order}: {}", failed.log));
        load.check(&server).await.unwrap_or_else(|wrong| panic!("{order}: {wrong}"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_go_to_a_bucket_and_come_back() {
    let bucket = Bucket::start();
    let load = Load::new(seed(), 2, 1);
    let server = Arc::new(Server::start(busy()));
    let working = load.write(&server);
    acknowledged(&load, 100).await;
    until_metric(&server, "kymo_store_flushes_total", 1.0).await;
    working.stop().await;
    let place = bucket.url("backups");
    let command = |arguments: &[&str]| {
        let mut command = kymo(&server, arguments);
        bucket.store_of(&mut command, None);
        command
    };
    bucket.order("PUT", "backups/data/", Fault::Lost, 1);
    let said = succeeds(&mut command(&["backup", &place]), "");
    assert!(said.contains(&place), "{said}");
    let again = succeeds(&mut command(&["backup", &place, "--json"]), "");
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    assert!(again["copied_objects"].as_u64() < again["objects"].as_u64(), "{again}");
    assert!(succeeds(&mut command(&["restore", &place, "--verify"]), "").contains("verified"));

    // To a folder, and to a store in the bucket.
    let folder = tempfile::tempdir().unwrap();
    let data = |name: &str| folder.path().join(name);
    let restore =
        |data: &Path| ["restore", &place, "--data-dir", data.to_str().unwrap()].map(str::to_owned);
    let local = restore(&data("local"));
    succeeds(&mut command(&local.each_ref().map(String::as_str)), "");
    load.check(&Server::start(busy().data_dir(data("local")))).await.unwrap();
    let moved = restore(&data("moved"));
    let mut into = command(&moved.each_ref().map(String::as_str));
    bucket.store_of(&mut into, Some("moved"));
    succeeds(&mut into, "");
    assert!(!data("moved").join("data").exists());
    let options = bucket.store(busy(), "moved").data_dir(data("moved"));
    load.check(&Server::start(options)).await.unwrap();
}
