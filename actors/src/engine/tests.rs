//! The write side as a whole, simulated: races, conflicts, pressure, crashes.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join_all;
use kymo_kernel::Code;
use kymo_kernel::env::Clock;
use kymo_kernel::message::{Append, Beside, Ddl, TableChange, Write};
use kymo_kernel::schema::{TableBatch, TableDef, TableName};
use kymo_kernel::storage::log::Record;

use super::kit::{Life, World, cpu, integers, rows, rows_of, write};
use crate::feed::{FeedEvent, TableFilter};
use crate::ingest::check::{Known, check};
use crate::ingest::rejected::{self, Refused};

#[test]
fn an_acknowledged_write_is_readable_at_once() {
    let world = World::new(1);
    world.run(async {
        let life = world.open();
        let acked = life.write(rows(&cpu(), &[("a", 1, 1.0), ("b", 1, 2.0)])).await.unwrap();
        assert_eq!(acked.rows, 2);
        assert!(acked.rejected.is_empty());
        let version = life.version(&cpu());
        assert_eq!(Some(version.watermark), acked.position);
        assert_eq!(life.points(&cpu(), "value").len(), 2);
    });
}

#[test]
fn racing_creations_of_one_table_are_merged() {
    let world = World::new(2);
    world.run(async {
        let life = world.open();
        let fields = ["f0", "f1", "f2", "f3", "f4", "f5", "f6", "f7"];
        let writes = fields.map(|field| life.write(rows_of(&cpu(), &[("a", 1, 1.0)], field)));
        for outcome in join_all(writes).await {
            assert_eq!(outcome.unwrap().rows, 1);
        }
        let catalog = life.engine.store().catalog();
        assert_eq!(catalog.tables.len(), 1);
        for field in fields {
            assert_eq!(life.points(&cpu(), field).len(), 1, "{field}");
        }
    });
}

#[test]
fn racing_types_of_one_column_keep_one_and_reject_the_other() {
    let world = World::new(3);
    world.run(async {
        let life = world.open();
        let float = life.write(rows(&cpu(), &[("a", 1, 1.0)]));
        let integer = life.write(integers(&cpu(), &[("a", 2, Some(1))]));
        let (float, integer) = futures::join!(float, integer);
        let (float, integer) = (float.unwrap(), integer.unwrap());
        assert_eq!(float.rows + integer.rows, 1);
        let rejected = [float.rejected, integer.rejected].concat();
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].line, 1);
        assert_eq!(rejected[0].error.code(), Code::TypeConflict);
    });
}

#[test]
fn a_conflict_costs_its_line_or_the_request() {
    let world = World::new(4);
    world.run(async {
        let life = world.open();
        life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
        let mixed = || integers(&cpu(), &[("a", 2, None), ("a", 3, Some(7)), ("a", 4, None)]);
        let acked = life.write(mixed()).await.unwrap();
        assert_eq!((acked.rows, acked.rejected.len()), (2, 1));
        assert_eq!(acked.rejected[0].line, 2);
        let all_or_nothing = Write {
            partial: false,
            ..write(vec![rows(&TableName::new("kymo", "fresh"), &[("a", 1, 1.0)]), mixed()])
        };
        let error = life.engine.write().call(all_or_nothing).await.unwrap_err();
        assert_eq!(error.code(), Code::TypeConflict);
        assert!(error.hint().unwrap().starts_with("line 2:"), "{error:?}");
        let catalog = life.engine.store().catalog();
        assert!(catalog.table(&TableName::new("kymo", "fresh")).is_none());
    });
}

#[test]
fn without_leave_nothing_is_created() {
    let world = World::new(5);
    world.run(async {
        let life = world.open();
        let strict = |batch| Write { create: false, ..write(vec![batch]) };
        let call = |write| life.engine.write().call(write);
        let error = call(strict(rows(&cpu(), &[("a", 1, 1.0)]))).await.unwrap_err();
        assert_eq!(error.code(), Code::TableNotFound);
        let elsewhere = rows(&TableName::new("nowhere", "cpu"), &[("a", 1, 1.0)]);
        let error = call(strict(elsewhere)).await.unwrap_err();
        assert_eq!(error.message(), "database not found: \"nowhere\"");
        life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
        let error = call(strict(rows_of(&cpu(), &[("a", 1, 1.0)], "other"))).await.unwrap_err();
        assert_eq!(error.code(), Code::ColumnNotFound);
    });
}

