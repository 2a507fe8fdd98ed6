//! The bytes that rows in memory take, summed over all tables, and the pressure they make.
//!
//! Each writer reports its own share through a [`Meter`]. Above the soft limit the tables
//! with the most hot rows are asked to freeze, as many as it takes to come below it again;
//! at the hard limit writes are turned away until flushes have made room. The same happens
//! while the process as a whole is short of memory ([`pressure`]), of which [`limit`] says how
//! much there is and [`share`] what each part may take.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kymo_kernel::ids::TableId;
use parking_lot::Mutex;

pub mod limit;
pub mod pressure;
pub mod share;

use pressure::Pressure;

/// Asks one writer to freeze its hot rows; must not block. False where it could not be asked.
pub type AskToFreeze = Box<dyn Fn() -> bool + Send + Sync>;

/// The accountant of the process.
pub struct Memory {
    soft: u64,
    hard: u64,
    pressure: Arc<Pressure>,
    total: AtomicU64,
    meters: Mutex<BTreeMap<TableId, Arc<Shared>>>,
}

struct Shared {
    hot: AtomicU64,
    frozen: AtomicU64,
    asked: AtomicBool,
    ask: AskToFreeze,
}

/// One table's share; leaving the table takes it out of the sum.
pub struct Meter {
    memory: Arc<Memory>,
    table: TableId,
    shared: Arc<Shared>,
}

impl Memory {
    /// An accountant with its two limits, in bytes, within a process under pressure or not.
    #[must_use]
    pub fn new(soft: u64, hard: u64, pressure: Arc<Pressure>) -> Arc<Self> {
        Arc::new(Memory {
            soft,
            hard,
            pressure,
            total: AtomicU64::new(0),
            meters: Mutex::new(BTreeMap::new()),
        })
    }

    /// Bytes of all rows in memory.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// How the process as a whole stands.
    #[must_use]
    pub fn pressure(&self) -> &Arc<Pressure> {
        &self.pressure
    }

    /// Whether writes are to be turned away. Where no rows are in memory, flushing them cannot
    /// help the process, and turning them away would never end.
    #[must_use]
    pub fn full(&self) -> bool {
        self.total() >= self.hard || (self.pressure.is_high() && self.total() > 0)
    }

    /// Asks all tables with rows in memory to freeze them.
    pub fn relieve_all(&self) {
        self.ask(self.pick(0));
    }

    /// Opens the account of a table.
    pub fn register(self: &Arc<Self>, table: TableId, ask: AskToFreeze) -> Meter {
        let shared = Arc::new(Shared {
            hot: AtomicU64::new(0),
            frozen: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            ask,
        });
        self.meters.lock().insert(table, shared.clone());
        Meter { memory: self.clone(), table, shared }
    }

    /// Asks the largest tables to freeze until what is frozen or asked for brings the sum
    /// below the soft limit.
    fn relieve(&self) {
        if self.total() >= self.soft {
            self.ask(self.pick(self.soft));
        }
    }

    fn ask(&self, picked: Vec<Arc<Shared>>) {
        for shared in picked {
            if !(shared.ask)() {
                // Asked again with the next rows that come.
                shared.asked.store(false, Ordering::Relaxed);
            }
        }
    }

    /// The largest tables without which the rest is below `most`.
    fn pick(&self, most: u64) -> Vec<Arc<Shared>> {
        let meters = self.meters.lock();
        let mut staying = 0;
        let mut candidates = Vec::new();
        for shared in meters.values() {
            let hot = shared.hot.load(Ordering::Relaxed);
            if hot > 0 && !shared.asked.load(Ordering::Relaxed) {
                staying += hot;
                candidates.push((hot, shared.clone()));
            }
        }
        let mut picked = Vec::new();
        candidates.sort_by_key(|(hot, _)| *hot);
        while staying >= most
            && let Some((hot, shared)) = candidates.pop()
        {
            shared.asked.store(true, Ordering::Relaxed);
            staying -= hot;
            picked.push(shared);
        }
        picked
    }
}

impl Meter {
    /// Reports the table's bytes as they are now; above the soft limit this asks for relief.
    pub fn set(&self, hot: u64, frozen: u64) {
        let before = self.shared.hot.swap(hot, Ordering::Relaxed)
            + self.shared.frozen.swap(frozen, Ordering::Relaxed);
        let now = hot + frozen;
        if now >= before {
            self.memory.total.fetch_add(now - before, Ordering::Relaxed);
        } else {
            self.memory.total.fetch_sub(before - now, Ordering::Relaxed);
        }
        if hot == 0 {
            self.shared.asked.store(false, Ordering::Relaxed);
        }
        if now > before {
            self.memory.relieve();
        }
    }

    /// Whether writes are to be turned away.
    #[must_use]
    pub fn full(&self) -> bool {
        self.memory.full()
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.memory.meters.lock().remove(&self.table);
        self.set(0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(memory: &Arc<Memory>, table: u64, log: &Arc<Mutex<Vec<u64>>>) -> Meter {
        let log = log.clone();
        memory.register(
            TableId(table),
            Box::new(move || {
                log.lock().push(table);
                true
            }),
        )
    }

    #[test]
    fn above_the_soft_limit_the_largest_is_asked_once() {
        let memory = Memory::new(100, 200, Pressure::new(None));
        let log = Arc::new(Mutex::new(Vec::new()));
        let small = meter(&memory, 1, &log);
        let large = meter(&memory, 2, &log);
        small.set(30, 0);
        large.set(60, 0);
        assert!(log.lock().is_empty());
        small.set(45, 0);
        small.set(46, 0);
        assert_eq!(*log.lock(), [2]);
        // It froze: its bytes are on their way out, and it may be asked again later.
        large.set(0, 60);
        large.set(70, 60);
        large.set(80, 60);
        assert_eq!(*log.lock(), [2, 2]);
    }

    #[test]
    fn a_writer_that_could_not_be_asked_is_asked_again() {
        let memory = Memory::new(100, 200, Pressure::new(None));
        let asked = Arc::new(AtomicU64::new(0));
        let count = asked.clone();
        let table = memory
            .register(TableId(1), Box::new(move || count.fetch_add(1, Ordering::Relaxed) > 0));
        for bytes in [100, 101, 102] {
            table.set(bytes, 0);
        }
        assert_eq!(asked.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_process_that_is_short_flushes_everything_and_takes_nothing_until_it_has() {
        let pressure = Pressure::new(Some(1000));
        let memory = Memory::new(100, 200, pressure.clone());
        let log = Arc::new(Mutex::new(Vec::new()));
        let (one, two) = (meter(&memory, 1, &log), meter(&memory, 2, &log));
        one.set(10, 0);
        two.set(5, 0);
        assert!(!memory.full());
        pressure.note(900);
        assert!(memory.full());
        memory.relieve_all();
        memory.relieve_all();
        assert_eq!(*log.lock(), [1, 2]);
        one.set(0, 0);
        two.set(0, 0);
        assert!(!memory.full(), "nothing is left to flush");
        one.set(1, 0);
        assert!(memory.full());
        pressure.note(0);
        assert!(!memory.full());
    }

    #[test]
    fn the_hard_limit_counts_frozen_rows_and_falls_with_the_flush() {
        let memory = Memory::new(100, 200, Pressure::new(None));
        let log = Arc::new(Mutex::new(Vec::new()));
        let table = meter(&memory, 1, &log);
        table.set(10, 195);
        assert!(table.full());
        table.set(10, 0);
        assert!(!memory.full());
        drop(table);
        assert_eq!(memory.total(), 0);
    }
}
