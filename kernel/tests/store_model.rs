//! The store against a simple model: random writes, flushes, merges, definitions, faults and
//! crashes on a simulated disk, compared with maps in memory after every recovery.
//!
//! Checked are W1 (what was acknowledged survives), W2 (a batch is there whole or not at all,
//! also one with rows of two tables),
//! W3 (recovery refuses a gap in the log), V2 (flush and merge keep the rows), R1 (what expires
//! takes no other row along), M1 (every segment and component that the metadata names can be
//! read), and that a deletion takes its rows for good or not at all. What was not acknowledged may
//! survive a crash, but only in the order of the log.
//!
//! The same model runs over a bucket whose puts fail or lose their answers, and once more for
//! each failpoint: the process is killed there, or the power is cut, or the step fails, at some
//! time of the run.
//!
//! `KYMO_SEED=n` replays one seed and prints what it does; `KYMO_SEEDS=n` sets how many run.

mod kit {
    pub mod faulty;
    pub mod plugin;
}
mod model;

use std::sync::atomic::{AtomicU64, Ordering};

use kymo_kernel::env::failpoint::{Effect, FAILPOINTS, Failpoint, Shot};
use model::{Coverage, Run, Violation};
use parking_lot::Mutex;

const SEEDS: u64 = 500;
/// Requests to a bucket cross threads, so its runs take longer.
const BUCKET_SEEDS: u64 = 150;
const THREADS: usize = 2;

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn the_store_agrees_with_the_model_after_every_crash() {
    agree(&|seed| Run::new(seed, false), SEEDS);
}

#[test]
fn a_store_in_a_bucket_that_fails_agrees_with_the_model_after_every_crash() {
    agree(&Run::in_bucket, BUCKET_SEEDS);
}

fn agree(begin: &(dyn Fn(u64) -> Run + Sync), usual: u64) {
    if let Some(seed) = from_environment("KYMO_SEED") {
        let mut run = begin(seed);
        run.narrate();
        if let Err(violation) = run.all() {
            panic!("seed {seed}: {violation}");
        }
        return;
    }
    let seeds = from_environment("KYMO_SEEDS").unwrap_or(usual);
    let next = AtomicU64::new(0);
    let coverage = Mutex::new(Coverage::default());
    let violations: Vec<(u64, Violation)> = std::thread::scope(|scope| {
        let work = || {
            let mut found = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds || !found.is_empty() {
                    return found;
                }
                let mut run = begin(seed);
                let outcome = run.all();
                *coverage.lock() += run.coverage;
                found.extend(outcome.err().map(|violation| (seed, violation)));
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    for (seed, violation) in &violations {
        eprintln!("seed {seed} fails, replay it with KYMO_SEED={seed}: {violation}");
    }
    assert!(violations.is_empty());
    let seen = coverage.into_inner();
    println!("{seeds} seeds: {seen:?}");
    let enough = [
        seen.pairs,
        seen.flushes,
        seen.merges,
        seen.moves,
        seen.deletes,
        seen.expiries,
        seen.installs,
        seen.alters,
        seen.poisons,
        seen.survivors,
        seen.lost,
    ];
    assert!(
        seeds < 100 || enough.iter().all(|count| *count as u64 > usual / 10),
        "too little met: {seen:?}"
    );
}

/// Shots at each failpoint and effect, and the seeds that may be tried for them.
const SHOTS: usize = 2;
const TRIES: u64 = 4000;

const EFFECTS: [Effect; 5] =
    [Effect::KillBefore, Effect::KillTorn, Effect::KillAfter, Effect::Eio, Effect::Enospc];

/// What went wrong at a failpoint, if anything.
fn shoot(point: &'static Failpoint, effect: Effect) -> Option<String> {
    let mut shots = 0;
    for seed in 0..TRIES {
        // Many points are not reached often in a run.
        let first = if seed.is_multiple_of(2) { 1 } else { 1 + seed % 7 };
        let shot = Shot { first, ..Shot::once(point, effect) };
        let mut run = Run::shooting(seed, shot);
        let outcome = run.all();
        if let Err(violation) = outcome {
            return Some(format!("{} {effect:?} seed {seed}: {violation}", point.name()));
        }
        if !run.unnamed().is_empty() {
            return Some(format!("steps without a failpoint: {:?}", run.unnamed()));
        }
        shots += usize::from(run.fired());
        if shots == SHOTS {
            return None;
        }
    }
    Some(format!("{} {effect:?}: reached {shots} times in {TRIES} runs", point.name()))
}

#[test]
fn nothing_acknowledged_is_lost_at_any_failpoint() {
    let orders: Vec<(&'static Failpoint, Effect)> = FAILPOINTS
        .iter()
        .flat_map(|point| EFFECTS.map(|effect| (point, effect)))
        .filter(|(point, effect)| *effect != Effect::KillTorn || point.is_write())
        .collect();
    let next = AtomicU64::new(0);
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let work = || {
            let mut wrong = Vec::new();
            while let Some(&(point, effect)) =
                orders.get(next.fetch_add(1, Ordering::Relaxed) as usize)
            {
                wrong.extend(shoot(point, effect));
            }
            wrong
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The model must be able to fail: on a disk whose fsync does nothing, it does.
#[test]
fn a_disk_that_lies_about_fsync_is_found_out() {
    let caught = (0..20).filter(|seed| Run::new(*seed, true).all().is_err()).count();
    assert!(caught >= 10, "only {caught} of 20 seeds noticed");
}