#[test]
fn one_column_too_many_costs_the_rows_that_use_it() {
    let mut world = World::new(6);
    world.settings.ingest.max_columns = 2;
    world.run(async {
        let life = world.open();
        life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
        let acked = life.write(rows_of(&cpu(), &[("a", 2, 1.0)], "third")).await.unwrap();
        assert_eq!(acked.rows, 0);
        assert_eq!(acked.rejected[0].error.code(), Code::LimitReached);
        assert_eq!(life.write(rows(&cpu(), &[("a", 3, 1.0)])).await.unwrap().rows, 1);
    });
}

#[test]
fn full_memory_turns_writes_away_until_a_flush_makes_room() {
    let mut world = World::new(7);
    world.settings.memtable.table_bytes = 1 << 40;
    world.settings.memtable.soft_bytes = 1 << 40;
    world.settings.memtable.hard_bytes = 64 << 10;
    world.run(async {
        let life = world.open();
        let fill = |from: i64| {
            let points: Vec<_> = (from..from + 500).map(|time| ("a", time, 1.0)).collect();
            life.write(rows(&cpu(), &points))
        };
        let mut kept = 0;
        let refused = loop {
            match fill(kept).await {
                Ok(acked) => kept += i64::try_from(acked.rows).unwrap(),
                Err(error) => break error,
            }
            assert!(kept < 100_000, "the hard limit never refuses");
        };
        assert_eq!(refused.code(), Code::Busy);
        life.engine.writers().flush().await.unwrap();
        assert_eq!(fill(kept).await.unwrap().rows, 500);
        assert_eq!(life.points(&cpu(), "value").len() as i64, kept + 500);
    });
}

#[test]
fn size_freezes_and_flushes_by_itself() {
    let mut world = World::new(8);
    world.settings.memtable.table_bytes = 16 << 10;
    world.run(async {
        let life = world.open();
        for round in 0..20 {
            let points: Vec<_> = (0..200).map(|row| ("a", round * 200 + row, 1.0)).collect();
            life.write(rows(&cpu(), &points)).await.unwrap();
        }
        wait_until(&world, || life.version(&cpu()).frozen.is_empty()).await;
        assert!(!life.version(&cpu()).segments.is_empty());
        assert_eq!(life.points(&cpu(), "value").len(), 4000);
    });
}

#[test]
fn age_flushes_rows_of_a_quiet_table() {
    let world = World::new(9);
    world.run(async {
        let life = world.open();
        life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
        world.sim.clock.sleep(Duration::from_secs(299)).await;
        assert!(life.version(&cpu()).segments.is_empty());
        world.sim.clock.sleep(Duration::from_secs(3)).await;
        assert_eq!(life.version(&cpu()).segments.len(), 1);
        assert_eq!(life.engine.memory().total(), 0);
    });
}

#[test]
fn a_killed_process_keeps_what_it_acknowledged() {
    let world = World::new(10);
    world.run(async {
        let life = world.open();
        for time in 0..50 {
            life.write(rows(&cpu(), &[("a", time, 1.0), ("b", time, 2.0)])).await.unwrap();
            if time == 20 {
                life.engine.writers().flush().await.unwrap();
            }
        }
        drop(life);
    });
    world.sim.disk.crash(10);
    world.run(async {
        let life = world.open();
        assert_eq!(life.points(&cpu(), "value").len(), 100);
        assert_eq!(life.write(rows(&cpu(), &[("a", 100, 1.0)])).await.unwrap().rows, 1);
        assert_eq!(life.points(&cpu(), "value").len(), 101);
    });
}

#[test]
fn a_table_may_be_dropped_while_it_is_written_to() {
    let world = World::new(11);
    world.run(async {
        let life = world.open();
        life.write(rows(&cpu(), &[("a", 0, 1.0)])).await.unwrap();
        let strict =
            |time| Write { create: false, ..write(vec![rows(&cpu(), &[("a", time, 1.0)])]) };
        let writes = (1..20).map(|time| life.engine.write().call(strict(time)));
        let ddl = Ddl::DropTable { name: cpu(), if_exists: false };
        let (outcomes, dropped) = futures::join!(join_all(writes), life.engine.ddl().call(ddl));
        assert!(dropped.unwrap().changed);
        for outcome in outcomes {
            // Each is answered: kept before the drop, or told that the table is gone.
            if let Err(error) = outcome {
                assert_eq!(error.code(), Code::TableNotFound);
            }
        }
        wait_until(&world, || life.engine.memory().total() == 0).await;
        // The name comes back as a new, empty table.
        life.write(rows(&cpu(), &[("b", 9, 9.0)])).await.unwrap();
        assert_eq!(life.points(&cpu(), "value").len(), 1);
    });
}

