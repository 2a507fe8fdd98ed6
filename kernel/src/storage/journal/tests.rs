//! The journal on the simulated disk: order, durability by mode, torn tails, damage, poison.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::local::LocalLog;
use super::*;
use crate::env::sim::{Fault, Operation, Sim};
use crate::kit::named::{name, record};
use crate::storage::log::DurableLog;

const LIMITS: Limits = Limits {
    file_bytes: 4096,
    queue_bytes: 64 << 10,
    max_record_bytes: 32 << 10,
    period: Duration::from_millis(100),
};

type Acks = Arc<Mutex<Vec<(u64, Result<Position>)>>>;

struct Bench {
    sim: Sim,
    poison: Poison,
    log: LocalLog,
    acks: Acks,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Bench::on(Sim::new(seed))
    }

    fn on(sim: Sim) -> Self {
        let poison = Poison::default();
        let root = PathBuf::from("/wal");
        let log = LocalLog::new(sim.env(), root, LIMITS, Drive::Manual, poison.clone());
        Bench { sim, poison, log, acks: Acks::default() }
    }

    fn open(&self, epoch: u64) -> Arc<Journal> {
        self.log.open_journal(PartitionId::ONLY, Epoch(epoch)).unwrap()
    }

    fn append(&self, journal: &Journal, name: u64, durability: Durability) {
        let acks = self.acks.clone();
        let group = RecordGroup::of(record(name, 100));
        journal.append(group, durability, Box::new(move |done| acks.lock().push((name, done))));
    }

    fn names(&self) -> Vec<u64> {
        self.acks.lock().iter().map(|(name, _)| *name).collect()
    }

    fn stored(&self) -> Result<Vec<u64>> {
        let groups = self.log.read(PartitionId::ONLY, Position::default())?;
        let mut names = Vec::new();
        for group in groups {
            names.extend(group?.iter().map(|(_, record)| name(record)));
        }
        Ok(names)
    }

    fn crash(self, seed: u64) -> Bench {
        self.sim.disk.crash(seed);
        Bench::on(self.sim)
    }

    fn file(&self, number: u64) -> PathBuf {
        PathBuf::from("/wal/0").join(file_name(number))
    }
}

#[test]
fn one_fsync_serves_everything_that_was_queued() {
    let bench = Bench::new(1);
    let journal = bench.open(1);
    let before = bench.sim.disk.syncs();
    (0..10).for_each(|name| bench.append(&journal, name, Durability::EveryWrite));
    assert!(bench.names().is_empty(), "nothing is answered before it is durable");
    assert_eq!(journal.step(), Stepped::Worked);
    assert_eq!(bench.sim.disk.syncs() - before, 1);
    assert_eq!(bench.names(), (0..10).collect::<Vec<_>>());
    let positions: Vec<u64> =
        bench.acks.lock().iter().map(|(_, at)| at.as_ref().unwrap().seq.0).collect();
    assert_eq!(positions, (1..=10).collect::<Vec<_>>());
    assert_eq!(journal.step(), Stepped::Idle);
    assert_eq!(journal.queued_bytes(), 0);
}

#[test]
fn acknowledged_groups_survive_every_crash_in_order() {
    for seed in 0..300 {
        let bench = Bench::new(seed);
        let journal = bench.open(1);
        for name in 0..seed % 60 {
            bench.append(&journal, name, Durability::EveryWrite);
            if name % 3 == 0 {
                journal.step();
            }
        }
        let acked = bench.names().len();
        let queued = (seed % 60) as usize;
        // The last round is written, but its fsync never returns.
        bench.sim.disk.fail_after(Operation::Sync, 0, Fault::Eio);
        journal.step();
        let bench = bench.crash(seed);
        let stored = bench.stored().unwrap();
        assert!(stored.len() >= acked && stored.len() <= queued, "seed {seed}");
        assert_eq!(stored, (0..stored.len() as u64).collect::<Vec<_>>(), "seed {seed}");
        // What is there now stays, through the cut, a new epoch and another crash.
        let journal = bench.open(2);
        bench.append(&journal, 1000, Durability::EveryWrite);
        journal.step();
        let bench = bench.crash(seed + 1);
        let again = bench.stored().unwrap();
        assert_eq!(again[..stored.len()], stored, "seed {seed}");
        assert_eq!(again[stored.len()..], [1000], "seed {seed}");
    }
}

