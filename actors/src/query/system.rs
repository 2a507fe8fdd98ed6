//! The schema `system`: Kymo's own tables about itself.
//!
//! Each table is computed when it is read, from what the parts of the system already know.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampNanosecondArray,
};
use datafusion::arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::{SchemaProvider, Session, TableProvider};
use datafusion::common::{DataFusionError, Result, internal_err};
use datafusion::datasource::TableType;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use kymo_config::Settings;
use kymo_kernel::message::{Compaction, SessionContext};
use kymo_kernel::schema::{SYSTEM_SCHEMA, time_type};
use kymo_kernel::storage::tier::Tier;

use super::Tables;
use super::allow::{HIDDEN, sees};
use super::context::Caller;
use super::retention;
use super::running::Running;
use crate::alert::history;

mod alert_files;
mod channels;
mod compactions;
mod continuous;
mod plugins;

pub use channels::ChannelRow;
pub(super) use rejected::Rejected;

mod rejected;

pub(super) use alert_files::ALERT_FILES;
pub use alert_files::AlertFileRow;
pub use continuous::ContinuousRow;
pub(super) use continuous::length;
pub use plugins::{PluginLogRow, PluginRow, PluginVersionRow, TransformRow};

/// The name of the schema.
pub(super) const SCHEMA: &str = SYSTEM_SCHEMA;

/// What the rest of the process can tell about itself, as rows of text. Each method may
/// return nothing.
pub trait Inspect: Send + Sync + 'static {
    /// Actors: name, kind, state, restarts.
    fn actors(&self) -> Vec<ActorRow> {
        Vec::new()
    }

    /// Ports: name and figures.
    fn ports(&self) -> Vec<PortRow> {
        Vec::new()
    }

    /// What supervision saw, oldest first.
    fn supervision_events(&self) -> Vec<SupervisionRow> {
        Vec::new()
    }

    /// Subscriptions, oldest first.
    fn subscriptions(&self) -> Vec<SubscriptionRow> {
        Vec::new()
    }

    /// What continuous queries have done.
    fn continuous(&self) -> Vec<ContinuousRow> {
        Vec::new()
    }

    /// Channels of alerts.
    fn alert_channels(&self) -> Vec<ChannelRow> {
        Vec::new()
    }

    /// Alerts, and rules that have none.
    fn alerts(&self) -> Vec<AlertRow> {
        Vec::new()
    }

    /// Rules of files, and files of rules that are refused.
    fn alert_files(&self) -> Vec<AlertFileRow> {
        Vec::new()
    }

    /// Exchanges of segments: those under way, then the last ones that ended.
    fn compactions(&self) -> Vec<Compaction> {
        Vec::new()
    }

    /// Plugins as their host has them.
    fn plugins(&self) -> Vec<PluginRow> {
        Vec::new()
    }

    /// Loaded versions of plugins.
    fn plugin_versions(&self) -> Vec<PluginVersionRow> {
        Vec::new()
    }

    /// What was counted of transforms since the start.
    fn transforms(&self) -> Vec<TransformRow> {
        Vec::new()
    }

    /// What plugins logged, oldest first.
    fn plugin_log(&self) -> Vec<PluginLogRow> {
        Vec::new()
    }
}

/// A row of `system.actors`.
#[derive(Debug, Clone, Default)]
pub struct ActorRow {
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: String,
    /// `running`, `restarting`, `stopped` or `failed`.
    pub state: String,
    /// How often it was restarted.
    pub restarts: u64,
    /// What it tells about itself, as JSON.
    pub observed: String,
}

/// A row of `system.ports`.
#[derive(Debug, Clone, Default)]
pub struct PortRow {
    /// Its name.
    pub name: String,
    /// The message that it takes.
    pub message: String,
    /// Messages accepted since the start.
    pub accepted: u64,
    /// Messages turned away for want of room.
    pub rejected: u64,
    /// Messages queued or being worked on.
    pub queued: u64,
    /// The bytes of these.
    pub bytes: u64,
}

/// A row of `system.supervision_events`.
#[derive(Debug, Clone, Default)]
pub struct SupervisionRow {
    /// When, in nanoseconds since 1970.
    pub time: i64,
    /// The actor.
    pub actor: String,
    /// What happened.
    pub event: String,
    /// Why.
    pub detail: String,
}

