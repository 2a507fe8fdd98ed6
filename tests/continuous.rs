//! Continuous queries of the real binary, which is killed with SIGKILL at random moments under
//! concurrent writers. Afterwards each window is in its target once, and equal to a batch query
//! over the source (C1); the same for a query over the target of the first.
//!
//! Writers send late rows and rows that replace others; small memtables and journal files make
//! flushes, rotations and the way around the log fall into the same short lives.
//! `KYMO_TEST_SEED` repeats a run's rows and the number of answers before each kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kymo_tests::wait::until_async;
use kymo_tests::{Options, Server, seed};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::StatusCode;

const KILLS: u64 = 30;
const WRITERS: u64 = 3;
/// The target follows a second after the last row; a loaded machine takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

const BY_MINUTE: &str = "SELECT time_bucket('1m', time) AS time, host, count(*) AS n, \
     sum(value) AS total, max(value) AS top FROM cpu GROUP BY 1, 2";
const BY_HOUR: &str = "SELECT time_bucket('1h', time) AS time, sum(n) AS n FROM cpu_1m GROUP BY 1";

fn options() -> Options {
    Options::new()
        .setting("memtable.table_bytes", 64 * 1024)
        .setting("memtable.soft_bytes", 256 * 1024)
        .setting("journal.file_bytes", 64 * 1024)
        .setting("compaction.interval_ms", 50)
        .setting("compaction.min_segments", 2)
        .setting("compaction.grace_ms", 100)
        .setting("continuous.delay_ms", 20)
        .setting("continuous.cursor_ms", 50)
        .setting("continuous.check_ms", 50)
}

/// A request of rows at any minute of three hours, for any of a few hosts.
fn lines(random: &mut StdRng) -> String {
    let mut text = String::new();
    for _ in 0..random.random_range(1..20) {
        let host = random.random_range(0..6);
        let value = random.random_range(0..1000);
        let second: i64 = random.random_range(0..3 * 3600 / 5) * 5;
        let time = (1_700_000_000 + second) * 1_000_000_000;
        text.push_str(&format!("cpu,host=h{host} value={value}i {time}\n"));
    }
    text
}

/// Sends rows until the server is gone.
async fn write(server: Arc<Server>, mut random: StdRng, answered: Arc<AtomicU64>) {
    while let Ok(answer) = server.try_write(&lines(&mut random)).await {
        match answer.status {
            StatusCode::NO_CONTENT => drop(answered.fetch_add(1, Ordering::SeqCst)),
            StatusCode::SERVICE_UNAVAILABLE => {}
            status => panic!("{status}: {}", answer.text()),
        }
    }
}

async fn rows(server: &Server, sql: &str) -> Vec<String> {
    let answer = server.try_sql(sql).await.expect("an answer");
    assert!(answer.status.is_success(), "{sql}: {}", answer.text());
    let mut rows: Vec<String> =
        answer.json().as_array().expect("an array").iter().map(ToString::to_string).collect();
    rows.sort();
    rows
}

/// Waits until a target equals its query, or shows what differs.
async fn equal(server: &Server, target: &str, query: &str) {
    let wanted = rows(server, query).await;
    let end = std::time::Instant::now() + PATIENCE;
    until_async(target, PATIENCE + Duration::from_secs(5), || async {
        let found = rows(server, target).await;
        if found == wanted {
            return Some(());
        }
        if std::time::Instant::now() > end {
            let differs = |one: &[String], other: &[String]| {
                one.iter().filter(|row| !other.contains(row)).take(5).cloned().collect::<Vec<_>>()
            };
            let state = rows(server, "SELECT * FROM system.continuous_queries").await;
            panic!(
                "{target}: too much {:?}, missing {:?}; {state:?}",
                differs(&found, &wanted),
                differs(&wanted, &found)
            );
        }
        None
    })
    .await;
}

fn kill_process(server: &Server) {
    let pid = libc::pid_t::try_from(server.pid()).unwrap();
    // SAFETY: plain system call on a child that is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_window_is_there_once_after_sigkill_at_random_moments() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::start(options());
    for sql in [
        "CREATE TABLE cpu (host TEXT TAG, value BIGINT, time TIMESTAMP TIME INDEX)".to_owned(),
        format!("CREATE CONTINUOUS QUERY minutes INTO cpu_1m AS {BY_MINUTE}"),
        format!("CREATE CONTINUOUS QUERY hours EVERY '1s' INTO cpu_1h AS {BY_HOUR}"),
    ] {
        let answer = server.try_sql(&sql).await.expect("an answer");
        assert!(answer.status.is_success(), "{sql}: {}", answer.text());
    }
    let answered = Arc::new(AtomicU64::new(0));
    for kill in 0..KILLS {
        let running = Arc::new(server);
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let random = StdRng::seed_from_u64(seed ^ (kill * WRITERS + writer));
                tokio::spawn(write(Arc::clone(&running), random, Arc::clone(&answered)))
            })
            .collect();
        // Every third life is long enough for evaluations, cursors and flushes.
        let more =
            if kill % 3 == 2 { random.random_range(100..300) } else { random.random_range(0..60) };
        let wanted = answered.load(Ordering::SeqCst) + more;
        until_async("answers", Duration::from_secs(60), || async {
            (answered.load(Ordering::SeqCst) >= wanted).then_some(())
        })
        .await;
        kill_process(&running);
        for writer in writers {
            writer.await.unwrap();
        }
        server = Arc::into_inner(running).expect("all writers have ended");
        server.wait(Duration::from_secs(10));
        server = server.restart();
        if kill % 10 == 9 {
            equal(&server, "SELECT time, host, n, total, top FROM cpu_1m", BY_MINUTE).await;
        }
    }
    equal(&server, "SELECT time, host, n, total, top FROM cpu_1m", BY_MINUTE).await;
    equal(&server, "SELECT time, n FROM cpu_1h", BY_HOUR).await;
    let twice = "SELECT time, host FROM cpu_1m GROUP BY 1, 2 HAVING count(*) > 1";
    assert!(rows(&server, twice).await.is_empty());
    let states = rows(&server, "SELECT DISTINCT state FROM system.continuous_queries").await;
    assert_eq!(states, [r#"{"state":"running"}"#]);
    let windows = rows(&server, "SELECT time FROM cpu_1m").await.len();
    println!(
        "{KILLS} kills, {} requests answered, {windows} windows",
        answered.load(Ordering::SeqCst)
    );
    assert!(windows > 500, "the server hardly lived: {windows} windows");
}