#[test]
fn draining_answers_every_accepted_write() {
    let world = World::new(12);
    world.run(async {
        let life = world.open();
        let accepted: Vec<_> = (0..30)
            .map(|time| {
                life.engine.write().try_call(write(vec![rows(&cpu(), &[("a", time, 1.0)])]))
            })
            .collect::<Result<_, _>>()
            .unwrap();
        let (outcomes, ()) = futures::join!(join_all(accepted), life.engine.drain());
        assert!(outcomes.iter().all(Result::is_ok));
        let late = life.write(rows(&cpu(), &[("a", 99, 1.0)])).await.unwrap_err();
        assert_eq!(late.code(), Code::ShuttingDown);
        assert_eq!(life.points(&cpu(), "value").len(), 30);
    });
}

#[test]
fn the_feed_tells_what_was_committed_in_order() {
    let world = World::new(13);
    world.run(async {
        let life = world.open();
        let mut subscription = life.engine.feed().subscribe(TableFilter::All, 1 << 20);
        for time in 0..5 {
            life.write(rows(&cpu(), &[("a", time, 1.0)])).await.unwrap();
        }
        let mut last = None;
        for _ in 0..5 {
            let Some(FeedEvent::Committed(rows)) = subscription.recv().await else {
                panic!("rows expected");
            };
            assert!(last < Some(rows.position));
            last = Some(rows.position);
        }
    });
}

#[test]
fn small_segments_are_merged_and_keep_their_rows() {
    let mut world = World::new(14);
    world.settings.compaction.interval_ms = 1000;
    world.run(async {
        let life = world.open();
        let mut expected = BTreeMap::new();
        for round in 0..8 {
            for time in 0..10 {
                expected.insert(("a".to_owned(), time), f64::from(round));
            }
            let points: Vec<_> = (0..10).map(|time| ("a", time, f64::from(round))).collect();
            life.write(rows(&cpu(), &points)).await.unwrap();
            life.engine.writers().flush().await.unwrap();
        }
        wait_until(&world, || life.version(&cpu()).segments.len() < 4).await;
        assert_eq!(life.points(&cpu(), "value"), expected);
    });
}

#[test]
fn a_crowded_window_is_merged_though_nothing_else_asks_for_it() {
    let mut world = World::new(15);
    world.settings.compaction.min_segments = 3;
    world.settings.compaction.max_segments = 3;
    world.settings.compaction.target_bytes = 1 << 40;
    world.run(async {
        let life = world.open();
        // One large segment and small ones on both sides of it: no three of about one size are
        // neighbours, and merging all would hardly be worth it.
        for count in [1, 40_000, 1, 1] {
            let points: Vec<_> = (0..count).map(|time| ("a", time, (time % 97) as f64)).collect();
            life.write(rows(&cpu(), &points)).await.unwrap();
            life.engine.writers().flush().await.unwrap();
        }
        wait_until(&world, || life.version(&cpu()).segments.len() == 1).await;
        let done = life.engine.history().all();
        assert_eq!((done.len(), done[0].reason.as_str(), done[0].inputs), (1, "pressure", 4));
    });
}

