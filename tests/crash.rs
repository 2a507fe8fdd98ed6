//! The real binary is killed with SIGKILL at random moments under concurrent writers. After
//! every restart each acknowledged batch is there once and whole, a batch without an answer
//! is there whole or not at all, and nothing else is there (W1, W2).
//!
//! Small memtables, journal files and compactions make flushes, rotations, metadata edits
//! and clean-ups fall into the same short lives. Weaker modes of durability lose what their
//! documentation says, and no more. `KYMO_TEST_SEED` repeats a run's writes and
//! the number of acknowledgements before each kill.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kymo_kernel::env::failpoint;
use kymo_tests::load::{Load, busy};
use kymo_tests::{Ledger, Options, Server, Workload, seed, until, workload};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const KILLS: usize = 52;
const WRITERS: usize = 4;
const TABLES: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_rows_survive_sigkill_at_random_moments() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let load = Load::new(seed, WRITERS, TABLES);
    let mut server = Server::start(busy());
    let mut inside_the_first_answers = 0;
    for kill in 0..KILLS {
        // The moment: after a seeded number of acknowledgements, plus a few microseconds
        // that no seed controls. Every tenth life is long enough for flushes to finish.
        let more: u64 =
            if kill % 10 == 9 { random.random_range(200..400) } else { random.random_range(0..60) };
        inside_the_first_answers += usize::from(more < 4);
        server = live_and_die(&load, server, more, &mut random).await.restart();
        if let Err(wrong) = load.check(&server).await {
            panic!("KYMO_TEST_SEED={seed}, after kill {kill}:\n{wrong}");
        }
    }
    println!(
        "{KILLS} kills ({inside_the_first_answers} within the first answers), {} batches and {} \
         rows acknowledged, all there",
        load.ledger.count(),
        load.ledger.rows()
    );
    assert!(load.ledger.count() > KILLS as u64, "the server hardly lived");
}

/// Lets writers loose on a server, and kills it after so many acknowledgements more and up to
/// two milliseconds.
async fn live_and_die(load: &Load, server: Server, more: u64, random: &mut StdRng) -> Server {
    let running = Arc::new(server);
    let working = load.write(&running);
    let spin = Duration::from_micros(random.random_range(0..2000));
    let (waiting, target) = (Arc::clone(&load.ledger), load.ledger.count() + more);
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
    working.stop().await;
    let mut server = Arc::into_inner(running).expect("all writers have ended");
    server.wait(Duration::from_secs(10));
    server
}

const MODES: [&str; 4] = ["every_write", "periodic", "os_default", "none"];
const KILLS_OF_A_MODE: usize = 5;

/// Checks what a kill left: only writes that asked for `none` may be lost, and of those one group
/// commit, which holds at most one batch of each writer, and that one its newest.
async fn check_losses(load: &Load, server: &Server, mode: &str, context: &str) -> usize {
    let lost = match load.ledger.take_lost(server, &load.tables).await {
        Ok(lost) => lost,
        Err(wrong) => panic!("{context}:\n{wrong}"),
    };
    assert!(mode == "none" || lost.is_empty(), "{context}: {lost:?} is lost");
    assert!(lost.len() <= WRITERS, "{context}: {lost:?} is lost");
    for (_, writer, number) in &lost {
        let kept = load.ledger.last_of(writer);
        assert!(kept.is_none_or(|kept| kept < *number), "{context}: {writer} {number} of {kept:?}");
    }
    lost.len()
}

/// The server's mode, and the mode that requests choose over another one of the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_durability_costs_a_sigkill_what_it_says() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for (at, mode) in MODES.into_iter().enumerate() {
        let other = MODES[MODES.len() - 1 - at];
        for (of_server, parameter) in
            [(mode, String::new()), (other, format!("&durability={mode}"))]
        {
            let load = Load::new(seed, WRITERS, TABLES).with_parameters(&parameter);
            let mut server = Server::start(busy().argument("--durability").argument(of_server));
            for kill in 0..KILLS_OF_A_MODE {
                let more = random.random_range(5..120);
                server = live_and_die(&load, server, more, &mut random).await.restart();
                let context = format!("KYMO_TEST_SEED={seed}, {of_server}{parameter}, kill {kill}");
                check_losses(&load, &server, mode, &context).await;
            }
            println!("{of_server}{parameter}: {} batches acknowledged", load.ledger.count());
        }
    }
}

/// A disk that stops to answer at a write, and a kill: the moment that costs `none` something.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_none_acknowledges_what_is_not_written() {
    let seed = seed();
    println!("KYMO_TEST_SEED={seed}");
    for mode in MODES {
        let load = Load::new(seed, WRITERS, TABLES);
        let folder = tempfile::tempdir().unwrap();
        let options = busy().data_dir(folder.path().join("data"));
        let options = options.argument("--durability").argument(mode);
        let hanging = options.clone().environment(failpoint::VARIABLE, "journal.write=hang@40");
        let server = Arc::new(Server::start(hanging));
        let working = load.write(&server);
        let (watched, ledger) = (Arc::clone(&server), Arc::clone(&load.ledger));
        tokio::task::spawn_blocking(move || {
            watched.wait_for_log("failpoint reached", Duration::from_secs(60));
            let (mut last, mut looks) = (ledger.count(), 0);
            until("the last answers", Duration::from_secs(60), || {
                let now = ledger.count();
                looks = if now == last { looks + 1 } else { 0 };
                last = now;
                (looks >= 40).then_some(())
            });
        })
        .await
        .unwrap();
        kill_process(&server);
        working.stop().await;
        drop(server);
        let server = Server::start(options);
        let lost =
            check_losses(&load, &server, mode, &format!("KYMO_TEST_SEED={seed}, {mode}")).await;
        println!("{mode}: {lost} of {} batches lost", load.ledger.count());
        assert_eq!(lost > 0, mode == "none", "{mode}: {lost} batches are lost");
    }
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
    let mut server = Server::start(busy());
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
