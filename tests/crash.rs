//! The real binary is killed with SIGKILL at random moments under concurrent writers. After
//! every restart each acknowledged batch is there once and whole, a batch without an answer
//! is there whole or not at all, and nothing else is there (W1, W2).
//!
//! Small memtables, journal files and compactions make flushes, rotations, metadata edits
//! and clean-ups fall into the same short lives. `KYMO_TEST_SEED` repeats a run's writes and
//! the number of acknowledgements before each kill.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kymo_tests::{Batch, Ledger, Options, Server, Workload, seed, workload};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use reqwest::StatusCode;
use tokio::sync::Mutex;

const KILLS: usize = 52;
const WRITERS: usize = 4;
const TABLES: usize = 3;

fn options() -> Options {
    Options::new()
        .setting("memtable.table_bytes", 64 * 1024)
        .setting("memtable.soft_bytes", 256 * 1024)
        .setting("journal.file_bytes", 64 * 1024)
        .setting("compaction.interval_ms", 50)
        .setting("compaction.min_segments", 2)
        .setting("compaction.grace_ms", 100)
}

/// Sends batches until told to stop or until the server is gone.
async fn write(
    server: Arc<Server>,
    ledger: Arc<Ledger>,
    workload: Arc<Mutex<Workload>>,
    stop: Arc<AtomicBool>,
) {
    let mut workload = workload.lock().await;
    while !stop.load(Ordering::Relaxed) {
        let batch: Batch = workload.batch();
        ledger.sent(&batch);
        match server.try_write(&batch.lines()).await {
            Ok(answer) if answer.status == StatusCode::NO_CONTENT => ledger.acknowledged(&batch),
            // A full queue, or a writer that went away: the batch may be there or not.
            Ok(answer) if answer.status == StatusCode::SERVICE_UNAVAILABLE => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.text()),
            Err(_) => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_rows_survive_sigkill_at_random_moments() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let ledger = Arc::new(Ledger::default());
    let tables: Vec<String> = (0..TABLES).map(workload::table).collect();
    let workloads: Vec<_> = (0..WRITERS)
        .map(|writer| Arc::new(Mutex::new(Workload::new(seed, writer, TABLES))))
        .collect();

    let mut server = Server::start(options());
    let mut inside_the_first_answers = 0;
    for kill in 0..KILLS {
        let running = Arc::new(server);
        let stop = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = workloads
            .iter()
            .map(|workload| {
                tokio::spawn(write(
                    Arc::clone(&running),
                    Arc::clone(&ledger),
                    Arc::clone(workload),
                    Arc::clone(&stop),
                ))
            })
            .collect();

        // The moment: after a seeded number of acknowledgements, plus a few microseconds
        // that no seed controls. Every tenth life is long enough for flushes to finish.
        let more: u64 =
            if kill % 10 == 9 { random.random_range(200..400) } else { random.random_range(0..60) };
        inside_the_first_answers += usize::from(more < 4);
        let spin = Duration::from_micros(random.random_range(0..2000));
        let waiting = Arc::clone(&ledger);
        let target = ledger.count() + more;
        tokio::task::spawn_blocking(move || {
            waiting.wait_for(target, Duration::from_secs(60));
            let start = Instant::now();
            while start.elapsed() < spin {
                std::hint::spin_loop();
            }
        })
        .await
        .unwrap();
        kill_process(&running);
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            writer.await.unwrap();
        }
        server = Arc::into_inner(running).expect("all writers have ended");
        server.wait(Duration::from_secs(10));
        server = server.restart();
        if let Err(wrong) = ledger.check(&server, &tables).await {
            panic!("KYMO_TEST_SEED={seed}, after kill {kill}:\n{wrong}");
        }
    }
    println!(
        "{KILLS} kills ({inside_the_first_answers} within the first answers), {} batches and {} \
         rows acknowledged, all there",
        ledger.count(),
        ledger.rows()
    );
    assert!(ledger.count() > KILLS as u64, "the server hardly lived");
}

