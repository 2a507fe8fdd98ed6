//! Backups of the real binary under concurrent writers, and its commands that check and repair
//! a data folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kymo_tests::command::{fails, kymo, offline, run, succeeds};
use kymo_tests::component::plugin;
use kymo_tests::files::{damage, files};
use kymo_tests::{Ledger, Options, Server, Workload, clients, seed, until_async, workload};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::task::JoinHandle;

const WRITERS: usize = 3;
const TABLES: usize = 3;

/// Flushes, rotations, merges and clean-ups all the time.
fn options() -> Options {
    Options::new()
        .setting("memtable.table_bytes", 64 * 1024)
        .setting("memtable.soft_bytes", 256 * 1024)
        .setting("journal.file_bytes", 64 * 1024)
        .setting("compaction.interval_ms", 50)
        .setting("compaction.min_segments", 2)
        .setting("compaction.grace_ms", 100)
}

async fn write(
    server: Arc<Server>,
    ledger: Arc<Ledger>,
    mut workload: Workload,
    stop: Arc<AtomicBool>,
) {
    while !stop.load(Ordering::Relaxed) {
        let batch = workload.batch();
        ledger.sent(&batch);
        let answer = server.try_write(&batch.lines()).await.unwrap();
        match answer.status {
            StatusCode::NO_CONTENT => ledger.acknowledged(&batch),
            StatusCode::SERVICE_UNAVAILABLE => {}
            status => panic!("{status}: {}", answer.text()),
        }
    }
}

async fn in_the_meantime<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Takes a backup and gives what `--json` says of it.
async fn back_up(server: &Arc<Server>, place: &Path) -> Value {
    let (server, place) = (Arc::clone(server), place.to_str().unwrap().to_owned());
    in_the_meantime(move || {
        let said = succeeds(&mut kymo(&server, &["backup", &place, "--json"]), "");
        serde_json::from_str(&said).unwrap()
    })
    .await
}

fn restore(place: &Path, name: &Value, data: &Path) {
    let (place, data) = (place.to_str().unwrap(), data.to_str().unwrap());
    let arguments = ["restore", place, "--data-dir", data, "--backup", name.as_str().unwrap()];
    let said = succeeds(&mut offline(&arguments), "");
    assert!(said.contains("restored to") && said.contains("kymo start"), "{said}");
    let said = succeeds(&mut offline(&["check", data]), "");
    assert!(said.contains("is whole"), "{said}");
}

/// A server that is written to.
struct Busy {
    server: Arc<Server>,
    ledger: Arc<Ledger>,
    stop: Arc<AtomicBool>,
    writers: Vec<JoinHandle<()>>,
    seed: u64,
}

impl Busy {
    fn start() -> Busy {
        let seed = seed();
        println!("KYMO_TEST_SEED={seed}");
        let (ledger, stop) = (Arc::new(Ledger::default()), Arc::new(AtomicBool::new(false)));
        let server = Arc::new(Server::start(options()));
        let writer = |writer| {
            let workload = Workload::new(seed, writer, TABLES);
            tokio::spawn(write(server.clone(), ledger.clone(), workload, stop.clone()))
        };
        let writers = (0..WRITERS).map(writer).collect();
        Busy { server, ledger, stop, writers, seed }
    }

    /// Waits until so many batches were acknowledged.
    async fn wait_for(&self, batches: u64) {
        let ledger = Arc::clone(&self.ledger);
        in_the_meantime(move || ledger.wait_for(batches, Duration::from_secs(60))).await;
    }

    /// Ends the writing and the server.
    async fn end(self) -> (Arc<Ledger>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        for writer in self.writers {
            writer.await.unwrap();
        }
        (self.ledger, self.seed)
    }
}

/// Whether a store has all that was acknowledged when it was copied, and batches whole.
async fn check_copy(copy: &Server, ledger: &Ledger, seed: u64) {
    let tables: Vec<String> = (0..TABLES).map(workload::table).collect();
    if let Err(wrong) = ledger.check(copy, &tables).await {
        panic!("KYMO_TEST_SEED={seed}:\n{wrong}");
    }
    // One moment for all tables: a writer that sends one batch after the other left no gap.
    for (writer, numbers) in batches(copy).await {
        let (first, last) = (numbers[0], *numbers.last().unwrap());
        assert_eq!(numbers.len() as i64, last - first + 1, "{writer} has gaps: {numbers:?}");
    }
}

