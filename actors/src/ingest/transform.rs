//! Runs the transforms of tables on rows that arrive, before anything is checked or written.
//!
//! Each batch takes the versions that the registry has at that moment, so that a new version of
//! a plugin, a suspension or another policy holds from the next batch on. Instances are kept
//! from batch to batch, one for each worker that runs at a time: what a transform remembers, it
//! remembers per instance. Batches run on the foreground pool, never more at a time than
//! `plugins.transform_workers`, so that a slow plugin leaves threads to everybody else; a call
//! ends within the plugin's limits.
//!
//! Where a transform fails or cannot be called, its policy decides about the batch. That a
//! plugin is still being loaded after a start, or that all instances are in use, is no failure:
//! the sender is told to come back.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, Schema};
use kymo_config::settings::Plugins;
use kymo_kernel::env::Clock;
use kymo_kernel::ids::TableId;
use kymo_kernel::observe::metrics;
use kymo_kernel::plugin::{OnError, TransformChain, TransformDef};
use kymo_kernel::pools::{PoolSizes, Pools};
use kymo_kernel::schema::{ColumnKind, FieldType, TableBatch, TableDef, TableSchema, marked_field};
use kymo_kernel::storage::meta::Snapshot;
use kymo_kernel::{Code, Error, Result};
use kymo_plugins::{Kind, Pipeline, PluginFunction, PluginHost, QueryContext};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::rejected::Refused;
use crate::plugin_manager::publish::loading;

/// Runs transforms; cheap to clone.
#[derive(Clone)]
pub struct Transforms(Arc<Shared>);

struct Shared {
    host: Option<Arc<PluginHost>>,
    pools: Pools,
    clock: Arc<dyn Clock>,
    turns: Arc<Semaphore>,
    idle: Mutex<Vec<Idle>>,
    most_idle: usize,
    keep: Duration,
    counts: Mutex<BTreeMap<Attached, Arc<Counts>>>,
    /// Ends what runs when the process stops.
    cancel: Arc<AtomicBool>,
    /// Counts batches: a version on trial gets its share of them.
    batches: AtomicU64,
}

/// One transform of one table: table, plugin, function.
pub type Attached = (TableId, String, String);

/// What has been counted of one transform of one table since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// Rows that came.
    pub rows_in: AtomicU64,
    /// Rows that it handed back.
    pub rows_out: AtomicU64,
    /// Rows that it refused.
    pub refused: AtomicU64,
    /// Rows that went on as they were, or were put aside, because it failed.
    pub passed: AtomicU64,
    /// Rows that went to `system.rejected_writes` because it failed.
    pub dead_letter: AtomicU64,
    /// Batches on which it failed or could not be called.
    pub failures: AtomicU64,
    /// Time that batches spent in it, in nanoseconds.
    pub nanoseconds: AtomicU64,
}

/// An instance that waits for its next batch.
struct Idle {
    key: Key,
    pipeline: Pipeline,
    since: Duration,
}

/// What makes an instance the right one for a batch.
#[derive(PartialEq)]
struct Key {
    table: TableId,
    transform: TransformDef,
    /// The address of the loaded version. The pipeline keeps that version alive, so no other
    /// one has its address.
    version: usize,
    input: Vec<Field>,
}

/// Rows after the transforms of their table.
pub(super) struct Passed {
    /// The rows that go on.
    pub(super) rows: TableBatch,
    /// Those that were refused, for `system.rejected_writes` of the database.
    pub(super) refused: Option<TableBatch>,
    /// Whether they met a transform, which may have given them columns that the table lacks.
    pub(super) transformed: bool,
}

/// What one transform made of a batch.
struct Applied {
    batch: RecordBatch,
    rejected: Vec<(u32, String)>,
}