#[test]
fn a_damaged_window_holds_up_no_other() {
    let mut world = World::new(16);
    world.settings.compaction.min_segments = 2;
    world.settings.compaction.quiet_ms = 1000;
    world.run(async {
        let life = world.open();
        let mem = TableName::new("kymo", "mem");
        let week = 7 * 86_400_000_000_000;
        for round in 0..4 {
            let points = [("a", round, 1.0), ("a", week + round, 1.0)];
            life.write(rows(&cpu(), &points)).await.unwrap();
            life.write(rows(&mem, &points)).await.unwrap();
            life.engine.writers().flush().await.unwrap();
            if round == 0 {
                let version = life.version(&cpu());
                let mut metas = version.segments.iter().map(|each| each.meta());
                let first = metas.find(|meta| meta.time.first < week).unwrap();
                let damaged = std::path::Path::new("/data").join(&first.path);
                world.sim.disk.flip_bit(&damaged, 8, 1).unwrap();
            }
        }
        let count = |table: &TableName, first: bool| {
            let version = life.version(table);
            let here =
                version.segments.iter().filter(|each| (each.meta().time.first < week) == first);
            here.count()
        };
        wait_until(&world, || {
            count(&cpu(), false) == 1 && count(&mem, true) == 1 && count(&mem, false) == 1
        })
        .await;
        assert_eq!(count(&cpu(), true), 4, "what is damaged stays for repair");
        let failed = |each: &kymo_kernel::message::Compaction| each.error.is_some();
        wait_until(&world, || life.engine.history().all().iter().any(failed)).await;
        let history = life.engine.history().all();
        let failed = history.iter().find(|each| failed(each)).unwrap();
        assert!(failed.error.as_deref().unwrap().contains("does not verify"), "{failed:?}");
        assert_eq!((&failed.table, failed.window), (&cpu(), Some(0)));
    });
}

#[test]
fn many_lives_under_one_seed_lose_nothing() {
    for seed in 0..seeds() {
        one_history(seed, &World::new(seed));
    }
}

#[test]
#[should_panic]
fn a_disk_that_lies_about_syncs_is_found_out() {
    for seed in 0..20 {
        let world = World::new(seed);
        world.sim.disk.break_sync(true);
        one_history(seed, &world);
    }
}

fn seeds() -> u64 {
    std::env::var("KYMO_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20)
}

/// Writes, flushes, waits, crashes and reopens by the seed, against a map of what was
/// acknowledged and what may have been kept.
fn one_history(seed: u64, world: &World) {
    let mut world = World { sim: world.sim.clone(), settings: world.settings.clone() };
    world.settings.memtable.table_bytes = 8 << 10;
    world.settings.journal.file_bytes = 16 << 10;
    world.settings.compaction.interval_ms = 50;
    let mut dice = Dice(seed);
    let mut oracle = Oracle::default();
    for life in 0..3 {
        world.run(async {
            let life = world.open();
            oracle.check(seed, &life);
            for _ in 0..40 {
                step(&world, &life, &mut dice, &mut oracle).await;
            }
            oracle.check(seed, &life);
            // Writes that are under way when the process dies may or may not survive.
            let pending: Vec<_> = (0..3).map(|_| oracle.unsure(&mut dice)).collect();
            for (host, time, value) in pending {
                let call = write(vec![rows(&cpu(), &[(host, time, value)])]);
                drop(life.engine.write().try_call(call));
            }
        });
        world.sim.disk.crash(seed * 31 + life);
    }
    world.run(async {
        let life = world.open();
        oracle.check(seed, &life);
    });
}

async fn step(world: &World, life: &Life, dice: &mut Dice, oracle: &mut Oracle) {
    match dice.below(10) {
        0 => life.engine.writers().flush().await.unwrap(),
        1 => world.sim.clock.sleep(Duration::from_millis(dice.below(200))).await,
        _ => {
            let batches: Vec<Vec<_>> = (0..1 + dice.below(3))
                .map(|_| (0..1 + dice.below(30)).map(|_| oracle.point(dice)).collect())
                .collect();
            let writes = batches.iter().map(|points| life.write(rows(&cpu(), points)));
            let outcomes = join_all(writes).await;
            for (points, outcome) in batches.into_iter().zip(outcomes) {
                let acked = outcome.unwrap();
                assert_eq!(acked.rows, points.len() as u64);
                for (host, time, value) in points {
                    oracle.kept.entry((host.to_owned(), time)).or_default().push(value);
                    oracle.kept.entry((host.to_owned(), time)).or_default().retain(|v| *v >= value);
                }
            }
        }
    }
}

/// What a reader may see: for each point the values it may have.
#[derive(Default)]
struct Oracle {
    kept: BTreeMap<(String, i64), Vec<f64>>,
    maybe: BTreeMap<(String, i64), Vec<f64>>,
    next: f64,
}

impl Oracle {
    /// A point to write: values grow, so that a later write is known by a larger value.
    fn point(&mut self, dice: &mut Dice) -> (&'static str, i64, f64) {
        self.next += 1.0;
        let host = ["a", "b", "c"][usize::try_from(dice.below(3)).unwrap()];
        (host, i64::try_from(dice.below(400)).unwrap() * 1_000_000_000, self.next)
    }

    fn unsure(&mut self, dice: &mut Dice) -> (&'static str, i64, f64) {
        let (host, time, value) = self.point(dice);
        self.maybe.entry((host.to_owned(), time)).or_default().push(value);
        (host, time, value)
    }

    fn check(&self, seed: u64, life: &Life) {
        let Some(_) = life.engine.store().catalog().table(&cpu()) else {
            assert!(self.kept.is_empty(), "seed {seed}: the table is gone");
            return;
        };
        let stored = life.points(&cpu(), "value");
        for (key, values) in &self.kept {
            let Some(value) = stored.get(key) else { panic!("seed {seed}: lost {key:?}") };
            let maybe = self.maybe.get(key).is_some_and(|maybe| maybe.contains(value));
            assert!(
                maybe || values.contains(value),
                "seed {seed}: {key:?} is {value}, not {values:?}"
            );
        }
        for (key, value) in &stored {
            let maybe = self.maybe.get(key).is_some_and(|maybe| maybe.contains(value));
            assert!(maybe || self.kept.contains_key(key), "seed {seed}: nobody wrote {key:?}");
        }
    }
}

/// SplitMix64, as in the simulated world.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }
}

