//! Whole systems under a seed: clients that write, delete and read at once, flushes, merges,
//! expiry, failing disks and power cuts, with every answer checked against the history.
//!
//! The seed decides everything, so a run that fails prints it, and the same seed fails again:
//!
//! ```sh
//! KYMO_SEED=17 cargo test --workspace --lib simulation            # one seed
//! KYMO_SEEDS=5000 cargo test --release --workspace --lib simulation   # many
//! ```

mod history;

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use arrow::array::{ArrayRef, DictionaryArray, Int64Array, RecordBatch, TimestampNanosecondArray};
use arrow::datatypes::{Int32Type, Schema};
use futures::future::join_all;
use kymo_config::Settings;
use kymo_kernel::env::sim::{Dice, Fault, Operation, Sim};
use kymo_kernel::env::{Env, real};
use kymo_kernel::message::Write;
use kymo_kernel::pools::{Pool, PoolSizes, Pools};
use kymo_kernel::schema::{ColumnKind, FieldType, TableBatch, TableName, marked_field};
use kymo_kernel::{Result, simulate};
use parking_lot::Mutex;

use crate::System;
use crate::kit;
use history::{Effect, History, Look, OpId, Register, Table};

const SLOTS: usize = 5;
/// Rows of a slot, and of an append: they are there together or not at all.
const PARTS: [&str; 3] = ["x", "y", "z"];
const FIELDS: [&str; 2] = ["a", "b"];
const SECOND: i64 = 1_000_000_000;
/// 2024-01-01T00:00:00Z.
const BEGIN: i64 = 1_704_067_200 * SECOND;
/// How far slots are apart: some share a window of time with others, some do not.
const APART: i64 = 5 * 3600 * SECOND;
const KEPT_FOR: i64 = 60 * SECOND;
const BY_HOUR: &str = "SELECT time_bucket('1h', time) AS time, part, count(a) AS n, sum(b) AS b \
                       FROM slots GROUP BY 1, 2";

/// A history that clients share.
type Shared = Arc<Mutex<History>>;

#[test]
fn whole_systems_keep_their_promises_under_every_seed() {
    each_seed(200, |seed| lives(seed, &Sim::new(seed)));
}

#[test]
fn a_disk_that_lies_about_syncs_is_found_out() {
    let found = (0..8).filter(|seed| {
        let sim = Sim::new(*seed);
        sim.disk.break_sync(true);
        catch_unwind(AssertUnwindSafe(|| lives(*seed, &sim))).is_err()
    });
    assert!(found.count() > 0);
}

/// The same clients on real threads, where everything runs at once.
#[test]
fn real_threads_show_one_moment_of_each_table() {
    for seed in 0..3 {
        let settings = settings(&mut Dice::new(seed));
        let env = Env { clock: real::env().clock, ..Sim::new(seed).env() };
        let pools = Pools::start(PoolSizes::of(&settings, 4)).unwrap();
        let system = System::boot(Arc::new(settings), env, pools.clone()).unwrap();
        let history = Shared::default();
        pools
            .block_on(async {
                begin(&system).await;
                let clients = (0..8).map(|client| {
                    let client = Client::new(&system, &history, seed * 100 + client);
                    pools.spawn(Pool::Io, "client", client.run(60))
                });
                for ended in join_all(clients).await {
                    ended.unwrap();
                }
                check_all(&system, &history).await;
            })
            .unwrap();
        assert!(history.lock().done() > 100);
        system.engine().stop();
        pools.stop();
    }
}