impl Transforms {
    /// Transforms over a plugin host, where there is one.
    #[must_use]
    pub fn new(
        settings: &Plugins,
        host: Option<Arc<PluginHost>>,
        pools: Pools,
        clock: Arc<dyn Clock>,
    ) -> Transforms {
        let workers = match settings.transform_workers {
            0 => PoolSizes::cores().saturating_sub(1).max(1),
            workers => workers,
        };
        Transforms(Arc::new(Shared {
            host,
            pools,
            clock,
            turns: Arc::new(Semaphore::new(workers.min(Semaphore::MAX_PERMITS))),
            idle: Mutex::default(),
            most_idle: settings.idle_transforms.min(settings.max_instances / 2),
            keep: Duration::from_millis(settings.recycle_ms),
            counts: Mutex::default(),
            cancel: Arc::default(),
            batches: AtomicU64::new(0),
        }))
    }

    /// Runs the transforms of a table on rows, one after the other.
    ///
    /// # Errors
    /// What a transform failed with, where its policy is to reject; `busy` while a plugin is
    /// being loaded or all instances are in use; `internal`.
    pub(super) async fn run(
        &self,
        def: Arc<TableDef>,
        rows: TableBatch,
        chain: Arc<TransformChain>,
        known: Arc<Snapshot>,
    ) -> Result<Passed> {
        let turn = Arc::clone(&self.0.turns).acquire_owned().await;
        let turn = turn.map_err(|_| Error::new(Code::ShuttingDown, "the server is stopping"))?;
        let shared = self.0.clone();
        let pass = move || {
            let _turn = turn;
            shared.pass(&def, rows, &chain, &known)
        };
        self.0.pools.foreground("transform", pass).await?
    }

    /// What has been counted, by table and transform.
    #[must_use]
    pub fn counts(&self) -> Vec<(Attached, Arc<Counts>)> {
        let counts = self.0.counts.lock();
        counts.iter().map(|(of, counts)| (of.clone(), counts.clone())).collect()
    }

    /// Lets go of instances that nothing is going to ask for: of transforms that were detached,
    /// of versions that are not in use any more, and those that nobody wanted for long.
    pub(super) fn tidy(&self, known: &Snapshot) {
        let shared = &self.0;
        let now = shared.clock.monotonic();
        let map = shared.host.as_ref().map(|host| host.registry().snapshot());
        let in_use = |idle: &Idle| {
            let chain = known.transforms.get(&idle.key.table);
            let attached = chain.is_some_and(|chain| chain.contains(&idle.key.transform));
            let version = Arc::as_ptr(idle.pipeline.function().version());
            let entry = map.as_ref().and_then(|map| map.get(&idle.key.transform.plugin).ok());
            let current = entry.is_some_and(|entry| {
                let canary = entry.canary.as_ref().map(|canary| &canary.version);
                let mut callable = entry.active.iter().chain(canary);
                callable.any(|each| Arc::as_ptr(each) == version)
            });
            attached && current && now.saturating_sub(idle.since) < shared.keep
        };
        let gone: Vec<Idle> = {
            let mut idle = shared.idle.lock();
            let (kept, gone) = std::mem::take(&mut *idle).into_iter().partition(in_use);
            *idle = kept;
            gone
        };
        shared.gauge();
        drop(gone);
        let attached = |(table, plugin, function): &Attached| {
            known.transforms.get(table).is_some_and(|chain| {
                chain.iter().any(|each| each.plugin == *plugin && each.function == *function)
            })
        };
        shared.counts.lock().retain(|of, _| attached(of));
    }

    /// Ends what runs, and keeps nothing.
    pub fn stop(&self) {
        self.0.cancel.store(true, Ordering::Relaxed);
        let idle = std::mem::take(&mut *self.0.idle.lock());
        drop(idle);
    }

    /// How many instances wait for their next batch.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.idle.lock().len()
    }
}

impl Shared {
    fn pass(
        &self,
        def: &TableDef,
        mut rows: TableBatch,
        chain: &TransformChain,
        known: &Snapshot,
    ) -> Result<Passed> {
        let mut refused = Refused::new(def.name.clone(), self.clock.now_ns());
        for transform in chain {
            if rows.batch.num_rows() == 0 {
                break;
            }
            rows = self.stage(def, transform, rows, known, &mut refused)?;
        }
        Ok(Passed { rows, refused: refused.finish()?, transformed: true })
    }

