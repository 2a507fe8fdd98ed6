//! What each durability can cost, as docs/durability.md says it: random writes to the journal of a
//! simulated disk that end in a power cut or in the end of the process alone, compared with
//! what comes back.
//!
//! | mode | process killed | power cut |
//! |---|---|---|
//! | `every_write` | nothing | nothing |
//! | `periodic` | nothing | what was answered within `journal.periodic_ms` before |
//! | `os_default` | nothing | of the file that is being written: `file_bytes`, one group commit |
//! | `none` | one group commit: `queue_bytes` | as `os_default`, and one group commit more |
//!
//! What is lost is always the newest, and a test that loses nothing where it may would prove
//! nothing: that is counted, too.
#![expect(clippy::unwrap_used, reason = "a failure is a failed test")]

mod kit {
    pub mod named;
}

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kit::named::{name, record};
use kymo_kernel::env::Random;
use kymo_kernel::env::sim::{Fault, Operation, Sim};
use kymo_kernel::ids::{Epoch, PartitionId, Position};
use kymo_kernel::message::Durability;
use kymo_kernel::storage::journal::local::LocalLog;
use kymo_kernel::storage::journal::{Drive, Limits};
use kymo_kernel::storage::log::{DurableLog, LogWriter, RecordGroup};
use kymo_kernel::storage::poison::Poison;
use parking_lot::Mutex;

const LIMITS: Limits = Limits {
    file_bytes: 4096,
    queue_bytes: 2048,
    max_record_bytes: 1024,
    period: Duration::from_millis(20),
};
/// How often the journal's thread looks at the clock here; a real one wakes when it is time.
const TICK: Duration = Duration::from_millis(1);
const SEEDS: u64 = 200;

/// A group as its sender knows it.
#[derive(Debug, Clone, Copy)]
struct Sent {
    mode: Durability,
    bytes: u64,
    answered: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The process is gone, the machine goes on.
    Kill,
    PowerCut,
}

/// A journal under random writes.
struct Life {
    sim: Sim,
    sent: Arc<Mutex<Vec<Sent>>>,
    /// The mode of all groups; each has its own where there is none.
    mode: Option<Durability>,
}

fn log(sim: &Sim) -> LocalLog {
    LocalLog::new(sim.env(), PathBuf::from("/wal"), LIMITS, Drive::Manual, Poison::default())
}

impl Life {
    fn new(seed: u64, mode: Option<Durability>) -> Life {
        Life { sim: Sim::new(seed), sent: Arc::default(), mode }
    }

    fn below(&self, bound: u64) -> u64 {
        self.sim.random.next_u64() % bound
    }

    fn append(&self, journal: &dyn LogWriter) {
        let modes =
            [Durability::EveryWrite, Durability::Periodic, Durability::OsDefault, Durability::None];
        let mode = self.mode.unwrap_or_else(|| modes[self.below(4) as usize]);
        let size = 16 + self.below(400) as usize;
        let index = {
            let mut sent = self.sent.lock();
            sent.push(Sent { mode, bytes: size as u64, answered: None });
            sent.len() - 1
        };
        let (all, clock) = (self.sent.clone(), self.sim.env().clock);
        let done = move |outcome: kymo_kernel::Result<Position>| {
            if outcome.is_ok() {
                all.lock()[index].answered = Some(clock.monotonic());
            }
        };
        journal.append(RecordGroup::of(record(index as u64, size)), mode, Box::new(done));
    }

    /// Writes for a while and ends; gives when that was.
    fn run(&self, end: End) -> Duration {
        let log = log(&self.sim);
        let journal = log.open_journal(PartitionId::ONLY, Epoch(1)).unwrap();
        for _ in 0..20 + self.below(200) {
            for _ in 0..self.below(4) {
                self.append(&*journal);
            }
            journal.step();
            self.sim.clock.advance(TICK);
        }
        // The moment between the answer and the write, which only `none` has.
        self.append(&*journal);
        self.sim.disk.fail_after(Operation::Append, 0, Fault::Eio);
        journal.step();
        if end == End::PowerCut {
            self.sim.disk.crash(self.below(u64::MAX));
        }
        self.sim.env().clock.monotonic()
    }