#[test]
fn a_group_is_there_whole_or_not_at_all() {
    let mut torn = 0;
    for seed in 0..300 {
        let bench = Bench::new(seed);
        let journal = bench.open(1);
        bench.append(&journal, 0, Durability::EveryWrite);
        journal.step();
        for first in (1..31).step_by(3) {
            let records = (first..first + 3).map(|name| record(name, 60)).collect();
            let done = Box::new(|_| ());
            journal.append(RecordGroup { records }, Durability::OsDefault, done);
        }
        journal.step();
        let stored = bench.crash(seed).stored().unwrap();
        assert_eq!((stored.len() - 1) % 3, 0, "seed {seed}: {stored:?}");
        torn += usize::from((2..31).contains(&stored.len()));
    }
    assert!(torn > 5, "the disk tears between groups: {torn}");
}

#[test]
fn modes_are_answered_when_they_say_and_in_order() {
    let bench = Bench::new(2);
    let journal = bench.open(1);
    let before = bench.sim.disk.syncs();
    bench.append(&journal, 1, Durability::OsDefault);
    bench.append(&journal, 2, Durability::None);
    journal.step();
    assert_eq!(bench.names(), [1, 2]);
    assert_eq!(bench.sim.disk.syncs(), before);
    bench.append(&journal, 3, Durability::Periodic);
    journal.step();
    assert_eq!(bench.names(), [1, 2, 3]);
    assert!(matches!(journal.step(), Stepped::SyncIn(_)));
    bench.sim.clock.advance(LIMITS.period);
    assert_eq!(journal.step(), Stepped::Worked);
    assert_eq!(bench.sim.disk.syncs(), before + 1);
    bench.append(&journal, 4, Durability::EveryWrite);
    bench.append(&journal, 5, Durability::None);
    journal.step();
    assert_eq!(bench.names(), [1, 2, 3, 4, 5]);
    assert_eq!(bench.stored().unwrap(), [1, 2, 3, 4, 5]);
}

