//! One run of the model: a seed decides what happens.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kymo_config::Settings;
use kymo_config::settings::Compaction;
use kymo_kernel::cancel::CancelToken;
use kymo_kernel::digest::Digest;
use kymo_kernel::env::Env;
use kymo_kernel::env::failpoint::{Effect, Failpoints, OnError, Shot};
use kymo_kernel::env::sim::{Dice, Fault, Operation, Sim};
use kymo_kernel::ids::{ColumnId, Position, SegmentId, Seq, TableId};
use kymo_kernel::message::Durability;
use kymo_kernel::plugin::PluginDef;
use kymo_kernel::schema::{
    Column, ColumnKind, FieldType, TableDef, TableName, TableOptions, TableSchema,
};
use kymo_kernel::storage::Store;
use kymo_kernel::storage::compact;
use kymo_kernel::storage::log::{Record, RecordGroup};
use kymo_kernel::storage::meta::retention::{RetentionOf, expired_upto};
use kymo_kernel::storage::meta::{Op, SegmentMeta};
use kymo_kernel::storage::segment::TagFilter;
use kymo_kernel::storage::version::{TableState, Version};
use kymo_kernel::storage::{delete, expire, tier};
use kymo_kernel::{Code, Error, Result};
use parking_lot::Mutex;

mod rows;

use crate::kit::faulty::{Faulty, Plan};
use crate::kit::plugin::plugin;
use rows::{Condition, Content, Event, F1, Row, batch, content, expected, unexpired};

/// Something the store did that it must not do.
#[derive(Debug)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

fn broken<T>(what: impl Into<String>) -> Result<T, Violation> {
    Err(Violation(what.into()))
}

/// A group that was sent to the log: rows of one table, or of two that live or die together.
struct Write {
    parts: Vec<(TableId, Vec<Row>)>,
    /// Told to be as durable as asked.
    acked: bool,
    /// Must survive any crash.
    safe: bool,
}

impl Write {
    fn of(&self, table: TableId) -> bool {
        self.parts.iter().any(|(of, _)| *of == table)
    }
}

/// Rows that were deleted, of those that were written before.
struct Deletion {
    table: TableId,
    /// How many of the writes came before.
    after: usize,
    condition: Condition,
    /// Whether its edit is known to count.
    sure: bool,
}

type Answers = Arc<Mutex<Vec<(usize, Durability, Result<Position>)>>>;

/// What runs came across, so that a model that tests nothing is noticed.
#[derive(Debug, Default, Clone, Copy)]
pub struct Coverage {
    pub acknowledged: usize,
    pub pairs: usize,
    pub flushes: usize,
    pub merges: usize,
    pub moves: usize,
    pub deletes: usize,
    pub expiries: usize,
    pub installs: usize,
    pub alters: usize,
    pub poisons: usize,
    pub recoveries: usize,
    pub survivors: usize,
    pub lost: usize,
}

impl std::ops::AddAssign for Coverage {
    fn add_assign(&mut self, other: Coverage) {
        self.acknowledged += other.acknowledged;
        self.pairs += other.pairs;
        self.flushes += other.flushes;
        self.merges += other.merges;
        self.moves += other.moves;
        self.deletes += other.deletes;
        self.expiries += other.expiries;
        self.installs += other.installs;
        self.alters += other.alters;
        self.poisons += other.poisons;
        self.recoveries += other.recoveries;
        self.survivors += other.survivors;
        self.lost += other.lost;
    }
}

/// The state of a run.
pub struct Run {
    pub coverage: Coverage,
    seed: u64,
    dice: Dice,
    sim: Sim,
    settings: Settings,
    store: Option<Arc<Store>>,
    /// What the writers hold.
    states: BTreeMap<TableId, TableState>,
    /// Tables that must exist.
    tables: BTreeMap<TableId, Arc<TableDef>>,
    /// Plugins that must exist, with their components.
    plugins: BTreeMap<String, Arc<PluginDef>>,
    /// In the order of the log.
    writes: Vec<Write>,
    /// In order.
    deletions: Vec<Deletion>,
    /// The latest edge that rows of a table may have expired at.
    edges: BTreeMap<TableId, i64>,
    answers: Answers,
    /// The metadata may or may not contain the last change.
    unsure: bool,
    /// Stays false on a disk that lies.
    honest: bool,
    target: Option<Target>,
    counter: i64,
    narrate: bool,
}

/// A failpoint that a run has to come by.
struct Target {
    shot: Shot,
    disk: Failpoints,
    /// The process that was killed there is buried.
    buried: bool,
    /// What came of the error was looked at.
    judged: bool,
}

impl Target {
    fn fails(&self) -> bool {
        matches!(self.shot.effect, Effect::Eio | Effect::Enospc)
    }
}