/// Runs a program for each seed on all processors. The first that fails says which it was.
fn each_seed(count: u64, program: impl Fn(u64) + Sync) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("KYMO_SEED") {
        return program(seed);
    }
    let count = number("KYMO_SEEDS").unwrap_or(count);
    let next = AtomicU64::new(0);
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= count {
            return;
        }
        if seed > 0 && seed.is_multiple_of(500) {
            // Past what keeps the output of tests until they fail: a long run shows how far it is.
            let _ = writeln!(io::stderr(), "simulated {seed} of {count} seeds");
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| program(seed))) {
            next.store(count, Ordering::Relaxed);
            eprintln!("seed {seed} failed: KYMO_SEED={seed} runs it again");
            resume_unwind(panic);
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

/// Small enough that a short run flushes, merges, lets go and reads back from the log.
fn settings(dice: &mut Dice) -> Settings {
    let mut settings = Settings::default();
    settings.server.data_dir = "/data".into();
    settings.memtable.table_bytes = 4 << 10;
    settings.memtable.max_age_ms = 2000;
    settings.journal.file_bytes = 8 << 10;
    settings.compaction.interval_ms = 200;
    settings.compaction.min_segments = 2 + dice.below(3);
    settings.compaction.quiet_ms = 1000;
    settings.compaction.grace_ms = 500;
    settings.retention.interval_ms = 5000;
    if dice.coin() {
        settings.storage.cold_url = "/second".to_owned();
        settings.storage.cold_after = "1s".to_owned();
        settings.storage.cold_interval_ms = 300;
    }
    settings.continuous.delay_ms = 100;
    settings.continuous.cursor_ms = 300;
    settings.continuous.check_ms = 200;
    settings
}

/// A store through several lives, each of which ends with the power.
fn lives(seed: u64, sim: &Sim) {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let settings = Arc::new(settings(&mut dice));
    let history = Shared::default();
    let continuous = seed.is_multiple_of(4);
    live(sim, &settings, async |system| {
        begin(&system).await;
        if continuous {
            let create = format!("CREATE CONTINUOUS QUERY by_hour INTO hours AS {BY_HOUR}");
            kit::sql(&system, &create).await.unwrap();
        }
    });
    for _ in 0..2 + dice.below(3) {
        sim.disk.crash(dice.next());
        live(sim, &settings, async |system| {
            check_all(&system, &history).await;
            disturb(sim, &mut dice);
            let clients: Vec<_> = (0..1 + dice.below(4))
                .map(|_| Client::new(&system, &history, dice.next()).run(25))
                .collect();
            let until_killed = Duration::from_millis(dice.below(8000) as u64);
            tokio::select! {
                () = sim.env().clock.sleep(until_killed) => {}
                _ = join_all(clients) => {}
            }
        });
        sim.disk.set_capacity(None);
        history.lock().died();
    }
    sim.disk.crash(dice.next());
    live(sim, &settings, async |system| {
        check_all(&system, &history).await;
        Client::new(&system, &history, dice.next()).run(10).await;
        system.flush().await.unwrap();
        sim.env().clock.sleep(Duration::from_secs(5)).await;
        check_all(&system, &history).await;
        if continuous {
            until_equal(&system).await;
        }
    });
}

/// One life of a system: it ends where the body does, as a killed process would. Nothing of it
/// stays in this process.
fn live(sim: &Sim, settings: &Arc<Settings>, body: impl AsyncFnOnce(System)) {
    let life = async {
        let system = System::boot(settings.clone(), sim.env(), Pools::here()).unwrap();
        let store = Arc::downgrade(system.engine().store());
        body(system).await;
        store
    };
    let store = simulate::run(&sim.clock, life).unwrap();
    assert_eq!(store.strong_count(), 0, "something of a system that ended holds its store");
}

/// In some lives a call to the disk fails, or it is full before long.
fn disturb(sim: &Sim, dice: &mut Dice) {
    let fault = if dice.coin() { Fault::Eio } else { Fault::Enospc };
    let operations = [
        Operation::Create,
        Operation::Append,
        Operation::Sync,
        Operation::SyncDir,
        Operation::Link,
    ];
    match dice.below(6) {
        0 => {
            let operation = operations[dice.below(operations.len())];
            sim.disk.fail_after(operation, dice.below(60) as u32, fault);
        }
        1 => sim.disk.set_capacity(Some(sim.disk.used() + dice.below(20_000) as u64)),
        _ => {}
    }
}

async fn begin(system: &System) {
    let columns = "part TEXT TAG, time TIMESTAMP TIME INDEX";
    for table in [
        format!("slots (slot TEXT TAG, {columns}, a BIGINT, b BIGINT)"),
        format!("events ({columns}, value BIGINT) WITH (append_only = true)"),
        format!("recent ({columns}, value BIGINT) WITH (append_only = true, retention = '60s')"),
    ] {
        kit::sql(system, &format!("CREATE TABLE {table}")).await.unwrap();
    }
}

/// Looks at every table; nothing disturbs this.
async fn check_all(system: &System, history: &Shared) {
    let client = Client::new(system, history, 0);
    for table in [Table::Slots, Table::Events, Table::Recent] {
        client.look(table).await.unwrap();
    }
}

/// The target of the continuous query becomes what the query answers.
async fn until_equal(system: &System) {
    let (mut wanted, mut found) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        wanted = sorted(system, BY_HOUR).await;
        found = sorted(system, "SELECT time, part, n, b FROM hours").await;
        if wanted == found {
            return;
        }
        system.env().clock.sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(found, wanted, "the continuous query");
}

async fn sorted(system: &System, sql: &str) -> Vec<String> {
    let mut rows = kit::sql(system, sql).await.unwrap();
    rows.sort();
    rows
}

/// Somebody who does one thing after the other, at the same time as others do.
struct Client {
    system: System,
    history: Shared,
    dice: Dice,
}

impl Client {
    fn new(system: &System, history: &Shared, seed: u64) -> Client {
        Client { system: system.clone(), history: history.clone(), dice: Dice::new(seed) }
    }

    async fn run(mut self, count: usize) {
        for _ in 0..count {
            // After a fault of the disk all of it may fail; what was answered counts.
            let _ = self.step().await;
        }
    }

    async fn step(&mut self) -> Result<()> {
        match self.dice.below(24) {
            0 => self.system.flush().await?,
            1 => self.pause(20_000).await,
            2..=4 => self.pause(300).await,
            5 | 6 => self.delete().await?,
            7..=9 => self.look(Table::Slots).await?,
            10 | 11 => self.look(Table::Events).await?,
            12 => self.look(Table::Recent).await?,
            13..=17 => self.append().await?,
            _ => self.set().await?,
        }
        Ok(())
    }

    async fn pause(&mut self, at_most_ms: usize) {
        // Real threads have better things to do.
        if self.system.pools().is_here() {
            let pause = Duration::from_millis(self.dice.below(at_most_ms) as u64);
            self.system.env().clock.sleep(pause).await;
        }
    }

    /// Writes one or both fields of one or two slots.
    async fn set(&mut self) -> Result<()> {
        let fields = 1 + self.dice.below(3);
        let mut slots = vec![self.dice.below(SLOTS)];
        if self.dice.coin() {
            slots.push((slots[0] + 1) % SLOTS);
        }
        let written = |field: usize| fields & (1 << field) != 0;
        let registers = slots.iter().flat_map(|slot| {
            let of = |field: usize| Register::Slot(*slot as u8, field as u8);
            (0..FIELDS.len()).filter(|field| written(*field)).map(of).collect::<Vec<_>>()
        });
        let op = self.history.lock().begin(Effect::Set(registers.collect()));
        let rows = slots.len() * PARTS.len();
        let times = slots.iter().flat_map(|slot| vec![time_of(*slot); PARTS.len()]).collect();
        let names: Vec<String> =
            slots.iter().flat_map(|slot| vec![format!("s{slot}"); PARTS.len()]).collect();
        let mut columns = vec![
            ("slot", ColumnKind::Tag, FieldType::Text, tag(&names)),
            ("part", ColumnKind::Tag, FieldType::Text, parts(slots.len())),
            ("time", ColumnKind::Time, FieldType::Timestamp, timestamps(times)),
        ];
        for (_, name) in FIELDS.iter().enumerate().filter(|(field, _)| written(*field)) {
            columns.push((name, ColumnKind::Field, FieldType::Int64, numbers(op, rows)));
        }
        self.write(op, "slots", columns, rows).await
    }

    async fn append(&mut self) -> Result<()> {
        let rows = PARTS.len();
        let recent = self.dice.below(3) == 0;
        let (table, time) = if recent {
            let age = self.dice.below(30) as i64 * SECOND;
            (Table::Recent, self.system.env().clock.now_ns() - age)
        } else {
            (Table::Events, time_of(self.dice.below(SLOTS)))
        };
        let expires = recent.then_some(time + KEPT_FOR);
        let op = self.history.lock().begin(Effect::Append(table, expires));
        let columns = vec![
            ("part", ColumnKind::Tag, FieldType::Text, parts(1)),
            ("time", ColumnKind::Time, FieldType::Timestamp, timestamps(vec![time; rows])),
            ("value", ColumnKind::Field, FieldType::Int64, numbers(op, rows)),
        ];
        self.write(op, name_of(table), columns, rows).await
    }

    async fn write(
        &self,
        op: OpId,
        table: &str,
        columns: Vec<(&str, ColumnKind, FieldType, ArrayRef)>,
        rows: usize,
    ) -> Result<()> {
        let fields: Vec<_> =
            columns.iter().map(|(name, kind, of, _)| marked_field(name, *kind, *of)).collect();
        let arrays = columns.into_iter().map(|(_, _, _, array)| array).collect();
        let batch = TableBatch {
            table: TableName::new("kymo", table),
            batch: RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap(),
            lines: (1..=rows as u32).collect(),
        };
        let write = Write { batches: vec![batch], durability: None, create: false, partial: false };
        let acked = self.system.write().call(write).await?;
        assert_eq!(acked.rows, rows as u64, "{:?}", acked);
        self.history.lock().acknowledged(op);
        Ok(())
    }

    async fn delete(&mut self) -> Result<()> {
        let (effect, statement) = match self.dice.below(8) {
            0 => (Effect::DeleteAll(Table::Events), "TRUNCATE events".to_owned()),
            1 => (Effect::DeleteAll(Table::Events), "DELETE FROM events".to_owned()),
            by_time => {
                let slot = self.dice.below(SLOTS);
                let rows = if by_time.is_multiple_of(2) {
                    format!("slot = 's{slot}'")
                } else {
                    format!("time = to_timestamp_nanos({})", time_of(slot))
                };
                (Effect::DeleteSlot(slot as u8), format!("DELETE FROM slots WHERE {rows}"))
            }
        };
        let op = self.history.lock().begin(effect);
        kit::sql(&self.system, &statement).await?;
        self.history.lock().acknowledged(op);
        Ok(())
    }

    /// Reads a table whole, and fails the test where it could not have been so.
    async fn look(&self, table: Table) -> Result<()> {
        let start = self.history.lock().tick();
        let clock = &self.system.env().clock;
        let before = clock.now_ns();
        let rows = match table {
            Table::Slots => "SELECT slot, part, a, b FROM slots".to_owned(),
            Table::Events | Table::Recent => {
                format!("SELECT value, part FROM {}", name_of(table))
            }
        };
        let rows = kit::sql(&self.system, &rows).await?;
        let clock = (before, clock.now_ns());
        let seen = match table {
            Table::Slots => slots_in(&rows),
            Table::Events | Table::Recent => appends_in(table, &rows),
        };
        let look = seen.map(|seen| Look { table, start, seen, clock });
        let checked = look.and_then(|look| self.history.lock().saw(&look));
        checked.unwrap_or_else(|why| panic!("{}: {why}", name_of(table)));
        Ok(())
    }
}

fn name_of(table: Table) -> &'static str {
    match table {
        Table::Slots => "slots",
        Table::Events => "events",
        Table::Recent => "recent",
    }
}