fn kill_process(server: &Server) {
    let pid = libc::pid_t::try_from(server.pid()).unwrap();
    // SAFETY: plain system call on a child that is not reaped yet.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}

#[tokio::test]
async fn the_ledger_sees_a_lost_and_a_foreign_batch() {
    let server = Server::start(Options::new());
    let ledger = Ledger::default();
    let tables = vec![workload::table(0)];
    let mut workload = Workload::new(1, 0, 1);
    let (kept, lost, foreign) = (workload.batch(), workload.batch(), workload.batch());
    for batch in [&kept, &foreign] {
        server.write(&batch.lines()).await;
    }
    for batch in [&kept, &lost] {
        ledger.sent(batch);
        ledger.acknowledged(batch);
    }
    let wrong = ledger.check(&server, &tables).await.unwrap_err();
    assert!(wrong.contains("is lost") && wrong.contains("was never sent"), "{wrong}");
    assert_eq!(wrong.lines().count(), 2, "{wrong}");
}

const DELETING_KILLS: usize = 24;
/// Batches that one deletion is about, of which it takes those with an odd number.
const RANGE: u64 = 12;

/// What is known of a deletion.
struct Deletion {
    first: u64,
    /// It was answered, or its batches were seen to be gone.
    done: bool,
}

impl Deletion {
    fn doomed(&self) -> impl Iterator<Item = u64> {
        (self.first..self.first + RANGE).filter(|batch| batch % 2 == 1)
    }

    fn statement(&self, table: &str) -> String {
        let (first, last) = (self.first, self.first + RANGE - 1);
        format!("DELETE FROM {table} WHERE batch BETWEEN {first} AND {last} AND batch % 2 = 1")
    }
}

/// Deletions beside a writer, killed at any moment: each takes all of its rows or none, what one
/// took stays away, and no other row goes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_rows_stay_away_through_sigkill_and_no_other_row_goes() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let table = workload::table(0);
    let mut workload = Workload::new(seed, 0, 1);
    let (mut written, mut deletions): (u64, Vec<Deletion>) = (0, Vec::new());
    let mut server = Server::start(options());
    for kill in 0..DELETING_KILLS {
        // Whole ranges first, so that what a deletion must take is known.
        for _ in 0..random.random_range(1..4) * RANGE {
            server.write(&workload.batch().lines()).await;
            written += 1;
        }
        let running = Arc::new(server);
        let killer = {
            let running = Arc::clone(&running);
            let after = Duration::from_micros(random.random_range(500..500_000));
            tokio::task::spawn_blocking(move || {
                let start = Instant::now();
                while start.elapsed() < after {
                    std::hint::spin_loop();
                }
                kill_process(&running);
            })
        };
        loop {
            let first = deletions.len() as u64 * RANGE + 1;
            if first + RANGE > written + 1 {
                break;
            }
            let mut deletion = Deletion { first, done: false };
            let answer = running.try_sql(&deletion.statement(&table)).await;
            deletion.done = answer.as_ref().is_ok_and(|answer| answer.status.is_success());
            deletions.push(deletion);
            if answer.is_err() {
                break;
            }
        }
        killer.await.unwrap();
        server = Arc::into_inner(running).expect("nobody else has it");
        server.wait(Duration::from_secs(10));
        server = server.restart();
        let rows = server.sql(&format!("SELECT DISTINCT batch FROM {table}")).await;
        let there: std::collections::BTreeSet<u64> =
            rows.iter().filter_map(|row| row["batch"].as_u64()).collect();
        for deletion in &mut deletions {
            let left = deletion.doomed().filter(|batch| there.contains(batch)).count();
            let whole = deletion.doomed().count();
            assert!(
                left == 0 || (left == whole && !deletion.done),
                "KYMO_TEST_SEED={seed}, after kill {kill}: {left} of {whole} batches from {} are \
                 there, deletion answered or seen: {}",
                deletion.first,
                deletion.done
            );
            deletion.done = left == 0;
        }
        let gone: std::collections::BTreeSet<u64> =
            deletions.iter().filter(|each| each.done).flat_map(Deletion::doomed).collect();
        let kept: std::collections::BTreeSet<u64> =
            (1..=written).filter(|batch| !gone.contains(batch)).collect();
        assert_eq!(there, kept, "KYMO_TEST_SEED={seed}, after kill {kill}");
    }
    let done = deletions.iter().filter(|each| each.done).count();
    println!("{DELETING_KILLS} kills, {written} batches, {done} of {} deletions", deletions.len());
    assert!(done > 0 && deletions.len() > DELETING_KILLS / 4, "hardly anything was deleted");
}