    /// The groups that come back, which are a beginning of those that were sent.
    fn stored(&self) -> usize {
        let log = log(&self.sim);
        let groups = log.read(PartitionId::ONLY, Position::default()).unwrap();
        let names: Vec<usize> = groups.map(|group| name(&group.unwrap()[0].1) as usize).collect();
        let sent = self.sent.lock();
        // Groups that the queue refused have no place in the log.
        let all: Vec<usize> = (0..sent.len()).collect();
        let kept: Vec<usize> = all.into_iter().filter(|at| names.contains(at)).collect();
        assert_eq!(names, kept, "in the order in which they were sent");
        let last = names.last().map_or(0, |last| last + 1);
        let gap = (0..last).find(|at| sent[*at].answered.is_some() && !names.contains(at));
        assert_eq!(gap, None, "an answered group is lost before one that is there");
        last
    }
}

/// What was answered and is lost.
fn lost(life: &Life, end: End) -> (Duration, Vec<Sent>) {
    let ended = life.run(end);
    let stored = life.stored();
    let sent = life.sent.lock();
    (ended, sent[stored..].iter().filter(|each| each.answered.is_some()).copied().collect())
}

fn bytes(lost: &[Sent]) -> u64 {
    lost.iter().map(|each| each.bytes).sum()
}

/// How many of the seeds lose something, after each was held against its bound.
fn losing(mode: Durability, end: End, within: impl Fn(Duration, &[Sent]) -> bool) -> usize {
    let mut losing = 0;
    for seed in 0..SEEDS {
        let (ended, lost) = lost(&Life::new(seed, Some(mode)), end);
        assert!(
            within(ended, &lost),
            "{mode:?} {end:?} seed {seed}: at {ended:?} {lost:?} is lost"
        );
        losing += usize::from(!lost.is_empty());
    }
    losing
}

/// One group commit: as much as may wait.
const COMMIT: u64 = LIMITS.queue_bytes as u64;

#[test]
fn every_write_loses_nothing() {
    for end in [End::Kill, End::PowerCut] {
        losing(Durability::EveryWrite, end, |_, lost| lost.is_empty());
    }
}

#[test]
fn periodic_loses_an_interval_to_a_power_cut_and_nothing_to_a_kill() {
    losing(Durability::Periodic, End::Kill, |_, lost| lost.is_empty());
    let within = |ended: Duration, lost: &[Sent]| {
        lost.iter().all(|each| each.answered.is_some_and(|at| ended <= at + LIMITS.period + TICK))
    };
    assert!(losing(Durability::Periodic, End::PowerCut, within) > 20);
}

#[test]
fn os_default_loses_a_file_to_a_power_cut_and_nothing_to_a_kill() {
    losing(Durability::OsDefault, End::Kill, |_, lost| lost.is_empty());
    let most = LIMITS.file_bytes + COMMIT;
    let cut = losing(Durability::OsDefault, End::PowerCut, |_, lost| bytes(lost) <= most);
    assert!(cut > 20, "{cut}");
}

#[test]
fn none_loses_a_group_commit_to_a_kill_and_a_file_to_a_power_cut() {
    let killed = losing(Durability::None, End::Kill, |_, lost| bytes(lost) <= COMMIT);
    assert!(killed > 20, "{killed}");
    let most = LIMITS.file_bytes + 2 * COMMIT;
    let cut = losing(Durability::None, End::PowerCut, |_, lost| bytes(lost) <= most);
    assert!(cut > 20, "{cut}");
}

/// Requests choose for themselves; a weak one beside it does not make a strong one weaker.
#[test]
fn each_request_gets_what_it_asked_for_whatever_others_ask() {
    let (mut killed, mut cut) = (0, 0);
    for seed in 0..SEEDS {
        for end in [End::Kill, End::PowerCut] {
            let (ended, lost) = lost(&Life::new(seed, None), end);
            for each in &lost {
                let allowed = match (each.mode, end) {
                    (Durability::EveryWrite, _) => false,
                    (Durability::None, _) => true,
                    (_, End::Kill) => false,
                    (Durability::OsDefault, End::PowerCut) => true,
                    (Durability::Periodic, End::PowerCut) => {
                        each.answered.is_some_and(|at| ended <= at + LIMITS.period + TICK)
                    }
                };
                assert!(allowed, "seed {seed} {end:?}: {each:?} is lost at {ended:?}");
            }
            assert!(bytes(&lost) <= LIMITS.file_bytes + 2 * COMMIT, "seed {seed} {end:?}");
            let losing = usize::from(!lost.is_empty());
            if end == End::Kill { killed += losing } else { cut += losing }
        }
    }
    assert!(killed > 5 && cut > 20, "{killed} {cut}");
}