    /// One transform, its policy and what is counted of it.
    fn stage(
        &self,
        def: &TableDef,
        transform: &TransformDef,
        rows: TableBatch,
        known: &Snapshot,
        refused: &mut Refused,
    ) -> Result<TableBatch> {
        let name = format!("{}.{}", transform.plugin, transform.function);
        let count = rows.batch.num_rows() as u64;
        let tally = Tally { counts: self.counts(def, transform), name: &name, table: def };
        let began = self.clock.monotonic();
        let outcome = self.apply(def, transform, &rows.batch, known);
        tally.spent(self.clock.monotonic().saturating_sub(began));
        let error = match outcome {
            Ok(Applied { batch, rejected }) => {
                tally.rows("in", |counts| &counts.rows_in, count);
                tally.rows("out", |counts| &counts.rows_out, batch.num_rows() as u64);
                tally.rows("refused", |counts| &counts.refused, rejected.len() as u64);
                refused.add(&name, &rows.batch, rejected)?;
                // Which line a row came from is the transform's secret now.
                return Ok(TableBatch { table: rows.table, batch, lines: Vec::new() });
            }
            Err(error) if !is_failure(error.code()) => return Err(error),
            Err(error) => error,
        };
        tally.rows("in", |counts| &counts.rows_in, count);
        tally.failed();
        let error = error.context(format!("transform {name} of table {}", def.name));
        tracing::debug!(%error, policy = transform.on_error.as_str(), "a transform failed");
        match transform.on_error {
            OnError::Reject => Err(error),
            OnError::Pass => {
                tally.rows("passed", |counts| &counts.passed, count);
                Ok(rows)
            }
            OnError::DeadLetter => {
                tally.rows("dead_letter", |counts| &counts.dead_letter, count);
                refused.add_all(&name, &rows.batch, error.message())?;
                let batch = rows.batch.slice(0, 0);
                Ok(TableBatch { table: rows.table, batch, lines: Vec::new() })
            }
        }
    }

    fn apply(
        &self,
        def: &TableDef,
        transform: &TransformDef,
        batch: &RecordBatch,
        known: &Snapshot,
    ) -> Result<Applied> {
        let (host, function) = self.function(transform, known)?;
        let (input, columns) = given(&def.schema, batch)?;
        let key = Key {
            table: def.id,
            transform: transform.clone(),
            version: Arc::as_ptr(function.version()) as usize,
            input,
        };
        let mut pipeline = match self.take(&key) {
            Some(pipeline) => pipeline,
            None => self.open(host, &function, &key)?,
        };
        let done = pipeline.apply(&columns, batch.num_rows());
        let schema = pipeline.schema().to_vec();
        self.put(key, pipeline);
        let done = done?;
        let batch = taken(&def.schema, batch, &schema, done.columns, done.rows)?;
        Ok(Applied { batch, rejected: done.rejected })
    }

    /// The function as the registry has it now.
    fn function(
        &self,
        transform: &TransformDef,
        known: &Snapshot,
    ) -> Result<(&Arc<PluginHost>, PluginFunction)> {
        let TransformDef { plugin, function, .. } = transform;
        let host = self.host.as_ref().ok_or_else(|| {
            Error::new(Code::PluginUnavailable, "plugins are switched off")
                .with_hint("set plugins.enabled = true")
        })?;
        let map = host.registry().snapshot();
        if loading(&map, known, plugin) {
            let text = format!("plugin {plugin} is still being loaded");
            return Err(Error::new(Code::Busy, text).with_hint("send the same request again"));
        }
        let batch = self.batches.fetch_add(1, Ordering::Relaxed);
        let found = map.function(plugin, function, batch)?;
        if found.function().kind != Kind::Transform {
            let text = format!("{plugin}.{function} is no transform in the version in use");
            return Err(Error::new(Code::FunctionNotFound, text));
        }
        Ok((host, found))
    }