/// The numbers of the batches that are there, by writer.
async fn batches(server: &Server) -> BTreeMap<String, Vec<i64>> {
    let mut found: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for table in (0..TABLES).map(workload::table) {
        for row in server.sql(&format!("SELECT DISTINCT writer, batch FROM {table}")).await {
            let writer = row["writer"].as_str().unwrap().to_owned();
            found.entry(writer).or_default().push(row["batch"].as_i64().unwrap());
        }
    }
    found.values_mut().for_each(|numbers| numbers.sort_unstable());
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_under_writers_has_all_that_was_acknowledged_and_nothing_torn() {
    let busy = Busy::start();
    let server = Arc::clone(&busy.server);
    let answer = server
        .request(Method::PUT, "/api/v1/plugins/p")
        .header("content-type", "application/wasm")
        .body(plugin("1.0.0", &["f"]));
    let answer = clients::send(answer).await.unwrap();
    assert!(answer.status.is_success(), "{}", answer.text());
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("backups");
    let mut taken = Vec::new();
    for round in 1..=3 {
        busy.wait_for(round * 150).await;
        let moment = busy.ledger.now();
        taken.push((moment, back_up(&server, &place).await));
    }
    drop(server);
    let (ledger, seed) = busy.end().await;
    for (round, (moment, copied)) in taken.iter().enumerate() {
        let data = folder.path().join(format!("data-{round}"));
        restore(&place, &copied["name"], &data);
        let copy = Server::start(options().data_dir(&data));
        check_copy(&copy, &ledger.as_of(moment), seed).await;
        let plugins = copy.sql("SELECT plugin FROM system.plugins").await;
        assert_eq!(plugins[0]["plugin"], "p");
        let answer = copy.get("/api/v1/plugins/p").await;
        assert!(answer.status.is_success(), "{}", answer.text());
    }
    println!("{}, then {}", taken[0].1, taken[2].1);
    let said = succeeds(&mut offline(&["restore", place.to_str().unwrap(), "--verify"]), "");
    assert!(said.contains("verified"), "{said}");
    let said = succeeds(&mut offline(&["restore", place.to_str().unwrap(), "--list"]), "");
    assert_eq!(said.lines().count(), 3, "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_under_writers_opens_as_a_store_that_has_all_that_was_acknowledged() {
    let busy = Busy::start();
    let folder = tempfile::tempdir().unwrap();
    let mut taken = Vec::new();
    for round in 1..=2 {
        busy.wait_for(round * 150).await;
        let moment = busy.ledger.now();
        let server = Arc::clone(&busy.server);
        let snapshot: Value = in_the_meantime(move || {
            serde_json::from_str(&succeeds(&mut kymo(&server, &["snapshot", "--json"]), ""))
                .unwrap()
        })
        .await;
        taken.push((moment, snapshot));
    }
    busy.wait_for(400).await;
    let (server, second) = (Arc::clone(&busy.server), taken[1].1["name"].as_str().unwrap());
    let listed = succeeds(&mut kymo(&server, &["snapshot", "--list"]), "");
    assert_eq!(listed.lines().count(), 2, "{listed}");
    // What was taken away before the server ends needs nothing of it any more.
    for (round, (_, snapshot)) in taken.iter().enumerate() {
        let from = Path::new(snapshot["folder"].as_str().unwrap());
        fs::rename(from, folder.path().join(round.to_string())).unwrap();
    }
    let gone = fails(&mut kymo(&server, &["snapshot", "--drop", second]), "");
    assert!(gone.contains("there is no snapshot") && gone.contains("--list"), "{gone}");
    succeeds(&mut kymo(&server, &["snapshot"]), "");
    let listed = succeeds(&mut kymo(&server, &["snapshot", "--list"]), "");
    let name = listed.split_whitespace().next().unwrap();
    succeeds(&mut kymo(&server, &["snapshot", "--drop", name]), "");
    let listed = succeeds(&mut kymo(&server, &["snapshot", "--list"]), "");
    assert_eq!(listed.trim(), "there is no snapshot");
    drop(server);
    let (ledger, seed) = busy.end().await;
    for (round, (moment, _)) in taken.iter().enumerate() {
        let data = folder.path().join(round.to_string());
        let said = succeeds(&mut offline(&["check", data.to_str().unwrap()]), "");
        assert!(said.contains("is whole"), "{said}");
        let copy = Server::start(options().data_dir(&data));
        check_copy(&copy, &ledger.as_of(moment), seed).await;
    }
}

#[tokio::test]
async fn a_further_backup_copies_new_segments_only() {
    let server = Arc::new(Server::start(Options::new().setting("memtable.max_age_ms", 50)));
    let flushed = |count: u64| {
        let server = &server;
        until_async("a flush", Duration::from_secs(20), move || async move {
            let stats = server.get("/stats").await.json();
            (stats["segments"].as_u64() >= Some(count)).then_some(())
        })
    };
    server.write("m,t=a v=1i 1000000000").await;
    flushed(1).await;
    let folder = tempfile::tempdir().unwrap();
    let first = back_up(&server, folder.path()).await;
    assert_eq!(first["objects"], first["copied_objects"], "{first}");
    server.write("other,t=a v=1i 1000000000").await;
    flushed(2).await;
    let second = back_up(&server, folder.path()).await;
    let there = second["objects"].as_u64().unwrap() - second["copied_objects"].as_u64().unwrap();
    assert_eq!(there, 1, "{second}");
    let place = folder.path().to_str().unwrap();
    let data = folder.path().join("new");
    let arguments = ["restore", place, "--data-dir", data.to_str().unwrap()];
    succeeds(&mut offline(&arguments), "");
    let said = fails(&mut offline(&arguments), "");
    assert!(said.contains("is not empty") && said.contains("hint: "), "{said}");
    let copy = Server::start(Options::new().data_dir(&data));
    assert_eq!(copy.sql("SELECT v FROM other").await[0]["v"], 1);
    // Nothing for those who are no administrators, and nothing without a backup.
    let answer = clients::send(copy.anonymous(Method::POST, "/api/v1/backups")).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let answer = copy.get("/api/v1/backups/7/object?path=meta").await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text());
}

#[tokio::test]
async fn a_backup_whose_client_is_silent_is_let_go() {
    let options = Options::new().setting("backup.lease_ms", 200).setting("backup.max_running", 1);
    let server = Server::start(options);
    let begin = || async { clients::send(server.request(Method::POST, "/api/v1/backups")).await };
    let first = begin().await.unwrap();
    assert_eq!(first.status, StatusCode::CREATED, "{}", first.text());
    let number = first.json()["number"].as_u64().unwrap();
    let second = begin().await.unwrap();
    assert_eq!(second.status, StatusCode::SERVICE_UNAVAILABLE, "{}", second.text());
    until_async("the end of the lease", Duration::from_secs(20), || async {
        (begin().await.unwrap().status == StatusCode::CREATED).then_some(())
    })
    .await;
    let path = format!("/api/v1/backups/{number}/object?path=x");
    assert!(server.get(&path).await.text().contains("not under way"));
}

/// The newest file below a folder with this ending.
fn newest(folder: &Path, ending: &str) -> PathBuf {
    files(folder, ending).pop().unwrap()
}

fn damaged(command: &mut Command) -> String {
    let output = run(command, "");
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[tokio::test]
async fn a_damaged_folder_is_checked_and_repaired() {
    let mut server = Server::start(Options::new());
    let folder = server.data_dir().to_str().unwrap().to_owned();
    for second in 0..50 {
        server.write(&format!("m,t=a v={second}i {second}000000000")).await;
    }
    let said = fails(&mut offline(&["check", &folder]), "");
    assert!(said.contains("in use") && said.contains("hint: "), "{said}");
    let said = fails(&mut offline(&["repair", &folder]), "");
    assert!(said.contains("in use"), "{said}");
    server.kill();
    let said = succeeds(&mut offline(&["check", "--data-dir", &folder]), "");
    assert!(said.contains("is whole") && said.contains("50 records"), "{said}");

    let journal = newest(Path::new(&folder), ".log");
    damage(&journal, fs::metadata(&journal).unwrap().len() as usize / 2);
    let said = damaged(&mut offline(&["check", &folder]));
    let name = journal.file_name().unwrap().to_str().unwrap();
    assert!(said.contains("DAMAGE: wal/0/") && said.contains(name), "{said}");
    assert!(said.contains("kymo.public.m") && said.contains("kymo repair"), "{said}");
    let json = damaged(&mut offline(&["check", &folder, "--json"]));
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["findings"][0]["trouble"], "journal_damaged", "{json}");
    assert_eq!(json["findings"][0]["repairable"], true, "{json}");

    let said = succeeds(&mut offline(&["repair", &folder]), "");
    assert!(said.contains("salvage-") && said.contains("is whole"), "{said}");
    succeeds(&mut offline(&["check", &folder]), "");
    let said = succeeds(&mut offline(&["repair", &folder]), "");
    assert!(said.contains("is whole") && !said.contains("moved"), "{said}");
    let mut server = server.restart();
    assert_eq!(server.sql("SELECT count(*) AS n FROM m").await[0]["n"], 49);

    // A segment: what a start does not notice, a check does.
    assert!(server.terminate().success());
    let segment = newest(Path::new(&folder).join("data").as_path(), ".parquet");
    damage(&segment, 100);
    let said = damaged(&mut offline(&["check", &folder]));
    assert!(said.contains(segment.file_name().unwrap().to_str().unwrap()), "{said}");
    succeeds(&mut offline(&["repair", &folder]), "");
    let server = server.restart();
    let answer = server.try_sql("SELECT count(*) AS n FROM m").await.unwrap();
    assert!(answer.status.is_success(), "{}", answer.text());
    let nowhere = tempfile::tempdir().unwrap();
    let said = fails(&mut offline(&["check", nowhere.path().to_str().unwrap()]), "");
    assert!(said.contains("holds no store"), "{said}");
}