#[test]
fn a_queue_that_is_never_empty_does_not_put_off_the_periodic_sync() {
    let bench = Bench::new(2);
    let journal = bench.open(1);
    let before = bench.sim.disk.syncs();
    for name in 0..=10 {
        bench.append(&journal, name, Durability::Periodic);
        journal.step();
        bench.sim.clock.advance(LIMITS.period / 10);
    }
    assert_eq!(bench.sim.disk.syncs(), before + 1);
    assert_eq!(bench.names(), (0..=10).collect::<Vec<_>>());
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on() {
    let mut torn = 0;
    for seed in 0..100 {
        let bench = Bench::new(seed);
        let journal = bench.open(1);
        bench.append(&journal, 0, Durability::EveryWrite);
        journal.step();
        (1..30).for_each(|name| bench.append(&journal, name, Durability::OsDefault));
        journal.step();
        let bench = bench.crash(seed);
        let stored = bench.stored().unwrap();
        assert_eq!(stored[..], (0..stored.len() as u64).collect::<Vec<_>>()[..]);
        assert!(!stored.is_empty());
        torn += usize::from(stored.len() < 30);
        let journal = bench.open(2);
        bench.append(&journal, 77, Durability::EveryWrite);
        journal.step();
        let reopened = Bench::on(bench.sim.clone());
        assert_eq!(reopened.stored().unwrap().last(), Some(&77));
    }
    assert!(torn > 20, "the disk tears: {torn}");
}

#[test]
fn a_flipped_bit_in_the_middle_names_file_and_offset() {
    let frame = (FRAME_HEADER + 100) as u64;
    for at in [FILE_HEADER as u64 + 3, FILE_HEADER as u64 + frame + 60, 10] {
        let bench = Bench::new(3);
        let journal = bench.open(1);
        for name in 0..5 {
            bench.append(&journal, name, Durability::EveryWrite);
            journal.step();
        }
        bench.sim.disk.flip_bit(&bench.file(1), at, 2).unwrap();
        let error = Bench::on(bench.sim.clone()).stored().unwrap_err();
        assert_eq!(error.code(), Code::Corrupt);
        let start = if at < FILE_HEADER as u64 {
            0
        } else {
            FILE_HEADER as u64 + (at - FILE_HEADER as u64) / frame * frame
        };
        let wanted = format!("{} at offset {start}:", bench.file(1).display());
        assert!(error.message().contains(&wanted), "{error} should name {wanted}");
    }
}

#[test]
fn a_flipped_bit_in_the_last_synced_record_is_no_torn_tail() {
    let sizes = [60, 100, 1500, 3000];
    for (size, step) in sizes.into_iter().zip([1, 1, 7, 31]) {
        let bench = Bench::new(3);
        let journal = bench.open(1);
        for name in [0, 1] {
            let group = RecordGroup::of(record(name, size));
            journal.append(group, Durability::EveryWrite, Box::new(|_| ()));
            journal.step();
        }
        let start = (FILE_HEADER + FRAME_HEADER + size) as u64;
        let end = start + (FRAME_HEADER + size) as u64;
        for at in (start..end).step_by(step) {
            let bit = (at % 8) as u8;
            bench.sim.disk.flip_bit(&bench.file(1), at, bit).unwrap();
            let error = Bench::on(bench.sim.clone()).stored().unwrap_err();
            assert_eq!(error.code(), Code::Corrupt, "byte {at} of {size}");
            let wanted = format!("{} at offset {start}:", bench.file(1).display());
            assert!(error.message().contains(&wanted), "{error} should name {wanted}");
            let way_out = format!("truncate --size={start} '{}'", bench.file(1).display());
            assert!(error.hint().is_some_and(|hint| hint.contains(&way_out)), "{error:?}");
            bench.sim.disk.flip_bit(&bench.file(1), at, bit).unwrap();
        }
        // The way out that the error names.
        bench.sim.disk.flip_bit(&bench.file(1), end - 9, 0).unwrap();
        let mut file = bench.sim.env().disk.open(&bench.file(1)).unwrap();
        file.truncate(start).unwrap();
        let reopened = Bench::on(bench.sim.clone());
        assert_eq!(reopened.stored().unwrap(), [0]);
        let journal = reopened.open(2);
        reopened.append(&journal, 7, Durability::EveryWrite);
        journal.step();
        assert_eq!(Bench::on(bench.sim).stored().unwrap(), [0, 7]);
    }
}

#[test]
fn what_a_power_cut_tears_is_never_taken_for_damage() {
    let (mut short, mut holes) = (0, 0);
    for seed in 0..1500 {
        let bench = Bench::new(seed);
        let journal = bench.open(1);
        bench.append(&journal, 0, Durability::EveryWrite);
        journal.step();
        let mut written = (FILE_HEADER + FRAME_HEADER + 100) as u64;
        for name in 1..=1 + seed % 3 {
            let size = 8 + (seed * 131 + name * 977) as usize % 3000;
            let done = Box::new(|_| ());
            journal.append(RecordGroup::of(record(name, size)), Durability::OsDefault, done);
            written += (FRAME_HEADER + size) as u64;
        }
        journal.step();
        let bench = bench.crash(seed);
        let stored = bench.stored().unwrap_or_else(|error| panic!("seed {seed}: {error:?}"));
        assert_eq!(stored, (0..stored.len() as u64).collect::<Vec<_>>(), "seed {seed}");
        let file = bench.sim.env().disk.open(&bench.file(1)).unwrap();
        let lost = stored.len() as u64 - 1 < 1 + seed % 3;
        short += u64::from(lost && file.len().unwrap() < written);
        holes += u64::from(lost && file.len().unwrap() == written);
    }
    assert!(short > 100 && holes > 100, "the disk cuts and leaves holes: {short} {holes}");
}

#[test]
fn damage_at_the_end_of_a_file_is_seen_by_the_next_one() {
    let bench = Bench::new(3);
    let journal = bench.open(1);
    bench.append(&journal, 0, Durability::EveryWrite);
    journal.step();
    journal.rotate();
    bench.append(&journal, 1, Durability::EveryWrite);
    journal.step();
    bench.sim.disk.flip_bit(&bench.file(1), FILE_HEADER as u64 + 70, 0).unwrap();
    let error = Bench::on(bench.sim.clone()).stored().unwrap_err();
    assert!(error.message().contains("at offset 64"), "{error}");
}

#[test]
fn a_bit_that_flips_while_reading_does_no_harm() {
    let bench = Bench::new(4);
    let journal = bench.open(1);
    for name in 0..20 {
        bench.append(&journal, name, Durability::EveryWrite);
        journal.step();
    }
    // Rare enough that two reads of one place do not both fail.
    bench.sim.disk.set_read_flips(3_000);
    for _ in 0..200 {
        assert_eq!(Bench::on(bench.sim.clone()).stored().unwrap().len(), 20);
    }
}

#[test]
fn a_full_disk_poisons_with_one_error_and_loses_nothing_acknowledged() {
    let bench = Bench::new(5);
    let journal = bench.open(1);
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = told.clone();
    bench.poison.on_poison(move |cause| sink.lock().push(cause));
    bench.sim.disk.set_capacity(Some(bench.sim.disk.used() + 1000));
    for name in 0..20 {
        bench.append(&journal, name, Durability::EveryWrite);
        journal.step();
    }
    let acks = bench.acks.lock().clone();
    let good = acks.iter().take_while(|(_, ack)| ack.is_ok()).count();
    assert!((1..20).contains(&good));
    assert_eq!(acks[good].1.as_ref().unwrap_err().code(), Code::DiskFull);
    assert!(
        acks[good + 1..]
            .iter()
            .all(|(_, ack)| { ack.as_ref().is_err_and(|error| error.code() == Code::Poisoned) })
    );
    assert_eq!(told.lock().len(), 1);
    assert!(told.lock()[0].hint().is_some());
    bench.sim.disk.set_capacity(None);
    let bench = bench.crash(5);
    let stored = bench.stored().unwrap();
    assert!(stored.len() >= good);
    assert_eq!(stored, (0..stored.len() as u64).collect::<Vec<_>>());
}

#[test]
fn files_are_trimmed_up_to_a_position_and_not_further() {
    let bench = Bench::new(6);
    let journal = bench.open(1);
    for name in 0..100 {
        bench.append(&journal, name, Durability::EveryWrite);
        journal.step();
    }
    let files = bench.log.files(PartitionId::ONLY).all();
    assert!(files.len() >= 3, "rotation happened");
    let upto = files[1].last;
    bench.log.trim(PartitionId::ONLY, Position { seq: Seq(upto.seq.0 - 1), ..upto }).unwrap();
    assert_eq!(bench.log.files(PartitionId::ONLY).all().len(), files.len() - 1);
    bench.log.trim(PartitionId::ONLY, upto).unwrap();
    let bench = bench.crash(6);
    let stored = bench.stored().unwrap();
    assert_eq!(stored, (upto.seq.0..100).collect::<Vec<_>>());
}

#[test]
fn trimming_goes_on_after_a_folder_could_not_be_synced() {
    let bench = Bench::new(6);
    let journal = bench.open(1);
    for name in 0..100 {
        bench.append(&journal, name, Durability::EveryWrite);
        journal.step();
    }
    let files = bench.log.files(PartitionId::ONLY).all();
    let upto = files[1].last;
    bench.sim.disk.fail_after(Operation::SyncDir, 0, Fault::Eio);
    bench.log.trim(PartitionId::ONLY, upto).unwrap_err();
    bench.log.trim(PartitionId::ONLY, upto).unwrap();
    assert_eq!(bench.log.files(PartitionId::ONLY).all().len(), files.len() - 2);
}

#[test]
fn a_later_owner_fences_an_earlier_one() {
    let bench = Bench::new(7);
    let journal = bench.open(3);
    bench.append(&journal, 1, Durability::EveryWrite);
    journal.step();
    let second = Bench::on(bench.sim.clone());
    let refused = second.log.open_journal(PartitionId::ONLY, Epoch(3)).map(|_| ()).unwrap_err();
    assert_eq!(refused.code(), Code::Fenced);
}

#[test]
fn the_queue_is_bounded_in_bytes() {
    let bench = Bench::new(8);
    let journal = bench.open(1);
    (0..2000).for_each(|name| bench.append(&journal, name, Durability::EveryWrite));
    assert!(journal.queued_bytes() <= LIMITS.queue_bytes as u64);
    assert!(!journal.has_room() || journal.queued_bytes() + 100 > LIMITS.queue_bytes as u64);
    let busy = bench.acks.lock().iter().filter(|(_, ack)| ack.is_err()).count();
    assert!(busy > 0);
    journal.step();
    bench.append(&journal, 2000, Durability::EveryWrite);
    journal.step();
    assert!(bench.acks.lock().last().unwrap().1.is_ok());
    let acks = bench.acks.clone();
    let large = RecordGroup::of(record(1, LIMITS.max_record_bytes + 1));
    let done = move |done| acks.lock().push((9, done));
    journal.append(large, Durability::EveryWrite, Box::new(done));
    let last = bench.acks.lock().pop().unwrap().1.unwrap_err();
    assert_eq!(last.code(), Code::TooLarge);
}

#[test]
fn the_thread_answers_and_closes_cleanly() {
    let sim = Sim::new(9);
    let poison = Poison::default();
    let log =
        LocalLog::new(sim.env(), PathBuf::from("/wal"), LIMITS, Drive::Thread, poison.clone());
    let journal = log.open_journal(PartitionId::ONLY, Epoch(1)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    for _ in 0..100 {
        let sender = sender.clone();
        let group = RecordGroup::of(record(1, 100));
        let done = move |done: Result<Position>| sender.send(done.unwrap().seq.0).unwrap();
        journal.append(group, Durability::EveryWrite, Box::new(done));
    }
    let seqs: Vec<u64> = receiver.iter().take(100).collect();
    assert_eq!(seqs, (1..=100).collect::<Vec<_>>());
    journal.close();
    let (sender, receiver) = std::sync::mpsc::channel();
    let done = move |done: Result<Position>| sender.send(done).unwrap();
    journal.append(RecordGroup::of(record(1, 9)), Durability::EveryWrite, Box::new(done));
    assert_eq!(receiver.recv().unwrap().unwrap_err().code(), Code::ShuttingDown);
}

/// Whatever became of a file: its records up to some place, or an error; never others.
#[test]
fn a_mutated_file_gives_a_beginning_of_its_records_or_an_error() {
    let bench = Bench::new(10);
    let journal = bench.open(1);
    for name in 0..6 {
        let records = (0..1 + name % 3).map(|at| record(name * 10 + at, 50 + 40 * at as usize));
        let group = RecordGroup { records: records.collect() };
        journal.append(group, Durability::EveryWrite, Box::new(|_| ()));
        journal.step();
    }
    let whole = bench.stored().unwrap();
    let path = bench.file(1);
    let bytes = bench.sim.env().disk.open(&path).unwrap().read_all().unwrap();
    let check = |changed: &[u8]| {
        let fresh = Bench::new(11);
        let disk = fresh.sim.env().disk;
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().append(changed).unwrap();
        match fresh.stored() {
            Ok(names) => assert!(whole.starts_with(&names), "{names:?}"),
            Err(error) => {
                assert!(matches!(error.code(), Code::Corrupt | Code::Unsupported), "{error:?}");
            }
        }
    };
    crate::fuzz::fuzz("journal", &[bytes], |changed| {
        check(changed);
        // Headers that verify all the same, so that what is behind the checksum is met too.
        let mut sealed = changed.to_vec();
        for at in 0..sealed.len().saturating_sub(FRAME_HEADER) {
            if sealed[at..].starts_with(b"KYF1") {
                let crc = crc32c::crc32c(&sealed[at..at + 52]).to_le_bytes();
                sealed[at + 52..at + 56].copy_from_slice(&crc);
            }
        }
        let fresh = Bench::new(12);
        let disk = fresh.sim.env().disk;
        disk.create_dir_all(path.parent().unwrap()).unwrap();
        disk.create(&path).unwrap().append(&sealed).unwrap();
        if let Ok(groups) = fresh.log.read(PartitionId::ONLY, Position::default()) {
            groups.for_each(|_read_or_refused| ());
        }
    });
}