/// Lets virtual time pass until something holds.
async fn wait_until(world: &World, holds: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if holds() {
            return;
        }
        world.sim.clock.sleep(Duration::from_millis(10)).await;
    }
    panic!("did not come to pass within 100 s");
}

/// The table of refused rows, made if there is none.
async fn rejected_table(life: &Life) -> std::sync::Arc<TableDef> {
    let ddl = Ddl::CreateTable {
        name: rejected::name("kymo"),
        schema: rejected::schema(),
        options: rejected::options(),
        if_not_exists: true,
        create_database: false,
        retention_ns: None,
    };
    life.engine.ddl().call(ddl).await.unwrap().table.unwrap()
}

/// Rows as their table takes them, with their record.
fn encoded(
    rows: &TableBatch,
    def: &std::sync::Arc<TableDef>,
) -> (arrow::array::RecordBatch, Record) {
    let known = Known::new(def.clone()).unwrap();
    let batch = check(rows, Some(&known)).unwrap().batch;
    let record = Record::encode(def.id, def.schema.version, &batch).unwrap();
    (batch, record)
}

fn refused(time: i64) -> TableBatch {
    let mut refused = Refused::new(cpu(), time);
    let rows = rows(&cpu(), &[("a", time, 1.0), ("b", time, 2.0)]);
    refused.add_all("p.f", &rows.batch, "odd").unwrap();
    refused.finish().unwrap().unwrap()
}

#[test]
fn rows_of_two_tables_become_durable_and_visible_together() {
    for seed in 0..20 {
        let world = World::new(seed);
        let acked = world.run(async {
            let life = world.open();
            life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
            let other = rejected_table(&life).await;
            let catalog = life.engine.store().catalog();
            let def = catalog.table(&cpu()).unwrap().def.clone();
            let mut acked = 0;
            for time in 2..10 {
                let (batch, record) = encoded(&rows(&cpu(), &[("a", time, 1.0)]), &def);
                let (second, beside) = encoded(&refused(time), &other);
                let (deliver, shown) = life.engine.writers().deliver(&other).unwrap();
                let beside = Some(Beside { batch: second, record: beside, deliver });
                let append = Append { batch, record, durability: None, beside };
                life.engine.writers().port(&def).unwrap().call(append).await.unwrap();
                shown.await.unwrap();
                acked += 1;
                let rows = life.version(&other.name).stored_rows();
                assert_eq!(
                    (life.points(&cpu(), "value").len() as u64, rows),
                    (acked + 1, 2 * acked)
                );
                // Each of them is flushed at times of its own.
                if time % 3 == 0 {
                    life.engine.writers().flush().await.unwrap();
                }
            }
            acked
        });
        world.sim.disk.crash(seed);
        world.run(async {
            let life = world.open();
            let kept = life.points(&cpu(), "value").len() as u64;
            let rows = life.version(&rejected::name("kymo")).stored_rows();
            assert_eq!((kept, rows), (acked + 1, 2 * acked), "seed {seed}");
        });
    }
}