    fn open(
        &self,
        host: &Arc<PluginHost>,
        function: &PluginFunction,
        key: &Key,
    ) -> Result<Pipeline> {
        let context = QueryContext {
            cancel: self.cancel.clone(),
            deadline: None,
            time_ns: self.clock.now_ns(),
            timezone: "UTC".to_owned(),
            seed: self.batches.load(Ordering::Relaxed),
            memory: Arc::new(kymo_plugins::memory::Unlimited),
            usage: Arc::default(),
        };
        let settings = key.transform.settings.clone().into_iter().collect();
        Pipeline::open(host, function, context, settings, key.input.clone())
    }

    /// The instance that was used last, of those that fit.
    fn take(&self, key: &Key) -> Option<Pipeline> {
        let mut idle = self.idle.lock();
        let at = idle.iter().rposition(|each| each.key == *key)?;
        Some(idle.remove(at).pipeline)
    }

    /// Keeps an instance; the one that has waited longest makes room.
    fn put(&self, key: Key, pipeline: Pipeline) {
        let since = self.clock.monotonic();
        let over = {
            let mut idle = self.idle.lock();
            idle.push(Idle { key, pipeline, since });
            (idle.len() > self.most_idle).then(|| idle.remove(0))
        };
        self.gauge();
        drop(over);
    }

    fn gauge(&self) {
        let idle = i64::try_from(self.idle.lock().len()).unwrap_or(i64::MAX);
        metrics().plugins.idle_transforms.set(idle);
    }

    fn counts(&self, def: &TableDef, transform: &TransformDef) -> Arc<Counts> {
        let of = (def.id, transform.plugin.clone(), transform.function.clone());
        self.counts.lock().entry(of).or_default().clone()
    }
}

/// The counters of one transform of one table.
struct Tally<'a> {
    counts: Arc<Counts>,
    name: &'a str,
    table: &'a TableDef,
}

impl Tally<'_> {
    fn rows(&self, outcome: &str, own: impl Fn(&Counts) -> &AtomicU64, rows: u64) {
        if rows > 0 {
            own(&self.counts).fetch_add(rows, Ordering::Relaxed);
            let table = self.table.name.to_string();
            let family = &metrics().plugins.transform_rows;
            family.with_label_values(&[self.name, &table, outcome]).inc_by(rows);
        }
    }

    fn spent(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        let table = self.table.name.to_string();
        let family = &metrics().plugins.transform_nanoseconds;
        family.with_label_values(&[self.name, &table]).inc_by(nanoseconds);
    }

    fn failed(&self) {
        self.counts.failures.fetch_add(1, Ordering::Relaxed);
        let table = self.table.name.to_string();
        metrics().plugins.transform_failures.with_label_values(&[self.name, &table]).inc();
    }
}

/// Whether an error says that the transform failed, rather than that this server is busy,
/// stopping or wrong.
fn is_failure(code: Code) -> bool {
    !matches!(code, Code::Busy | Code::Cancelled | Code::ShuttingDown | Code::Internal)
}

/// The rows as a transform is given them: tags as plain text, time by the table's name for it,
/// columns in the order of the table and new ones last, so that one instance serves them in
/// whatever order they arrive. A column without any value is left out: `INSERT` sends those
/// that it does not name, other protocols do not.
fn given(schema: &TableSchema, batch: &RecordBatch) -> Result<(Vec<Field>, Vec<ArrayRef>)> {
    let time = schema.time()?.name.as_str();
    let places: HashMap<&str, usize> =
        schema.columns.iter().enumerate().map(|(at, column)| (column.name.as_str(), at)).collect();
    let arrived = batch.schema();
    let name = |field: &Field| match ColumnKind::of(field) {
        ColumnKind::Time => time.to_owned(),
        _ => field.name().clone(),
    };
    let has_values = |at: &usize| {
        ColumnKind::of(arrived.field(*at)) == ColumnKind::Time
            || batch.column(*at).logical_null_count() < batch.num_rows()
    };
    let mut order: Vec<(usize, usize)> = (0..batch.num_columns())
        .filter(has_values)
        .map(|at| {
            let place = places.get(name(arrived.field(at)).as_str());
            (place.copied().unwrap_or(usize::MAX), at)
        })
        .collect();
    order.sort_unstable();
    let mut fields = Vec::with_capacity(order.len());
    let mut columns = Vec::with_capacity(order.len());
    for (_, at) in order {
        let field = arrived.field(at);
        let wanted = kymo_plugins::coerced(field.data_type());
        columns.push(cast(batch.column(at), &wanted, field.name())?);
        fields.push(Field::new(name(field), wanted, field.is_nullable()));
    }
    Ok((fields, columns))
}

