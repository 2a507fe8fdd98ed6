//! The real binary with a second place for old segments: they move, and nobody who asks notices.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kymo_tests::command::{fails, kymo, offline, succeeds};
use kymo_tests::files::files;
use kymo_tests::s3::Bucket;
use kymo_tests::{Options, Server, until_async};
use serde_json::Value;

const LONG: Duration = Duration::from_secs(60);
const DAY: i64 = 86_400_000_000_000;
/// 2024-01-01.
const OLD: i64 = 1_704_067_200_000_000_000;

/// Flushes, merges, moves and cleans up soon.
fn hasty() -> Options {
    Options::new()
        .setting("memtable.max_age_ms", 50)
        .setting("compaction.interval_ms", 50)
        .setting("compaction.quiet_ms", 200)
        .setting("compaction.grace_ms", 100)
        .setting("storage.cold_after", "1d")
        .setting("storage.cold_interval_ms", 100)
}

/// Rows of three old days and of now.
async fn fill(server: &Server) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let mut lines = format!("cpu,host=a v=0i {now}\n");
    for day in 0..3 {
        for row in 0..50 {
            let time = OLD + day * DAY + row;
            lines.push_str(&format!("cpu,host=h{} v={row}i {time}\n", row % 4));
        }
    }
    server.write(&lines).await;
}

async fn all(server: &Server) -> Vec<Value> {
    server.sql("SELECT host, v, time FROM cpu ORDER BY time, host").await
}

async fn segments(server: &Server, which: &str) -> i64 {
    let count = format!("SELECT count(*) AS n FROM system.segments WHERE {which}");
    server.sql(&count).await[0]["n"].as_i64().unwrap()
}

/// Waits until this many segments are cold, and all that should be.
async fn until_cold(server: &Server, count: i64) {
    let what = format!("{count} cold segments");
    until_async(&what, LONG, || async {
        let cold = segments(server, "tier = 'cold'").await;
        let late = "tier = 'hot' AND last_time < now() - INTERVAL '2 days'";
        (cold == count && segments(server, late).await == 0).then_some(())
    })
    .await;
}

fn parquet(folder: &Path) -> usize {
    files(folder, ".parquet").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_segments_move_to_another_folder_and_answers_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (data, second) = (folder.path().join("data"), folder.path().join("second"));
    let without = hasty().data_dir(&data).setting("storage.cold_after", "forever");
    let options = hasty().data_dir(&data).setting("storage.cold_url", second.display());
    let server = Server::start(without);
    fill(&server).await;
    until_async("a flush", LONG, || async {
        (segments(&server, "\"table\" = 'cpu'").await == 4).then_some(())
    })
    .await;
    let before = all(&server).await;
    assert_eq!(before.len(), 151);
    let server = server.try_restart_with(options.clone()).unwrap();
    until_cold(&server, 3).await;
    assert_eq!(all(&server).await, before);
    let originals = || async { (parquet(&data) == 1).then_some(()) };
    until_async("the originals go", LONG, originals).await;
    assert_eq!(parquet(&second.join("cold")), 3);
    let moves =
        "SELECT count(*) AS n FROM system.compactions WHERE reason = 'cold' AND state = 'done'";
    until_async("all moves to be told", LONG, || async {
        let told = server.sql(moves).await[0]["n"] == 3;
        let metrics = server.get("/metrics").await.text();
        let counted = ["kymo_store_cold_segments 3", "kymo_store_moves_total 3"];
        (told && counted.iter().all(|line| metrics.contains(line))).then_some(())
    })
    .await;

    // Killed, and started again: the same. What comes late into an old day joins it.
    let server = server.restart();
    assert_eq!(all(&server).await, before);
    server.write(&format!("cpu,host=late v=7i {}", OLD + 1)).await;
    let found = server.sql("SELECT v FROM cpu WHERE host = 'late'").await;
    assert_eq!(found[0]["v"], 7);
    until_async("the late row to be merged and moved", LONG, || async {
        let day = "tier = 'cold' AND rows = 51 AND first_time = '2024-01-01'";
        (segments(&server, day).await == 1).then_some(())
    })
    .await;
    until_cold(&server, 3).await;
    server.sql("DELETE FROM cpu WHERE host = 'late'").await;
    assert_eq!(all(&server).await, before);
    until_cold(&server, 3).await;

    // A backup of it becomes a store with and without a second place.
    let backups = folder.path().join("backups");
    succeeds(&mut kymo(&server, &["backup", backups.to_str().unwrap()]), "");
    let plain = folder.path().join("plain");
    let restore = ["restore", backups.to_str().unwrap(), "--data-dir", plain.to_str().unwrap()];
    succeeds(&mut offline(&restore), "");
    assert_eq!(parquet(&plain.join("cold")), 3);
    let copy = Server::start(hasty().data_dir(&plain).setting("storage.cold_after", "forever"));
    assert_eq!(all(&copy).await, before);

    // Who does not name the place is told.
    let mut server = server;
    assert!(server.terminate().success(), "{}", server.log());
    let check = ["check", data.to_str().unwrap()];
    let complaint = fails(&mut offline(&check), "");
    assert!(complaint.contains("storage.cold_url"), "{complaint}");
    let second = second.to_str().unwrap();
    let said = succeeds(offline(&check).env("KYMO__STORAGE__COLD_URL", second), "");
    assert!(said.contains("is whole"), "{said}");
    let unset = hasty().data_dir(&data).setting("storage.cold_after", "forever");
    let log = server.try_restart_with(unset).err().unwrap().log;
    assert!(log.contains("storage.cold_url") && log.contains(second), "{log}");
    fs::rename(second, folder.path().join("unmounted")).unwrap();
    let log = Server::try_start(options.clone()).err().unwrap().log;
    assert!(log.contains("lacks 3 of 3 cold segments"), "{log}");
    fs::rename(folder.path().join("unmounted"), second).unwrap();
    assert_eq!(all(&Server::start(options)).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_segments_move_into_a_bucket_that_may_be_away_for_a_while() {
    let bucket = Bucket::start();
    let options = bucket
        .store(hasty(), "unused")
        .setting("storage.url", "")
        .setting("storage.cold_url", bucket.url("second"))
        .setting("storage.retry_timeout_ms", 200);
    let server = Server::start(options);
    bucket.set_down(true);
    fill(&server).await;
    let failed = "SELECT error FROM system.compactions WHERE reason = 'cold' AND state = 'failed'";
    let told = until_async("a move that fails", LONG, || async {
        server.sql(failed).await.into_iter().next()
    })
    .await;
    assert!(told["error"].as_str().is_some_and(|error| !error.is_empty()), "{told}");
    let before = all(&server).await;
    assert_eq!(before.len(), 151);
    bucket.set_down(false);
    until_cold(&server, 3).await;
    assert_eq!(all(&server).await, before);
    let keys = bucket.keys("second");
    assert_eq!(keys.iter().filter(|key| key.ends_with(".parquet")).count(), 3, "{keys:?}");
    assert_eq!(all(&server.restart()).await, before);
}