/// A row of `system.subscriptions`.
#[derive(Debug, Clone, Default)]
pub struct SubscriptionRow {
    /// Its number.
    pub id: u64,
    /// Who subscribed.
    pub user: String,
    /// The database that unqualified names are looked up in.
    pub database: String,
    /// The text of the query.
    pub query: String,
    /// How it is followed.
    pub class: String,
    /// Rows handed to its connection.
    pub delivered_rows: u64,
    /// How often it was told that it lags behind.
    pub lagged: u64,
    /// Age of the oldest commit that it has not taken yet, in milliseconds.
    pub lag_ms: u64,
    /// Bytes of commits that it has not taken yet.
    pub buffered_bytes: u64,
    /// Since when, in nanoseconds since 1970.
    pub since: i64,
}

/// A row of `system.alerts`: an alert, or a rule that has none.
#[derive(Debug, Clone, Default)]
pub struct AlertRow {
    /// The rule.
    pub rule: String,
    /// `active`, `paused` or `starting`.
    pub status: String,
    /// How it is evaluated: `rows` or `query`.
    pub class: Option<String>,
    /// `inactive`, `pending`, `firing` or `resolved`.
    pub state: String,
    /// The number of the alert among all.
    pub fingerprint: Option<String>,
    /// Its labels as JSON.
    pub labels: Option<String>,
    /// The value that decided last.
    pub value: Option<f64>,
    /// Since when it is what it is, in nanoseconds since 1970: the condition of a pending or
    /// firing one holds since then.
    pub since: Option<i64>,
    /// Who looks after it, and what they said.
    pub acked: Option<String>,
    /// Whether a silence covers it.
    pub silenced: bool,
    /// The instant of the rule's last evaluation, in nanoseconds since 1970.
    pub evaluated: Option<i64>,
    /// Milliseconds from the last commit or instant to the end of its evaluation.
    pub lag_ms: f64,
    /// Why the rule is paused, or what its last evaluation failed with.
    pub error: Option<String>,
    /// The file and the group that the rule comes from.
    pub origin: Option<String>,
}

/// Nothing to tell.
impl Inspect for () {}

/// Everything that the tables are computed from.
pub(super) struct Inspector {
    pub(super) settings: Arc<Settings>,
    pub(super) tables: Arc<dyn Tables>,
    pub(super) running: Arc<Running>,
    pub(super) inspect: Arc<dyn Inspect>,
}

impl fmt::Debug for Inspector {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Inspector")
    }
}

/// The schema of a system table and the function that fills it.
struct SystemTable {
    name: &'static str,
    columns: &'static [(&'static str, Kind)],
    rows: fn(&Inspector, &SessionContext) -> Vec<Vec<Cell>>,
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Number,
    Truth,
    Time,
    Float,
}

enum Cell {
    Text(String),
    Number(i64),
    Truth(bool),
    Time(i64),
    Float(f64),
    Null,
}

fn number(value: u64) -> Cell {
    Cell::Number(i64::try_from(value).unwrap_or(i64::MAX))
}