/// What a transform handed back, as rows of the table: a column keeps the role that its name had
/// in the rows that came, or has in the table; any other is a field.
fn taken(
    schema: &TableSchema,
    arrived: &RecordBatch,
    fields: &[Field],
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch> {
    let time = schema.time()?.name.as_str();
    let came = arrived.schema();
    let role = |name: &str| {
        if name == time {
            return ColumnKind::Time;
        }
        let came = came.fields().iter().find(|field| field.name() == name);
        let came = came.map(|field| ColumnKind::of(field));
        came.or(schema.column(name).map(|column| column.kind)).unwrap_or(ColumnKind::Field)
    };
    let (mut marked, mut arrays) = (Vec::new(), Vec::with_capacity(columns.len()));
    for (field, array) in fields.iter().zip(columns) {
        let name = field.name();
        if marked.iter().any(|other: &Field| other.name() == name) {
            return Err(broken(format!("it hands back two columns {name:?}")));
        }
        let is = kept_as(field)?;
        let as_kept = match (role(name), is) {
            (ColumnKind::Time, FieldType::Timestamp) => marked_field(name, ColumnKind::Time, is),
            (ColumnKind::Time, _) => {
                return Err(broken(format!("it hands back a time column {name:?} of {is}")));
            }
            // Anything but text under the name of a tag is a conflict like any other.
            (ColumnKind::Tag, FieldType::Text) => marked_field(name, ColumnKind::Tag, is),
            _ => marked_field(name, ColumnKind::Field, is),
        };
        arrays.push(cast(&array, as_kept.data_type(), name)?);
        marked.push(as_kept);
    }
    let at = marked.iter().position(|field| ColumnKind::of(field) == ColumnKind::Time);
    let times = at.map(|at| &arrays[at]);
    let times = times.ok_or_else(|| broken(format!("it hands back no time column {time:?}")))?;
    if times.null_count() > 0 {
        return Err(broken("it hands back rows without a time".to_owned()));
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(marked)), arrays, &options)
        .map_err(|error| Error::internal(format!("rows of a transform: {error}")))
}

/// How a column of this type is kept.
fn kept_as(field: &Field) -> Result<FieldType> {
    Ok(match field.data_type() {
        DataType::Float32 | DataType::Float64 => FieldType::Float64,
        DataType::Int32 | DataType::Int64 => FieldType::Int64,
        DataType::UInt64 => FieldType::UInt64,
        DataType::Boolean => FieldType::Bool,
        DataType::Utf8 => FieldType::Text,
        DataType::Date32 | DataType::Timestamp(_, _) => FieldType::Timestamp,
        other => {
            let text = format!("it hands back column {:?} of {other}", field.name());
            return Err(broken(text)
                .with_hint("tables keep float, integer, unsigned, boolean, string and timestamp"));
        }
    })
}

fn cast(array: &ArrayRef, wanted: &DataType, name: &str) -> Result<ArrayRef> {
    if array.data_type() == wanted {
        return Ok(array.clone());
    }
    // A date goes to an instant by way of its midnight.
    let step = match (array.data_type(), wanted) {
        (DataType::Date32, DataType::Timestamp(unit, _)) => DataType::Timestamp(*unit, None),
        _ => wanted.clone(),
    };
    let exact = CastOptions { safe: false, ..CastOptions::default() };
    let cast = cast_with_options(array, &step, &exact)
        .and_then(|array| cast_with_options(&array, wanted, &exact));
    cast.map_err(|error| broken(format!("column {name:?} as {wanted}: {error}")))
}

fn broken(what: String) -> Error {
    Error::new(Code::PluginFailed, what)
}