const ROOT: &str = "/store";
const STEPS: usize = 40;

impl Run {
    pub fn new(seed: u64, broken_sync: bool) -> Run {
        let sim = Sim::new(seed);
        sim.disk.break_sync(broken_sync);
        let mut dice = Dice::new(seed.wrapping_mul(0x1234_5678_9abc_def1) + 1);
        let mut settings = Settings::default();
        settings.journal.file_bytes = 2048 + dice.below(6000) as u64;
        settings.journal.replay_bytes = [1, 2000, 1 << 30][dice.below(3)];
        if !seed.is_multiple_of(4) {
            settings.journal.retention = "1h".to_owned();
            settings.journal.retention_bytes = [0, 4096, 1 << 30][seed as usize % 3];
        }
        settings.compaction.grace_ms = 1000;
        settings.compaction.min_segments = 2;
        if seed % 3 == 1 {
            settings.storage.cold_url = "/second".to_owned();
        }
        Run {
            coverage: Coverage::default(),
            seed,
            dice,
            sim,
            settings,
            store: None,
            states: BTreeMap::new(),
            tables: BTreeMap::new(),
            plugins: BTreeMap::new(),
            writes: Vec::new(),
            deletions: Vec::new(),
            edges: BTreeMap::new(),
            answers: Answers::default(),
            unsure: false,
            honest: !broken_sync,
            target: None,
            counter: 0,
            narrate: false,
        }
    }

    /// A run whose segments, metadata and plugins lie in a bucket that fails now and then; the
    /// journal alone is on the simulated disk.
    pub fn in_bucket(seed: u64) -> Run {
        let mut run = Run::new(seed, false);
        let bucket = Faulty::default();
        *bucket.plan.lock() = Plan { often: Some((Dice::new(seed), 25)), ..Plan::default() };
        kymo_kernel::bucket::register(&format!("model-{seed}"), Arc::new(bucket));
        run.settings.storage.url = format!("memory://model-{seed}/store");
        if seed.is_multiple_of(3) {
            run.settings.storage.cold_url = format!("memory://model-{seed}/second");
        }
        run.settings.storage.part_bytes = [700, 3000, 1 << 20][run.dice.below(3)];
        run.settings.storage.cache_bytes = [1, 1 << 30][run.dice.below(2)];
        run
    }

    /// A run in which something happens at a failpoint. A kill there is one of the process, or
    /// takes the power with it.
    pub fn shooting(seed: u64, shot: Shot) -> Run {
        let mut run = Run::new(seed, false);
        let (sim, power_cut) = (run.sim.clone(), run.dice.chance(60));
        let cut = run.dice.next();
        let kill = move || {
            if power_cut {
                sim.disk.crash(cut);
            }
        };
        let shots = vec![shot.clone()];
        let disk = Failpoints::new(run.sim.disk.clone(), Path::new(ROOT), shots, kill);
        run.target = Some(Target { shot, disk, buried: false, judged: false });
        run
    }