static TABLES: &[SystemTable] = &[
    SystemTable {
        name: "alerts",
        columns: &[
            ("rule", Kind::Text),
            ("status", Kind::Text),
            ("class", Kind::Text),
            ("state", Kind::Text),
            ("fingerprint", Kind::Text),
            ("labels", Kind::Text),
            ("value", Kind::Float),
            ("since", Kind::Time),
            ("acked", Kind::Text),
            ("silenced", Kind::Truth),
            ("evaluated", Kind::Time),
            ("lag_ms", Kind::Float),
            ("error", Kind::Text),
            ("origin", Kind::Text),
        ],
        rows: alerts,
    },
    SystemTable {
        name: "subscriptions",
        columns: &[
            ("id", Kind::Number),
            ("user", Kind::Text),
            ("database", Kind::Text),
            ("query", Kind::Text),
            ("class", Kind::Text),
            ("delivered_rows", Kind::Number),
            ("lagged", Kind::Number),
            ("lag_ms", Kind::Number),
            ("buffered_bytes", Kind::Number),
            ("since", Kind::Time),
        ],
        rows: subscriptions,
    },
    SystemTable {
        name: "queries",
        columns: &[
            ("id", Kind::Number),
            ("user", Kind::Text),
            ("database", Kind::Text),
            ("state", Kind::Text),
            ("started", Kind::Time),
            ("elapsed_ms", Kind::Number),
            ("rows", Kind::Number),
            ("sql", Kind::Text),
        ],
        rows: queries,
    },
    SystemTable {
        name: "tables",
        columns: &[
            ("database", Kind::Text),
            ("schema", Kind::Text),
            ("table", Kind::Text),
            ("columns", Kind::Number),
            ("append_only", Kind::Truth),
            ("stored_rows", Kind::Number),
            ("rows_in_memory", Kind::Number),
            ("segments", Kind::Number),
            ("segment_bytes", Kind::Number),
            ("first_time", Kind::Time),
            ("last_time", Kind::Time),
            ("retention", Kind::Text),
        ],
        rows: tables,
    },
    SystemTable {
        name: "segments",
        columns: &[
            ("database", Kind::Text),
            ("schema", Kind::Text),
            ("table", Kind::Text),
            ("id", Kind::Text),
            ("path", Kind::Text),
            ("bytes", Kind::Number),
            ("rows", Kind::Number),
            ("level", Kind::Number),
            ("first_time", Kind::Time),
            ("last_time", Kind::Time),
            ("tier", Kind::Text),
        ],
        rows: segments,
    },
    SystemTable {
        name: "settings",
        columns: &[("name", Kind::Text), ("value", Kind::Text)],
        rows: settings,
    },
    SystemTable {
        name: "actors",
        columns: &[
            ("name", Kind::Text),
            ("kind", Kind::Text),
            ("state", Kind::Text),
            ("restarts", Kind::Number),
            ("observed", Kind::Text),
        ],
        rows: |inspector, _| {
            let row = |each: ActorRow| {
                vec![
                    Cell::Text(each.name),
                    Cell::Text(each.kind),
                    Cell::Text(each.state),
                    number(each.restarts),
                    Cell::Text(each.observed),
                ]
            };
            inspector.inspect.actors().into_iter().map(row).collect()
        },
    },
    SystemTable {
        name: "ports",
        columns: &[
            ("name", Kind::Text),
            ("message", Kind::Text),
            ("accepted", Kind::Number),
            ("rejected", Kind::Number),
            ("queued", Kind::Number),
            ("bytes", Kind::Number),
        ],
        rows: |inspector, _| {
            let row = |each: PortRow| {
                vec![
                    Cell::Text(each.name),
                    Cell::Text(each.message),
                    number(each.accepted),
                    number(each.rejected),
                    number(each.queued),
                    number(each.bytes),
                ]
            };
            inspector.inspect.ports().into_iter().map(row).collect()
        },
    },
    SystemTable {
        name: "supervision_events",
        columns: &[
            ("time", Kind::Time),
            ("actor", Kind::Text),
            ("event", Kind::Text),
            ("detail", Kind::Text),
        ],
        rows: |inspector, _| {
            let row = |each: SupervisionRow| {
                vec![
                    Cell::Time(each.time),
                    Cell::Text(each.actor),
                    Cell::Text(each.event),
                    Cell::Text(each.detail),
                ]
            };
            inspector.inspect.supervision_events().into_iter().map(row).collect()
        },
    },
];

fn queries(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    let row = |each: super::running::Shown| {
        let sql = if sees(session, &each.user) { &each.sql } else { HIDDEN };
        let sql = Cell::Text(sql.to_owned());
        vec![
            number(each.id),
            Cell::Text(each.user),
            Cell::Text(each.database),
            Cell::Text(each.state.to_owned()),
            Cell::Time(each.started_ns),
            number(u64::try_from(each.elapsed.as_millis()).unwrap_or(u64::MAX)),
            number(each.rows),
            sql,
        ]
    };
    inspector.running.all().into_iter().map(row).collect()
}

fn subscriptions(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    let row = |each: SubscriptionRow| {
        let query = if sees(session, &each.user) { each.query } else { HIDDEN.to_owned() };
        vec![
            number(each.id),
            Cell::Text(each.user),
            Cell::Text(each.database),
            Cell::Text(query),
            Cell::Text(each.class),
            number(each.delivered_rows),
            number(each.lagged),
            number(each.lag_ms),
            number(each.buffered_bytes),
            Cell::Time(each.since),
        ]
    };
    inspector.inspect.subscriptions().into_iter().map(row).collect()
}

fn alerts(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let text = |text: Option<String>| text.map_or(Cell::Null, Cell::Text);
    let time = |time: Option<i64>| time.map_or(Cell::Null, Cell::Time);
    let row = |each: AlertRow| {
        vec![
            Cell::Text(each.rule),
            Cell::Text(each.status),
            text(each.class),
            Cell::Text(each.state),
            text(each.fingerprint),
            text(each.labels),
            each.value.map_or(Cell::Null, Cell::Float),
            time(each.since),
            text(each.acked),
            Cell::Truth(each.silenced),
            time(each.evaluated),
            Cell::Float(each.lag_ms),
            text(each.error),
            text(each.origin),
        ]
    };
    inspector.inspect.alerts().into_iter().map(row).collect()
}