fn time_of(slot: usize) -> i64 {
    BEGIN + slot as i64 * APART
}

fn tag(values: &[impl AsRef<str>]) -> ArrayRef {
    let values: DictionaryArray<Int32Type> =
        values.iter().map(|value| Some(value.as_ref())).collect();
    Arc::new(values)
}

fn parts(times: usize) -> ArrayRef {
    tag(&PARTS.repeat(times))
}

fn timestamps(times: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampNanosecondArray::from(times).with_timezone("+00:00"))
}

fn numbers(op: OpId, rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from(vec![op as i64; rows]))
}

/// The fields of slots in rows, which say the same in all parts of a slot.
fn slots_in(rows: &[String]) -> Result<BTreeMap<Register, OpId>, String> {
    let mut found: BTreeMap<Register, Vec<OpId>> = BTreeMap::new();
    for row in rows {
        let columns: Vec<&str> = row.split('|').collect();
        let slot = columns[0][1..].parse().unwrap();
        for (field, value) in columns[2..].iter().enumerate().filter(|(_, value)| **value != "NULL")
        {
            let values = found.entry(Register::Slot(slot, field as u8)).or_default();
            values.push(value.parse().unwrap());
        }
    }
    whole(found)
}

fn appends_in(table: Table, rows: &[String]) -> Result<BTreeMap<Register, OpId>, String> {
    let mut found: BTreeMap<Register, Vec<OpId>> = BTreeMap::new();
    for row in rows {
        let op = row.split('|').next().unwrap().parse().unwrap();
        found.entry(Register::Append(table, op)).or_default().push(op);
    }
    whole(found)
}

/// Each part of a register is there once, and all say the same.
fn whole(found: BTreeMap<Register, Vec<OpId>>) -> Result<BTreeMap<Register, OpId>, String> {
    let one = |(register, values): (Register, Vec<OpId>)| {
        let same = values.iter().all(|value| *value == values[0]);
        if same && values.len() == PARTS.len() {
            Ok((register, values[0]))
        } else {
            Err(format!("{register:?} has the rows {values:?}"))
        }
    };
    found.into_iter().map(one).collect()
}