#[test]
fn the_oldest_refused_rows_go_beyond_the_bound() {
    let mut world = World::new(50);
    world.settings.compaction.enabled = false;
    world.settings.ingest.rejected_bytes = 1;
    world.run(async {
        let life = world.open();
        let def = rejected_table(&life).await;
        for time in 1..4 {
            let (batch, record) = encoded(&refused(time), &def);
            let append = Append { batch, record, durability: None, beside: None };
            life.engine.writers().port(&def).unwrap().call(append).await.unwrap();
            if time < 3 {
                life.engine.writers().flush().await.unwrap();
            }
        }
        assert_eq!(life.version(&def.name).segments.len(), 2);
        world.sim.clock.sleep(Duration::from_secs(11)).await;
        // What is in memory stays: it is no segment yet.
        let version = life.version(&def.name);
        assert_eq!((version.segments.len(), version.stored_rows()), (0, 2));
        let table = life.engine.store().catalog().table(&def.name).unwrap().clone();
        assert!(table.segments.is_empty());
    });
}

#[test]
fn columns_change_under_writes_and_stay_changed_after_a_crash() {
    let world = World::new(12);
    let wide = TableName::new("kymo", "wide");
    let seen = |life: &Life| {
        let of = |table: &TableName, field: &str| life.points(table, field);
        (of(&cpu(), "load"), of(&cpu(), "value"), of(&wide, "value"))
    };
    let before = world.run(async {
        let life = world.open();
        let alter = |name: &TableName, change: TableChange| {
            let (name, changes) = (name.clone(), vec![change]);
            life.engine.ddl().call(Ddl::AlterTable { name, if_exists: false, changes })
        };
        life.write(rows(&cpu(), &[("a", 1, 1.0)])).await.unwrap();
        let to_load = TableChange::RenameColumn { from: "value".into(), to: "load".into() };
        let under_way = life.write(rows(&cpu(), &[("a", 2, 2.0)]));
        let (written, renamed) = futures::join!(under_way, alter(&cpu(), to_load));
        assert_eq!(written.unwrap().rows, 1);
        assert!(renamed.unwrap().changed);
        // The writer goes on with the old name, which becomes a column of its own.
        life.write(rows(&cpu(), &[("b", 1, 7.0)])).await.unwrap();
        let (load, value) = (life.points(&cpu(), "load"), life.points(&cpu(), "value"));
        assert_eq!(load[&("a".to_owned(), 1)], 1.0);
        assert_eq!((load.len() + value.len(), value[&("b".to_owned(), 1)]), (3, 7.0));
        let drop_value = TableChange::DropColumn { name: "value".into(), if_exists: false };
        alter(&cpu(), drop_value).await.unwrap();
        let back = rows(&cpu(), &[("b", 2, 9.0)]);
        life.write(back).await.unwrap();

        life.write(integers(&wide, &[("a", 1, Some(5))])).await.unwrap();
        let float = || rows(&wide, &[("a", 2, 0.5)]);
        let refused = life.write(float()).await.unwrap().rejected;
        assert_eq!(refused[0].error.code(), Code::TypeConflict);
        alter(&wide, TableChange::WidenIntegers(true)).await.unwrap();
        let written = join_all([
            life.write(float()),
            life.write(integers(&wide, &[("a", 3, Some(6))])),
            life.write(integers(&wide, &[("a", 4, Some((1 << 53) + 1))])),
        ]);
        let written = written.await.into_iter().map(|acked| acked.unwrap().rows);
        let written: u64 = written.sum();
        let later = life.write(integers(&wide, &[("a", 5, Some((1 << 53) + 1))])).await.unwrap();
        assert_eq!((later.rows, later.rejected.len()), (0, 1));

        let before = seen(&life);
        assert_eq!(before.1, BTreeMap::from([(("b".to_owned(), 2), 9.0)]));
        assert_eq!(before.2.len() as u64, written + 1);
        assert_eq!((before.2[&("a".to_owned(), 1)], before.2[&("a".to_owned(), 2)]), (5.0, 0.5));
        before
    });
    world.sim.disk.crash(10);
    world.run(async {
        let life = world.open();
        assert_eq!(seen(&life), before);
        life.engine.writers().flush().await.unwrap();
        assert_eq!(seen(&life), before);
    });
}