fn tables(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let snapshot = inspector.tables.catalog();
    let row = |(name, id): (&kymo_kernel::schema::TableName, &kymo_kernel::ids::TableId)| {
        let meta = snapshot.table_by_id(*id)?;
        let version = inspector.tables.version(*id);
        let bytes: u64 = meta.segments.values().map(|segment| segment.bytes).sum();
        let in_memory = version.as_ref().map(|version| {
            let frozen: usize = version.frozen.iter().map(|frozen| frozen.rows.rows()).sum();
            (frozen + version.hot.rows()) as u64
        });
        let time = version.as_ref().and_then(|version| version.time());
        let at = |pick: fn(&kymo_kernel::ids::TimeRange) -> i64| {
            time.as_ref().map_or(Cell::Null, |time| Cell::Time(pick(time)))
        };
        Some(vec![
            Cell::Text(name.database.clone()),
            Cell::Text(name.schema.clone()),
            Cell::Text(name.table.clone()),
            number(meta.def.schema.columns.len() as u64),
            Cell::Truth(meta.def.options.append_only),
            number(version.as_ref().map_or(0, |version| version.stored_rows())),
            number(in_memory.unwrap_or_default()),
            number(meta.segments.len() as u64),
            number(bytes),
            at(|time| time.first),
            at(|time| time.last),
            snapshot.retention_ns(name).map_or(Cell::Null, |ns| Cell::Text(retention::shown(ns))),
        ])
    };
    snapshot.names.iter().filter_map(row).collect()
}

fn segments(inspector: &Inspector, _: &SessionContext) -> Vec<Vec<Cell>> {
    let snapshot = inspector.tables.catalog();
    let mut rows = Vec::new();
    for (name, id) in snapshot.names.iter() {
        let Some(meta) = snapshot.table_by_id(*id) else { continue };
        for segment in meta.segments.values() {
            rows.push(vec![
                Cell::Text(name.database.clone()),
                Cell::Text(name.schema.clone()),
                Cell::Text(name.table.clone()),
                Cell::Text(segment.id.to_string()),
                Cell::Text(segment.path.clone()),
                number(segment.bytes),
                number(segment.rows),
                number(u64::from(segment.level)),
                Cell::Time(segment.time.first),
                Cell::Time(segment.time.last),
                Cell::Text(Tier::of(segment).as_str().to_owned()),
            ]);
        }
    }
    rows
}

/// Settings that tell about the machine and its accounts: for administrators only.
const GUARDED: [&str; 10] = [
    "alerts.channels.",
    "alerts.rules_dir",
    "auth.",
    "plugins.install_folder",
    "server.data_dir",
    "server.tls_",
    "storage.access_key_id",
    "storage.cold_url",
    "storage.endpoint",
    "storage.url",
];

/// Whether a setting is one that nobody is shown.
fn is_secret(name: &str) -> bool {
    ["password", ".secret"].iter().any(|part| name.contains(part))
}

/// Every setting of the server by its full name. Secrets are not shown.
fn settings(inspector: &Inspector, session: &SessionContext) -> Vec<Vec<Cell>> {
    let mut found = Vec::new();
    if let Ok(value) = serde_json::to_value(inspector.settings.as_ref()) {
        flatten(String::new(), &value, &mut found);
    }
    let row = |(name, value): (String, Option<String>)| {
        let value = match value {
            Some(_) if is_secret(&name) => Cell::Text("***".to_owned()),
            Some(_) if !session.admin && GUARDED.iter().any(|each| name.starts_with(each)) => {
                Cell::Text(HIDDEN.to_owned())
            }
            Some(value) => Cell::Text(value),
            None => Cell::Null,
        };
        vec![Cell::Text(name), value]
    };
    found.into_iter().map(row).collect()
}

/// The leaves of a tree by their full names.
fn flatten(name: String, value: &serde_json::Value, found: &mut Vec<(String, Option<String>)>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let full = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(full, value, found);
            }
        }
        serde_json::Value::Null => found.push((name, None)),
        serde_json::Value::String(text) => found.push((name, Some(text.clone()))),
        other => found.push((name, Some(other.to_string()))),
    }
}

/// Every system table.
fn all() -> impl Iterator<Item = &'static SystemTable> {
    TABLES.iter().chain(plugins::TABLES).chain(continuous::TABLES).chain([
        &alert_files::TABLE,
        &channels::TABLE,
        &compactions::TABLE,
    ])
}