    /// Whether the failpoint was reached at the time that was ordered.
    pub fn fired(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.disk.fired() > 0)
    }

    /// Durable steps that have no name.
    pub fn unnamed(&self) -> Vec<String> {
        self.target.as_ref().map(|target| target.disk.unnamed()).unwrap_or_default()
    }

    /// The outside world of the next process.
    fn env(&self) -> Env {
        match &self.target {
            Some(target) if !target.disk.is_dead() => {
                Env { disk: Arc::new(target.disk.clone()), ..self.sim.env() }
            }
            _ => self.sim.env(),
        }
    }

    /// Whether the current process was killed at the failpoint.
    fn is_killed(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.disk.is_dead() && !target.buried)
    }

    /// An error at a failpoint comes to what the list of failpoints says.
    fn judge(&mut self) -> Result<(), Violation> {
        let stopped = self.store.as_ref().is_some_and(|store| store.poisoned().is_some());
        let Some(target) = self.target.as_mut() else { return Ok(()) };
        if !target.fails() || target.disk.fired() == 0 || target.judged {
            return Ok(());
        }
        target.judged = true;
        let should = target.shot.point.on_error() == OnError::Stop;
        if stopped != should {
            return broken(format!("the store stopped: {stopped}, should have: {should}"));
        }
        Ok(())
    }

    pub fn narrate(&mut self) {
        self.narrate = true;
    }

    fn say(&self, what: impl FnOnce() -> String) {
        if self.narrate {
            println!("{}", what());
        }
    }

    pub fn all(&mut self) -> Result<(), Violation> {
        self.reopen()?;
        let steps = STEPS / 2 + self.dice.below(STEPS);
        for _ in 0..steps {
            self.one()?;
        }
        self.say(|| "the end".to_owned());
        self.crash()?;
        self.crash()
    }

    fn one(&mut self) -> Result<(), Violation> {
        let outcome = self.step_once();
        if self.is_killed() {
            // What a dead process saw does not count.
            return self.crash_or_kill();
        }
        outcome?;
        self.judge()
    }

    fn step_once(&mut self) -> Result<(), Violation> {
        if self.store().poisoned().is_some() {
            self.coverage.poisons += 1;
            self.after_poison()?;
            return self.crash_or_kill();
        }
        match self.dice.below(100) {
            0..40 => self.append(),
            40..42 => self.relocate(),
            42..44 => self.install(),
            44..45 => self.drop_plugin(),
            45..60 => self.step(),
            60..70 => self.flush(),
            70..73 => self.merge(),
            73..74 => self.delete(),
            74..76 => self.expire(),
            76..80 => self.create_table(),
            80..83 => self.alter_table(),
            83..85 => self.drop_table(),
            85..89 => {
                self.inject();
                Ok(())
            }
            89..92 => self.collect(),
            92..95 => self.compare_live(),
            95..98 => self.crash_or_kill(),
            _ => self.close(),
        }
    }

    fn store(&self) -> Arc<Store> {
        match &self.store {
            Some(store) => store.clone(),
            None => unreachable!("a run begins by opening the store"),
        }
    }

    /// A metadata edit; after a failure nobody knows whether it counts.
    fn commit(&mut self, op: Op) -> bool {
        let outcome = self.store().commit(vec![op]);
        if let Err(error) = &outcome {
            self.say(|| format!("  commit failed: {error}"));
            self.unsure = true;
        }
        outcome.is_ok()
    }

    fn pick_table(&mut self) -> Option<Arc<TableDef>> {
        let at = self.dice.below(self.tables.len());
        self.tables.values().nth(at).cloned()
    }

    fn create_table(&mut self) -> Result<(), Violation> {
        if self.tables.len() >= 3 {
            return Ok(());
        }
        let id = self.store().catalog().next_table;
        let columns = vec![
            Column::new(ColumnId(1), "host", ColumnKind::Tag, FieldType::Text),
            Column::new(ColumnId(2), "time", ColumnKind::Time, FieldType::Timestamp),
            Column::new(ColumnId(3), "f1", ColumnKind::Field, FieldType::Int64),
        ];
        let def = TableDef {
            id,
            name: TableName::new("kymo", format!("t{id}")),
            schema: TableSchema { version: 1, columns },
            options: TableOptions {
                append_only: self.dice.chance(30),
                window_ns: 10_000_000_000,
                ..TableOptions::default()
            },
        };
        self.say(|| format!("create {} append_only={}", def.name, def.options.append_only));
        if self.commit(Op::PutTable { def: def.clone() }) {
            self.adopt(Arc::new(def))?;
        }
        Ok(())
    }

    fn adopt(&mut self, def: Arc<TableDef>) -> Result<(), Violation> {
        match self.store().claim(def.id) {
            Ok(state) => {
                self.states.insert(def.id, state);
                self.tables.insert(def.id, def);
                Ok(())
            }
            Err(error) => broken(format!("table {} cannot be claimed: {error}", def.name)),
        }
    }

    /// Adds a column, drops one or gives one another name.
    fn alter_table(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        let mut def = TableDef::clone(&def);
        let catalog = self.store().catalog();
        let Some(meta) = catalog.table_by_id(def.id) else { return Ok(()) };
        let columns = &mut def.schema.columns;
        let any = self.dice.below(columns.len());
        let name = format!("c{}", self.dice.below(6));
        let taken = columns.iter().any(|column| column.name == name);
        match self.dice.below(4) {
            0 if columns[any].kind == ColumnKind::Field && columns[any].id != F1 => {
                columns.remove(any);
            }
            1 if !taken => columns[any].name = name,
            _ if taken => return Ok(()),
            _ => {
                let id = meta.next_column;
                let (kind, field_type) = match id.0 % 3 {
                    0 => (ColumnKind::Tag, FieldType::Text),
                    1 => (ColumnKind::Field, FieldType::Float64),
                    _ => (ColumnKind::Field, FieldType::Text),
                };
                columns.push(Column { id, name, kind, field_type });
            }
        }
        def.schema.version += 1;
        self.say(|| format!("alter {} to {:?}", def.name, def.schema));
        if self.commit(Op::PutTable { def: def.clone() }) {
            let def = Arc::new(def);
            if let Some(state) = self.states.get_mut(&def.id)
                && let Err(error) = state.alter(def.clone())
            {
                return broken(format!("table {} cannot be altered: {error}", def.name));
            }
            self.coverage.alters += 1;
            self.tables.insert(def.id, def);
        }
        Ok(())
    }

    fn drop_table(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        self.say(|| format!("drop {}", def.name));
        if self.commit(Op::DropTable { table: def.id }) {
            self.tables.remove(&def.id);
            if let Some(mut state) = self.states.remove(&def.id) {
                state.retire();
            }
            if self.store().table(def.id).is_some() {
                return broken(format!("table {} is dropped and still there", def.name));
            }
        }
        Ok(())
    }

    /// Uploads a component and names it as the next version of a plugin.
    fn install(&mut self) -> Result<(), Violation> {
        let name = ["p", "q"][self.dice.below(2)].to_owned();
        let component = (self.dice.below(6) as u64).to_le_bytes();
        let store = self.store();
        let upload = || {
            let mut staged = store.components().begin()?;
            component.chunks(3).try_for_each(|chunk| staged.append(chunk))?;
            staged.publish(Some(Digest::of(&component)))
        };
        if self.dice.chance(20) {
            // Begun and given up.
            let abandoned = store.components().begin();
            self.say(|| format!("an upload is given up, begun: {}", abandoned.is_ok()));
        }
        let held = match upload() {
            Ok(held) => held,
            Err(error) => {
                self.say(|| format!("upload failed: {error}"));
                return Ok(());
            }
        };
        let plugin = PluginDef {
            revision: self.plugins.get(&name).map_or(0, |known| known.revision) + 1,
            active: Some(held.digest()),
            ..plugin(&name, &[(held.digest(), held.bytes())])
        };
        self.say(|| format!("install {name} {}", held.digest()));
        if self.commit(Op::PutPlugin { plugin: plugin.clone() }) {
            self.coverage.installs += 1;
            self.plugins.insert(name, Arc::new(plugin));
        }
        Ok(())
    }

    fn drop_plugin(&mut self) -> Result<(), Violation> {
        let Some(name) = self.plugins.keys().next().cloned() else { return Ok(()) };
        self.say(|| format!("drop plugin {name}"));
        if self.commit(Op::DropPlugin { name: name.clone() }) {
            self.plugins.remove(&name);
        }
        Ok(())
    }

    /// What the metadata names is there (M1), whatever was collected (M2).
    fn check_components(&self) -> Result<(), Violation> {
        for plugin in self.plugins.values() {
            for version in &plugin.versions {
                if let Err(error) = self.store().components().read(version.digest) {
                    return broken(format!("plugin {}: {error:?}", plugin.name));
                }
            }
        }
        Ok(())
    }

    fn append(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return self.create_table() };
        let mut group = vec![self.part(&def)?];
        if self.dice.chance(25)
            && let Some(other) = self.pick_table().filter(|other| other.id != def.id)
        {
            group.push(self.part(&other)?);
        }
        let durability = match self.dice.below(10) {
            // A flush would make one half durable before the other.
            _ if group.len() > 1 => Durability::EveryWrite,
            0 => Durability::None,
            1 => Durability::OsDefault,
            2 => Durability::Periodic,
            _ => Durability::EveryWrite,
        };
        let index = self.writes.len();
        let (parts, records): (Vec<_>, Vec<_>) = group.into_iter().unzip();
        self.say(|| format!("append #{index} {durability:?}: {parts:?}"));
        self.coverage.pairs += usize::from(parts.len() > 1);
        self.writes.push(Write { parts, acked: false, safe: false });
        let answers = self.answers.clone();
        let done = move |outcome| answers.lock().push((index, durability, outcome));
        self.store().log().append(RecordGroup { records }, durability, Box::new(done));
        if self.dice.chance(50) { self.step() } else { Ok(()) }
    }

    /// A few rows of a table, and their record.
    fn part(&mut self, def: &TableDef) -> Result<((TableId, Vec<Row>), Record), Violation> {
        let count = 1 + self.dice.below(6);
        let rows: Vec<Row> = (0..count).map(|_| self.row(def)).collect();
        let record =
            batch(def, &rows).and_then(|batch| Record::encode(def.id, def.schema.version, &batch));
        match record {
            Ok(record) => Ok(((def.id, rows), record)),
            Err(error) => broken(format!("encode: {error}")),
        }
    }

    fn row(&mut self, def: &TableDef) -> Row {
        self.counter += 1;
        let counter = self.counter;
        let time = self.dice.below(30) as i64 * 1_000_000_000;
        Row::random(def, time, counter, &mut self.dice)
    }

    /// The journal's turn, and the writers' with what it answers.
    fn step(&mut self) -> Result<(), Violation> {
        if self.dice.chance(20) {
            self.sim.clock.advance(Duration::from_millis(200));
        }
        self.store().step();
        self.take_answers()
    }

    fn take_answers(&mut self) -> Result<(), Violation> {
        let answers = std::mem::take(&mut *self.answers.lock());
        for (index, durability, outcome) in answers {
            match outcome {
                Ok(position) => self.acknowledged(index, durability, position)?,
                Err(error) => self.say(|| format!("  #{index} refused: {error}")),
            }
        }
        Ok(())
    }

    fn acknowledged(
        &mut self,
        index: usize,
        durability: Durability,
        position: Position,
    ) -> Result<(), Violation> {
        self.say(|| format!("  #{index} acknowledged at {position}"));
        if self.writes[index + 1..].iter().any(|write| write.acked) {
            return broken(format!("write {index} was acknowledged after a later one"));
        }
        self.writes[index].acked = true;
        self.coverage.acknowledged += 1;
        if durability == Durability::EveryWrite {
            // One log: what is before it is as durable.
            self.writes[..=index].iter_mut().for_each(|write| write.safe = true);
        }
        let parts = &self.writes[index].parts;
        for (at, (table, rows)) in parts.iter().enumerate() {
            let Some(state) = self.states.get_mut(table) else { continue };
            let seq = Seq(position.seq.0 - (parts.len() - 1 - at) as u64);
            let applied = batch(&self.tables[table], rows)
                .and_then(|batch| state.apply(Position { seq, ..position }, batch));
            applied.map(drop).map_err(|error| Violation(format!("apply #{index}: {error}")))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Violation> {
        match self.pick_table() {
            Some(def) => self.flush_table(&def).map(|_| ()),
            None => Ok(()),
        }
    }

    /// Whether rows are in segments now that were not before.
    fn flush_table(&mut self, def: &Arc<TableDef>) -> Result<bool, Violation> {
        let Some(state) = self.states.get_mut(&def.id) else { return Ok(false) };
        let Some(frozen) = state.freeze() else { return Ok(false) };
        self.say(|| format!("flush {} up to {}", def.name, frozen.span.last));
        let written = self.store().write_frozen(def, &frozen);
        let segments = match written {
            Ok(segments) => segments,
            Err(error) => return self.gave_up(&error).map(|()| false),
        };
        let flushed_upto = frozen.span.last;
        let op = Op::AddSegments { table: def.id, segments: segments.clone(), flushed_upto };
        if !self.commit(op) {
            return Ok(false);
        }
        for write in self.writes.iter_mut().filter(|write| write.acked && write.of(def.id)) {
            write.safe = true;
        }
        if let Some(state) = self.states.get_mut(&def.id)
            && let Err(error) = state.flushed(&frozen, segments.into_iter().map(Arc::new))
        {
            return broken(format!("flushed: {error}"));
        }
        self.coverage.flushes += 1;
        Ok(true)
    }

    /// Deletes rows as the deleter does: flushed, chosen, written again, one edit.
    fn delete(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        // Everything that is acknowledged is flushed first; no other step may come between.
        while self.states.get(&def.id).is_some_and(|state| state.oldest().is_some()) {
            if !self.flush_table(&def)? {
                return Ok(());
            }
        }
        let Some(state) = self.states.get(&def.id) else { return Ok(()) };
        let condition = Condition::random(&mut self.dice);
        self.say(|| format!("delete {condition:?} of {}", def.name));
        let version = state.cell().load();
        let (inputs, outputs) = match self.without(&version, &condition) {
            Ok(exchange) => exchange,
            Err(error) => return self.gave_up(&error),
        };
        if inputs.is_empty() {
            return Ok(());
        }
        let (table, kept) = (def.id, outputs.clone());
        let sure = self.commit(Op::Delete { table, inputs: inputs.clone(), outputs: kept });
        let after = self.writes.iter().rposition(|write| write.acked).map_or(0, |last| last + 1);
        self.deletions.push(Deletion { table, after, condition, sure });
        if !sure {
            return Ok(());
        }
        if let Some(state) = self.states.get_mut(&table)
            && let Err(error) = state.deleted(&inputs, outputs.into_iter().map(Arc::new))
        {
            return broken(format!("deleted: {error}"));
        }
        self.coverage.deletes += 1;
        self.compare_live()
    }

    /// The segments with rows that meet a condition, and new ones without those rows.
    fn without(
        &self,
        version: &Version,
        condition: &Condition,
    ) -> Result<(Vec<SegmentId>, Vec<SegmentMeta>)> {
        let (times, predicate) = (condition.times(), condition.predicate(&version.table));
        let (token, target) = (CancelToken::default(), self.store().segments().clone());
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for part in delete::parts(version, &times, &TagFilter::all()) {
            let rows = part.choose(&times, predicate.as_ref(), &token)?;
            if !rows.is_empty() {
                let all = part.rows() == Some(rows.len());
                let rows = (!all).then_some(&rows);
                inputs.extend(part.ids());
                outputs.extend(delete::rewrite(&part, rows, &target, &token)?);
            }
        }
        Ok((inputs, outputs))
    }

    /// Sets a retention and lets rows go: whole segments, or some with a merge.
    fn expire(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        let (table, retention_ns) = (def.id, 1 + self.dice.below(40) as i64 * 1_000_000_000);
        let of = RetentionOf::Table(table);
        if !self.commit(Op::SetRetention { of, retention_ns: Some(retention_ns) }) {
            return Ok(());
        }
        let edge = expired_upto(retention_ns, 35_000_000_000);
        self.say(|| format!("expire {} up to {edge}", def.name));
        let Some(state) = self.states.get(&table) else { return Ok(()) };
        let version = state.cell().load();
        let merge = compact::pick(&version, &self.settings.compaction, i64::MAX);
        let merge = merge.filter(|job| self.dice.chance(50) && expire::concerns(job, edge));
        let (inputs, output) = match merge {
            None => (expire::whole(&version, edge).segments, None),
            Some(job) => {
                let (target, token) = (self.store().segments().clone(), CancelToken::default());
                match expire::merge(&job, edge, &target, &token, &mut |_| {}) {
                    Ok(merged) => (job.input_ids(), merged.segment),
                    Err(error) => return self.gave_up(&error),
                }
            }
        };
        let outputs: Vec<SegmentMeta> = output.into_iter().collect();
        let kept = outputs.clone();
        let known = self.edges.entry(table).or_insert(edge);
        *known = edge.max(*known);
        let op = Op::Expire { table, inputs: inputs.clone(), outputs: kept, retention_ns };
        if !self.commit(op) {
            return Ok(());
        }
        if let Some(state) = self.states.get_mut(&table)
            && let Err(error) = state.replaced(&inputs, outputs.into_iter().map(Arc::new))
        {
            return broken(format!("expired: {error}"));
        }
        self.coverage.expiries += usize::from(!inputs.is_empty());
        Ok(())
    }

    /// A flush or merge met a fault: allowed only where one was injected.
    fn gave_up(&mut self, error: &Error) -> Result<(), Violation> {
        self.say(|| format!("  gave up: {error}"));
        self.crash_or_kill()
    }

    fn merge(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        let Some(state) = self.states.get(&def.id) else { return Ok(()) };
        let version = state.cell().load();
        let now = i64::MAX;
        let Some(job) = compact::pick(&version, &self.settings.compaction, now) else {
            return Ok(());
        };
        self.say(|| format!("merge {} segments of {}", job.inputs.len(), def.name));
        let token = CancelToken::default();
        let merged = compact::run(&job, self.store().segments(), &token, &mut |_| {});
        let output = match merged {
            Ok(merged) => merged.segment,
            Err(error) => return self.gave_up(&error),
        };
        let (inputs, outputs) = (job.input_ids(), Vec::from_iter(output.clone()));
        let op = Op::Replace { table: def.id, inputs: inputs.clone(), outputs };
        if !self.commit(op) {
            return Ok(());
        }
        if let Some(state) = self.states.get_mut(&def.id)
            && let Err(error) = state.replaced(&inputs, output.map(Arc::new))
        {
            return broken(format!("replaced: {error}"));
        }
        self.coverage.merges += 1;
        Ok(())
    }

    /// Moves a segment to the second place, whatever its age.
    fn relocate(&mut self) -> Result<(), Violation> {
        let Some(def) = self.pick_table() else { return Ok(()) };
        let Some(state) = self.states.get(&def.id) else { return Ok(()) };
        let version = state.cell().load();
        // Whether a merge would come first is not what is tested here.
        let merging = Compaction { enabled: false, ..self.settings.compaction.clone() };
        let Some(segment) = tier::pick(&version, &merging, i64::MAX, &|_| true) else {
            return Ok(());
        };
        self.say(|| format!("move {segment:?} of {}", def.name));
        let moved = self.store().copy_to_cold(&segment, &CancelToken::default(), &mut |_| {});
        let moved = match moved {
            Ok(moved) => moved,
            Err(error) => return self.gave_up(&error),
        };
        let inputs = vec![segment.meta().id];
        let outputs = vec![moved.clone()];
        if !self.commit(Op::Replace { table: def.id, inputs: inputs.clone(), outputs }) {
            return Ok(());
        }
        if let Some(state) = self.states.get_mut(&def.id)
            && let Err(error) = state.replaced(&inputs, [Arc::new(moved)])
        {
            return broken(format!("moved: {error}"));
        }
        self.coverage.moves += 1;
        Ok(())
    }

    fn collect(&mut self) -> Result<(), Violation> {
        self.sim.clock.advance(Duration::from_millis(700));
        match self.store().collect_garbage() {
            Ok(count) => self.say(|| format!("collected {count}")),
            Err(error) => self.say(|| format!("collecting failed: {error}")),
        }
        self.check_components()
    }

    fn inject(&mut self) {
        let must_go_on =
            |target: &Target| target.fails() && target.shot.point.on_error() != OnError::Stop;
        if self.target.as_ref().is_some_and(must_go_on) {
            // Another error may stop the store, and hide that this one did not.
            return;
        }
        let operations = [
            Operation::Append,
            Operation::Sync,
            Operation::SyncDir,
            Operation::Create,
            Operation::Link,
            Operation::Remove,
        ];
        let operation = operations[self.dice.below(operations.len())];
        let fault = if self.dice.chance(50) { Fault::Eio } else { Fault::Enospc };
        if self.dice.chance(25) {
            let room = self.dice.below(3000) as u64;
            self.say(|| format!("only {room} bytes left"));
            self.sim.disk.set_capacity(Some(self.sim.disk.used() + room));
            return;
        }
        let after = self.dice.below(4) as u32;
        self.say(|| format!("{operation:?} fails with {fault:?} after {after}"));
        self.sim.disk.fail_after(operation, after, fault);
    }

    /// A store that stopped must go on stopping: nothing is acknowledged any more.
    fn after_poison(&mut self) -> Result<(), Violation> {
        self.take_answers()?;
        let acked = self.writes.iter().filter(|write| write.acked).count();
        if !self.tables.is_empty() {
            self.append()?;
            self.store().step();
            self.take_answers()?;
        }
        if self.writes.iter().filter(|write| write.acked).count() != acked {
            return broken("a poisoned store acknowledged a write");
        }
        if self.store().commit(Vec::new()).is_ok() {
            return broken("a poisoned store committed an edit");
        }
        Ok(())
    }

    fn crash_or_kill(&mut self) -> Result<(), Violation> {
        if self.dice.chance(70) { self.crash() } else { self.kill() }
    }

    /// Power cut.
    fn crash(&mut self) -> Result<(), Violation> {
        let seed = self.dice.next();
        self.say(|| format!("crash {seed}"));
        self.sim.disk.crash(seed);
        self.end_process()?;
        self.reopen()
    }

    /// SIGKILL: the process is gone, the machine goes on.
    fn kill(&mut self) -> Result<(), Violation> {
        self.say(|| "kill".to_owned());
        self.end_process()?;
        self.reopen()
    }

    fn close(&mut self) -> Result<(), Violation> {
        self.say(|| "close".to_owned());
        self.store().close();
        self.take_answers()?;
        if self.store().poisoned().is_none() {
            // A clean stop costs nothing, in any mode.
            self.writes.iter_mut().filter(|write| write.acked).for_each(|write| write.safe = true);
        }
        self.end_process()?;
        self.reopen()
    }

    fn end_process(&mut self) -> Result<(), Violation> {
        self.judge()?;
        if let Some(target) = self.target.as_mut() {
            target.buried = target.disk.is_dead();
        }
        self.states.clear();
        self.store = None;
        self.answers = Answers::default();
        Ok(())
    }

    fn reopen(&mut self) -> Result<(), Violation> {
        for attempt in 0.. {
            self.sim.disk.set_capacity(None);
            self.sim.disk.heal();
            let faulty = attempt < 3 && self.dice.chance(10);
            if faulty {
                self.inject();
            }
            let root = PathBuf::from(ROOT);
            let fired = self.fired();
            let opened = Store::open_stepped(self.env(), root, &self.settings);
            let shot = self.fired() && !fired;
            if let Some(target) = self.target.as_mut().filter(|_| shot) {
                // While a store is opened, nothing is there yet that could try again.
                target.judged = true;
                let stops = target.shot.point.on_error() == OnError::Stop;
                if opened.is_ok() && stops && target.fails() {
                    return broken("the store opened over an error that stops it");
                }
                target.buried = opened.is_err() && target.disk.is_dead();
            }
            match opened {
                Ok(store) => {
                    self.store = Some(store);
                    break;
                }
                Err(error) if faulty || shot || error.code() == Code::Unreachable => {
                    self.say(|| format!("open failed: {error}"));
                    self.unsure = true;
                    if self.dice.chance(50) {
                        self.sim.disk.crash(self.dice.next());
                    }
                }
                Err(error) => return broken(format!("open: {error:?}")),
            }
        }
        self.sim.disk.set_capacity(None);
        self.sim.disk.heal();
        if self.is_killed() {
            // The last thing that opening did.
            return self.crash_or_kill();
        }
        self.follow_catalog()?;
        self.compare_recovered()
    }

    /// Changes that were under way may have come through.
    fn follow_catalog(&mut self) -> Result<(), Violation> {
        let catalog = self.store().catalog();
        let known: BTreeMap<TableId, Arc<TableDef>> =
            catalog.tables.iter().map(|(id, table)| (*id, table.def.clone())).collect();
        if !self.unsure && known != self.tables {
            return broken(format!("tables are {known:?}, should be {:?}", self.tables));
        }
        if !self.unsure && *catalog.plugins != self.plugins {
            return broken(format!(
                "plugins are {:?}, should be {:?}",
                catalog.plugins, self.plugins
            ));
        }
        self.plugins = BTreeMap::clone(&catalog.plugins);
        self.check_components()?;
        self.unsure = false;
        self.tables.clear();
        for def in known.into_values() {
            self.adopt(def)?;
        }
        Ok(())
    }

    fn actual(&self, def: &Arc<TableDef>) -> Result<Content, Violation> {
        let Some(cell) = self.store().table(def.id) else {
            return broken(format!("table {} has no versions", def.name));
        };
        let edge = self.edges.get(&def.id).copied();
        content(&cell.load())
            .map(|content| unexpired(content, edge))
            .map_err(|error| Violation(format!("read table {}: {error:?}", def.name)))
    }

    fn compare_live(&mut self) -> Result<(), Violation> {
        for def in self.tables.values() {
            let wanted = expected(def, self.events_of(def.id, true, |_, write| write.acked));
            let wanted = unexpired(wanted, self.edges.get(&def.id).copied());
            let actual = self.actual(def)?;
            if actual != wanted {
                return broken(format!("table {}: {actual:#?} should be {wanted:#?}", def.name));
            }
        }
        Ok(())
    }

    /// What happened to a table; `unsure` says what became of a deletion whose edit may count.
    fn events_of<'a>(
        &'a self,
        table: TableId,
        unsure: bool,
        counts: impl Fn(usize, &Write) -> bool + 'a,
    ) -> impl Iterator<Item = Event<'a>> {
        (0..=self.writes.len()).flat_map(move |index| {
            let deletions = self.deletions.iter().filter(move |deletion| {
                deletion.table == table && deletion.after == index && (deletion.sure || unsure)
            });
            let deletions = deletions.map(|deletion| Event::Deleted(&deletion.condition));
            let write = self.writes.get(index).filter(|write| counts(index, write));
            let parts = write.into_iter().flat_map(|write| &write.parts);
            let rows = parts.filter(move |(of, _)| *of == table).flat_map(|(_, rows)| rows);
            deletions.chain(rows.map(Event::Written))
        })
    }

    /// What is safe is there; of the rest, a beginning of the log.
    fn compare_recovered(&mut self) -> Result<(), Violation> {
        let mut actual = BTreeMap::new();
        for (id, def) in &self.tables {
            actual.insert(*id, self.actual(def)?);
        }
        let agrees = |upto: usize, unsure: bool| {
            self.tables.iter().all(|(id, def)| {
                let counts = move |index: usize, write: &Write| write.safe || index < upto;
                let wanted = expected(def, self.events_of(*id, unsure, counts));
                actual[id] == unexpired(wanted, self.edges.get(id).copied())
            })
        };
        let first = self.writes.iter().position(|write| !write.safe).unwrap_or(self.writes.len());
        let unsure = self.deletions.iter().any(|deletion| !deletion.sure);
        let ends = (first..=self.writes.len()).rev();
        let mut ends = ends.flat_map(|upto| [(upto, false), (upto, true)]);
        let Some((upto, came)) =
            ends.find(|(upto, came)| (unsure || !came) && agrees(*upto, *came))
        else {
            let safe = |_, write: &Write| write.safe;
            let wanted: Vec<_> = self
                .tables
                .iter()
                .map(|(id, def)| expected(def, self.events_of(*id, false, safe)))
                .collect();
            return broken(format!(
                "after recovery there is {actual:#?}, at least {wanted:#?} should be (seed {}, \
                 honest disk: {})",
                self.seed, self.honest
            ));
        };
        self.say(|| format!("recovered up to #{upto} of {}", self.writes.len()));
        self.coverage.recoveries += 1;
        self.coverage.survivors += upto - first;
        self.coverage.lost += self.writes.len() - upto;
        self.deletions.retain_mut(|deletion| std::mem::replace(&mut deletion.sure, true) || came);
        for deletion in &mut self.deletions {
            let before = self.writes[..deletion.after].iter().enumerate();
            deletion.after = before.filter(|(index, write)| write.safe || *index < upto).count();
        }
        let mut index = 0;
        self.writes.retain_mut(|write| {
            let kept = write.safe || index < upto;
            index += 1;
            write.acked = kept;
            write.safe = kept;
            kept
        });
        Ok(())
    }
}