/// The names of the system tables.
pub(super) fn names() -> Vec<String> {
    let stored = [rejected::TABLE, history::HISTORY];
    all().map(|table| table.name).chain(stored).map(str::to_owned).collect()
}

/// The columns of a system table.
pub(super) fn schema(name: &str) -> Option<SchemaRef> {
    if name == rejected::TABLE {
        return Some(rejected::schema());
    }
    if name == history::HISTORY {
        return Some(history::schema().arrow());
    }
    all().find(|table| table.name == name).map(SystemTable::schema)
}

impl SystemTable {
    fn schema(&self) -> SchemaRef {
        let fields = self.columns.iter().map(|(name, kind)| {
            let data_type = match kind {
                Kind::Text => DataType::Utf8,
                Kind::Number => DataType::Int64,
                Kind::Truth => DataType::Boolean,
                Kind::Time => time_type(),
                Kind::Float => DataType::Float64,
            };
            Field::new(*name, data_type, true)
        });
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn batch(&self, inspector: &Inspector, session: &SessionContext) -> Result<RecordBatch> {
        let rows = (self.rows)(inspector, session);
        let columns = self.columns.iter().enumerate().map(|(at, (_, kind))| -> ArrayRef {
            let cells = rows.iter().map(|row| &row[at]);
            match kind {
                Kind::Text => Arc::new(StringArray::from_iter(cells.map(|cell| match cell {
                    Cell::Text(text) => Some(text.as_str()),
                    _ => None,
                }))),
                Kind::Number => Arc::new(Int64Array::from_iter(cells.map(|cell| match cell {
                    Cell::Number(value) => Some(*value),
                    _ => None,
                }))),
                Kind::Float => Arc::new(Float64Array::from_iter(cells.map(|cell| match cell {
                    Cell::Float(value) => Some(*value),
                    _ => None,
                }))),
                Kind::Truth => Arc::new(BooleanArray::from_iter(cells.map(|cell| match cell {
                    Cell::Truth(value) => Some(*value),
                    _ => None,
                }))),
                Kind::Time => {
                    let times = TimestampNanosecondArray::from_iter(cells.map(|cell| match cell {
                        Cell::Time(value) => Some(*value),
                        _ => None,
                    }));
                    Arc::new(times.with_data_type(time_type()))
                }
            }
        });
        Ok(RecordBatch::try_new(self.schema(), columns.collect())?)
    }
}

/// The schema of a database as the engine sees it.
#[derive(Debug)]
pub(super) struct SystemSchema {
    pub(super) inspector: Arc<Inspector>,
    /// The table of refused rows, the only one that each database has for itself.
    pub(super) rejected: Arc<Rejected>,
    /// The table of what became of alerts, which all databases show.
    pub(super) alert_history: Arc<Rejected>,
}

#[async_trait]
impl SchemaProvider for SystemSchema {
    fn table_names(&self) -> Vec<String> {
        names()
    }

    async fn table(&self, name: &str) -> Result<Option<Arc<dyn TableProvider>>, DataFusionError> {
        if name == rejected::TABLE {
            return Ok(Some(self.rejected.clone()));
        }
        if name == history::HISTORY {
            return Ok(Some(self.alert_history.clone()));
        }
        let Some(table) = all().find(|table| table.name == name) else { return Ok(None) };
        Ok(Some(Arc::new(View { table, inspector: self.inspector.clone() })))
    }

    async fn table_type(&self, name: &str) -> Result<Option<TableType>, DataFusionError> {
        Ok(self.table_exist(name).then_some(TableType::View))
    }

    fn table_exist(&self, name: &str) -> bool {
        name == rejected::TABLE || name == history::HISTORY || all().any(|table| table.name == name)
    }
}

/// A system table: filled when it is scanned, with what the session that asks may see.
struct View {
    table: &'static SystemTable,
    inspector: Arc<Inspector>,
}

impl fmt::Debug for View {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "View({})", self.table.name)
    }
}

#[async_trait]
impl TableProvider for View {
    fn schema(&self) -> SchemaRef {
        self.table.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(session) = Caller::of(state.config_options()) else {
            return internal_err!("system.{} needs a session", self.table.name);
        };
        let batch = self.table.batch(&self.inspector, session)?;
        let schema = batch.schema();
        let scan = MemorySourceConfig::try_new_exec(&[vec![batch]], schema, projection.cloned())?;
        Ok(scan)
    }
}
